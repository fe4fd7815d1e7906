"""What happened, as events: in which stream each kind lies, how many are kept, how one is read.

What a reader needs in order to be exact, the gaps, has a stream of its own: whatever else happens
by the thousand, and whoever causes it, pushes none of them out.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import msgspec

from .codes import CODE, MARKET
from .decoding import DECODE_ERRORS, decode_document, printable, reason_of
from .errors import CodecError
from .keys import Keys
from .limits import MAX_EVENT_BYTES

__all__ = ["EventStream", "Moment", "archive_stream", "decode_event", "stream_of"]

_GAPS_KEPT: Final = 20_000
"""A producer tells at most 9,040 a day, see its reporter: two days of one, one day of two."""
_PRODUCER_KEPT: Final = 10_000
_REFUSED_KEPT: Final = 1_000
_ARCHIVE_KEPT: Final = 10_000


class EventStream(NamedTuple):
    """Where events lie, and how many of them."""

    key: str
    kept: int


def stream_of(keys: Keys, kind: str) -> EventStream:
    """Return the stream of a producer's event of a kind."""
    if kind == "gap":
        return EventStream(keys.events, _GAPS_KEPT)
    if kind == "demand refused":
        return EventStream(keys.refused_events, _REFUSED_KEPT)
    return EventStream(keys.producer_events, _PRODUCER_KEPT)


def archive_stream(keys: Keys) -> EventStream:
    """Return the stream of the archive's events."""
    return EventStream(keys.archive_events, _ARCHIVE_KEPT)


Moment = Annotated[int, msgspec.Meta(ge=0, lt=10**14)]
"""ms since the epoch that a date can be made of (until 5138); 0: not known."""
_Market = Annotated[str, msgspec.Meta(pattern=rf"^({MARKET})?$")]
_CodeOrBar = Annotated[str, msgspec.Meta(pattern=rf"^([0-9a-z]{{1,8}}\|)?{CODE}$")]


class _Gap(msgspec.Struct):
    """What of a gap's event is read."""

    reason: str = "unknown"
    market: _Market | None = None
    codes: dict[_CodeOrBar, tuple[Moment, Moment, int]] = {}
    ticks: int = 0
    from_ms: Moment = 0
    to_ms: Moment = 0


def decode_event(data: bytes, entry_id: str) -> dict[str, Any]:
    """Decode the field ``e`` of an event.

    Raises
    ------
    CodecError
        When it is no event; a gap is one only with what tells whom it concerns.
    """
    what = f"The event {printable(entry_id)}"
    event: dict[str, Any] = decode_document(data, dict[str, Any], what, most_bytes=MAX_EVENT_BYTES)
    if event.get("kind") == "gap":
        try:
            msgspec.convert(event, _Gap)
        except DECODE_ERRORS as error:
            raise CodecError(f"{what} cannot be read: {reason_of(error)}.") from error
    return event
