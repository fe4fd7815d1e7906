"""The tick schema ``t1``: one tick as one msgpack array, and its codec.

The array holds, in schema order, the 22 fields that xtdata pushes, then a map of all other keys
(or nil), then one byte of flags. A missing field is nil. A price is an integer in 1/10000 yuan,
or, where that would change it by more than `PRICE_TOLERANCE` yuan, the literal float: integer
means scaled, float means literal. Other numbers are as they came, whole floats as integers.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import IntFlag
from operator import itemgetter
from typing import Any, Final, TypeGuard

import msgspec
import numpy as np

from .decoding import DECODE_ERRORS, check_plain, printable, reason_of
from .errors import CodecError, EncodeError
from .numbers import (
    decode_price,
    decode_prices,
    encode_number,
    encode_price,
    scale_prices,
)
from .times import CHINA

__all__ = [
    "PHASES",
    "TICK_FIELDS",
    "Tick",
    "TickFlag",
    "TickRow",
    "check_extra",
    "decode_row",
    "decode_tick",
    "encode_tick",
    "encode_ticks",
    "exchange_ms",
    "tick_from_row",
]

TICK_FIELDS: Final[tuple[tuple[str, str, str], ...]] = (
    # name, kind, unit
    ("time", "time", "ms since the epoch, as the terminal sent it"),
    ("lastPrice", "price", "yuan"),
    ("open", "price", "yuan"),
    ("high", "price", "yuan"),
    ("low", "price", "yuan"),
    ("lastClose", "price", "yuan"),
    ("amount", "float", "yuan, cumulative of the day"),
    ("volume", "int", "lots, cumulative of the day"),
    ("pvolume", "int", "shares on most terminals, cumulative of the day"),
    ("stockStatus", "int", "obsolete, not to be interpreted"),
    (
        "openInt",
        "int",
        "trading phase; open interest for futures and options",
    ),
    ("transactionNum", "int", "trades of the day"),
    ("lastSettlementPrice", "price", "yuan"),
    ("settlementPrice", "price", "yuan"),
    ("pe", "float", "ratio"),
    ("askPrice", "prices", "yuan, level 1 first, 0 where a level is empty"),
    ("bidPrice", "prices", "yuan, level 1 first, 0 where a level is empty"),
    ("askVol", "ints", "lots"),
    ("bidVol", "ints", "lots"),
    ("volRatio", "float", "ratio"),
    ("speed1Min", "float", "percent"),
    ("speed5Min", "float", "percent"),
)
"""Fields of ``t1`` in order: name, kind, unit. After them come ``extra`` and ``flags``."""

PHASES: Final[dict[int, str]] = {
    11: "pre-open",
    12: "call auction",
    13: "continuous",
    14: "lunch break",
    15: "closed",
    16: "volatility halt",
    17: "suspended",
    18: "closing auction",
    19: "intraday auction",
    20: "halted to close",
    21: "field error",
    22: "post-close fixed price",
    23: "post-close finished",
}
"""Trading phases as the terminal numbers them in a stock's ``openInt``; others are unknown."""


class TickFlag(IntFlag):
    """What the bridge has to say about a tick; the last element of ``t1``."""

    LATE = 1
    """Older than what the stream already held: stored after it, own time kept."""
    CLAMPED = 2
    """Its time lay in the future: the entry id is Redis time."""
    TIME_FROM_TIMETAG = 4
    """It had no ``time``: the entry id is taken from ``timetag``."""
    TIME_FROM_RECEIPT = 8
    """It had no time at all: the entry id is the time of receipt."""


_NAMES: Final = tuple(name for name, _, _ in TICK_FIELDS)
_KNOWN: Final = frozenset(_NAMES)
_values: Final = itemgetter(*_NAMES)

_Number = int | float
TickRow = tuple[
    int | None,  # time
    _Number | None,  # lastPrice
    _Number | None,  # open
    _Number | None,  # high
    _Number | None,  # low
    _Number | None,  # lastClose
    _Number | None,  # amount
    _Number | None,  # volume
    _Number | None,  # pvolume
    _Number | None,  # stockStatus
    _Number | None,  # openInt
    _Number | None,  # transactionNum
    _Number | None,  # lastSettlementPrice
    _Number | None,  # settlementPrice
    _Number | None,  # pe
    list[_Number] | None,  # askPrice
    list[_Number] | None,  # bidPrice
    list[_Number] | None,  # askVol
    list[_Number] | None,  # bidVol
    _Number | None,  # volRatio
    _Number | None,  # speed1Min
    _Number | None,  # speed5Min
    dict[str, Any] | None,  # extra
    int,  # flags
]
"""One decoded ``t1`` array, prices still scaled."""

_LAST_MS: Final = 10**14
"""Later than this (5138) there is no entry id."""
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(TickRow).decode


class Tick(dict[str, Any]):
    """One tick: a dict with xtquant's own keys, and what the bridge knows beside them.

    Attributes
    ----------
    code : str
        Instrument code, such as ``600519.SH``.
    id : str
        Entry id in the code's stream, ``<exchange ms>-<number>``; empty where there is none.
    flags : TickFlag
        Marks set on the way: late, clamped, where its time came from.
    """

    __slots__ = ("code", "flags", "id")

    def __init__(self, values: Mapping[str, Any], code: str, entry_id: str, flags: int) -> None:
        super().__init__(values)
        self.code = code
        self.id = entry_id
        self.flags = TickFlag(flags)

    @property
    def time_ms(self) -> int:
        """Exchange time in ms since the epoch; the entry id's where the tick had none."""
        own = self.get("time")
        return int(own) if _is_time(own) else int(self.id.partition("-")[0] or 0)

    @property
    def late(self) -> bool:
        """Whether the tick was older than what its stream already held."""
        return bool(self.flags & TickFlag.LATE)

    @property
    def phase(self) -> str:
        """Trading phase by name; ``unknown`` where the terminal gives none."""
        return PHASES.get(self.get("openInt", 0), "unknown")


def encode_tick(tick: Mapping[str, Any], flags: int = 0) -> bytes:
    """Encode one tick as ``t1``.

    Parameters
    ----------
    tick
        xtquant's dict; any key may be missing, unknown keys are kept.
    flags
        `TickFlag` bits, below 128.

    Raises
    ------
    EncodeError
        When a named field holds something other than its kind.
    """
    try:
        row: list[Any] = [
            None if (value := tick.get(name)) is None else _ENCODE[kind](value)
            for name, kind, _ in TICK_FIELDS
        ]
        extra = {
            str(key): _plain(value)
            for key, value in tick.items()
            if key not in _KNOWN or value is None
        }
        return _encode((*row, extra or None, flags))
    except (TypeError, ValueError, OverflowError, AttributeError, msgspec.MsgspecError) as error:
        raise EncodeError(f"The tick cannot be written as t1: {error}.") from error


def encode_ticks(ticks: Sequence[Mapping[str, Any]]) -> list[bytes | EncodeError]:
    """Encode a batch; a tick that cannot be encoded gives its `EncodeError` in its place.

    Full ticks, as a whole-market push brings them, are scaled together by numpy, which is the
    fast way; every other tick goes through `encode_tick`. Both give the same bytes.
    """
    done: list[bytes | EncodeError | None] = [None] * len(ticks)
    full: list[int] = []
    rows: list[tuple[Any, ...]] = []
    prices: list[float] = []
    for at, tick in enumerate(ticks):
        row = _full_row(tick)
        if row is None:
            done[at] = _encode_or_error(tick)
        else:
            full.append(at)
            rows.append(row)
            prices += (*row[1:6], row[12], row[13], *row[15], *row[16])
    try:
        all_scaled = _scale_all(prices)
    except OverflowError:  # an int beyond any float
        return [_encode_or_error(tick) for tick in ticks]
    for at, row, scaled in zip(full, rows, all_scaled, strict=True):
        try:
            done[at] = _encode(
                (
                    int(row[0]),
                    *scaled[:5],
                    encode_number(row[6]),
                    int(row[7]),
                    int(row[8]),
                    *row[9:12],
                    *scaled[5:7],
                    encode_number(row[14]),
                    scaled[7:12],
                    scaled[12:],
                    row[17],
                    row[18],
                    encode_number(row[19]),
                    encode_number(row[20]),
                    encode_number(row[21]),
                    None,
                    0,
                )
            )
        except OverflowError:
            done[at] = _encode_or_error(ticks[at])
    return [one for one in done if one is not None]


_WHOLE: Final = itemgetter(0, 7, 8)
_SMALL: Final = itemgetter(9, 10, 11)
_LITERAL: Final = itemgetter(1, 2, 3, 4, 5, 6, 12, 13, 14, 19, 20, 21)
_PRICES_PER_TICK: Final = 17


def _full_row(tick: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return a tick's values when it is exactly as a whole-market push brings it."""
    try:
        row = _values(tick)
        ask, bid, ask_vol, bid_vol = row[15:19]
        if len(tick) != len(_NAMES) or len(ask) != 5 or len(bid) != 5:
            return None
        types = set(map(type, (*_LITERAL(row), *ask, *bid)))
        small = set(map(type, (*_SMALL(row), *ask_vol, *bid_vol)))
        whole = set(map(type, _WHOLE(row)))
    except (KeyError, TypeError):
        return None
    if types <= _FLOATS and small <= _INTS and type(ask_vol) is type(bid_vol) is list:
        # BSON's Int64 is an int of another name.
        return row if all(issubclass(one, int) and one is not bool for one in whole) else None
    return None


_INTS: Final = {int}
_FLOATS: Final = {int, float}


def _scale_all(prices: list[float]) -> list[list[Any]]:
    """Scale the 17 prices of each tick."""
    scaled = scale_prices(np.array(prices, dtype=np.float64))
    step = _PRICES_PER_TICK
    return [scaled[at : at + step] for at in range(0, len(prices), step)]


def _encode_or_error(tick: Mapping[str, Any]) -> bytes | EncodeError:
    try:
        return encode_tick(tick)
    except EncodeError as error:
        return error


def decode_tick(data: bytes, code: str, entry_id: str = "") -> Tick:
    """Decode ``t1`` bytes.

    Raises
    ------
    CodecError
        When the bytes are not ``t1``.
    """
    return tick_from_row(decode_row(data, code, entry_id), code, entry_id)


def decode_row(data: Any, code: str, entry_id: str = "") -> TickRow:
    """Decode ``t1`` bytes (or a view of them) into the array that they are, prices still scaled.

    Raises
    ------
    CodecError
        When the bytes are not ``t1``.
    """
    try:
        row: TickRow = _decode(data)
        if row[22]:
            check_extra(row[22], _KNOWN)
    except DECODE_ERRORS as error:
        name = printable(code)
        raise CodecError(
            f"{name} {printable(entry_id)}: not a t1 tick: {reason_of(error)}.",
            code=name,
            id=printable(entry_id),
        ) from error
    return row


_EXTRA_DEPTH: Final = 8


def check_extra(extra: Mapping[str, Any], named: Collection[str]) -> None:
    """Make sure that a tick's or bar's other keys are others, and of plain values.

    Raises
    ------
    ValueError
    """
    check_plain(extra, _EXTRA_DEPTH)
    for name, value in extra.items():
        if value is not None and name in named:
            raise ValueError(f"{name} stands among the keys that have no place of their own")


def tick_from_row(row: TickRow, code: str, entry_id: str = "") -> Tick:
    """Make a `Tick` of a decoded ``t1`` array, prices in yuan."""
    values = {
        name: value if (turn := _DECODE.get(kind)) is None else turn(value)
        for (name, kind, _), value in zip(TICK_FIELDS, row, strict=False)
        if value is not None
    }
    extra = row[22]
    if extra:
        values.update(extra)
    return Tick(values, code, entry_id, row[23] & 0x7F)


def exchange_ms(tick: Mapping[str, Any], received_ms: int) -> tuple[int, int]:
    """Return the ms that orders a tick and the flags that say where it comes from.

    ``time`` first, then ``timetag`` (``YYYYMMDD HH:MM:SS[.fff]`` in China time), then the time of
    receipt; a zero, negative or unreadable value counts as missing.
    """
    own = tick.get("time")
    if _is_time(own):
        return int(own), 0
    tagged = _timetag_ms(tick.get("timetag"))
    if tagged:
        return tagged, int(TickFlag.TIME_FROM_TIMETAG)
    return received_ms, int(TickFlag.TIME_FROM_RECEIPT)


def _is_time(own: Any) -> TypeGuard[float]:
    """Whether what a terminal sent as ``time`` is one: a date can be made of it."""
    return isinstance(own, (int, float)) and math.isfinite(own) and 0 < own < _LAST_MS


def _timetag_ms(tag: object) -> int:
    if not isinstance(tag, str):
        return 0
    for shape in ("%Y%m%d %H:%M:%S", "%Y%m%d %H:%M:%S.%f"):
        try:
            at = dt.datetime.strptime(tag, shape).replace(tzinfo=CHINA)
        except ValueError:
            continue
        return max(0, int(at.timestamp() * 1000))
    return 0


def _encode_int(value: Any) -> int | float:
    if isinstance(value, bool):
        raise TypeError(f"{value!r} is not a number")
    return encode_number(value)


def _encode_time(value: Any) -> int:
    whole = encode_number(value)
    if isinstance(whole, float):
        raise TypeError(f"time {value!r} is not a whole number of ms")
    return whole


def _plain(value: Any) -> Any:
    """Turn what msgpack does not know (BSON's Int64, numpy scalars) into plain Python."""
    if isinstance(value, (str, bytes, bool)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return encode_number(value)


_ENCODE: Final[dict[str, Callable[[Any], Any]]] = {
    "time": _encode_time,
    "price": encode_price,
    "prices": lambda values: [encode_price(value) for value in _a_list(values)],
    "float": encode_number,
    "int": _encode_int,
    "ints": lambda values: [_encode_int(value) for value in _a_list(values)],
}
_DECODE: Final[dict[str, Any]] = {"price": decode_price, "prices": decode_prices, "float": float}


def _a_list(values: Any) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)):
        raise TypeError(f"{values!r} is not a list of numbers")
    return list(values)
