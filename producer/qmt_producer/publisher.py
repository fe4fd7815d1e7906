"""From the ring to Redis: a cursor, one idempotent call per batch, and the lease."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import structlog

from qmt_protocol.errors import RedisUnavailable
from qmt_protocol.keys import Keys

from .redis_link import connect, reach
from .ring import Batch, Ring

__all__ = ["Publisher", "PublisherFigures"]

log: Final = structlog.get_logger(__name__)

PUBLISH_LUA: Final = files(__package__).joinpath("publish.lua").read_text("utf-8")
_FIXED_KEYS: Final = 4
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_READ_AHEAD: Final = 8
_STANDBY_S: Final = 0.5

# SET NX and a look at who holds it, in one step; a new market also gets its epoch.
_LEASE_LUA: Final = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'NX')
return ARGV[1]
"""

_RELEASE_LUA: Final = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)


@dataclass
class PublisherFigures:
    """Counts since the start."""

    published: int = 0
    repeated: int = 0
    late: int = 0
    clamped: int = 0
    rejected: int = 0
    redis_away: str = ""
    standby: str = ""


class Publisher:
    """Publishes the ring's batches in order, each exactly once, while it holds the lease.

    Parameters
    ----------
    ring
        Where the batches come from.
    keys, url
        Where they go.
    lease_ms
        How long a market stays ours after its last batch or renewal.
    feed_keep_ms, future_ms
        See `ProducerSettings`.
    on_event
        Called with an event document when something is to be told.
    """

    def __init__(
        self,
        ring: Ring,
        *,
        keys: Keys,
        url: str,
        lease_ms: int,
        feed_keep_ms: int,
        future_ms: int,
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._ring = ring
        self._keys = keys
        self._redis = connect(url)
        self._publish = self._redis.register_script(PUBLISH_LUA)
        self._lease = self._redis.register_script(_LEASE_LUA)
        self._lease_ms = lease_ms
        self._feed_keep_ms = feed_keep_ms
        self._future_ms = future_ms
        self._on_event = on_event
        self._held_until: dict[str, float] = {}
        self._stopping = threading.Event()
        self.holder = f"{ring.id}:{secrets.token_hex(4)}"
        self.figures = PublisherFigures()
        self.more = threading.Event()
        self.thread = threading.Thread(target=self._run, name="publisher")

    def stop(self, drain_s: float) -> None:
        """Publish what the ring still holds, for so long at most, then give the lease back."""
        deadline = time.monotonic() + drain_s
        while self._ring.published < self._ring.last and time.monotonic() < deadline:
            if self.figures.redis_away or self.figures.standby or not self.thread.is_alive():
                break
            time.sleep(0.02)
        self._stopping.set()
        self.more.set()
        self.thread.join()
        try:
            reach(self._give_back)
        except RedisUnavailable as error:
            log.warning("the leases were not given back", error=error.message)
        self._redis.close()

    def _give_back(self) -> None:
        for market in self._held_until:
            self._redis.eval(_RELEASE_LUA, 1, self._keys.lease(market), self.holder)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self.more.clear()
            batches = self._ring.after(self._ring.published, _READ_AHEAD)
            if not batches:
                self.more.wait(0.5)
                continue
            try:
                for batch in batches:
                    self._deliver(batch)
                failures = 0
                self._back()
            except RedisUnavailable as error:
                self._away(error)
                self._stopping.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    def _deliver(self, batch: Batch) -> None:
        """Publish one batch; return when Redis holds it, or we are to stop."""
        while not self._stopping.is_set():
            if not self._hold(batch.market):
                self._stopping.wait(_STANDBY_S)
                continue
            state, *counts, _, reason = self._call(batch)
            if state == b"fenced":
                self._held_until.pop(batch.market, None)
                continue
            self._count(batch, [int(count) for count in counts], reason.decode("utf-8", "replace"))
            self._ring.acknowledge(batch.number)
            return

    def _call(self, batch: Batch) -> list[Any]:
        keys = self._keys
        market = batch.market
        names = [keys.lease(market), keys.acked(market), keys.latest(market), keys.feed(market)]
        arguments: list[Any] = [
            self.holder,
            self._lease_ms,
            self._ring.id,
            batch.number,
            self._feed_keep_ms,
            self._future_ms,
        ]
        stem = keys.tick(f"@.{market}").removesuffix(f"@.{market}")
        for code, at_ms, t1 in batch.entries:
            names.append(stem + code)
            arguments += (code, at_ms, t1)
        return list(reach(lambda: self._publish(keys=names, args=arguments)))

    def _hold(self, market: str) -> bool:
        """Take the market's lease where it is free; publishing renews it from then on."""
        now = time.monotonic()
        if now < self._held_until.get(market, 0.0):
            self._held_until[market] = now + self._lease_ms / 2000
            return True
        names = [self._keys.lease(market), self._keys.epoch(market)]
        arguments: list[str | int] = [self.holder, self._lease_ms, secrets.token_hex(8)]
        held = reach(lambda: self._lease(keys=names, args=arguments))
        holder = held.decode() if isinstance(held, bytes) else str(held)
        if holder != self.holder:
            if not self.figures.standby:
                log.warning("another producer publishes", market=market, holder=holder)
                self._on_event({"kind": "standby", "market": market, "holder": holder})
            self.figures.standby = holder
            return False
        if market not in self._held_until or self.figures.standby:
            self._on_event({"kind": "lease taken", "market": market, "holder": self.holder})
        self.figures.standby = ""
        self._held_until[market] = now + self._lease_ms / 2000
        return True

    def _count(self, batch: Batch, counts: list[int], reason: str) -> None:
        added, repeated, late, clamped, rejected = counts
        figures = self.figures
        figures.published += added
        figures.repeated += repeated
        figures.late += late
        figures.clamped += clamped
        figures.rejected += rejected
        if late:
            self._on_event({"kind": "late", "market": batch.market, "ticks": late})
        if rejected:
            log.error("Redis rejected ticks", market=batch.market, ticks=rejected, reason=reason)
            self._on_event(
                {
                    "kind": "gap",
                    "market": batch.market,
                    "ticks": rejected,
                    "reason": f"rejected by Redis: {reason}",
                }
            )

    def _away(self, error: RedisUnavailable) -> None:
        if not self.figures.redis_away:
            log.warning("Redis is away; ticks wait in the ring", error=error.message)
            self._on_event({"kind": "redis away", "reason": error.message})
        self.figures.redis_away = error.message
        self._held_until.clear()

    def _back(self) -> None:
        if self.figures.redis_away:
            log.info("Redis is back")
            self._on_event({"kind": "redis back"})
            self.figures.redis_away = ""
