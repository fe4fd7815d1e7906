"""The batch schemas ``b1`` and ``c1`` of the market feed, and ``latest``'s entries.

``b1`` is a msgpack array of ``[code, entry id, t1 array]``. The publishing script puts the pieces
together in Redis, where the entry ids are made; so an encoded tick stands in it byte for byte.
``c1`` is the same for bars: ``[code, period, entry id, k1 array]``. A feed entry has one of them.

Readers split a batch and leave its ticks encoded. What of it cannot be one comes back beside the
rest, as an error that names it: one bad tick costs nobody the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from .bars import decode_bar
from .codes import CODE
from .decoding import DECODE_ERRORS, printable, reason_of
from .errors import CodecError
from .periods import BAR_PERIODS
from .ticks import Tick, TickRow, decode_row, decode_tick

__all__ = [
    "EncodedBar",
    "EncodedTick",
    "decode_latest",
    "decode_rows",
    "is_code_of",
    "is_entry_id",
    "readable",
    "split_bar_batch",
    "split_batch",
    "split_latest",
]

EncodedTick = tuple[str, str, Any]
"""Code, entry id and encoded ``t1``."""
EncodedBar = tuple[str, str, str, Any]
"""Code, period, entry id and encoded ``k1``."""

_ticks: Final = msgspec.msgpack.Decoder(list[tuple[str, str, msgspec.Raw]]).decode
_bars: Final = msgspec.msgpack.Decoder(list[tuple[str, str, str, msgspec.Raw]]).decode
_latest: Final = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw]).decode
_is_code: Final = re.compile(CODE).fullmatch
_entry_id: Final = re.compile(r"[0-9]{1,14}-[0-9]{1,9}", re.ASCII).fullmatch
_Row = TypeVar("_Row", EncodedTick, EncodedBar)


def is_entry_id(entry_id: str) -> bool:
    """Whether a text is the id of a tick or bar, of a date that there is (until 5138)."""
    return _entry_id(entry_id) is not None


@lru_cache(maxsize=65_536)
def is_code_of(code: str, market: str) -> bool:
    """Whether a text is a code of a market."""
    return _is_code(code) is not None and code.endswith(f".{market}")


def split_batch(data: bytes, market: str) -> tuple[list[EncodedTick], list[CodecError]]:
    """Return a feed entry's ticks as they are encoded, and what among them is none.

    Raises
    ------
    CodecError
        When the bytes are not ``b1``.
    """
    rows = _decoded(_ticks, data, f"A feed entry of {market} is not a b1 batch")
    return _sorted_out(rows, market)


def split_bar_batch(data: bytes, market: str) -> tuple[list[EncodedBar], list[CodecError]]:
    """Return a feed entry's bars as they are encoded, and what among them is none.

    Raises
    ------
    CodecError
        When the bytes are not ``c1``.
    """
    rows = _decoded(_bars, data, f"A feed entry of {market} is not a c1 batch")
    return _sorted_out(rows, market)


def split_latest(data: bytes, code: str) -> tuple[str, Any]:
    """Return entry id and encoded ``t1`` of a value of ``latest``.

    Raises
    ------
    CodecError
        When the bytes are not ``[entry id, t1]``, or the code is none.
    """
    name = printable(code)
    if not _is_code(code):
        raise CodecError(f"{name!r} has a latest tick and is no code.", code=name)
    entry_id, t1 = _decoded(_latest, data, f"The latest tick of {name} cannot be read", code=name)
    if not is_entry_id(entry_id):
        raise CodecError(
            f"The latest tick of {name} has the id {printable(entry_id)!r}.", code=name
        )
    return entry_id, t1


def decode_latest(data: bytes, code: str) -> Tick:
    """Decode a value of ``latest``.

    Raises
    ------
    CodecError
        When the bytes are not ``[entry id, t1]``, or the code is none.
    """
    entry_id, t1 = split_latest(data, code)
    return decode_tick(t1, code, entry_id)


def decode_rows(
    rows: Sequence[EncodedTick],
) -> tuple[list[tuple[str, str, TickRow]], list[CodecError]]:
    """Return ticks with their ``t1`` decoded, and those that cannot be."""
    decoded: list[tuple[str, str, TickRow]] = []
    unreadable: list[CodecError] = []
    for code, entry_id, t1 in rows:
        try:
            decoded.append((code, entry_id, decode_row(t1, code, entry_id)))
        except CodecError as error:
            unreadable.append(error)
    return decoded, unreadable


def readable(rows: Sequence[_Row]) -> tuple[Sequence[_Row], list[CodecError]]:
    """Return the ticks or bars that can be decoded, encoded as they are, and those that cannot."""
    unreadable: list[CodecError] = []
    good: list[_Row] = []
    for row in rows:
        try:
            if len(row) == 3:
                decode_row(row[2], row[0], row[1])
            else:
                decode_bar(row[3], row[0], row[1], row[2])
        except CodecError as error:
            unreadable.append(error)
        else:
            good.append(row)
    return (good if unreadable else rows), unreadable


def _decoded(decode: Callable[[bytes], Any], data: bytes, what: str, **facts: str) -> Any:
    try:
        return decode(data)
    except DECODE_ERRORS as error:
        raise CodecError(f"{what}: {reason_of(error)}.", **facts) from error


def _sorted_out(rows: list[_Row], market: str) -> tuple[list[_Row], list[CodecError]]:
    foreign = [row for row in rows if not _is_row(row, market)]
    if not foreign:
        return rows, []
    unreadable = [
        CodecError(
            f"The feed of {market} has something of no code, period or id of it: "
            f"{', '.join(repr(printable(one, 50)) for one in row[:-1])}.",
            code=printable(row[0], 50),
        )
        for row in foreign
    ]
    return [row for row in rows if _is_row(row, market)], unreadable


def _is_row(row: EncodedTick | EncodedBar, market: str) -> bool:
    if not (is_code_of(row[0], market) and _entry_id(row[-2])):
        return False
    return len(row) == 3 or row[1] in BAR_PERIODS
