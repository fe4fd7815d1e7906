"""Who is alive: the heartbeats of producers, workers and gateways, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import redis.asyncio

from qmt_protocol.decoding import decode_document, printable
from qmt_protocol.errors import CodecError, NoProducer, NoWorker, TerminalNotConnected
from qmt_protocol.keys import Keys
from qmt_protocol.limits import MAX_HEARTBEAT_BYTES, MAX_HEARTBEATS, MAX_UNREADABLE
from qmt_protocol.status import (
    LOST_AFTER_S,
    Heartbeat,
    check_heartbeat,
    decode_heartbeat,
    forgotten,
    is_of_the_future,
)
from qmt_protocol.times import redis_ms, to_datetime
from qmt_runtime.connections import redis_call

__all__ = ["Process", "Status", "Unreadable", "read_status"]

_NO_TERMINAL: Final = {
    "not_running": (
        "The worker runs, but its terminal does not",
        "Start QMT on the Windows machine in 独立交易 mode and log in.",
    ),
    "waiting_for_login": (
        "The worker's terminal waits for its login",
        "Log in to QMT on the Windows machine, with 独立交易 ticked.",
    ),
}
"""States in which no worker can answer, in words, and what to do. Without a quote server what the
terminal's cache holds can still be read."""


_GATEWAY: Final = b"gateway:"
_BESIDE_A_TERMINAL: Final = frozenset({"producer", "worker"})
"""Roles that work on a terminal, real or simulated."""


@dataclass(frozen=True)
class Process:
    """One process of the bridge, as its last heartbeat tells.

    Attributes
    ----------
    beat : Heartbeat
        Role, host, versions, rates and terminal state.
    age_ms : int
        How long ago it was heard, by the clock of Redis.
    """

    beat: Heartbeat
    age_ms: int

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately enough not to be taken for dead."""
        return self.age_ms <= LOST_AFTER_S * 1000

    def to_dict(self) -> dict[str, Any]:
        """Return the heartbeat as a plain dict, with ``age_ms`` and ``alive``."""
        document: dict[str, Any] = msgspec.to_builtins(self.beat)
        return {**document, "age_ms": self.age_ms, "alive": self.alive}


@dataclass(frozen=True)
class Unreadable:
    """A heartbeat that says nothing: whose it is, and why.

    Attributes
    ----------
    member : str
        The process, as role, host and process id.
    reason : str
    """

    member: str
    reason: str


@dataclass(frozen=True)
class Status:
    """The processes that sent a heartbeat, the freshest first.

    One that ended more than a day ago is here only if it was the last of its role and host.

    Attributes
    ----------
    now_ms : int
        When this was read, by the clock of Redis.
    processes : tuple of Process
    unreadable : tuple of Unreadable
        Heartbeats that could not be read; of very many the last one counts the others.
    """

    now_ms: int
    processes: tuple[Process, ...]
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def simulated(self) -> bool:
        """True when a living producer or worker (or, when none lives, any) is on the simulator."""
        beside = [one for one in self.processes if one.beat.role in _BESIDE_A_TERMINAL]
        living = [one for one in beside if one.alive] or beside
        return any(one.beat.simulated for one in living)

    @property
    def simulated_markets(self) -> frozenset[str]:
        """Markets that a simulator publishes, or, where nobody does now, did last."""
        markets: dict[str, Process] = {}
        for one in self.processes:  # the freshest first
            for market in one.beat.markets if one.beat.role == "producer" else ():
                markets.setdefault(market, one)
        return frozenset(market for market, one in markets.items() if one.beat.simulated)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"processes", "unreadable", "simulated", "now_ms"}``, ready for JSON."""
        return {
            "processes": [one.to_dict() for one in self.processes],
            "unreadable": [{"member": one.member, "reason": one.reason} for one in self.unreadable],
            "simulated": self.simulated,
            "now_ms": self.now_ms,
        }

    @classmethod
    def from_json(cls, data: bytes, what: str) -> Status:
        """Rebuild a status from `to_dict` as JSON.

        Parameters
        ----------
        what
            Whose it is, for the error.

        Raises
        ------
        CodecError
            When it is none.
        """
        document = decode_document(data, _StatusDocument, what)
        for one in document.processes:
            check_heartbeat(one, what)
        return cls(
            document.now_ms,
            tuple(Process(one, one.age_ms) for one in document.processes),
            tuple(Unreadable(one.member, one.reason) for one in document.unreadable),
        )

    @classmethod
    def from_redis(
        cls, beats: Iterable[tuple[bytes, bytes | None]], seen: Mapping[bytes, float], now_ms: int
    ) -> Status:
        """Build it from ``status`` and ``seen``.

        Parameters
        ----------
        beats
            Member and value of ``status``; ``None``: one that is too long.
        seen
            Member to its score.
        """
        processes: list[Process] = []
        unreadable: list[Unreadable] = []
        for member, data in beats:
            try:
                processes.append(_process(member, data, seen[member], now_ms))
            except CodecError as error:
                unreadable.append(Unreadable(printable(member), error.message))
        more = len(unreadable) - MAX_UNREADABLE
        if more > 0:
            unreadable[MAX_UNREADABLE:] = [Unreadable("", f"and {more} more")]
        processes.sort(key=lambda one: one.age_ms)
        return cls(now_ms, tuple(processes), tuple(unreadable))

    def require_worker(self, queue: str) -> None:
        """Raise when nobody can answer jobs of a queue.

        Raises
        ------
        NoWorker
            When no worker serves the queue; ``last_seen_ms`` tells when one last did.
        TerminalNotConnected
            When workers serve it but none has a terminal; the message has the reason.
        """
        workers = [
            one for one in self.processes if one.beat.role == "worker" and queue in one.beat.queues
        ]
        living = [one for one in workers if one.alive]
        if not living:
            raise NoWorker(
                f"No worker serves {queue}: {self._last_seen(workers)}.",
                hint="Start qmt-worker on the Windows machine.",
                queue=queue,
                last_seen_ms=self._last_seen_ms(workers),
            )
        lost = [one for one in living if one.beat.terminal.get("state") in _NO_TERMINAL]
        if len(lost) == len(living):
            terminal = lost[0].beat.terminal
            words, hint = _NO_TERMINAL[terminal["state"]]
            reason = str(terminal.get("reason") or "no QMT terminal answers").rstrip(".。")
            raise TerminalNotConnected(
                f"{words}: {reason}.",
                hint=hint,
                queue=queue,
                state=terminal["state"],
                since_ms=terminal.get("since_ms"),
            )

    def require_producer(self, markets: Iterable[str]) -> None:
        """Raise when one of the markets has no living producer.

        Raises
        ------
        NoProducer
            ``last_seen_ms`` tells when it last had one, ``served`` which markets have one.
        """
        producers = [one for one in self.processes if one.beat.role == "producer"]
        for market in markets:
            of_market = [one for one in producers if market in one.beat.markets]
            if any(one.alive for one in of_market):
                continue
            served = sorted({name for one in producers if one.alive for name in one.beat.markets})
            raise NoProducer(
                f"No producer publishes {market}: {self._last_seen(of_market)}.",
                hint="Start qmt-producer on the Windows machine."
                if of_market or not served
                else f"Published are {', '.join(served)}: check the code, or add {market} to "
                "QMT_MARKETS of qmt-producer and start it again.",
                market=market,
                served=served,
                last_seen_ms=self._last_seen_ms(of_market),
            )

    def _last_seen_ms(self, processes: list[Process]) -> int | None:
        return self.now_ms - min(one.age_ms for one in processes) if processes else None

    def _last_seen(self, processes: list[Process]) -> str:
        seen_ms = self._last_seen_ms(processes)
        if seen_ms is None:
            return "none was ever seen"
        return f"last seen {to_datetime(seen_ms):%Y-%m-%d %H:%M:%S} China time"


class _Reported(Heartbeat, kw_only=True):
    """A process as `Status.to_dict` tells it."""

    age_ms: int


class _Unread(msgspec.Struct):
    member: str
    reason: str


class _StatusDocument(msgspec.Struct):
    processes: list[_Reported]
    now_ms: int = 0
    unreadable: list[_Unread] = []


def _process(member: bytes, data: bytes | None, seen_ms: float, now_ms: int) -> Process:
    if data is None:
        raise CodecError(f"It is longer than {MAX_HEARTBEAT_BYTES} bytes.")
    if is_of_the_future(seen_ms, now_ms):
        raise CodecError("It was heard in the future.")
    return Process(decode_heartbeat(data, member), max(0, now_ms - int(seen_ms)))


async def read_status(connection: redis.asyncio.Redis, keys: Keys, address: str) -> Status:
    """Read who is alive, by the heartbeats on the streams server.

    Each value is asked for its length first, and only the newest `MAX_HEARTBEATS` are read.

    Raises
    ------
    RedisUnavailable
    """
    pairs = [keys.heartbeats_of(role) for role in ("", "gateway")]
    async with redis_call(address), connection.pipeline(transaction=False) as pipe:
        pipe.time()
        of_newest: dict[str, Any] = {"offset": 0, "num": MAX_HEARTBEATS, "withscores": True}
        for _, seen_key in pairs:
            pipe.zrange(seen_key, "+inf", "-inf", desc=True, byscore=True, **of_newest)
        time, scored, of_gateways = await pipe.execute()
        now_ms = redis_ms(time)
        gateways = {one: at for one, at in of_gateways if one.startswith(_GATEWAY)}
        seen: dict[bytes, float] = dict(scored) | gateways
        gone = forgotten({_name(one): at for one, at in seen.items()}, now_ms)
        members = [
            one
            for one, at in seen.items()
            if _name(one) not in gone or is_of_the_future(at, now_ms)
        ]
        for member in members:
            pipe.hstrlen(pairs[member in gateways][0], member)
        lengths = await pipe.execute()
        short = [
            one
            for one, length in zip(members, lengths, strict=True)
            if 0 < length <= MAX_HEARTBEAT_BYTES
        ]
        for member in short:
            pipe.hget(pairs[member in gateways][0], member)
        values: list[Any] = await pipe.execute()
    found = dict(zip(short, values, strict=True))
    beats = [
        (member, found.get(member))
        for member, length in zip(members, lengths, strict=True)
        if length and (member not in found or found[member] is not None)
    ]
    status = Status.from_redis(beats, seen, now_ms)
    if len(seen) < MAX_HEARTBEATS:
        return status
    more = Unreadable("", f"there are {MAX_HEARTBEATS} heartbeats or more: only these were read")
    return replace(status, unreadable=(*status.unreadable, more))


def _name(member: bytes) -> str:
    return member.decode("utf-8", "backslashreplace")
