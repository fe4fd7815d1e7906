"""WebSocket protocol v1: its messages, as JSON and msgpack alike, and its close codes.

A client sends messages tagged ``op``, the gateway sends messages tagged ``type``. Both wires carry
the same messages; in msgpack a tick is its ``t1`` array as it lies in Redis, in JSON it is a map
with xtquant's names and prices in yuan.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, Final, Literal

import msgspec

from .amounts import parse_count, parse_seconds, parse_speed
from .documents import field_of, parse_json, parse_msgpack
from .errors import InvalidRequest
from .texts import parse_text
from .times import parse_ms

__all__ = [
    "JSON_SUBPROTOCOL",
    "MSGPACK_SUBPROTOCOL",
    "SUBPROTOCOLS",
    "CloseCode",
    "Failure",
    "FromGateway",
    "GapNotice",
    "HeartbeatNotice",
    "Live",
    "NowLive",
    "Position",
    "Replay",
    "ReplayCommand",
    "ReplayEnded",
    "ReplayPause",
    "ReplayResume",
    "ReplaySeek",
    "ReplaySpeed",
    "ReplayState",
    "ReplayStep",
    "ReplayStop",
    "Shutdown",
    "Skipped",
    "Speed",
    "Subscribe",
    "Subscribed",
    "ToGateway",
    "Unsubscribe",
    "Unsubscribed",
    "Welcome",
    "check_bounds",
    "read_message",
]

JSON_SUBPROTOCOL: Final = "qmt.v1.json"
MSGPACK_SUBPROTOCOL: Final = "qmt.v1.msgpack"
SUBPROTOCOLS: Final = (MSGPACK_SUBPROTOCOL, JSON_SUBPROTOCOL)
"""In the gateway's order of preference; a client that names none speaks JSON."""

Position = dict[str, tuple[str, str]]
"""Market to (epoch, id of the last feed entry seen): where a reader stands.

``events`` stands beside the markets, with an empty epoch: up to which of the producers' events the
reader was told their gaps.
"""


Speed = float | Literal["max"]
"""Market time per wall time; ``max``: as fast as the client reads."""


class CloseCode(IntEnum):
    """Why the gateway closes a connection."""

    GOING_AWAY = 1001
    """The gateway stops; come back with your position."""
    BAD_MESSAGE = 4400
    """A message that is none of the protocol; the reason names the fault."""
    ACCESS_DENIED = 4401
    """Key missing, wrong, expired, revoked, or without the scope; the reason says which."""
    STALLED = 4408
    """The client has read nothing for too long, or left too much unread."""
    LIMIT_EXCEEDED = 4429
    """The key has as many connections as it may."""
    UNAVAILABLE = 4503
    """Redis went away and stayed away."""
    OVERLOADED = 4507
    """The gateway held as much unread as it may, and this client most of it: come back with your
    position."""


class _FromClient(
    msgspec.Struct, tag_field="op", tag=True, kw_only=True, forbid_unknown_fields=True
):
    """A message of a client: what it says and the gateway does not know is refused."""


class Subscribe(_FromClient, tag="subscribe", kw_only=True):
    """Add to what the connection gets; what it has already is not sent twice."""

    id: str = ""
    """Returned in the answer."""
    codes: list[str] = []
    """Instruments; ``*`` is everything that is published."""
    sectors: list[str] = []
    markets: list[str] = []
    period: str = "tick"
    """``tick`` or a bar period."""
    snapshot: bool = True
    """Whether the latest tick of each code comes first; not where a position is given."""
    position: Position | None = None
    """Go on behind it: first exactly what was missed, or a gap, then live. Markets that it does
    not name begin at their present end."""
    last_ids: dict[str, str] | None = None
    """Code to its last entry id seen, of all codes subscribed: used where the feed no longer
    reaches back far enough."""
    start_ms: int | None = None
    """Begin with the ticks stored since this exchange time, in place of a position."""
    conflate: bool = False
    """Only the latest tick of each code per frame is wanted; holds for the connection."""


class Unsubscribe(_FromClient, tag="unsubscribe", kw_only=True):
    """Take away from what the connection gets."""

    id: str = ""
    codes: list[str] = []
    sectors: list[str] = []
    markets: list[str] = []
    period: str = "tick"


class Replay(_FromClient, tag="replay", kw_only=True):
    """Begin to send stored ticks as if they were live; answered by `ReplayState`.

    Ticks of all codes come in the order of entry id's ms, code, entry id's number.
    """

    id: str
    """Names the replay from now on; none of the connection's may have it yet."""
    codes: list[str] = []
    """Instruments; ``*`` is everything that is stored."""
    sectors: list[str] = []
    markets: list[str] = []
    start_ms: int
    """First exchange time."""
    end_ms: int | None = None
    """Last exchange time; none: the end of the China day of `start_ms`."""
    speed: Speed = 1.0
    skip_idle_s: float | None = None
    """Pauses of the market (night, lunch) longer than this are skipped; none: the gateway's
    own bound."""
    paused: bool = False
    """Begin paused, as behind `ReplayPause`."""


class ReplayPause(_FromClient, tag="replay_pause", kw_only=True):
    """Stop a replay's time; answered by `ReplayState`, behind which nothing comes."""

    id: str


class ReplayResume(_FromClient, tag="replay_resume", kw_only=True):
    """Let a replay's time go on; answered by `ReplayState`."""

    id: str


class ReplaySeek(_FromClient, tag="replay_seek", kw_only=True):
    """Go on at another time; answered by `ReplayState`, behind which the ticks from it come."""

    id: str
    at_ms: int
    """Exchange time; outside of the replay's range the nearest in it."""


class ReplayStep(_FromClient, tag="replay_step", kw_only=True):
    """Send the next ticks of a paused replay at once; `ReplayState` follows them."""

    id: str
    count: int = 1


class ReplaySpeed(_FromClient, tag="replay_speed", kw_only=True):
    """Change a replay's speed; answered by `ReplayState`."""

    id: str
    speed: Speed


class ReplayStop(_FromClient, tag="replay_stop", kw_only=True):
    """End a replay; answered by `ReplayEnded`."""

    id: str


ReplayCommand = ReplayPause | ReplayResume | ReplaySeek | ReplayStep | ReplaySpeed | ReplayStop
"""What is asked of a replay that has begun."""
ToGateway = Subscribe | Unsubscribe | Replay | ReplayCommand
MAX_ID: Final = 64
"""Characters of a message's id."""
MAX_SECTORS: Final = 100
"""Most sectors that one message names; a worker is asked for each."""


def read_message(data: bytes | str) -> ToGateway:
    """Return what a client sent: JSON as text, msgpack as bytes.

    Raises
    ------
    InvalidRequest
        When it is no message of the protocol; ``field`` names the fault's place.
    """
    document = parse_json(data, "message") if isinstance(data, str) else parse_msgpack(data)
    try:
        message: ToGateway = msgspec.convert(document, ToGateway)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"{str(error).rstrip('.')}.", hint="See docs/live.md.", field=field_of(error, "message")
        ) from None
    return message


def _check_sectors(sectors: list[str], field: str) -> None:
    if len(sectors) > MAX_SECTORS:
        raise InvalidRequest(
            f"More than {MAX_SECTORS} sectors in one message.",
            hint="Send several.",
            field=field,
            limit=MAX_SECTORS,
        )
    for sector in sectors:
        parse_text(sector, field, most=MAX_ID)


_CHECKS: Final[dict[str, Callable[[Any, str], object]]] = {
    "id": partial(parse_text, least=0, most=MAX_ID),
    "sectors": _check_sectors,
    "start_ms": parse_ms,
    "end_ms": parse_ms,
    "at_ms": parse_ms,
    "skip_idle_s": parse_seconds,
    "speed": parse_speed,
    "count": parse_count,
}


def check_bounds(message: ToGateway) -> None:
    """Check ids, times, counts and speeds of a message; codes are looked at where they are used.

    Raises
    ------
    InvalidRequest
        For the first that is out of bounds.
    """
    for field, check in _CHECKS.items():
        value = getattr(message, field, None)
        if value is not None:
            check(value, field)


class Welcome(msgspec.Struct, tag_field="type", tag="welcome", kw_only=True):
    """First message of a connection."""

    version: int
    simulated: bool
    flush_ms: int
    """Longest time that small frames are held back to go together."""
    max_bytes: int
    """Bytes that may wait for this connection before it is conflated."""
    stall_s: float
    """After so long without reading the connection is closed with 4408."""
    heartbeat_s: float


class Subscribed(msgspec.Struct, tag_field="type", tag="subscribed", kw_only=True):
    """Answer to a subscription; its snapshot or missed ticks follow."""

    id: str
    position: Position
    """What follows of these markets is exactly what lies behind it."""
    codes: int
    """Instruments that the connection now gets, ``*`` and markets counted by what they hold."""
    absent: list[str] = []
    """Codes of which nothing is stored (yet)."""


class NowLive(msgspec.Struct, tag_field="type", tag="now", kw_only=True):
    """All that was asked for by position or start has been sent; what follows is live."""

    id: str
    position: Position


class Unsubscribed(msgspec.Struct, tag_field="type", tag="unsubscribed", kw_only=True):
    """Answer to the end of a subscription."""

    id: str
    codes: int


class Live(msgspec.Struct, tag_field="type", tag="live", kw_only=True):
    """Data. Frames of all connections with the same subscription are the same bytes."""

    kind: str
    """``snapshot``; ``stored`` (from the codes' own streams, asked for by start or last ids);
    ``missed`` (from the feed, asked for by position); ``live``; ``replay``."""
    position: Position
    """Where a reader stands who has taken this frame; only the markets that moved; empty in a
    replay."""
    replay: str | msgspec.UnsetType = msgspec.UNSET
    """The replay that it belongs to, by its id; absent from all other frames."""
    ticks: list[Any] = []
    """[code, entry id, tick]: JSON [code, id, flags, {name: value}], msgpack [code, id, t1]."""
    bars: list[Any] = []
    """[code, period, entry id, bar]: JSON a map, msgpack k1."""


class GapNotice(msgspec.Struct, tag_field="type", tag="gap", kw_only=True):
    """Data that this connection should have had and cannot get; what follows is behind it."""

    market: str
    """Empty where a producer names codes alone."""
    reason: str
    """``trimmed``, ``epoch``, ``unreadable``, or the producer's own reason."""
    message: str = ""
    after: tuple[str, str] | None = None
    """(epoch, entry id) of the last entry before the gap; none where a producer names it."""
    from_ms: int = 0
    to_ms: int = 0
    """Redis time of the last entry before and of the first behind the gap, or the exchange times
    that the producer or the streams tell; 0 where unknown."""
    event: str = ""
    """Id of the producer's event that named it: the position's ``events`` from now on."""
    ticks: int = 0
    """How many, where the producer counted them."""
    codes: dict[str, list[Any]] = {}
    """Those concerned, where not all: with the producer's [first ms, last ms, ticks], or with
    [last id seen, first id left] where their streams were trimmed."""
    replay: str | msgspec.UnsetType = msgspec.UNSET
    """The replay that is concerned, by its id; absent where it is what comes live."""


class Skipped(msgspec.Struct, tag_field="type", tag="skipped", kw_only=True):
    """What conflation left out because the connection was read too slowly."""

    ticks: int
    codes: dict[str, int]
    """Code to how many of its ticks were left out."""
    from_ms: int
    to_ms: int
    """Exchange time of the oldest and newest tick left out."""


class ReplayState(msgspec.Struct, tag_field="type", tag="replay", kw_only=True):
    """Answer to what was asked of a replay: how it stands from here on."""

    id: str
    state: str
    """``running`` or ``paused``."""
    at_ms: int
    """Exchange time that it has reached."""
    speed: Speed
    late_ms: int = 0
    """How far it is behind its schedule because the client reads slowly."""
    simulated: bool | None = None
    """Whether the simulator invented ticks of it; none: not known yet."""


class ReplayEnded(msgspec.Struct, tag_field="type", tag="replay_ended", kw_only=True):
    """Last message of a replay; its id is free again."""

    id: str
    reason: str
    """``end`` of its range, ``stopped``, or ``failed``: then an `error` of this id came first."""
    ticks: int
    """How many were sent in all."""


class HeartbeatNotice(msgspec.Struct, tag_field="type", tag="heartbeat", kw_only=True):
    """Sent when nothing else was: the connection lives, and this is where it stands."""

    position: Position
    now_ms: int
    """Redis time."""
    producer_age_ms: int | None = None
    """How long ago a producer was last heard of; ``None``: never."""


class Shutdown(msgspec.Struct, tag_field="type", tag="shutdown", kw_only=True):
    """The gateway stops; the close frame follows."""

    reason: str
    position: Position


class Failure(msgspec.Struct, tag_field="type", tag="error", kw_only=True):
    """A message could not be followed; the connection and its subscriptions go on."""

    id: str
    error: dict[str, Any]
    """As `QMTError.to_dict`."""


FromGateway = (
    Welcome
    | Subscribed
    | Unsubscribed
    | Live
    | NowLive
    | GapNotice
    | Skipped
    | ReplayState
    | ReplayEnded
    | HeartbeatNotice
    | Shutdown
    | Failure
)
