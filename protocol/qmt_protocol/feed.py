"""The batch schemas ``b1`` and ``c1`` of the market feed, and ``latest``'s entries.

``b1`` is a msgpack array of ``[code, entry id, t1 array]``. The publishing script puts the pieces
together in Redis, where the entry ids are made; so an encoded tick stands in it byte for byte.
``c1`` is the same for bars: ``[code, period, entry id, k1 array]``. A feed entry has one of them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .bars import Bar, BarRow, bar_from_row
from .errors import CodecError
from .ticks import Tick, TickRow, tick_from_row

__all__ = ["decode_bar_batch", "decode_batch", "decode_latest"]

_batch: Final = msgspec.msgpack.Decoder(list[tuple[str, str, TickRow]]).decode
_bar_batch: Final = msgspec.msgpack.Decoder(list[tuple[str, str, str, BarRow]]).decode
_latest: Final = msgspec.msgpack.Decoder(tuple[str, TickRow]).decode
_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError)


def decode_batch(data: bytes) -> list[Tick]:
    """Decode a feed entry's ``b1`` into its ticks, in published order.

    Raises
    ------
    CodecError
        When the bytes are not ``b1``.
    """
    try:
        rows = _batch(data)
    except _ERRORS as error:
        raise CodecError(f"Not a b1 batch: {error}.") from error
    return [tick_from_row(row, code, entry_id) for code, entry_id, row in rows]


def decode_bar_batch(data: bytes) -> list[Bar]:
    """Decode a feed entry's ``c1`` into its bars, in published order.

    Raises
    ------
    CodecError
        When the bytes are not ``c1``.
    """
    try:
        rows = _bar_batch(data)
    except _ERRORS as error:
        raise CodecError(f"Not a c1 batch: {error}.") from error
    return [bar_from_row(row, code, period, entry_id) for code, period, entry_id, row in rows]


def decode_latest(data: bytes, code: str) -> Tick:
    """Decode the ``latest`` hash's value of one code.

    Raises
    ------
    CodecError
        When the bytes are not ``[entry id, t1 array]``.
    """
    try:
        entry_id, row = _latest(data)
    except _ERRORS as error:
        raise CodecError(f"{code}: not an entry of latest: {error}.", code=code) from error
    return tick_from_row(row, code, entry_id)
