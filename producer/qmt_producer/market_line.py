"""One market's way from the ring to Redis: its lease, its cursor, its place after a break."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog

from qmt_protocol.decoding import printable
from qmt_protocol.ids import BEGINNING, id_key, is_stream_id
from qmt_protocol.keys import Keys

from .candidates import Kind
from .figures import Figures
from .filing import Filing
from .functions import COMPLETE, Functions
from .recall import learn, recall_ticks
from .redis_link import ask_redis, refuse_errors
from .ring import Batch, Ring
from .sequencer import BarSequencer, Sequenced, TickSequencer

__all__ = ["MarketLine"]

log: Final = structlog.get_logger(__name__)

_MOST_BATCHES: Final = 8
_MOST_BYTES: Final = 1_000_000
"""What may be on its way at once: while Redis works on one batch, the next one is there."""
_MOST_UNFILED: Final = 16
"""Feed entries that wait to be filed before batches wait for them."""
_MARGIN_MS: Final = 30_000
"""How far before what is complete a new holder begins; repeats are dropped by content."""
_APART_MS: Final = 3_000
"""How far apart two terminals may bring the same tick."""
_IDLE_MARK_MS: Final = 2_000


class MarketLine:
    """Publishes one market's batches in order, each exactly once, while it holds the lease.

    A batch is sequenced here, by what this process knows of the market, and appended to its feed;
    the streams and ``latest`` are filed from there. What it knows is as of one term of the lease
    and the last batch that Redis applied under it: where Redis is not there any more, it takes
    nothing, and all that was known is read anew under another term.

    A producer that does not hold the lease follows: its ring fills and is thinned, and when the
    lease falls free it goes on from its own ring, some seconds before the time up to which the
    market is complete: every tick that holders received before it is published or named. That
    time stands in Redis and moves with the batches, so it does not depend on how long they waited.

    Parameters
    ----------
    market
        Which one.
    holder
        Name under which this process holds leases; it has no spaces.
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
        self._keys = keys
        self._lease_key, self._acked_key = keys.lease(market), keys.acked(market)
        self._filing = Filing(market, keys, functions)
        self._term = ""  # of the lease; empty: take it anew
        self._recalled = False  # whether the memories are as of the term and the last batch applied
        self._ticks, self._bars = TickSequencer({}, future_ms), BarSequencer()
        self._renewed = -math.inf
        self._sure_until = -math.inf
        self._skew_ms = 0  # how far this clock is ahead of Redis'
        self._redis_ms, self._redis_at = 0, 0.0  # a time that Redis told, and when (monotonic)
        self._complete_ms = 0  # by Redis time
        self._since_ms = 0  # silences that end before are none of ours
        self._apart_ms = 0
        self._history_begins = False
        self._named = 0  # number of the last silence named
        self.refused = ""
        """Why Redis takes nothing of this market; empty: it does."""
        self.cursor = ring.acked(market)
        self.published = 0
        """Ticks and bars added to this market's feed since the start."""

    def step(self) -> bool:
        """Publish a few batches; return whether there may be more at once.

        Raises
        ------
        RedisUnavailable
            When Redis is away; the same batch comes again.
        """
        idle = not self.unfiled and not self._ring.oldest_after(self.market, self.cursor)
        if idle and not self._listening():
            return False  # nothing to give: another producer may have the lease
        if not self._hold():
            self._follow()
            return False
        if not self._recalled:
            if self._filing.look():  # at what was left to be filed
                self.file()
                return True
            self._recall()
        if len(self._filing) >= _MOST_UNFILED:
            self.file()
            return True
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

    @property
    def unfiled(self) -> int:
        """Feed entries that streams and ``latest`` do not have yet; of others' at least one."""
        return len(self._filing) + self._filing.has_more

    @property
    def unfiled_ms(self) -> int:
        """For how long the oldest of them has waited."""
        oldest_ms = self._filing.oldest_ms
        return max(self._redis_now() - oldest_ms, 0) if oldest_ms else 0

    def forget_lease(self) -> None:
        """Take the lease anew before the next batch: Redis may have changed."""
        self._sure_until = -math.inf
        self._term = ""

    def release(self) -> None:
        """Give the lease back, if it is ours."""
        if self.holding and self._term:
            self._functions.call("release", [self._lease_key], [self._term])

    # -- publishing ---------------------------------------------------------------------------

    def _publish(self, batches: list[Batch]) -> None:
        """Send batches at once; what Redis did not take, and all behind it, comes again.

        Each names the one before it, so Redis takes none whose predecessor it refused.
        """
        pipe = self._functions.connection.pipeline(transaction=False)
        sent: list[tuple[Batch, Sequenced]] = []
        last = self._ring.acked(self.market)
        for batch in batches:
            sequenced = self._sequence(batch, alone=not sent)
            if sequenced is None:
                break
            self._functions.put(pipe, "append", *self._append_call(batch, sequenced, last))
            sent.append((batch, sequenced))
            last = batch.number
        received = [batch.received_ms for batch, _ in sent if batch.kind == "tick"]
        complete_ms = self._complete_at(received[-1]) if received else self._complete_ms
        self._functions.put(pipe, "complete", *self._complete_call(last, complete_ms))
        *answers, marked = ask_redis(lambda: pipe.execute(raise_on_error=False))
        for (batch, sequenced), answer in zip(sent, answers, strict=True):
            refuse_errors(answer)
            if not self._took(batch, sequenced, answer):
                return
        if marked == 1:
            self._complete_ms = complete_ms

    def _sequence(self, batch: Batch, *, alone: bool) -> Sequenced | None:
        """Judge a batch; none: what was let through must be filed first, and be read."""
        memory = self._memory(batch.kind)
        now_ms = self._redis_now()
        needed = memory.unknown(batch.candidates, now_ms)
        if needed:
            if not alone:
                return None
            while self._filing:
                if not self.file():
                    return None
            stream_of = partial(self._filing.stream, batch.kind)
            learn(memory, self._functions.connection, stream_of, needed)
        return memory.sequence(batch.candidates, now_ms)

    def _recall(self) -> None:
        """Learn of Redis what all is sequenced by; everything published is filed."""
        latest = self._keys.latest(self.market)
        self._ticks = recall_ticks(self._functions.connection, latest, self._future_ms)
        self._bars = BarSequencer()
        self._recalled = True

    def _memory(self, kind: Kind) -> TickSequencer | BarSequencer:
        return self._ticks if kind == "tick" else self._bars

    def _append_call(
        self, batch: Batch, sequenced: Sequenced, before: int
    ) -> tuple[list[str], list[Any]]:
        names = [self._lease_key, self._acked_key, self._keys.feed(self.market)]
        return names, [
            *(self._term, self._lease_ms, self._ring.id, batch.number, before),
            *(self._feed_keep_ms, self._filing.filed, sequenced.greatest_ms, self._future_ms),
            *("b1" if batch.kind == "tick" else "c1", sequenced.body, sequenced.sizes),
        ]

    def _took(self, batch: Batch, sequenced: Sequenced, answer: list[Any]) -> bool:
        """Note a batch as published; false where Redis refused it."""
        state, redis_ms, entry_id = answer
        if state != b"applied":  # taking the lease anew finds the place
            self.forget_lease()
            if state == b"fenced":
                self._renewed = -math.inf
            return False
        self._renew(time.monotonic())
        if entry_id:
            self._filing.add(entry_id.decode(), batch.kind, sequenced.streams)
        self.cursor = batch.number
        self._ring.acknowledge(self.market, batch.number)
        self._reported_time(int(redis_ms))
        self._figures.latency.add(_now_ms() - batch.received_ms)
        self._count(batch.kind, sequenced)
        return True

    # -- filing -------------------------------------------------------------------------------

    def file(self) -> bool:
        """File the next entry of the feed; return whether there was one, and it was the next.

        Raises
        ------
        RedisUnavailable
        """
        if not self._filing:
            return False
        done = self._filing.file()
        if done is None:
            self.forget_lease()  # somebody else filed, or the feed is another one
            return False
        if done.damaged:
            at_ms = int(done.entry_id.partition("-")[0])
            self._gap(f"feed entry {done.entry_id} is damaged", at_ms, at_ms)
        if done.refused:
            self._refused(done.kind, len(done.refused), done.words)
            for one in done.refused:
                self._memory(done.kind).forget(one)
        return True

    # -- Redis time ---------------------------------------------------------------------------

    def _reported_time(self, redis_ms: int) -> None:
        self._redis_ms, self._redis_at = redis_ms, time.monotonic()
        self._skew_ms = _now_ms() - redis_ms

    def _redis_now(self) -> int:
        """Return Redis time, or a little less."""
        return self._redis_ms + int((time.monotonic() - self._redis_at) * 1000)

    # -- what is complete ---------------------------------------------------------------------

    def _complete_at(self, received_ms: int) -> int:
        """Return the Redis time up to which all is told, once a batch of this receipt is there."""
        known_ms = min(received_ms, self._ring.silent_after(self._named))
        # What was received by a clock that was set since lies anywhere, but not in the future.
        return max(self._complete_ms, min(int(known_ms) - self._skew_ms, self._redis_now()))

    def _complete_call(self, number: int, complete_ms: int) -> tuple[list[str], list[Any]]:
        complete = f"{complete_ms} {self._ring.id}"
        arguments = [self._term, self._ring.id, number, complete, COMPLETE]
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
                went_back = silence.from_ms > silence.to_ms  # the clock, while nothing was heard
                from_ms = self._since_ms if went_back else max(silence.from_ms, self._since_ms)
                self._gap(silence.reason, from_ms, silence.to_ms)
            self._named = silence.number

    def _count(self, kind: Kind, sequenced: Sequenced) -> None:
        figures = self._figures
        self.published += sequenced.added
        figures.clamped += sequenced.clamped
        if kind == "bar":
            figures.bars += sequenced.added
            figures.bars_repeated += sequenced.repeated
            figures.bars_late += sequenced.late
            if sequenced.late:
                event = {"kind": "late bar", "market": self.market, "bars": sequenced.late}
                self._on_event({**event, "which": sequenced.words})
        else:
            figures.published += sequenced.added
            figures.repeated += sequenced.repeated
            figures.late += sequenced.late
            if sequenced.late:
                self._on_event({"kind": "late", "market": self.market, "ticks": sequenced.late})
        if sequenced.rejected:
            self._refused(kind, sequenced.rejected, sequenced.words)

    def _refused(self, kind: Kind, count: int, words: str) -> None:
        """Name what cannot be stored."""
        self._figures.rejected += count
        log.error("Redis rejected entries", market=self.market, what=kind, words=words)
        self._gap(f"rejected by Redis: {words}", **{"bars" if kind == "bar" else "ticks": count})

    # -- the lease ----------------------------------------------------------------------------

    def _hold(self) -> bool:
        """Take or renew the lease where it is free; a batch renews it by itself."""
        now, asked_ms = time.monotonic(), _now_ms()
        if now < self._sure_until:
            return True
        names = [
            *(self._lease_key, self._keys.epoch(self.market), self._acked_key),
            *(self._keys.feed(self.market), self._keys.filed(self.market)),
        ]
        new_term = f"{self._holder} {secrets.token_hex(8)}"
        arguments = [
            *(self._holder, self._lease_ms, self._term, new_term, secrets.token_hex(8)),
            *(self._ring.id, COMPLETE),
        ]
        term, *facts = self._functions.call("lease", names, arguments)
        holder = term.partition(b" ")[0].decode("utf-8", "replace")
        if holder != self._holder:
            self._stand_by(holder)
            return False
        number, tail, redis_ms, complete, filed = facts
        took_over = not self.holding
        self._figures.stand_by(self.market, "")
        self._renew(now)
        self._reported_time(int(redis_ms))
        applied, filed = _number(number), self._checked_filed(filed)
        acked = self._ring.acked(self.market)
        if term.decode() == self._term and applied == acked and filed == self._filing.filed:
            return True  # as it was
        self._term, self._recalled = term.decode(), False
        lost = applied < acked
        broken = self._filing.broken or id_key(filed) > id_key(tail.decode())
        if lost or took_over or broken:
            tail_ms = min(_number(tail.partition(b"-")[0]), int(redis_ms))
            reported_ms, _, ring = complete.partition(b" ")
            complete_ms = min(_number(reported_ms), int(redis_ms)) or max(tail_ms - _MARGIN_MS, 0)
            self._apart_ms = 0 if ring == self._ring.id.encode() else _APART_MS
            # Carried over to this clock; rather a little too early than too late.
            local_ms = complete_ms + asked_ms - int(redis_ms) if complete_ms else 0
            self._complete_ms = complete_ms
            if broken:
                filed = min(filed, tail.decode() or BEGINNING, key=id_key)
                oldest_ms = self._filing.oldest_ms + self._skew_ms
                from_ms = min(local_ms, oldest_ms) if self._filing else local_ms
                begin = self._ring.number_before(self.market, from_ms - _MARGIN_MS)
                self._republish(min(applied, begin), local_ms, filed)
                self.cursor = begin
            elif lost:
                self._republish(applied, local_ms, filed)
            else:
                self._find_place(applied, local_ms)
        else:
            self._ring.acknowledge(self.market, applied)
            self.cursor = max(applied, self.cursor)
        self._filing.begin(filed)
        if took_over:
            self._on_event({"kind": "lease taken", "market": self.market, "holder": self._holder})
        return True

    def _checked_filed(self, filed: bytes) -> str:
        """Return up to where the feed is filed; what cannot be read is told, and filed anew."""
        text = printable(filed)
        if is_stream_id(text):
            return text
        key = self._keys.filed(self.market)
        log.error("it cannot be read up to where the feed is filed", key=key, value=text)
        self._on_event({"kind": "unreadable", "market": self.market, "key": key, "value": text})
        return BEGINNING

    def _renew(self, now: float) -> None:
        self._renewed = now
        self._sure_until = now + self._lease_ms / 2000

    def _stand_by(self, holder: str) -> None:
        self._term = ""
        self._filing.clear()
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

    def _republish(self, applied: int, complete_ms: int, filed: str) -> None:
        """Redis holds less than it had acknowledged: begin a new epoch and fill what we can."""
        lost = self._ring.acked(self.market) - applied
        log.error(
            "Redis lost history; publishing again",
            market=self.market,
            batches=lost,
            applied=applied,
            acked=self._ring.acked(self.market),
        )
        names = [
            *(self._lease_key, self._keys.epoch(self.market)),
            *(self._keys.filed(self.market), self._acked_key),
        ]
        arguments = [self._term, secrets.token_hex(8), filed, self._ring.id, applied]
        self._functions.call("epoch", names, arguments)
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
