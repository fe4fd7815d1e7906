"""One market's way from the ring to Redis: its lease, its cursor, its place after a break."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog

from qmt_protocol.keys import Keys, parse_want

from .figures import Figures
from .functions import COMPLETE, Functions
from .redis_link import reach
from .ring import Batch, Kind, Ring

__all__ = ["MarketLine"]

log: Final = structlog.get_logger(__name__)

_MOST_BATCHES: Final = 8
_MOST_BYTES: Final = 1_000_000
"""What may be on its way at once: while Redis works on one batch, the next one is there."""
_MARGIN_MS: Final = 30_000
"""How far before what is complete a new holder begins; repeats are dropped by content."""
_APART_MS: Final = 3_000
"""How far apart two terminals may bring the same tick."""
_IDLE_MARK_MS: Final = 2_000


class MarketLine:
    """Publishes one market's batches in order, each exactly once, while it holds the lease.

    A producer that does not hold the lease follows: its ring fills and is thinned, and when the
    lease falls free it goes on from its own ring, some seconds before the time up to which the
    market is complete: every tick that holders received before it is published or named. That
    time stands in Redis and moves with the batches, so it does not depend on how long they waited.

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
        functions: Functions,
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
        self._functions = functions
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
        self._skew_ms = 0  # how far this clock is ahead of Redis'
        self._complete_ms = 0  # by Redis time
        self._since_ms = 0  # silences that end before are none of ours
        self._apart_ms = 0
        self._history_begins = False
        self._named = 0  # number of the last silence named
        self.refused = ""
        """Why Redis takes nothing of this market; empty: it does."""
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
        self._name_silences()
        heard_ms = self._ring.heard_ms
        batches = self._ring.take(self.market, self.cursor, _MOST_BATCHES, _MOST_BYTES)
        if batches:
            self._publish(batches)
        elif self._complete_at(heard_ms) > self._complete_ms + _IDLE_MARK_MS:
            complete_ms = self._complete_at(heard_ms)
            call = self._complete_call(self._ring.acked(self.market), complete_ms)
            self._functions.call("complete", *call)
            self._complete_ms = complete_ms
        return bool(batches)

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
            self._functions.call("release", [self._lease_key], [self._holder])

    # -- publishing ---------------------------------------------------------------------------

    def _publish(self, batches: list[Batch]) -> None:
        """Send batches at once; what Redis did not take, and all behind it, comes again.

        Each names the one before it, so Redis takes none whose predecessor it refused.
        """
        pipe = self._functions.connection.pipeline(transaction=False)
        last = self._ring.acked(self.market)
        for batch in batches:
            name, keys, arguments = self._call(batch)
            self._functions.put(pipe, name, keys, [*arguments, last])
            last = batch.number
        received = [batch.received_ms for batch in batches if batch.kind == "tick"]
        complete_ms = self._complete_at(received[-1]) if received else self._complete_ms
        self._functions.put(pipe, "complete", *self._complete_call(last, complete_ms))
        *answers, marked = reach(lambda: pipe.execute(raise_on_error=False))
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, Exception):
                reach(partial(_raise, answer))
            if not self._took(batch, answer):
                return
        if marked == 1:
            self._complete_ms = complete_ms

    def _call(self, batch: Batch) -> tuple[str, list[str], list[Any]]:
        names = [self._lease_key, self._acked_key, self._latest_key, self._feed_key]
        arguments: list[Any] = [
            self._holder,
            self._lease_ms,
            self._ring.id,
            batch.number,
            self._feed_keep_ms,
            self._future_ms,
        ]
        if batch.kind == "bar":
            self._name_bars(batch, names, arguments)
            return "publish_bars", names, arguments
        for code, at_ms, t1 in batch.entries:
            names.append(self._stem + code)
            arguments += (code, at_ms, t1)
        return "publish_ticks", names, arguments

    def _took(self, batch: Batch, answer: list[Any]) -> bool:
        """Note a batch as published; false where Redis refused it."""
        state, *counts, redis_ms, words = answer
        if state == b"lost":
            self._sure_until = -math.inf  # taking the lease anew finds the place
            return False
        if state == b"fenced":
            self._renewed = self._sure_until = -math.inf
            return False
        self._renew(time.monotonic())
        self.cursor = batch.number
        self._ring.acknowledge(self.market, batch.number)
        now_ms = _now_ms()
        self._skew_ms = now_ms - int(redis_ms)
        self._figures.latency.add(now_ms - batch.received_ms)
        self._count(batch.kind, [int(one) for one in counts], words.decode("utf-8", "replace"))
        return True

    # -- what is complete ---------------------------------------------------------------------

    def _complete_at(self, received_ms: int) -> int:
        """Return the Redis time up to which all is told, once a batch of this receipt is there."""
        known_ms = min(received_ms, self._ring.silent_after(self._named))
        return max(self._complete_ms, int(known_ms) - self._skew_ms)

    def _complete_call(self, number: int, complete_ms: int) -> tuple[list[str], list[Any]]:
        told = f"{complete_ms} {self._ring.id}"
        arguments = [self._holder, self._ring.id, number, told, COMPLETE]
        return [self._lease_key, self._acked_key], arguments

    def _name_silences(self) -> None:
        """Name what this producer did not hear since the market was complete."""
        if self._ring.silent_after(self._named) == math.inf:
            return
        if self._history_begins and not self._since_ms:
            _, self._since_ms = self._ring.first(self.market)
            if not self._since_ms:
                return  # what it heard first is still on its way to the ring
        for silence in self._ring.silences(self._named):
            before = self._history_begins and silence.from_ms < self._since_ms
            if silence.to_ms > self._since_ms and not before:
                from_ms = max(silence.from_ms, self._since_ms)
                self._gap(silence.reason, from_ms, silence.to_ms)
            self._named = silence.number

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
        now, asked_ms = time.monotonic(), _now_ms()
        if now < self._sure_until:
            return True
        names = [self._lease_key, self._epoch_key, self._acked_key, self._feed_key]
        arguments: list[str | int] = [
            self._holder,
            self._lease_ms,
            secrets.token_hex(8),
            self._ring.id,
            COMPLETE,
        ]
        answer = self._functions.call("lease", names, arguments)
        holder = answer[0].decode("utf-8", "replace")
        if holder != self._holder:
            self._stand_by(holder)
            return False
        took_over = not self.holding
        self._figures.stand_by(self.market, "")
        self._renew(now)
        applied, redis_ms = _number(answer[1]), int(answer[3])
        self._skew_ms = _now_ms() - redis_ms
        lost = applied < self._ring.acked(self.market)
        if lost or took_over:
            tail_ms = min(_number(answer[2].partition(b"-")[0]), redis_ms)
            told_ms, _, ring = answer[4].partition(b" ")
            complete_ms = min(_number(told_ms), redis_ms) or max(tail_ms - _MARGIN_MS, 0)
            self._apart_ms = 0 if ring == self._ring.id.encode() else _APART_MS
            # Carried over to this clock; rather a little too early than too late.
            local_ms = complete_ms + asked_ms - redis_ms if complete_ms else 0
            self._complete_ms = complete_ms
            if lost:
                self._republish(applied, local_ms)
            else:
                self._find_place(applied, local_ms)
        else:
            self._ring.acknowledge(self.market, applied)
            self.cursor = max(applied, self.cursor)
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
        self._figures.stand_by(self.market, holder)

    def _follow(self) -> None:
        """Let go of what the holder has long published."""
        old_ms = _now_ms() - self._ring_keep_ms
        self.cursor = max(self.cursor, self._ring.number_before(self.market, old_ms))

    # -- finding the place --------------------------------------------------------------------

    def _find_place(self, applied: int, complete_ms: int) -> None:
        """Begin where the market is no longer complete, and name what this ring lacks of it.

        Parameters
        ----------
        applied
            This ring's last batch in Redis.
        complete_ms
            Up to when the market is complete, by this clock; 0: nothing was ever published.
        """
        self._ring.acknowledge(self.market, applied)
        self.cursor = applied
        self._begin(complete_ms)
        if complete_ms:
            begin = self._ring.number_before(self.market, complete_ms - _MARGIN_MS)
            self.cursor = max(applied, begin)
            self._name_gone(applied, "the ring no longer had it")

    def _begin(self, complete_ms: int) -> None:
        """Set since when silences are ours to name; 0: since the first batch, still to come."""
        self._history_begins = not complete_ms
        if complete_ms:
            self._since_ms = complete_ms - self._apart_ms
        else:
            _, self._since_ms = self._ring.first(self.market)

    def _name_gone(self, applied: int, reason: str) -> None:
        number, received_ms = self._ring.gone(self.market)
        if number > applied and (self._history_begins or received_ms > self._since_ms):
            self._gap(reason, 0 if self._history_begins else self._since_ms, received_ms)

    def _republish(self, applied: int, complete_ms: int) -> None:
        """Redis holds less than it had acknowledged: begin a new epoch and fill what we can."""
        lost = self._ring.acked(self.market) - applied
        log.error(
            "Redis lost history; publishing again",
            market=self.market,
            batches=lost,
            applied=applied,
            acked=self._ring.acked(self.market),
        )
        self._functions.call(
            "epoch", [self._lease_key, self._epoch_key], [self._holder, secrets.token_hex(8)]
        )
        self._on_event({"kind": "epoch", "market": self.market, "batches_again": lost})
        self._ring.rewind(self.market, applied)
        self.cursor = applied
        self._begin(complete_ms)
        self._named = 0  # events went with the history
        self._name_gone(applied, "Redis lost history that the ring no longer has")

    def _gap(self, reason: str, from_ms: int = 0, to_ms: int = 0, **counted: int) -> None:
        event: dict[str, Any] = {"kind": "gap", "market": self.market, "reason": reason}
        self._on_event(event | (counted or {"from_ms": from_ms, "to_ms": to_ms}))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _number(text: bytes) -> int:
    """Return what stands in Redis as a count or time; 0 for what is none, as for nothing."""
    return int(text) if text.isdigit() and len(text) < 20 else 0


def _raise(error: Exception) -> None:
    raise error
