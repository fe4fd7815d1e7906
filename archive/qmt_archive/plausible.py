"""Which values no market makes: refused on the way in, by row and column, with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from qmt_protocol.codes import asset_class
from qmt_protocol.numbers import NO_FLOAT
from qmt_protocol.periods import DAILY_PERIODS, INTRADAY_MINUTES
from qmt_protocol.times import DAY_MS

from .adding import PRICES, Ints

__all__ = ["Labels", "Wrong", "without_marks", "wrong_bar", "wrong_tick"]

_CHINA_MS: Final = 8 * 3_600_000
_OHLC: Final = ("open", "high", "low", "close")
_AMOUNTS: Final = ("volume", "pvolume", "amount", "transactionNum", "openInterest", "openInt")
_VOLUMES: Final = ("askVol", "bidVol")
_DERIVATIVES: Final = frozenset({"future", "option"})
_TOLERANCE: Final = 1e-6
"""How far, in parts of the price, a close may lie above its high: rounding, not an error."""
_FINEST_MIN: Final = 15
"""Half-hour and hour bars of futures end at quarters, for their morning has a break."""
_MANY: Final = 48
"""So many labels of one file that are all multiples of a longer period are of that period."""
_NO_BAR: Final = (
    "A bar has all four prices: leave the row out, or give a suspended day its last close."
)
_MARKS: Final = "Leave the value empty where there is none."

Bools = npt.NDArray[np.bool_]


class Wrong(NamedTuple):
    """A value that cannot be: its place in the batch, its column, what it is and what to do."""

    at: int
    column: str
    what: str
    hint: str = ""


def without_marks(values: pa.Array) -> pa.Array:
    """Return floats with null where a file says that there is no value: NaN, the largest double."""
    none = pc.or_(pc.is_nan(values), pc.greater_equal(pc.abs(values), NO_FLOAT))
    endless = pc.is_inf(values)
    return pc.if_else(pc.and_(none, pc.invert(endless)), None, values)


def wrong_tick(columns: Mapping[str, pa.Array]) -> Wrong | None:
    """Return the first value that no tick has.

    A tick may lack any price, and has 0 where a side of the book or an auction has none.
    """
    derivative = _derivatives(columns["code"])
    return _wrong_number(columns, derivative)


def wrong_bar(columns: Mapping[str, pa.Array]) -> Wrong | None:
    """Return the first value that no bar has: a price that is missing, or outside high and low."""
    derivative = _derivatives(columns["code"])
    if (wrong := _wrong_number(columns, derivative)) is not None:
        return wrong
    prices = {name: _floats(columns[name]) for name in _OHLC}
    for name, values in prices.items():
        none = np.isnan(values) | ((values == 0) & ~derivative)
        if none.any():
            at = int(none.argmax())
            what = "is 0" if values[at] == 0 else "has no value"
            return Wrong(at, name, f"the bar's {name} {what}", _NO_BAR)
    room = _TOLERANCE * np.abs(prices["close"])
    for name, side, sign in (("high", "below", 1), ("low", "above", -1)):
        for other in _OHLC:
            outside = sign * (prices[other] - prices[name]) > room
            if outside.any():
                at = int(outside.argmax())
                return Wrong(at, name, f"the bar's {name} is {side} its {other}")
    return None


def _wrong_number(columns: Mapping[str, pa.Array], derivative: Bools) -> Wrong | None:
    for name, column in columns.items():
        counts = name in _AMOUNTS or name.startswith(_VOLUMES)
        if not counts and not pa.types.is_floating(column.type):
            continue
        values = _floats(column)
        if (endless := np.isinf(values)).any():
            return Wrong(int(endless.argmax()), name, "it is infinite", _MARKS)
        below = values < 0
        if name in PRICES:
            below &= ~derivative
        elif not counts:
            continue
        if below.any():
            at = int(below.argmax())
            return Wrong(at, name, f"{values[at]:g} is below 0", _MARKS)
    return None


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    values = column.cast(pa.float64(), safe=False).fill_null(np.nan)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def _derivatives(code: pa.Array) -> Bools:
    """Return which rows are of futures or options, whose spreads may cost less than nothing."""
    code = code if pa.types.is_dictionary(code.type) else code.dictionary_encode()
    kinds = [bool(one) and asset_class(one) in _DERIVATIVES for one in code.dictionary.to_pylist()]
    found: Bools = np.array(kinds, dtype=bool)[np.asarray(code.indices.to_numpy())]
    return found


class Labels:
    """The labels of one file's bars: whether they are of the period that they are imported as."""

    def __init__(self, period: str) -> None:
        self._period = period
        self._daily = period in DAILY_PERIODS
        self._minutes = INTRADAY_MINUTES.get(period, 0)
        self._common = 0
        self._count = 0
        self._seen: set[tuple[str, int]] = set()

    def wrong(self, labels: pa.Array, codes: pa.Array) -> Wrong | None:
        """Return the first label that the period does not have; call it batch after batch."""
        at_ms = np.asarray(labels.to_numpy(zero_copy_only=False)) + _CHINA_MS
        return self._wrong_day(at_ms, codes) if self._daily else self._wrong_minute(at_ms)

    def wrong_as_a_whole(self) -> str:
        """Return why all labels together are none of the period; empty: they may be."""
        if self._daily or self._count < 2:
            return ""
        if self._common % 1440 == 0:
            return "all its labels are 00:00, as those of daily bars"
        longer = [
            length
            for length in (5, 15, 30)
            if length > min(self._minutes, 30) and self._common % length == 0
        ]
        if self._count >= _MANY and longer:
            return f"all its {self._count} labels are multiples of {longer[-1]} minutes"
        return ""

    def _wrong_minute(self, at_ms: Ints) -> Wrong | None:
        step_ms = min(self._minutes, _FINEST_MIN) * 60_000
        if (off := np.flatnonzero(at_ms % step_ms)).size:
            return Wrong(
                int(off[0]),
                "time",
                f"no {self._period} bar is labelled so",
                "A bar's label is the end of its minutes; import each file as the period it has.",
            )
        if at_ms.size:
            minutes = at_ms % DAY_MS // 60_000
            self._common = int(np.gcd.reduce(np.append(minutes, self._common)))
            self._count += int(at_ms.size)
        return None

    def _wrong_day(self, at_ms: Ints, codes: pa.Array) -> Wrong | None:
        if (off := np.flatnonzero(at_ms % DAY_MS)).size:
            return Wrong(
                int(off[0]),
                "time",
                f"no {self._period} bar is labelled so",
                "A day's bar has the label 00:00 of its day.",
            )
        days = at_ms // DAY_MS
        if self._period == "1d":
            if (free := np.flatnonzero((days + 3) % 7 >= 5)).size:
                return Wrong(int(free[0]), "time", "no exchange trades at a weekend")
            return None
        return self._twice(days, codes)

    def _twice(self, days: Ints, codes: pa.Array) -> Wrong | None:
        """Return the second bar of a code in one week, month or more."""
        months = days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
        spans = (
            (days + 3) // 7
            if self._period == "1w"
            else months // {"1mon": 1, "1q": 3, "1hy": 6, "1y": 12}[self._period]
        )
        for at, key in enumerate(zip(codes.to_pylist(), spans.tolist(), strict=True)):
            if key in self._seen:
                return Wrong(
                    at,
                    "time",
                    f"{key[0]} has a bar of this {self._period} already",
                    "Import each file as the period it has.",
                )
            self._seen.add(key)
        return None
