"""From the ring to Redis: one thread that steps along all markets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from qmt_protocol.errors import RedisUnavailable
from qmt_protocol.keys import Keys
from qmt_runtime.retry import Backoff

from .figures import Figures
from .functions import Functions
from .market_line import MarketLine
from .redis_link import KeyRefused, connect, end_soon, refuse_other_version
from .ring import Ring

__all__ = ["Publisher"]

log: Final = structlog.get_logger(__name__)

_WAITS_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_IDLE_S: Final = 0.5
_STUCK_S: Final = 1.0
_REFUSED_S: Final = 2.0


class Publisher:
    """Publishes the ring's batches market by market.

    Parameters
    ----------
    ring
        Where the batches come from.
    markets
        Which ones from the start; those that the ring still holds come by themselves.
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
        self._keys = keys
        self._listening = listening
        self._on_event = on_event
        self._limits = limits
        self._stopping = threading.Event()
        # The ring is locked to one process, so its id names this producer over a restart too.
        self.holder = ring.id
        self.figures = Figures()
        self.more = threading.Event()
        self._functions = Functions(self._redis)
        self._lines: dict[str, MarketLine] = {}
        self._refused: dict[str, float] = {}
        """Market to when (monotonic) it is tried again."""
        for market in [*markets, *ring.markets]:
            self.add(market)
        self.thread = threading.Thread(
            target=ring.ends_with(self._run), name="publisher", daemon=True
        )

    def add(self, market: str) -> None:
        """Publish this market too; nothing happens when it is published already."""
        if market not in self._lines:
            line = MarketLine(
                market,
                self._ring,
                self._keys,
                self._functions,
                self.figures,
                holder=self.holder,
                listening=self._listening,
                on_event=self._on_event,
                **self._limits,
            )
            self._lines = {**self._lines, market: line}
            self.more.set()

    @property
    def markets(self) -> list[str]:
        """What is published, with or without the lease."""
        return list(self._lines)

    @property
    def cursors(self) -> dict[str, int]:
        """Market to the number below which nothing will be published again."""
        return {market: line.cursor for market, line in self._lines.items()}

    def holds(self, market: str) -> bool:
        """Whether this producer publishes the market."""
        line = self._lines.get(market)
        return line is not None and line.holding

    def _ours(self) -> list[MarketLine]:
        return [line for line in self._lines.values() if line.market not in self.figures.standby]

    @property
    def waiting_batches(self) -> int:
        """Batches in the ring that Redis does not have yet, of the markets that are ours."""
        return sum(self._ring.waiting(line.market, line.cursor) for line in self._ours())

    @property
    def unfiled(self) -> int:
        """Feed entries that streams and ``latest`` do not have yet."""
        return sum(line.unfiled for line in self._lines.values())

    def market_figures(self) -> dict[str, dict[str, Any]]:
        """Return per market: who holds it, entries added, what waits in the ring, and why."""
        now_ms = time.time_ns() // 1_000_000
        found = {}
        for market, line in self._lines.items():
            batches, size_bytes = self._ring.lag(market, line.cursor)
            oldest_ms = self._ring.oldest_after(market, line.cursor)
            found[market] = {
                "holding": line.holding,
                "published": line.published,
                "waiting_batches": batches,
                "waiting_bytes": size_bytes,
                "waiting_ms": now_ms - oldest_ms if oldest_ms else 0,
                "unfiled_batches": line.unfiled,
                "unfiled_ms": line.unfiled_ms,
            } | ({"refused": line.refused} if line.refused else {})
        return found

    @property
    def left(self) -> int:
        """Batches that Redis does not have yet, and feed entries that are not filed."""
        return self.waiting_batches + self.unfiled

    def stop(self, drain_s: float) -> None:
        """Publish and file what there is, for so long at most, then give the leases back.

        A server that takes nothing for a second is not waited for: the next start publishes.
        """
        now = time.monotonic()
        deadline, stuck_at, left = now + drain_s, now + _STUCK_S, self.left
        while left and now < min(deadline, stuck_at):
            if self.figures.redis_away or not self.thread.is_alive():
                break
            time.sleep(0.02)
            now, before, left = time.monotonic(), left, self.left
            if left < before:
                stuck_at = now + _STUCK_S
        self._stopping.set()
        self.more.set()
        end_soon(self.thread, self._redis)

    def _release(self) -> None:
        for line in self._lines.values():
            try:
                line.release()
            except RedisUnavailable as error:
                log.warning("a lease was not given back", market=line.market, error=error.message)
                if not isinstance(error, KeyRefused):
                    return

    def _run(self) -> None:
        backoff = Backoff(_WAITS_S)
        ready = False
        while not self._stopping.is_set():
            self.more.clear()
            try:
                if not ready:
                    self._functions.ensure()
                    refuse_other_version(self._redis, self._keys)
                    ready = True
                busy = self._step()
                backoff.reset()
                self._back()
            except RedisUnavailable as error:
                if self._stopping.is_set():
                    return  # the ring is closed, if this was not waited for
                ready = False
                self._away(error)
                self._stopping.wait(backoff.failed())
                continue
            if not busy:
                self.more.wait(_IDLE_S)
        self._release()

    def _step(self) -> bool:
        """Publish what waits; where nothing does, file one entry. Return whether there is more."""
        return self._each(MarketLine.step) or self._each(MarketLine.file, first=True)

    def _each(self, step: Callable[[MarketLine], bool], *, first: bool = False) -> bool:
        """Take a step along all markets, or until the first that has something to do.

        What Redis refuses for one market's keys waits, and is tried again; the others go on.
        """
        busy, now = False, time.monotonic()
        for line in self._lines.values():
            if line.market in self._refused and now < self._refused[line.market]:
                continue
            try:
                busy = step(line) or busy
            except KeyRefused as error:
                line.forget_lease()
                self._refused[line.market] = now + _REFUSED_S
                if line.refused != error.message:
                    log.error("a market is refused", market=line.market, error=error.message)
                line.refused = error.message
            else:
                self._refused.pop(line.market, None)
                line.refused = ""
            if busy and first:
                break
        return busy

    def _away(self, error: RedisUnavailable) -> None:
        if not self.figures.redis_away:
            log.warning("Redis is away; ticks wait in the ring", error=error.message)
            self._on_event({"kind": "redis away", "reason": error.message})
        self.figures.redis_away = error.message
        for line in self._lines.values():
            line.forget_lease()

    def _back(self) -> None:
        if self.figures.redis_away:
            log.info("Redis is back")
            self._on_event({"kind": "redis back"})
            self.figures.redis_away = ""
