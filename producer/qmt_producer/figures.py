"""What a producer counts and times, for its heartbeat."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Allowance", "Figures", "Latency", "Rate"]

_WINDOW_S: Final = 60.0
_MAX_SAMPLES: Final = 20_000


class Latency:
    """Batches' times from callback entry to acknowledgement by Redis, over the last minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque(maxlen=_MAX_SAMPLES)

    def add(self, ms: int) -> None:
        """Note one batch."""
        with self._lock:
            self._samples.append((time.monotonic(), ms))

    def summary(self) -> dict[str, int]:
        """Return ``p50``, ``p99`` and ``max`` in ms, and how many ``batches`` they are of."""
        oldest = time.monotonic() - _WINDOW_S
        with self._lock:
            while self._samples and self._samples[0][0] < oldest:
                self._samples.popleft()
            ordered = sorted(ms for _, ms in self._samples)
        if not ordered:
            return {"p50": 0, "p99": 0, "max": 0, "batches": 0}
        count = len(ordered)
        return {
            "p50": ordered[(count - 1) // 2],
            "p99": ordered[(count - 1) * 99 // 100],
            "max": ordered[-1],
            "batches": count,
        }


class Rate:
    """A count's growth a second between two looks."""

    def __init__(self) -> None:
        self._count = 0
        self._at = time.monotonic()

    def of(self, count: int) -> float:
        """Return the rate since the last call."""
        now = time.monotonic()
        rate = (count - self._count) / max(now - self._at, 1e-3)
        self._count, self._at = count, now
        return round(rate, 1)


class Allowance:
    """So much at once, and so much more a second."""

    def __init__(
        self, most: float, per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = self._left = most
        self._per_s = per_s
        self._clock = clock
        self._at = clock()

    def take(self, much: float) -> bool:
        """Take as much, if anything is left; then nothing is until it has come again."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left <= 0:
            return False
        self._left -= much
        return True


@dataclass
class Figures:
    """Counts since the start, over all markets."""

    published: int = 0
    """Ticks added to their streams."""
    repeated: int = 0
    late: int = 0
    clamped: int = 0
    rejected: int = 0
    bars: int = 0
    """Bars added to their streams: every update of a forming one, and the closed ones."""
    bars_repeated: int = 0
    bars_late: int = 0
    redis_away: str = ""
    standby: dict[str, str] = field(default_factory=dict)
    """Market to the producer that holds it; replaced, never changed: other threads read it."""
    latency: Latency = field(default_factory=Latency)

    def stand_by(self, market: str, holder: str) -> None:
        """Note who holds a market; empty: nobody else does."""
        others = {name: held for name, held in self.standby.items() if name != market}
        self.standby = {**others, market: holder} if holder else others
