"""One market's way from the ring to Redis: its lease, its cursor, its place after a break."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from qmt_protocol.keys import Keys, parse_want

from .figures import Figures
from .redis_link import reach
from .ring import Batch, Kind, Ring
from .scripts import Scripts

__all__ = ["MarketLine"]

log: Final = structlog.get_logger(__name__)

_READ_AHEAD: Final = 8
_MARGIN_MS: Final = 30_000
"""How far before the last accepted tick a new holder begins; repeats are dropped by content."""


class MarketLine:
    """Publishes one market's batches in order, each exactly once, while it holds the lease.

    A producer that does not hold the lease follows: its ring fills and is thinned, and when the
    lease falls free it goes on from its own ring, some seconds before the last tick that Redis
    accepted from anybody.

    Parameters
    ----------
    market
        Which one.
    holder
        Name under which this process holds leases.
    lease_ms, feed_keep_ms, future_ms, ring_keep_ms
        See `ProducerSettings`.
    listening
        Tells whether the terminal pushes; a producer that hears nothing leaves the lease alone.
    on_event
        Called with an event document when something is to be told.
    """

    def __init__(
        self,
        market: str,
        ring: Ring,
        keys: Keys,
        scripts: Scripts,
        figures: Figures,
        *,
        holder: str,
        lease_ms: int,
        feed_keep_ms: int,
        future_ms: int,
        ring_keep_ms: int,
        listening: Callable[[], bool],
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self.market = market
        self._ring = ring
        self._scripts = scripts
        self._figures = figures
        self._holder = holder
        self._lease_ms = lease_ms
        self._feed_keep_ms = feed_keep_ms
        self._future_ms = future_ms
        self._ring_keep_ms = ring_keep_ms
        self._listening = listening
        self._on_event = on_event
        self._lease_key, self._epoch_key = keys.lease(market), keys.epoch(market)
        self._acked_key, self._feed_key = keys.acked(market), keys.feed(market)
        self._latest_key = keys.latest(market)
        self._keys = keys
        self._stem = keys.tick(f"@.{market}").removesuffix(f"@.{market}")
        self._renewed = -math.inf
        self._sure_until = -math.inf
        self.cursor = ring.acked(market)
        self.published = 0
        """Ticks and bars added to this market's streams since the start."""

    def step(self) -> bool:
        """Publish a few batches; return whether there may be more at once.

        Raises
        ------
        RedisUnavailable
            When Redis is away; the same batch comes again.
        """
        if not self._listening() and not self._ring.oldest_after(self.market, self.cursor):
            return False  # nothing to give: another producer may have the lease
        if not self._hold():
            self._follow()
            return False
        batches = self._ring.after(self.market, self.cursor, _READ_AHEAD)
        for batch in batches:
            if not self._publish(batch):
                return True
        return len(batches) == _READ_AHEAD

    @property
    def holding(self) -> bool:
        """Whether the market's lease is ours, as far as can be known here."""
        return time.monotonic() < self._renewed + self._lease_ms / 1000

    def forget_lease(self) -> None:
        """Ask for the lease anew before the next batch: Redis may have changed."""
        self._sure_until = -math.inf

    def release(self) -> None:
        """Give the lease back, if it is ours."""
        if self.holding:
            reach(lambda: self._scripts.release(keys=[self._lease_key], args=[self._holder]))

    # -- publishing ---------------------------------------------------------------------------

    def _publish(self, batch: Batch) -> bool:
        names = [self._lease_key, self._acked_key, self._latest_key, self._feed_key]
        arguments: list[Any] = [
            self._holder,
            self._lease_ms,
            self._ring.id,
            batch.number,
            self._feed_keep_ms,
            self._future_ms,
        ]
        script = self._scripts.publish_ticks
        if batch.kind == "bar":
            script = self._scripts.publish_bars
            self._name_bars(batch, names, arguments)
        else:
            for code, at_ms, t1 in batch.entries:
                names.append(self._stem + code)
                arguments += (code, at_ms, t1)
        arguments.append(self._ring.acked(self.market))
        answer = reach(lambda: script(keys=names, args=arguments))
        state, *counts, _, words = answer
        if state == b"lost":
            self._sure_until = -math.inf  # taking the lease anew finds the place
            return False
        if state == b"fenced":
            self._renewed = self._sure_until = -math.inf
            return False
        self._renew(time.monotonic())
        self.cursor = batch.number
        self._ring.acknowledge(self.market, batch.number)
        self._figures.latency.add(time.time_ns() // 1_000_000 - batch.received_ms)
        self._count(batch.kind, [int(one) for one in counts], words.decode("utf-8", "replace"))
        return True

    def _name_bars(self, batch: Batch, names: list[str], arguments: list[Any]) -> None:
        for member, label_ms, k1 in batch.entries:
            period, code = parse_want(member)
            names.append(self._keys.bar(period, code))
            arguments += (code, period, label_ms, k1)

    def _count(self, kind: Kind, counts: list[int], words: str) -> None:
        added, repeated, late, clamped, rejected = counts
        figures = self._figures
        self.published += added
        figures.clamped += clamped
        figures.rejected += rejected
        if kind == "bar":
            figures.bars += added
            figures.bars_repeated += repeated
            figures.bars_late += late
            if late:
                event = {"kind": "late bar", "market": self.market, "bars": late}
                self._on_event({**event, "which": words})
        else:
            figures.published += added
            figures.repeated += repeated
            figures.late += late
            if late:
                self._on_event({"kind": "late", "market": self.market, "ticks": late})
        if rejected:
            log.error("Redis rejected entries", market=self.market, what=kind, words=words)
            counted = {"bars" if kind == "bar" else "ticks": rejected}
            self._gap(f"rejected by Redis: {words}", **counted)

    # -- the lease ----------------------------------------------------------------------------

    def _hold(self) -> bool:
        """Take or renew the lease where it is free; a batch renews it by itself."""
        now = time.monotonic()
        if now < self._sure_until:
            return True
        names = [self._lease_key, self._epoch_key, self._acked_key, self._feed_key]
        arguments: list[str | int] = [
            self._holder,
            self._lease_ms,
            secrets.token_hex(8),
            self._ring.id,
        ]
        answer = reach(lambda: self._scripts.lease(keys=names, args=arguments))
        holder = answer[0].decode()
        if holder != self._holder:
            self._stand_by(holder)
            return False
        took_over = not self.holding
        self._figures.standby.pop(self.market, None)
        self._renew(now)
        self._find_place(int(answer[1]), answer[2].decode(), int(answer[3]), took_over)
        if took_over:
            self._on_event({"kind": "lease taken", "market": self.market, "holder": self._holder})
        return True

    def _renew(self, now: float) -> None:
        self._renewed = now
        self._sure_until = now + self._lease_ms / 2000

    def _stand_by(self, holder: str) -> None:
        if self._figures.standby.get(self.market) != holder:
            log.warning("another producer publishes", market=self.market, holder=holder)
            self._on_event({"kind": "standby", "market": self.market, "holder": holder})
        self._figures.standby[self.market] = holder

    def _follow(self) -> None:
        """Let go of what the holder has long published."""
        old_ms = time.time_ns() // 1_000_000 - self._ring_keep_ms
        self.cursor = max(self.cursor, self._ring.number_before(self.market, old_ms))

    # -- finding the place --------------------------------------------------------------------

    def _find_place(self, applied: int, tail_id: str, redis_ms: int, took_over: bool) -> None:
        """Set the cursor by what Redis holds, and name what nobody can publish."""
        if applied < self._ring.acked(self.market):
            self._republish(applied, tail_id)
            return
        self._ring.acknowledge(self.market, applied)
        if not took_over:
            self.cursor = max(applied, self.cursor)
            return
        self.cursor = applied
        if not tail_id:
            return
        skew_ms = time.time_ns() // 1_000_000 - redis_ms
        accepted_ms = int(tail_id.partition("-")[0]) + skew_ms
        begin = self._ring.number_before(self.market, accepted_ms - _MARGIN_MS)
        self.cursor = max(applied, begin)
        _, first_ms = self._ring.first(self.market)
        if applied == 0 and not 0 < first_ms <= accepted_ms:
            # A new ring: it cannot know since when it would have had to listen.
            until_ms = first_ms or time.time_ns() // 1_000_000
            self._gap("no producer was listening", accepted_ms, until_ms)
            accepted_ms = until_ms
        for from_ms, to_ms in self._ring.silences(accepted_ms):
            self._gap("no producer was listening", from_ms, to_ms)

    def _republish(self, applied: int, tail_id: str) -> None:
        """Redis holds less than it had acknowledged: begin a new epoch and fill what we can."""
        lost = self._ring.acked(self.market) - applied
        log.error(
            "Redis lost history; publishing again",
            market=self.market,
            batches=lost,
            applied=applied,
            acked=self._ring.acked(self.market),
            tail=tail_id,
        )
        reach(
            lambda: self._scripts.epoch(
                keys=[self._lease_key, self._epoch_key], args=[self._holder, secrets.token_hex(8)]
            )
        )
        self._on_event({"kind": "epoch", "market": self.market, "batches_again": lost})
        first_number, first_ms = self._ring.first(self.market)
        if applied + 1 < first_number or first_number == 0:
            tail_ms = int(tail_id.partition("-")[0]) if tail_id else 0
            self._gap("Redis lost history that the ring no longer has", tail_ms, first_ms)
        self._ring.acknowledge(self.market, applied)
        self.cursor = applied

    def _gap(self, reason: str, from_ms: int = 0, to_ms: int = 0, **counted: int) -> None:
        event: dict[str, Any] = {"kind": "gap", "market": self.market, "reason": reason}
        self._on_event(event | (counted or {"from_ms": from_ms, "to_ms": to_ms}))
