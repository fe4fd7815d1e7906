"""From the ring to Redis: one thread that steps along all markets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from qmt_protocol.errors import RedisUnavailable
from qmt_protocol.keys import Keys

from .market_line import Figures, MarketLine, Scripts
from .redis_link import connect
from .ring import Ring

__all__ = ["Publisher"]

log: Final = structlog.get_logger(__name__)

_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_IDLE_S: Final = 0.5


class Publisher:
    """Publishes the ring's batches market by market.

    Parameters
    ----------
    ring
        Where the batches come from.
    markets
        Which ones.
    keys, url
        Where they go.
    listening
        Tells whether the terminal pushes.
    on_event
        Called with an event document when something is to be told.
    **limits
        Of each `MarketLine`: ``lease_ms``, ``feed_keep_ms``, ``future_ms``, ``ring_keep_ms``.
    """

    def __init__(
        self,
        ring: Ring,
        markets: list[str],
        *,
        keys: Keys,
        url: str,
        listening: Callable[[], bool],
        on_event: Callable[[dict[str, Any]], None],
        **limits: int,
    ) -> None:
        self._redis = connect(url)
        self._ring = ring
        self._on_event = on_event
        self._stopping = threading.Event()
        # The ring is locked to one process, so its id names this producer over a restart too.
        self.holder = ring.id
        self.figures = Figures()
        self.more = threading.Event()
        scripts = Scripts(self._redis)
        self._lines = [
            MarketLine(
                market,
                ring,
                keys,
                scripts,
                self.figures,
                holder=self.holder,
                listening=listening,
                on_event=on_event,
                **limits,
            )
            for market in markets
        ]
        self.thread = threading.Thread(target=self._run, name="publisher")

    @property
    def cursors(self) -> dict[str, int]:
        """Market to the number below which nothing will be published again."""
        return {line.market: line.cursor for line in self._lines}

    def holds(self, market: str) -> bool:
        """Whether this producer publishes the market."""
        return any(line.market == market and line.holding for line in self._lines)

    @property
    def waiting_batches(self) -> int:
        """Batches in the ring that Redis does not have yet, of the markets that are ours."""
        return sum(
            self._ring.waiting(line.market, line.cursor)
            for line in self._lines
            if line.market not in self.figures.standby
        )

    def stop(self, drain_s: float) -> None:
        """Publish what the ring still holds, for so long at most, then give the leases back."""
        deadline = time.monotonic() + drain_s
        while self.waiting_batches and time.monotonic() < deadline:
            if self.figures.redis_away or not self.thread.is_alive():
                break
            time.sleep(0.02)
        self._stopping.set()
        self.more.set()
        self.thread.join()
        try:
            for line in self._lines:
                line.release()
        except RedisUnavailable as error:
            log.warning("the leases were not given back", error=error.message)
        self._redis.close()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self.more.clear()
            try:
                busy = [line.step() for line in self._lines]
                failures = 0
                self._back()
            except RedisUnavailable as error:
                self._away(error)
                self._stopping.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                continue
            if not any(busy):
                self.more.wait(_IDLE_S)

    def _away(self, error: RedisUnavailable) -> None:
        if not self.figures.redis_away:
            log.warning("Redis is away; ticks wait in the ring", error=error.message)
            self._on_event({"kind": "redis away", "reason": error.message})
        self.figures.redis_away = error.message
        for line in self._lines:
            line.forget_lease()

    def _back(self) -> None:
        if self.figures.redis_away:
            log.info("Redis is back")
            self._on_event({"kind": "redis back"})
            self.figures.redis_away = ""
