"""One reader per market feed in this process, shared by all WebSocket clients.

Clients with the same subscription are one group: their frames are made once. Whole markets are
sent as they come, one frame per published batch; sets of codes are flushed together some times a
second. The hub keeps the newest row of every code, and the last batches; so a client that joins
gets, without a gap or a repeat, the snapshot and then exactly what follows it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from qmt_protocol.codes import market_of
from qmt_protocol.cursor.batch import Batch
from qmt_protocol.cursor.gaps import gap_of_event, unreadable
from qmt_protocol.cursor.position import EVENTS, Offset
from qmt_protocol.cursor.scope import Scope
from qmt_protocol.errors import (
    AccessDenied,
    CodecError,
    Gap,
    InvalidRequest,
    QMTError,
    RedisUnavailable,
    Unavailable,
)
from qmt_protocol.feed import is_entry_id, readable
from qmt_protocol.ids import id_key
from qmt_protocol.limits import MAX_UNREADABLE
from qmt_protocol.live import CloseCode, Failure, FromGateway, GapNotice
from qmt_reading.live.demand import Demand
from qmt_reading.live.feed import FeedReader
from qmt_reading.redis_transport import RedisTransport
from qmt_runtime.connections import redis_call

from .budget import Budget
from .frame import Frame
from .group import Group
from .market import Market
from .subscriber import Subscriber, Subscription
from .wires import Row, Rows, rows_of

__all__ = ["Hub", "notice_of"]

MAX_MARKETS: Final = 32
_LINGER_S: Final = 15.0
"""How long a market is read on after its last client left."""
_RECENT_EVENTS: Final = 200
_AGAIN_S: Final = 1.0
_log: Final = structlog.get_logger(__name__)


class Hub:
    """Ticks and bars from market feeds to subscribers.

    Parameters
    ----------
    transport
        Redis.
    flush_s
        Shortest time between two frames of a set of codes; what comes in between goes together.
    max_bytes
        Bytes that may wait for one client before it is conflated.
    budget
        Bytes that may wait for all together.
    """

    def __init__(
        self, transport: RedisTransport, *, flush_s: float, max_bytes: int, budget: Budget
    ) -> None:
        self.transport = transport
        self.budget = budget
        self._flush_s = flush_s
        self._max_bytes = max_bytes
        self._markets: dict[str, Market] = {}
        self._groups: dict[tuple[frozenset[str], str, str, bool], Group] = {}
        self._groups_of: defaultdict[Subscriber, set[Group]] = defaultdict(set)
        self._topics: dict[str, set[Group]] = {}
        self._dirty: dict[Group, None] = {}
        self._flusher: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0
        self.subscribers: set[Subscriber] = set()
        self._demand: Demand = transport.demand(self._refused)
        self.events_id = ""
        self._events: deque[tuple[str, GapNotice]] = deque(maxlen=_RECENT_EVENTS)
        self._events_task: asyncio.Task[None] | None = None
        self._events_again: asyncio.TimerHandle | None = None

    @property
    def clients(self) -> int:
        """How many subscribers there are."""
        return len(self.subscribers)

    @property
    def markets(self) -> int:
        """How many markets are read."""
        return len(self._markets)

    def open(self, subscriber: Subscriber) -> Subscriber:
        """Take a new subscriber in, without codes."""
        self.subscribers.add(subscriber)
        self.budget.join(subscriber)
        if self._events_task is None:
            self._start_events()
        return subscriber

    def _start_events(self) -> None:
        self._events_task = asyncio.create_task(self._follow_events(), name="events")
        self._events_task.add_done_callback(self._events_ended)

    def _events_ended(self, task: asyncio.Task[None]) -> None:
        """Begin again: whoever follows would otherwise hear of no gap any more, and not know."""
        if task.cancelled():
            return
        _log.error("events are followed anew", exc_info=task.exception())
        loop = asyncio.get_running_loop()
        self._events_again = loop.call_later(_AGAIN_S, self._start_events)

    @property
    def max_bytes(self) -> int:
        """Bytes that may wait for one client."""
        return self._max_bytes

    # Subscriptions

    def market(self, name: str) -> Market:
        """Return a market that is held.

        Raises
        ------
        Unavailable
            When it is read no longer.
        """
        market = self._markets.get(name)
        if market is None:
            raise Unavailable(f"The feed of {name} is read no longer.")
        return market

    async def hold(self, names: Iterable[str]) -> list[Market]:
        """Have markets read, and wait until they are; each call is answered by `release`.

        Raises
        ------
        InvalidRequest
            When too many markets would have to be read.
        Unavailable
            When Redis does not answer.
        """
        requested = sorted(set(names))
        self._make_room(set(requested))
        held = [self._hold(name) for name in requested]
        try:
            for market in held:
                await market.ready.wait()
            for market in held:
                if market.error is not None:
                    raise market.error
        except BaseException:
            self.release(held)
            raise
        return held

    def release(self, markets: Iterable[Market]) -> None:
        """Let markets go; they are read on for a little while."""
        for market in markets:
            market.clients -= 1
            if market.clients <= 0 and market.stopper is None and market.error is None:
                loop = asyncio.get_running_loop()
                market.stopper = loop.call_later(_LINGER_S, self._stop, market)

    def join(
        self,
        subscriber: Subscriber,
        *,
        codes: Iterable[str] = (),
        bars: Iterable[str] = (),
        markets: Iterable[str] = (),
    ) -> None:
        """Add to what a subscriber gets, from now on. The markets must be held."""
        self._regroup(subscriber, set(codes), set(bars), set(markets), add=True)

    def part(
        self,
        subscriber: Subscriber,
        *,
        codes: Iterable[str] = (),
        bars: Iterable[str] = (),
        markets: Iterable[str] = (),
    ) -> None:
        """Take away from what a subscriber gets, from now on."""
        self._regroup(subscriber, set(codes), set(bars), set(markets), add=False)

    def _regroup(
        self, subscriber: Subscriber, codes: set[str], bars: set[str], markets: set[str], add: bool
    ) -> None:
        for group in self._groups_of[subscriber]:
            self._flush_group(group)
        subscription = subscriber.subscription
        before = subscription.names()
        old_bars = set(subscription.bars)
        for mine, given in (
            (subscription.codes, codes),
            (subscription.bars, bars),
            (subscription.markets, markets),
        ):
            if add:
                mine |= given
            else:
                mine -= given
        self._demand.add(subscription.bars - old_bars)
        self._demand.remove(old_bars - subscription.bars)
        self._ungroup(subscriber)
        if not add:
            subscriber.forget(codes | bars)
        keys = frozenset(
            key
            for key in (*subscription.codes, *subscription.bars)
            if "|" in key or key.rpartition(".")[2] not in subscription.markets
        )
        if keys:
            self._enter(subscriber, keys, "")
        for name in subscription.markets:
            self._enter(subscriber, frozenset(), name)
        after = subscription.names()
        for name in after - before:
            self._hold(name)
        self.release([self._markets[name] for name in before - after if name in self._markets])

    def _enter(self, subscriber: Subscriber, keys: frozenset[str], market: str) -> None:
        name = (keys, market, subscriber.wire.format, subscriber.conflate)
        group = self._groups.get(name)
        if group is None:
            group = Group(keys, market, subscriber.wire, subscriber.conflate, self.budget)
            self._groups[name] = group
            for key in keys:
                self._topics.setdefault(key, set()).add(group)
            if market:
                self._markets[market].whole.add(group)
        else:
            self._flush_group(group)
        group.subscribers.add(subscriber)
        self._groups_of[subscriber].add(group)

    def _ungroup(self, subscriber: Subscriber) -> None:
        subscriber.leave_groups()
        for group in self._groups_of[subscriber]:
            group.subscribers.discard(subscriber)
            if group.subscribers:
                continue
            del self._groups[(group.keys, group.market, group.wire.format, group.conflate)]
            self._dirty.pop(group, None)
            for key in group.keys:
                of_key = self._topics[key]
                of_key.discard(group)
                if not of_key:
                    del self._topics[key]
            if group.market in self._markets:
                self._markets[group.market].whole.discard(group)
        self._groups_of[subscriber].clear()

    def leave(self, subscriber: Subscriber) -> None:
        """Take a subscriber out."""
        subscription = subscriber.subscription
        self.part(
            subscriber,
            codes=set(subscription.codes),
            bars=set(subscription.bars),
            markets=subscription.markets,
        )
        subscriber.closed = True
        subscriber.let_go()
        self.subscribers.discard(subscriber)
        self._groups_of.pop(subscriber, None)
        self.budget.part(subscriber)

    def snapshot(self, keys: Iterable[str], markets: Iterable[str]) -> list[Row]:
        """Return the newest rows of codes, bars and whole markets, all of them held."""
        rows = [
            row
            for key in keys
            if (row := self._markets[key.rpartition(".")[2]].newest(key)) is not None
        ]
        for name in markets:
            rows += self._markets[name].newest_ticks()
        return rows

    async def load_bars(self, keys: Iterable[str]) -> None:
        """Know the last stored bar of what nobody gets yet; its market is held.

        Raises
        ------
        RedisUnavailable
        """
        for key in keys:
            period, _, code = key.partition("|")
            stream = self.transport.keys.bar(period, code)
            async with redis_call(self.transport.address):
                last: Any = await self.transport.streams.xrevrange(stream, count=1)
            if not last or key in self._topics:
                continue
            entry_id, k1 = last[0][0].decode(), last[0][1].get(b"k1", b"")
            market = self._markets[market_of(code)]
            good, bad = readable([(code, period, entry_id, k1)])
            for error in bad:
                self._on_gap(market, unreadable(error))
            if good and is_entry_id(entry_id):
                market.take_bar(Row(code, period, entry_id, k1))

    def offsets(self, names: Iterable[str]) -> dict[str, Offset]:
        """Return where the hub stands in markets, and in the producers' events."""
        offsets = self._offsets(names)
        if self.events_id:
            offsets[EVENTS] = ("", self.events_id)
        return offsets

    def offsets_of(self, subscriber: Subscriber) -> dict[str, Offset]:
        """Return where a subscriber stands who has taken everything."""
        return self.offsets(subscriber.subscription.names())

    def send_events(self, subscriber: Subscriber, subscription: Subscription, after: str) -> None:
        """Tell a subscriber the producers' gaps behind an event's id that concern some wants."""
        for event_id, notice in self._events:
            if id_key(event_id) > id_key(after) and _concerns(notice, subscription):
                subscriber.send(_cut(notice, subscription))

    # Markets

    def _make_room(self, requested: set[str]) -> None:
        """Keep the number of readers bounded: those without clients go first."""
        others = [market for name, market in self._markets.items() if name not in requested]
        busy = sum(market.clients > 0 for market in others)
        if len(requested) + busy > MAX_MARKETS:
            raise InvalidRequest(
                f"{len(requested)} markets beside {busy}: a gateway reads at most {MAX_MARKETS}.",
                hint="Check the codes' markets.",
                limit=MAX_MARKETS,
            )
        idle = [market for market in others if market.clients <= 0]
        for market in idle[: max(0, len(requested) + len(others) - MAX_MARKETS)]:
            self._stop(market)

    def _hold(self, name: str) -> Market:
        market = self._markets.get(name)
        if market is None:
            market = self._markets[name] = Market(name)
            market.task = asyncio.create_task(self._follow(market), name=f"feed {name}")
            market.task.add_done_callback(partial(self._ended, market))
        if market.stopper is not None:
            market.stopper.cancel()
            market.stopper = None
        market.clients += 1
        return market

    def _stop(self, market: Market) -> None:
        if market.stopper is not None:
            market.stopper.cancel()
        if self._markets.get(market.name) is market:
            del self._markets[market.name]
        if market.task is not None:
            market.task.cancel()

    async def _follow(self, market: Market) -> None:
        market.follower = self.transport.follower(
            Scope((market.name,), None, None),
            snapshot=True,
            on_gap=partial(self._on_gap, market),
            events=False,
        )
        async for batch in market.follower.batches():
            if batch.kind == "snapshot":
                market.begin(batch.rows, batch.offsets[market.name])
            elif batch.kind != "begin":
                self._take(market, self._checked(market, batch))

    def _checked(self, market: Market, batch: Batch) -> Batch:
        """Leave out, and name, what nobody could decode: it would be each client's to find."""
        ticks, bad_ticks = readable(batch.rows)
        bars, bad_bars = readable(batch.bars)
        bad = [*bad_ticks, *bad_bars]
        if not bad:
            return batch
        for error in bad[:MAX_UNREADABLE]:
            self._on_gap(market, unreadable(error))
        return replace(batch, rows=ticks, bars=bars, data=None)

    def _ended(self, market: Market, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, QMTError):
            _log.error("feed lost", market=market.name, error=failure.slug, reason=failure.message)
            market.error = failure
        else:
            if failure is not None:
                _log.error("feed failed", market=market.name, exc_info=failure)
            market.error = Unavailable(f"The feed of {market.name} is read no longer.")
        for subscriber in list(self.readers_of(market.name)):
            subscriber.close(CloseCode.UNAVAILABLE, market.error.message)
        if self._markets.get(market.name) is market:
            del self._markets[market.name]
        market.ready.set()

    def readers_of(self, name: str) -> list[Subscriber]:
        """Return who gets something of a market."""
        return [one for one in self.subscribers if one.subscription.in_market(name)]

    def away_s(self, now: float) -> dict[str, float]:
        """Return the markets that Redis does not answer for, and for how long."""
        away: dict[str, float] = {}
        for name, market in self._markets.items():
            if market.follower is None or market.follower.connected:
                market.away_since = None
            elif market.ready.is_set():
                market.away_since = market.away_since or now
                away[name] = now - market.away_since
        return away

    # Rows

    def _take(self, market: Market, batch: Batch) -> None:
        ticks, bars = Rows(batch.rows), rows_of((), batch.bars)
        before, market.offset = market.offset, batch.offsets.get(market.name, market.offset)
        was_recovering, market.is_recovering = market.is_recovering, batch.kind == "stored"
        if market.broken or market.is_recovering or was_recovering:
            # Who stands before this must be told so: memory does not lead over it.
            market.forget_recent()
            market.broken = False
        else:
            market.note_recent((before, market.offset, batch.rows, bars))
        if ticks:
            kind = "stored" if batch.kind == "stored" else "live"
            # Those of the whole market first: their frame is the feed's own bytes.
            self._send_whole(market, kind, ticks, batch.data)
            if self._topics:
                for row in ticks:
                    groups = self._topics.get(row.key)
                    if groups is not None:
                        self._put(groups, row)
            market.take_ticks(ticks)
        for bar in bars:
            if market.take_bar(bar):
                self._put(self._topics.get(bar.key, ()), bar)
        self.budget.relieve()
        if self._dirty and self._flusher is None:
            loop = asyncio.get_running_loop()
            due = max(0.0, self._flushed_at + self._flush_s - loop.time())
            self._flusher = loop.call_later(due, self._flush)

    def _send_whole(self, market: Market, kind: str, ticks: Rows, data: bytes | None) -> None:
        offsets = {market.name: market.offset}
        for group in market.whole:
            if group.conflate:
                self._dirty[group] = None
                group.pending += ticks.made()
            else:
                frame = group.wire.live(kind, offsets, ticks, data)
                group.send(Frame(frame, ticks, offsets))

    def _put(self, groups: Iterable[Group], row: Row) -> None:
        for group in groups:
            if not group.pending:
                self._dirty[group] = None
            group.pending.append(row)

    def _flush(self) -> None:
        self._flusher = None
        self._flushed_at = asyncio.get_running_loop().time()
        dirty, self._dirty = self._dirty, {}
        offsets: dict[frozenset[str], dict[str, Offset]] = {}
        for group in dirty:
            if group.names not in offsets:
                offsets[group.names] = self._offsets(group.names)
            self._flush_group(group, offsets[group.names])
        self.budget.relieve()

    def _offsets(self, names: Iterable[str]) -> dict[str, Offset]:
        return {name: self._markets[name].offset for name in names if name in self._markets}

    def _flush_group(self, group: Group, offsets: dict[str, Offset] | None = None) -> None:
        rows = group.pending
        if not rows:
            return
        group.pending = []
        if group.conflate:
            newest = {row.key: row for row in rows}
            rows = [row for row in rows if newest[row.key] is row]
        offsets = self._offsets(group.names) if offsets is None else offsets
        group.send(Frame(group.wire.live("live", offsets, rows), rows, offsets))

    # Gaps and refusals

    def _on_gap(self, market: Market, gap: Gap) -> None:
        _log.warning("feed gap", market=market.name, gap=gap.message)
        notice = notice_of(gap, market.name)
        market.broken = True
        for group in {g for one in self.readers_of(market.name) for g in self._groups_of[one]}:
            self._flush_group(group)
        for subscriber in self.readers_of(market.name):
            if not gap.data.get("bars") or subscriber.subscription.bars:
                subscriber.send(notice)

    async def _follow_events(self) -> None:
        reader = FeedReader(
            self.transport.streams,
            self.transport.keys,
            (),
            events=True,
            address=self.transport.address,
        )
        while True:
            try:
                if not reader.events_id:
                    await self._load_events(reader)
                reading = await reader.read()
            except (AccessDenied, CodecError, RedisUnavailable):
                await asyncio.sleep(_AGAIN_S)
                continue
            for event_id, event in reading.events:
                notice = self._note_event(event_id, event)
                if notice is not None:
                    for subscriber in self.subscribers:
                        if _concerns(notice, subscriber.subscription):
                            subscriber.send(_cut(notice, subscriber.subscription))
            self.events_id = reader.events_id

    async def _load_events(self, reader: FeedReader) -> None:
        """Know the last events, for those who come back."""
        await reader.begin({})
        newest = reader.events_id
        reader.events_id = f"{max(0, id_key(newest)[0] - 3_600_000)}-0"
        while id_key(reader.events_id) < id_key(newest):
            reading = await reader.read(block=False)
            if not reading.events:
                break
            for event_id, event in reading.events:
                self._note_event(event_id, event)
        reader.events_id = max(reader.events_id, newest, key=id_key)
        self.events_id = reader.events_id

    def _note_event(self, event_id: str, event: Mapping[str, object]) -> GapNotice | None:
        gap = gap_of_event(event)
        if gap is None:
            return None
        notice = msgspec.structs.replace(notice_of(gap, ""), event=event_id)
        self._events.append((event_id, notice))
        return notice

    def _refused(self, member: str, error: QMTError) -> None:
        for subscriber in self.subscribers:
            if member in subscriber.subscription.bars:
                subscriber.send(Failure(id="", error=error.to_dict()))

    async def send_all(self, message: FromGateway) -> None:
        """Tell every subscriber something."""
        for subscriber in self.subscribers:
            subscriber.send(message)

    async def close(self) -> None:
        """Stop all readers."""
        tasks = [market.task for market in self._markets.values() if market.task is not None]
        for market in list(self._markets.values()):
            self._stop(market)
        if self._events_again is not None:
            self._events_again.cancel()
        if self._events_task is not None:
            self._events_task.cancel()
            tasks.append(self._events_task)
        if self._flusher is not None:
            self._flusher.cancel()
        await self._demand.close()
        await asyncio.gather(*tasks, return_exceptions=True)


def notice_of(gap: Gap, market: str) -> GapNotice:
    """Return a gap as the protocol's message."""
    facts = gap.data
    return GapNotice(
        market=facts.get("market") or market,
        reason=str(facts.get("reason", "")),
        message=gap.message,
        after=facts.get("after"),
        from_ms=int(facts.get("from_ms") or 0),
        to_ms=int(facts.get("to_ms") or 0),
        ticks=int(facts.get("ticks") or 0),
        codes={code: list(lost) for code, lost in (facts.get("codes") or {}).items()},
    )


def _concerns(notice: GapNotice, subscription: Subscription) -> bool:
    if notice.codes:
        return any(subscription.holds(code) for code in notice.codes)
    return not notice.market or subscription.in_market(notice.market)


def _cut(notice: GapNotice, subscription: Subscription) -> GapNotice:
    """Leave out of a producer's notice the codes that a subscriber does not get."""
    codes = {code: lost for code, lost in notice.codes.items() if subscription.holds(code)}
    if len(codes) == len(notice.codes):
        return notice
    ticks = sum(lost[2] for lost in codes.values())
    return msgspec.structs.replace(notice, codes=codes, ticks=ticks)
