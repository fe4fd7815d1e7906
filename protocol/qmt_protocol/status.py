"""Heartbeats: what a process tells of itself, and how it is written."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from .codes import MARKET
from .decoding import DECODE_ERRORS, decode_document, printable, reason_of
from .errors import CodecError
from .events import Moment
from .limits import MAX_HEARTBEAT_BYTES

__all__ = [
    "HEARTBEAT_EVERY_S",
    "HEARTBEAT_MAX_BYTES",
    "LOST_AFTER_S",
    "Heartbeat",
    "check_heartbeat",
    "decode_heartbeat",
    "encode_heartbeat",
    "forgotten",
    "is_of_the_future",
    "shortened",
]

HEARTBEAT_EVERY_S: Final = 1.0
HEARTBEAT_MAX_BYTES: Final = 32 * 1024
"""Every process writes one each second, and who asks for the status gets them all."""
_SHORTER: Final = (50, 20, 5, 1, 0)
_TEXT: Final = 20
"""Names of facts and words of states are no longer."""
_FACTS_MAX: Final = 60
_NAMES_MAX: Final = 40
LOST_AFTER_S: Final = 5.0
"""A process not heard of for so long is taken for dead."""
_SUCCEEDED_AFTER_MS: Final = 86_400_000
_FORGOTTEN_AFTER_MS: Final = 30 * _SUCCEEDED_AFTER_MS
_TOGETHER_MS: Final = 60_000
"""Processes of a role and host that were last heard of within so long of each other ended together:
a worker has one for each queue."""
_AHEAD_MS: Final = 60_000

_Market = Annotated[str, msgspec.Meta(pattern=rf"^{MARKET}$")]


class Heartbeat(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a process last said of itself."""

    role: str
    """``producer``, ``worker``, ``windows``, ``gateway`` or ``archive``."""
    host: str = ""
    pid: int = 0
    started_ms: int = 0
    version: str = ""
    simulated: bool = False
    """True while the data come from the simulator."""
    queues: list[str] = []
    """Job queues that a worker serves."""
    markets: list[_Market] = []
    """Markets that a producer publishes."""
    terminal: dict[str, Any] = {}
    """``state`` (``ok``, ``not_running``, ``waiting_for_login``, ``quote_server_down``, a
    producer's ``deaf``, a worker's ``restarting``), ``reason`` and ``since_ms``; once one was
    connected also ``address``, ``edition``, ``version``, ``broker``, ``path``,
    ``xtquant_version`` and ``xtquant_path``; a producer's ``trading_day`` (``day``, ``trades``,
    ``source``, ``known_until``, ``file_error``); of a simulated one ``clock``: its now is
    market_ms + (now - wall_ms) * speed."""
    rates: dict[str, float] = {}
    figures: dict[str, Any] = {}
    """Counts of the role; a worker's ``busy`` (the running job), ``finished``, ``dead`` (what it
    found on the jobs server and could not use) and ``last_dead``, see `JobKeys.dead`."""

    @property
    def dead(self) -> str:
        """What a worker found on the jobs server and could not use, in words; empty: nothing."""
        count, last = self.figures.get("dead"), self.figures.get("last_dead")
        if not count or not isinstance(last, dict):
            return ""
        what = f"job {last['id']}" if "id" in last else f"key {last.get('key')}"
        return (
            f"{count} on the jobs server could not be used; the last, {what}: {last.get('reason')}"
        )

    @property
    def member(self) -> str:
        """Name of the process in ``status`` and ``seen``."""
        return f"{self.role}:{self.host}:{self.pid}"


class _Terminal(msgspec.Struct):
    state: str = ""
    reason: str | None = None
    since_ms: Moment | None = None


class _Child(msgspec.Struct):
    state: str
    since_ms: Moment


class _Figures(msgspec.Struct):
    published: float = 0
    ticks: int = 0
    bars: int = 0
    waiting_rows: int = 0
    children: dict[str, _Child] = {}
    dead: int = 0
    last_dead: dict[str, Any] = {}
    clocks: dict[str, Any] | None = None


def new_heartbeat(role: str, started_ms: int, **facts: Any) -> Heartbeat:
    """Return a heartbeat of this very process."""
    return Heartbeat(
        role=role, host=socket.gethostname(), pid=os.getpid(), started_ms=started_ms, **facts
    )


def encode_heartbeat(beat: Heartbeat) -> bytes:
    """Return a heartbeat as it lies in ``status`` under its member: plain JSON.

    Before it its writer sets ``seen`` to Redis time in ms, by which ages are told: what is in
    ``status`` alone is taken for left over and removed. The two are no transaction, since in a
    Redis Cluster they lie apart; where the second is lost, the next beat brings it. One that
    would be larger than `HEARTBEAT_MAX_BYTES` has shorter lists, which end in how much is left out.
    """
    data = msgspec.json.encode(beat)
    for most in _SHORTER:
        if len(data) <= HEARTBEAT_MAX_BYTES:
            return data
        shorter = msgspec.structs.replace(
            beat,
            queues=beat.queues[:_NAMES_MAX],
            markets=beat.markets[:_NAMES_MAX],
            terminal=_facts(beat.terminal, most),
            figures=_facts(beat.figures, most),
        )
        data = msgspec.json.encode(shorter)
    return data


def _facts(facts: dict[str, Any], most: int) -> dict[str, Any]:
    """Return facts, all by their names, each shortened."""
    names = itertools.islice(facts, _FACTS_MAX)
    return {shortened(name, most): shortened(facts[name], most) for name in names}


def shortened(value: Any, most: int) -> Any:
    """Return a value without what goes beyond so many items, at any depth."""
    if isinstance(value, str):
        longest = _TEXT + 4 * most
        return value if len(value) <= longest else f"{value[:longest]}..."
    if isinstance(value, dict):
        left = len(value) - most
        kept = {
            shortened(key, most): shortened(one, most)
            for key, one in itertools.islice(value.items(), most)
        }
        return kept if left <= 0 else {**kept, "...": f"and {left} more"}
    if isinstance(value, (list, tuple)):
        left = len(value) - most
        kept_ones = [shortened(one, most) for one in value[:most]]
        return kept_ones if left <= 0 else [*kept_ones, f"... and {left} more"]
    return value


def decode_heartbeat(data: bytes, member: bytes | str | None = None) -> Heartbeat:
    """Decode a value of ``status``.

    Parameters
    ----------
    member
        Under which name it lies, where that is known: it must be its own.

    Raises
    ------
    CodecError
        When it is no heartbeat.
    """
    name = "" if member is None else printable(member)
    what = f"The heartbeat {name!r}" if name else "A heartbeat"
    beat = decode_document(data, Heartbeat, what, most_bytes=MAX_HEARTBEAT_BYTES)
    check_heartbeat(beat, what)
    if name and name != beat.member:
        raise CodecError(f"{what} cannot be read: it says that it is {printable(beat.member)!r}.")
    return beat


def check_heartbeat(beat: Heartbeat, what: str) -> None:
    """Make sure that what readers look at in a heartbeat is of the kind that they take it for.

    Raises
    ------
    CodecError
    """
    try:
        msgspec.convert(beat.terminal, _Terminal)
        msgspec.convert(beat.figures, _Figures)
    except DECODE_ERRORS as error:
        raise CodecError(f"{what} cannot be read: {reason_of(error)}.") from error


def is_of_the_future(seen_ms: float, now_ms: int) -> bool:
    """Whether a heartbeat cannot have been heard yet: all are dated by the same clock of Redis."""
    return seen_ms > now_ms + _AHEAD_MS


def forgotten(seen_ms: Mapping[str, float], now_ms: int) -> set[str]:
    """Return the processes that nobody needs to hear of any more.

    What ended more than a day ago is told of only if it was the last of its role and host, so that
    readers can say when that was, and for 30 days.

    Parameters
    ----------
    seen_ms
        Member to the Redis time of its last heartbeat.
    now_ms
        Redis time.
    """
    last: dict[str, float] = {}
    for member, at_ms in seen_ms.items():
        if not is_of_the_future(at_ms, now_ms):
            role = member.rpartition(":")[0]
            last[role] = max(at_ms, last.get(role, at_ms))
    found = set()
    for member, at_ms in seen_ms.items():
        age_ms = now_ms - at_ms
        succeeded = last.get(member.rpartition(":")[0], at_ms) - at_ms > _TOGETHER_MS
        if (
            is_of_the_future(at_ms, now_ms)
            or age_ms > _FORGOTTEN_AFTER_MS
            or (age_ms > _SUCCEEDED_AFTER_MS and succeeded)
        ):
            found.add(member)
    return found
