"""What a gateway answers: each document as it must be, checked before anything reads it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from qmt_protocol.archive import Missing
from qmt_protocol.codes import CODE, MARKET
from qmt_protocol.decoding import decode_document
from qmt_protocol.errors import (
    AccessDenied,
    CodecError,
    GatewayUnavailable,
    QMTError,
    error_from_dict,
)
from qmt_protocol.events import Moment

__all__ = [
    "Accepted",
    "Archive",
    "Code",
    "EntryId",
    "JobState",
    "LatestTicks",
    "TickId",
    "denied",
    "error_of",
]

EntryId = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,20}-[0-9]{1,20}$")]
"""Id of an entry in Redis, or a bound between two."""
TickId = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,14}-[0-9]{1,9}$")]
"""See `qmt_protocol.feed.is_entry_id`."""
Code = Annotated[str, msgspec.Meta(pattern=rf"^{CODE}$")]
_Market = Annotated[str, msgspec.Meta(pattern=rf"^{MARKET}$")]
_PROBLEM_BYTES: Final = 2**20


class Accepted(msgspec.Struct):
    """Answer to ``POST /api/v1/jobs/{name}``."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z_-]{1,64}$")]


class JobState(msgspec.Struct):
    """Answer to ``GET /api/v1/jobs/{id}``."""

    entry: EntryId
    state: Literal["queued", "running", "done", "failed"]
    finished: int = 0
    total: int = 0
    message: str = ""
    error: dict[str, Any] | None = None


class _LatestTick(msgspec.Struct):
    id: TickId
    tick: dict[str, Any]
    flags: Annotated[int, msgspec.Meta(ge=0, le=0x7F)] = 0


class LatestTicks(msgspec.Struct):
    """Answer to ``GET /api/v1/latest``."""

    ticks: dict[Code, _LatestTick]
    unreadable: dict[str, str] = {}


class Archive(msgspec.Struct):
    """Answer to ``GET /api/v1/archive``, what of it is read."""

    markets: list[_Market] = []
    simulated_markets: list[_Market] = []
    missing: list[_Missing] = []


class _Missing(Missing, frozen=True, kw_only=True):
    from_ms: Moment
    to_ms: Moment


def error_of(body: bytes, status: int, address: str) -> QMTError:
    """Rebuild the error that a problem document tells."""
    try:
        document = decode_document(body, dict[str, Any], "A problem", most_bytes=_PROBLEM_BYTES)
    except CodecError:
        document = {}
    if isinstance(document.get("error"), str):
        error = error_from_dict(document)
        return denied(address, error.message) if type(error) is AccessDenied else error
    if status in (401, 403):
        return denied(address)
    return GatewayUnavailable(
        f"The gateway at {address} answered with HTTP status {status}.",
        hint="Check that a gateway of this version listens there.",
        address=address,
    )


def denied(address: str, reason: str = "") -> AccessDenied:
    """Return the error of a key that is missing or wrong."""
    return AccessDenied(
        f"The gateway at {address} refused access{f': {reason}' if reason else '.'}",
        hint="Give api_key=..., or set QMT_API_KEY.",
        address=address,
    )
