"""Reads of history: what of the market is in the cache, padded and shaped as the terminal does.

Bounds are closed at both ends. A date-only end means that whole day; daily and longer bars look
at the date alone. Adjusted prices stay unrounded, as `Market.adjusted` gives them.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from qmt_simulator import tickrows
from qmt_simulator.cache import BASE_PERIOD, Cache, Readable
from qmt_simulator.clock import CHINA, CHINA_OFFSET_MS, DAY_MS, day_of, day_start_ms

if TYPE_CHECKING:
    from qmt_simulator.market import Bars, Market
    from qmt_simulator.profiles import Profile

BAR_COLUMNS: Final = {
    "time": "<i8",
    "open": "<f8",
    "high": "<f8",
    "low": "<f8",
    "close": "<f8",
    "volume": "<i8",
    "amount": "<f8",
    "settelementPrice": "<f8",
    "openInterest": "<i8",
    "preClose": "<f8",
    "suspendFlag": "<i4",
}
TICK_COLUMNS: Final = (
    "time", "lastPrice", "open", "high", "low", "lastClose", "amount", "volume", "pvolume",
    "tickvol", "stockStatus", "openInt", "lastSettlementPrice", "askPrice", "bidPrice", "askVol",
    "bidVol", "settlementPrice", "transactionNum", "pe",
)  # fmt: skip
DIVIDEND_TYPES: Final = frozenset({"none", "front", "back", "front_ratio", "back_ratio", ""})
DAILY: Final = frozenset({"1d", "1w", "1mon", "1q", "1hy", "1y"})
PADDED: Final = frozenset({"1m", "5m", "15m", "30m", "60m", "1h", "1d"})
_FORMATS: Final = {8: "%Y%m%d", 14: "%Y%m%d%H%M%S"}
GRID_CODE: Final = "000001.SH"

Ints = npt.NDArray[np.int64]
Table = list[Any]
"""[code, index numbers as int64 bytes, [[field, dtype, bytes], ...]]"""


class QueryError(ValueError):
    """A request that the terminal answers with a line on its stdout and nothing else."""


class BoundError(ValueError):
    """A start or end that the terminal does not understand."""


def parse_bound(value: str | int, *, end: bool) -> int | None:
    """Return ms since the epoch of a bound, None where it is open.

    Parameters
    ----------
    value : str or int
        '', 'YYYYMMDD', 'YYYYMMDDHHMMSS' in China time, or ms since the epoch (0 or less: open).
    end : bool
        A date alone then means the day's last millisecond.
    """
    if isinstance(value, int):
        return value if value > 0 else None
    if not value:
        return None
    if not value.isdigit() or len(value) not in _FORMATS:
        raise BoundError(value)
    try:
        moment = dt.datetime.strptime(value, _FORMATS[len(value)]).replace(tzinfo=CHINA)
    except ValueError as error:
        raise BoundError(value) from error
    at_ms = int(moment.timestamp() * 1000)
    if not end:
        return at_ms
    return at_ms + (DAY_MS if len(value) == 8 else 1000) - 1


def stamps(times_ms: Ints, *, daily: bool) -> Ints:
    """Return the index numbers YYYYMMDD or YYYYMMDDHHMMSS of times, in China time."""
    seconds = (times_ms + CHINA_OFFSET_MS) // 1000
    days = seconds // 86_400
    dates = days.astype("datetime64[D]")
    months = dates.astype("datetime64[M]").astype(np.int64)
    number = (1970 + months // 12) * 10_000 + (months % 12 + 1) * 100
    number += (dates - dates.astype("datetime64[M]")).astype(np.int64) + 1
    if not daily:
        rest = seconds - days * 86_400
        number = number * 1_000_000 + rest // 3600 * 10_000 + rest // 60 % 60 * 100 + rest % 60
    return number


def well_formed(code: str) -> bool:
    """Return whether a code looks like `name.MARKET`."""
    name, dot, market = code.rpartition(".")
    return bool(dot and name and market.isalpha() and market.isupper() and "." not in name)


@dataclasses.dataclass(frozen=True)
class Query:
    """One `get_market_data3` request, its bounds parsed."""

    fields: Sequence[str]
    period: str
    start_ms: int | None
    end_ms: int
    count: int
    dividend_type: str
    fill: bool
    from_server: bool
    now_ms: int

    @property
    def daily(self) -> bool:
        return self.period in DAILY


class History:
    """Answers history reads of one terminal."""

    def __init__(self, market: Market, cache: Cache, profile: Profile) -> None:
        self._market = market
        self._cache = cache
        self._profile = profile
        self._patterns: dict[tuple[str, int], Ints] = {}

    def query(
        self,
        fields: Sequence[str],
        period: str,
        start: str | int,
        end: str | int,
        count: int,
        dividend_type: str,
        fill: bool,
        from_server: bool,
        now_ms: int,
    ) -> Query:
        """Return the parsed request.

        Raises
        ------
        QueryError
            With the line that the native side prints on its stdout.
        """
        if period not in BASE_PERIOD:
            raise QueryError(f"周期错误 {period}, 可以用<get_period_list>函数获取支持的周期")
        if dividend_type not in DIVIDEND_TYPES:
            raise QueryError(f"除权方式错误 {dividend_type}")
        try:
            start_ms = parse_bound(start, end=False)
        except BoundError as error:
            raise QueryError(f"起始时间错误 {start}") from error
        try:
            end_ms = parse_bound(end, end=True)
        except BoundError as error:
            raise QueryError(f"结束时间错误 {end}") from error
        if period in DAILY:
            start_ms = None if start_ms is None else day_start_ms(day_of(start_ms))
            end_ms = None if end_ms is None else day_start_ms(day_of(end_ms)) + DAY_MS - 1
        return Query(
            fields, period, start_ms, now_ms + DAY_MS if end_ms is None else end_ms, count,
            dividend_type, fill, from_server, now_ms,
        )  # fmt: skip

    def table(self, code: str, query: Query) -> Table | None:
        """Return one code's table; None where the terminal leaves the code out.

        Raises
        ------
        QueryError
            For a malformed code, with the line that the native side prints.
        """
        if not well_formed(code):
            raise QueryError(f"代码错误，代码:{code}")
        return self._ticks(code, query) if query.period == "tick" else self._bars(code, query)

    def live_day_ms(self, now_ms: int) -> int:
        """Return 00:00 of the newest trading day, which a subscription makes readable."""
        today = day_of(now_ms)
        days = self._market.trading_days(day_of(now_ms - 30 * DAY_MS), today, now_ms)
        return day_start_ms(days[-1] if days else today)

    # -- bars ---------------------------------------------------------------------------------

    def _bars(self, code: str, query: Query) -> Table | None:
        if code not in self._market.index:
            if not self._profile.unknown_code_is_empty:
                return None
            return _bar_table(code, _empty_bars(), query)
        if query.count == 0:
            return _bar_table(code, _empty_bars(), query)
        readable = self._cache.readable(code, BASE_PERIOD[query.period], live=query.from_server)
        bars = self._readable_bars(code, query, readable)
        columns = {name: getattr(bars, name) for name in BAR_COLUMNS}
        if query.fill and query.period in PADDED:
            columns = self._pad(code, query, columns)
        if query.count > 0:
            columns = {name: values[-query.count :] for name, values in columns.items()}
        return _bar_table(code, columns, query)

    def _readable_bars(self, code: str, query: Query, readable: Readable) -> Bars:
        first_ms = readable.first_ms()
        seen_ms = readable.seen_until_ms(query.now_ms)
        if first_ms is None:
            first_ms, seen_ms = query.now_ms + 2 * DAY_MS, query.now_ms
        low_ms = max(first_ms, query.start_ms or 0)
        if query.period in DAILY and query.period != "1d":
            # A week's bar may bear any of its days.
            low_ms -= 366 * DAY_MS if query.start_ms is None else 0
        guess_ms = low_ms
        if query.count > 0 and query.start_ms is None:
            newest_ms = min(query.end_ms, query.now_ms)
            guess_ms = max(low_ms, newest_ms - _reach_days(query.period, query.count) * DAY_MS)
        bars = self._masked(code, query, readable, guess_ms, seen_ms)
        if guess_ms > low_ms and len(bars.time) < query.count:
            bars = self._masked(code, query, readable, low_ms, seen_ms)
        if query.dividend_type not in ("none", ""):
            if query.period not in DAILY or query.period == "1d":
                # Ex-dates since the download count too.
                bars.as_of_ms = query.now_ms
            bars = self._market.adjusted(code, bars, query.dividend_type)
        return bars

    def _masked(
        self, code: str, query: Query, readable: Readable, low_ms: int, seen_ms: int
    ) -> Bars:
        bars = self._market.bars(code, query.period, low_ms, query.end_ms, seen_ms)
        keep = np.zeros(len(bars.time), dtype=bool)
        for span in readable.spans:
            keep |= (bars.time >= span.start_ms) & (bars.time <= span.end_ms)
        if readable.live_from_ms is not None:
            keep |= bars.time >= readable.live_from_ms
        bars = bars if keep.all() else bars.take(keep)
        return self._with_edges(code, bars, query, readable) if query.period == "1d" else bars

    def _with_edges(self, code: str, bars: Bars, query: Query, readable: Readable) -> Bars:
        """Put in daily bars as they were when their day was last looked at, before its end."""
        today_ms = day_start_ms(day_of(query.now_ms))
        for day_ms, as_of_ms in readable.edges.items():
            (found,) = np.nonzero(bars.time == day_ms)
            if not len(found) or (day_ms == today_ms and readable.live_from_ms is not None):
                continue
            then = self._market.bars(code, "1d", day_ms, day_ms, as_of_ms)
            if not len(then.time):
                continue
            columns = {name: getattr(bars, name).copy() for name in BAR_COLUMNS}
            for name, values in columns.items():
                values[found] = getattr(then, name)
            bars = dataclasses.replace(bars, **columns)
        return bars

    def _pad(self, code: str, query: Query, columns: dict[str, Any]) -> dict[str, Any]:
        have: Ints = columns["time"]
        grid = self._grid(code, query, have)
        missing = np.setdiff1d(grid, have, assume_unique=True)
        if not len(missing):
            return columns
        times = np.sort(np.concatenate([have, missing]))
        real = np.ones(len(times), dtype=bool)
        real[np.searchsorted(times, missing)] = False
        # For each row the last real row at or before it, -1 where there is none yet.
        source = np.cumsum(real) - 1
        before = source < 0
        if self._profile.pads_with_zero:
            lead = 0.0
        elif len(have):
            lead = float(columns["preClose"][0])
        else:
            detail = self._market.detail(code, query.now_ms)
            lead = float(detail["PreClose"]) if detail else 0.0
        carried = _carry(columns["close"], source, lead)
        padded: dict[str, Any] = {"time": times}
        for name, kind in BAR_COLUMNS.items():
            if name == "time":
                continue
            if name in ("open", "high", "low", "close", "preClose"):
                values = carried.copy()
            elif name == "suspendFlag":
                values = np.ones(len(times), dtype=kind)
            elif name in ("settelementPrice", "openInterest"):
                values = _carry(columns[name], source, 0)
                values[before] = 0
            else:
                values = np.zeros(len(times), dtype=kind)
            values[real] = columns[name]
            padded[name] = values
        return padded

    def _grid(self, code: str, query: Query, have: Ints) -> Ints:
        """Return the labels that bars of this range should have."""
        end_ms = min(query.end_ms, query.now_ms)
        if query.start_ms is not None:
            start_ms = query.start_ms
        elif query.count > 0:
            start_ms = end_ms - _reach_days(query.period, query.count) * DAY_MS
        elif len(have):
            start_ms = int(have[0])
        else:
            return np.empty(0, dtype=np.int64)
        detail = self._market.detail(code, query.now_ms)
        if detail is not None and 19000000 < int(detail["OpenDate"]) < 99999999:
            start_ms = max(start_ms, day_start_ms(int(detail["OpenDate"])))
        if start_ms > end_ms:
            return np.empty(0, dtype=np.int64)
        days = self._market.trading_days(day_of(start_ms), day_of(end_ms), query.now_ms)
        if query.period == "1d":
            grid = np.array([day_start_ms(day) for day in days], dtype=np.int64)
        else:
            parts = [day_start_ms(day) + self._pattern(query, day) for day in days]
            grid = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return grid[(grid >= start_ms) & (grid <= end_ms)]

    def _pattern(self, query: Query, day: int) -> Ints:
        """Return the labels of one day, from its midnight; past days are all alike."""
        today = day_of(query.now_ms)
        key = (query.period, today if day == today else 0)
        if key not in self._patterns:
            at_ms = day_start_ms(day)
            # Around the clock only the day of the moment asked from is long.
            as_of_ms = at_ms + DAY_MS - 1 if day == today else query.now_ms
            bars = self._market.bars(GRID_CODE, query.period, at_ms, at_ms + DAY_MS - 1, as_of_ms)
            self._patterns[key] = bars.time - at_ms
        return self._patterns[key]

    # -- ticks --------------------------------------------------------------------------------

    def _ticks(self, code: str, query: Query) -> Table | None:
        if code not in self._market.index:
            return None
        readable = self._cache.readable(code, "tick", live=query.from_server)
        first_ms = readable.first_ms()
        parts: list[Any] = []
        rows = 0
        if first_ms is not None and query.count != 0:
            seen_ms = readable.seen_until_ms(query.now_ms)
            low_ms = max(first_ms, query.start_ms or 0)
            high_ms = min(query.end_ms, seen_ms)
            days = self._market.trading_days(day_of(low_ms), day_of(high_ms), query.now_ms)
            for day in reversed(days if low_ms <= high_ms else []):
                day_ticks = self._market.day_ticks(code, day, seen_ms)
                keep = (day_ticks.time >= low_ms) & (day_ticks.time <= high_ms)
                covered = np.zeros_like(keep)
                for span in readable.spans:
                    covered |= (day_ticks.time >= span.start_ms) & (day_ticks.time <= span.end_ms)
                if readable.live_from_ms is not None:
                    covered |= day_ticks.time >= readable.live_from_ms
                parts.insert(0, _tick_columns(self._profile.apply(day_ticks), keep & covered))
                rows += len(parts[0]["time"])
                if 0 < query.count <= rows:
                    break
        columns = {
            name: np.concatenate([part[name] for part in parts]) if parts else _no_ticks(name)
            for name in TICK_COLUMNS
        }
        if query.count > 0:
            columns = {name: values[-query.count :] for name, values in columns.items()}
        names = query.fields or TICK_COLUMNS
        return [
            code,
            b"",
            [
                [name, columns[name].dtype.str, np.ascontiguousarray(columns[name]).tobytes()]
                for name in names
                if name in columns
            ],
        ]


def _reach_days(period: str, count: int) -> int:
    """Return calendar days that hold `count` bars, generously."""
    per_day = {
        "1m": 240.0, "5m": 48.0, "15m": 16.0, "30m": 8.0, "60m": 4.0, "1h": 4.0, "1d": 1.0,
        "1w": 0.2, "1mon": 0.047, "1q": 0.0157, "1hy": 0.0078, "1y": 0.0039,
    }[period]  # fmt: skip
    return int(count / per_day * 1.6) + 20


def _carry(values: npt.NDArray[Any], source: Ints, lead: float) -> npt.NDArray[Any]:
    if not len(values):
        return np.full(len(source), lead, dtype=values.dtype)
    carried = values[np.maximum(source, 0)]
    carried[source < 0] = lead
    return carried


def _empty_bars() -> dict[str, Any]:
    return {name: np.empty(0, dtype=kind) for name, kind in BAR_COLUMNS.items()}


def _bar_table(code: str, columns: dict[str, Any], query: Query) -> Table:
    names = query.fields or list(BAR_COLUMNS)
    return [
        code,
        stamps(columns["time"], daily=query.daily).tobytes(),
        [
            [name, BAR_COLUMNS[name], columns[name].astype(BAR_COLUMNS[name]).tobytes()]
            for name in names
            if name in BAR_COLUMNS
        ],
    ]


def _tick_columns(ticks: Any, keep: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[Any]]:
    columns = {
        name: getattr(ticks, name)[keep].astype(tickrows.FIELDS[name])
        for name in TICK_COLUMNS
        if name != "tickvol"
    }
    volume = ticks.volume
    columns["tickvol"] = np.diff(volume, prepend=0)[keep].astype("<i8")
    return columns


def _no_ticks(name: str) -> npt.NDArray[Any]:
    kind = "<i8" if name == "tickvol" else tickrows.FIELDS[name]
    return np.empty((0, 5) if name in tickrows.DEPTH else 0, dtype=kind)
