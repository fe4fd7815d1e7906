"""Who is alive: the heartbeats of producers, workers and gateways, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from qmt_protocol.errors import CodecError, NoProducer, NoWorker, TerminalNotConnected
from qmt_protocol.status import LOST_AFTER_S, Heartbeat, decode_heartbeat
from qmt_protocol.times import to_datetime

__all__ = ["Process", "Status"]

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
        told: dict[str, Any] = msgspec.to_builtins(self.beat)
        return {**told, "age_ms": self.age_ms, "alive": self.alive}


@dataclass(frozen=True)
class Status:
    """All processes that ever sent a heartbeat, the freshest first.

    Attributes
    ----------
    now_ms : int
        When this was read, by the clock of Redis.
    processes : tuple of Process
    """

    now_ms: int
    processes: tuple[Process, ...]

    @property
    def simulated(self) -> bool:
        """True when a living process (or, when none lives, any) works on the simulator."""
        living = [one for one in self.processes if one.alive] or self.processes
        return any(one.beat.simulated for one in living)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"processes": [...], "simulated", "now_ms"}``, ready for JSON."""
        return {
            "processes": [one.to_dict() for one in self.processes],
            "simulated": self.simulated,
            "now_ms": self.now_ms,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Status:
        """Rebuild a status from `to_dict`.

        Raises
        ------
        CodecError
            When it is none.
        """
        try:
            processes = tuple(
                Process(msgspec.convert(one, Heartbeat), int(one["age_ms"]))
                for one in document["processes"]
            )
            return cls(int(document.get("now_ms", 0)), processes)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise CodecError(f"Not a status document: {error}.") from error

    @classmethod
    def from_redis(
        cls,
        beats: Mapping[bytes, bytes],
        seen: Iterable[tuple[bytes, float]],
        time: tuple[int, int],
    ) -> Status:
        """Build it from ``status``, ``seen`` (scores) and Redis ``TIME``."""
        now_ms = time[0] * 1000 + time[1] // 1000
        processes = [
            Process(decode_heartbeat(beats[member]), max(0, now_ms - int(score)))
            for member, score in seen
            if member in beats
        ]
        return cls(now_ms, tuple(sorted(processes, key=lambda one: one.age_ms)))

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
