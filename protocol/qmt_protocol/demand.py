"""Wants: how readers say which single codes and bars they need, and learn what is refused.

A reader says them again and again on a channel of Redis; a producer listens, and forgets what
nobody says any more. Nothing of it is stored, so who only reads needs no right to write, and can
fill nothing. What cannot be served stands in a hash, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from .errors import InvalidRequest
from .keys import parse_series

__all__ = [
    "LEASE_S",
    "MESSAGE_MAX_BYTES",
    "SAY_EVERY_S",
    "Refusal",
    "decode_refusal",
    "encode_demand",
    "others_of",
    "read_series",
    "words_of",
]

LEASE_S: Final = 10.0
"""How long a series lives after it was said last."""
SAY_EVERY_S: Final = 2.0
MESSAGE_MAX_BYTES: Final = 64 * 1024
"""A longer message is ignored as a whole."""
_REASON_MAX: Final = 300


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A value of the hash ``refused``."""

    reason: str
    at_ms: int = 0
    known: list[str] = []
    """Of the field `others_of`: the wants of the market that it does not concern."""


def others_of(market: str) -> str:
    """Return the field of ``refused`` that concerns all wants of a market but those it names."""
    return f"*.{market}"


def decode_refusal(document: bytes) -> Refusal:
    """Read a value of ``refused``; one that cannot be read is a refusal for a reason not known."""
    try:
        refusal = msgspec.json.decode(document, type=Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Refusal(reason="for a reason that cannot be read")
    return msgspec.structs.replace(refusal, reason=refusal.reason[:_REASON_MAX])


def encode_demand(demanded: Iterable[str]) -> Iterator[bytes]:
    """Yield messages that say wants: with spaces between, each short enough."""
    parts: list[bytes] = []
    size_bytes = 0
    for series in demanded:
        part = series.encode(errors="replace")
        if parts and size_bytes + len(part) >= MESSAGE_MAX_BYTES:
            yield b" ".join(parts)
            parts, size_bytes = [], 0
        parts.append(part)
        size_bytes += len(part) + 1
    if parts:
        yield b" ".join(parts)


def words_of(message: bytes) -> list[bytes]:
    """Return the words of a message, each a series if `read_want` says so; of a long one none."""
    return message.split() if len(message) <= MESSAGE_MAX_BYTES else []


def read_series(word: bytes) -> str:
    """Return a word as a series.

    Raises
    ------
    InvalidRequest
        When it is none.
    """
    try:
        series = word.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{word[:60]!r} names no series.") from error
    parse_series(series)
    return series
