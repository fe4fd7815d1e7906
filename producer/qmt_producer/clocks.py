"""How far this machine's clock is from Redis' and from the exchange's.

Leases, ages and the bound for ticks from the future go by Redis' clock, so a wrong clock here does
no harm to them. Sessions and the close of bars follow Redis' clock too while this one is off by
more than what is told. Local are only the times in events: from when to when a gap lasted.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import redis
import structlog

__all__ = ["Clocks", "ExchangeClock", "redis_offset"]

log: Final = structlog.get_logger(__name__)

_EVERY_S: Final = 10.0
_ROUND_TRIPS: Final = 5
_WINDOW_S: Final = 60.0
_SAMPLE_EVERY_S: Final = 0.5
_WITNESSES: Final = 3
"""So many ticks must be as new as the one that counts: a single one may be from the future."""
_FEWEST_SAMPLES: Final = 3
_SETTLED_MS: Final = 60_000


def redis_offset(connection: redis.Redis) -> tuple[float, float]:
    """Return how far this clock is ahead of Redis', and the round trip it was seen by, in ms.

    Redis' answer is taken to be from the middle of the round trip, of the shortest of some; so the
    error is at most half of it.
    """
    best = (0.0, float("inf"))
    for _ in range(_ROUND_TRIPS):
        local_ns, began_ns = time.time_ns(), time.perf_counter_ns()
        seconds, microseconds = connection.time()
        took_ns = time.perf_counter_ns() - began_ns
        if took_ns < best[1]:
            redis_ns = seconds * 1_000_000_000 + microseconds * 1000
            best = (local_ns + took_ns / 2 - redis_ns, took_ns)
    return best[0] / 1e6, best[1] / 1e6


class ExchangeClock:
    """Time of receipt less exchange time, of the newest ticks of the pushes of a minute.

    What is left when the least is taken is the difference of the clocks, and the shortest way from
    the exchange to here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque()
        self._next_s = 0.0

    def note(self, received_ms: int, exchange_ms: Iterable[int]) -> None:
        """Look at a push, a few times a second at most."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        newest = heapq.nlargest(_WITNESSES, exchange_ms)
        if len(newest) < _WITNESSES:
            return
        self._next_s = now_s + _SAMPLE_EVERY_S
        with self._lock:
            self._samples.append((now_s, received_ms - newest[-1]))
            while self._samples[0][0] < now_s - _WINDOW_S:
                self._samples.popleft()

    def least_ms(self) -> int | None:
        """Return the least difference of the last minute; ``None``: too little came."""
        oldest_s = time.monotonic() - _WINDOW_S
        with self._lock:
            found = [off_ms for at_s, off_ms in self._samples if at_s >= oldest_s]
        return min(found) if len(found) >= _FEWEST_SAMPLES else None


class Clocks:
    """Both differences, and an event when one is beyond its bound and when it is back.

    Parameters
    ----------
    exchange
        What the pushes tell.
    in_session_ms
        Tells for how long there has been continuous trading by the exchange's own clock; 0: there
        is none, or the terminal has a clock of its own.
    warn_ms
        A difference that is told; half of it is well again.
    on_event
        Called with an event document.
    """

    def __init__(
        self,
        exchange: ExchangeClock,
        *,
        in_session_ms: Callable[[], int],
        warn_ms: int,
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._exchange = exchange
        self._in_session_ms = in_session_ms
        self._warn_ms = warn_ms
        self._on_event = on_event
        self._next_s = 0.0
        self._off: set[str] = set()
        self.figures: dict[str, Any] = {}
        """``redis_ms``, ``redis_rtt_ms``, ``exchange_ms`` (``None``: not known), ``measured_ms``;
        empty before the first time."""

    @property
    def ahead_ms(self) -> int:
        """How far this clock is ahead of Redis' while that is told as an event; 0 otherwise."""
        return round(self.figures["redis_ms"]) if "redis" in self._off else 0

    def measure(self, connection: redis.Redis) -> None:
        """Measure if it is time to; a Redis that does not answer raises as it does."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _EVERY_S
        redis_ms, round_trip_ms = redis_offset(connection)
        settled = self._in_session_ms() >= _SETTLED_MS
        exchange_ms = self._exchange.least_ms() if settled else None
        self.figures = {
            "redis_ms": round(redis_ms, 1),
            "redis_rtt_ms": round(round_trip_ms, 2),
            "exchange_ms": exchange_ms,
            "measured_ms": time.time_ns() // 1_000_000,
        }
        self._assess("redis", redis_ms - round_trip_ms / 2, redis_ms + round_trip_ms / 2)
        if exchange_ms is not None:
            self._assess("exchange", exchange_ms, exchange_ms)

    def _assess(self, which: str, low_ms: float, high_ms: float) -> None:
        """Tell a change; within the error of the measurement a clock is taken to be right."""
        least_ms = 0.0 if low_ms <= 0 <= high_ms else min(abs(low_ms), abs(high_ms))
        off_ms = round((low_ms + high_ms) / 2)
        if which not in self._off and least_ms > self._warn_ms:
            self._off.add(which)
            log.warning("the clocks differ", which=which, off_ms=off_ms)
            self._on_event({"kind": "clock", "which": which, "off_ms": off_ms, "well": False})
        elif which in self._off and least_ms <= self._warn_ms / 2:
            self._off.discard(which)
            log.info("the clocks agree again", which=which, off_ms=off_ms)
            self._on_event({"kind": "clock", "which": which, "off_ms": off_ms, "well": True})
