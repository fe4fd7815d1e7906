"""The market's clock in a replay: which moment of the machine's clock a market time is due at."""

from __future__ import annotations

import math
import time

__all__ = ["MarketClock"]


class MarketClock:
    """Runs at a speed, may be held, set on, and jump over pauses; it never drifts.

    Parameters
    ----------
    speed
        Market time per time; infinite: everything is due.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.paused = False
        self._at_s = 0.0
        """Moment of the machine's clock at which it was `_market_ms`."""
        self._market_ms: float | None = None

    def set(self, market_ms: float) -> None:
        """Say what time it is in the market."""
        self._at_s, self._market_ms = time.monotonic(), market_ms

    def late_s(self, market_ms: float) -> float:
        """Return for how long a market time has been due; below zero: until it is."""
        if self.speed == math.inf or self.paused or self._market_ms is None:
            return 0.0
        return time.monotonic() - self._due_s(market_ms)

    def now_ms(self) -> float:
        """Return what time it is in the market."""
        if self.speed == math.inf:
            return math.inf
        if self.paused:
            return self._market_ms or 0.0
        return (self._market_ms or 0.0) + (time.monotonic() - self._at_s) * 1000 * self.speed

    def _due_s(self, market_ms: float) -> float:
        return self._at_s + (market_ms - (self._market_ms or 0.0)) / 1000 / self.speed

    def set_out(self, last_ms: int | None, next_ms: int, skip_ms: float) -> None:
        """Begin with the first row; later, take no time for a pause before the next one."""
        if self._market_ms is None:
            self.set(next_ms)
        elif last_ms is not None and next_ms - last_ms > skip_ms:
            if not self.paused and self.speed < math.inf:
                self._at_s = self._due_s(last_ms)
            self._market_ms = next_ms

    def pause(self, last_ms: int | None, next_ms: int | None) -> None:
        """Hold it, between the last row given and the next."""
        self._halt(last_ms, next_ms)
        self.paused = True

    def resume(self, last_ms: int | None) -> None:
        """Let it go on from where it was held, or from the row it was stepped to."""
        self.paused = False
        if self._market_ms is not None:
            self.set(max(self._market_ms, last_ms or 0))

    def change(self, speed: float, last_ms: int | None, next_ms: int | None) -> None:
        """Run at another speed from now on."""
        if not self.paused:
            self._halt(last_ms, next_ms)
        self.speed = speed

    def _halt(self, last_ms: int | None, next_ms: int | None) -> None:
        if self._market_ms is None:
            return
        begun = self._market_ms if last_ms is None else max(self._market_ms, last_ms)
        reached = begun if self.speed == math.inf else max(begun, self.now_ms())
        # What is due and was not taken yet is not late any more afterwards.
        self.set(reached if next_ms is None else max(begun, min(reached, next_ms)))
