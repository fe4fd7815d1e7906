"""What happened, as the producers tell it in ``events``: read within bounds, gaps checked."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from .codes import CODE, MARKET
from .decoding import DECODE_ERRORS, decode_document, printable, reason_of
from .errors import CodecError
from .limits import MAX_EVENT_BYTES

__all__ = ["Moment", "decode_event"]

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
