"""The bar schema ``k1``: one bar as one msgpack array, and its codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from .decoding import DECODE_ERRORS, printable, reason_of
from .errors import CodecError, EncodeError
from .numbers import decode_price, encode_number, encode_price
from .ticks import check_extra

__all__ = ["BAR_FIELDS", "Bar", "BarRow", "bar_from_row", "decode_bar", "encode_bar"]

BAR_FIELDS: Final[tuple[tuple[str, str, str], ...]] = (
    ("time", "int", "ms since the epoch: the bar's label"),
    ("open", "price", "yuan"),
    ("high", "price", "yuan"),
    ("low", "price", "yuan"),
    ("close", "price", "yuan"),
    ("volume", "int", "lots"),
    ("amount", "float", "yuan"),
    ("settelementPrice", "price", "yuan; futures and options"),
    ("openInterest", "int", "contracts; futures and options"),
    ("preClose", "price", "yuan"),
    ("suspendFlag", "int", "0 normal, 1 suspended, -1 resumed that day"),
    ("closed", "bool", "false while the bar still forms"),
)
"""Fields of ``k1`` in order: name, kind, unit. After them comes ``extra``."""

_NAMES: Final = tuple(name for name, _, _ in BAR_FIELDS)
_Number = int | float
BarRow = tuple[
    int,
    _Number | None,
    _Number | None,
    _Number | None,
    _Number | None,
    _Number | None,
    _Number | None,
    _Number | None,
    _Number | None,
    _Number | None,
    _Number | None,
    bool,
    dict[str, Any] | None,
]
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(BarRow).decode


def encode_bar(bar: Mapping[str, Any]) -> bytes:
    """Encode one bar as ``k1``; ``time`` and ``closed`` are required.

    Raises
    ------
    EncodeError
        When a named field is missing that must be there, or is not a number.
    """
    try:
        extra = {key: value for key, value in bar.items() if key not in _NAMES}
        row = [_encode_field(kind, bar.get(name)) for name, kind, _ in BAR_FIELDS]
        if not isinstance(row[0], int) or not isinstance(row[11], bool):
            raise TypeError("'time' and 'closed' must be there")
        return _encode((*row, extra or None))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise EncodeError(f"The bar cannot be written as k1: {error}.") from error


def _encode_field(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind == "bool":
        return bool(value)
    return encode_price(value) if kind == "price" else encode_number(value)


class Bar(dict[str, Any]):
    """One bar: a dict with xtquant's own keys and ``closed``, and where it lies.

    Attributes
    ----------
    code, period : str
        Whose bar, and of which length.
    id : str
        Entry id in its stream, ``<label ms>-<number>``; empty where there is none.
    """

    __slots__ = ("code", "id", "period")

    def __init__(self, values: Mapping[str, Any], code: str, period: str, entry_id: str) -> None:
        super().__init__(values)
        self.code = code
        self.period = period
        self.id = entry_id

    @property
    def closed(self) -> bool:
        """Whether the bar will not change any more."""
        return bool(self.get("closed"))


def decode_bar(data: Any, code: str = "", period: str = "", entry_id: str = "") -> Bar:
    """Decode ``k1`` bytes (or a view of them) into a bar with xtquant's names, prices in yuan.

    Raises
    ------
    CodecError
        When the bytes are not ``k1``.
    """
    try:
        row = _decode(data)
        if row[12]:
            check_extra(row[12], _NAMES)
    except DECODE_ERRORS as error:
        name = printable(code)
        raise CodecError(
            f"{name} {printable(period)} {printable(entry_id)}: not a k1 bar: {reason_of(error)}.",
            code=name,
            id=printable(entry_id),
        ) from error
    return bar_from_row(row, code, period, entry_id)


def bar_from_row(row: BarRow, code: str, period: str, entry_id: str) -> Bar:
    """Make a `Bar` of a decoded ``k1`` array."""
    values: dict[str, Any] = {}
    for (name, kind, _), value in zip(BAR_FIELDS, row, strict=False):
        if value is not None:
            values[name] = _decode_field(kind, value)
    if row[12]:
        values.update(row[12])
    return Bar(values, code, period, entry_id)


def _decode_field(kind: str, value: Any) -> Any:
    if kind == "price":
        return decode_price(value)
    return float(value) if kind == "float" else value
