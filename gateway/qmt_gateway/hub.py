"""One reader per market feed in this process, shared by all WebSocket clients.

The hub keeps the newest tick of every code of a market it reads. It begins with ``latest``, read
after the feed's position was taken, and drops what it has seen by entry id; so a client that
subscribes gets, without a gap or a repeat, the snapshot and then exactly what follows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Final, Protocol

import msgspec
import structlog

from qmt_protocol.codes import market_of
from qmt_protocol.errors import Gap, InvalidRequest, QMTError, Unavailable
from qmt_protocol.ticks import Tick

from .subscriber import Frame, Subscriber, join_rows

__all__ = ["Feed", "FeedSource", "Hub"]

MAX_MARKETS: Final = 32
_LINGER_S: Final = 15.0
"""How long a market is read on after its last client left."""
_encode: Final = msgspec.json.Encoder().encode
_log = structlog.get_logger(__name__)


class Feed(Protocol):
    """The live feed of one market."""

    async def start(self) -> None:
        """Take the feed's present end as the position to read from."""

    def batches(self) -> AsyncIterator[list[Tick]]:
        """Iterate over what is published from then on."""


class FeedSource(Protocol):
    """Where the hub gets its ticks."""

    def open_feed(self, market: str, on_gap: Callable[[Gap], None]) -> Feed:
        """Return a reader of a market's feed."""

    async def snapshot(self, market: str) -> dict[str, Tick]:
        """Return the market's ``latest``."""


class _Market:
    """A market that is being read: its newest ticks and the task that follows its feed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.latest: dict[str, Tick] = {}
        self.ids: dict[str, tuple[int, int]] = {}
        self.ready = asyncio.Event()
        self.error: QMTError | None = None
        """Why it is read no longer."""
        self.clients = 0
        self.task: asyncio.Task[None] | None = None
        self.stopper: asyncio.TimerHandle | None = None

    def load(self, snapshot: dict[str, Tick]) -> None:
        self.latest = dict(snapshot)
        self.ids = {code: _position(tick.id) for code, tick in snapshot.items()}

    def accept(self, tick: Tick) -> bool:
        """Note a tick; false when it was seen before."""
        position = _position(tick.id)
        if position <= self.ids.get(tick.code, (0, -1)):
            return False
        self.ids[tick.code] = position
        if not tick.late:
            self.latest[tick.code] = tick
        return True


def _position(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms or 0), int(number or 0)


class Hub:
    """Ticks from market feeds to subscribers.

    Parameters
    ----------
    source
        Where feeds and snapshots come from.
    flush_s
        Shortest time between two frames; what comes in between goes together.
    max_bytes
        Bytes that may wait for one client before it is conflated.
    """

    def __init__(self, source: FeedSource, *, flush_s: float, max_bytes: int) -> None:
        self._source = source
        self._flush_s = flush_s
        self._max_bytes = max_bytes
        self._markets: dict[str, _Market] = {}
        self._groups: dict[frozenset[str], set[Subscriber]] = {}
        self._fresh: dict[str, list[Tick]] = {}
        self._flusher: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0

    @property
    def clients(self) -> int:
        """How many subscribers there are."""
        return sum(map(len, self._groups.values()))

    def open(self) -> Subscriber:
        """Return a new subscriber without codes."""
        return Subscriber(self._max_bytes)

    async def subscribe(self, subscriber: Subscriber, codes: Iterable[str]) -> list[str]:
        """Make codes a subscriber's set; the codes new to it are pushed as a snapshot.

        Returns the codes of which nothing is stored.

        Raises
        ------
        InvalidRequest
            When too many markets would have to be read.
        Unavailable
            When Redis does not answer.
        """
        wanted = frozenset(codes)
        added = wanted - subscriber.codes
        markets = {market_of(code) for code in wanted}
        self._make_room(markets)
        held = {market: self._hold(market) for market in sorted(markets)}
        try:
            for market in held.values():
                await market.ready.wait()
            for market in held.values():
                if market.error is not None:
                    raise market.error
        except BaseException:
            self._release(held.values())
            raise
        # From here to the end nothing is awaited: no tick can come between snapshot and feed.
        self._flush()
        self.leave(subscriber)
        subscriber.codes = wanted
        self._groups.setdefault(wanted, set()).add(subscriber)
        present = {
            code: [tick]
            for code in added
            if (tick := held[market_of(code)].latest.get(code)) is not None
        }
        if present:
            subscriber.push(_frame({code: _rows(ticks) for code, ticks in present.items()}))
        return sorted(added - present.keys())

    def leave(self, subscriber: Subscriber) -> None:
        """Take a subscriber out; its markets are read on for a little while."""
        group = self._groups.get(subscriber.codes)
        if group is None or subscriber not in group:
            return
        group.discard(subscriber)
        if not group:
            del self._groups[subscriber.codes]
        names = {market_of(code) for code in subscriber.codes}
        self._release([self._markets[name] for name in names if name in self._markets])
        subscriber.codes = frozenset()

    async def close(self) -> None:
        """Stop all readers and give all subscribers up."""
        for group in self._groups.values():
            for subscriber in group:
                subscriber.close("the gateway is stopping")
        self._groups.clear()
        tasks = [market.task for market in self._markets.values() if market.task is not None]
        for market in list(self._markets.values()):
            self._stop(market)
        if self._flusher is not None:
            self._flusher.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _make_room(self, wanted: set[str]) -> None:
        """Keep the number of readers bounded: those without clients go first."""
        others = [market for name, market in self._markets.items() if name not in wanted]
        busy = sum(market.clients > 0 for market in others)
        if len(wanted) + busy > MAX_MARKETS:
            raise InvalidRequest(
                f"{len(wanted)} markets beside {busy}: a gateway reads at most {MAX_MARKETS}.",
                hint="Check the codes' markets.",
                limit=MAX_MARKETS,
            )
        idle = [market for market in others if market.clients <= 0]
        for market in idle[: max(0, len(wanted) + len(others) - MAX_MARKETS)]:
            self._stop(market)

    def _hold(self, name: str) -> _Market:
        market = self._markets.get(name)
        if market is None:
            market = self._markets[name] = _Market(name)
            market.task = asyncio.create_task(self._follow(market), name=f"feed {name}")
            market.task.add_done_callback(partial(self._ended, market))
        if market.stopper is not None:
            market.stopper.cancel()
            market.stopper = None
        market.clients += 1
        return market

    def _release(self, markets: Iterable[_Market]) -> None:
        for market in markets:
            market.clients -= 1
            if market.clients <= 0 and market.stopper is None:
                loop = asyncio.get_running_loop()
                market.stopper = loop.call_later(_LINGER_S, self._stop, market)

    def _stop(self, market: _Market) -> None:
        if market.stopper is not None:
            market.stopper.cancel()
        if self._markets.get(market.name) is market:
            del self._markets[market.name]
        if market.task is not None:
            market.task.cancel()

    async def _follow(self, market: _Market) -> None:
        lost = False

        def on_gap(gap: Gap) -> None:
            nonlocal lost
            lost = True
            for subscriber in self._readers_of(market):
                subscriber.tell_gap(market.name)
            _log.warning("feed gap", market=market.name, gap=gap.message)

        feed = self._source.open_feed(market.name, on_gap)
        await feed.start()
        market.load(await self._source.snapshot(market.name))
        market.ready.set()
        async for batch in feed.batches():
            if lost:
                lost = False
                self._reload(market, await self._source.snapshot(market.name))
            self._take(market, batch)

    def _ended(self, market: _Market, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, QMTError):
            _log.error("feed lost", market=market.name, error=failure.slug, reason=failure.message)
            market.error = failure
        else:
            if failure is not None:
                _log.error("feed failed", market=market.name, exc_info=failure)
            market.error = Unavailable(f"The feed of {market.name} is read no longer.")
        if self._markets.get(market.name) is market:
            del self._markets[market.name]
        for subscriber in self._readers_of(market):
            subscriber.close(market.error.message)
        market.ready.set()

    def _reload(self, market: _Market, snapshot: dict[str, Tick]) -> None:
        """Go on after a gap: what moved meanwhile is sent, at its newest."""
        moved = [
            tick for code, tick in snapshot.items() if _position(tick.id) != market.ids.get(code)
        ]
        market.load(snapshot)
        for tick in moved:
            self._fresh.setdefault(tick.code, []).append(tick)

    def _readers_of(self, market: _Market) -> list[Subscriber]:
        return [
            subscriber
            for codes, group in self._groups.items()
            if any(market_of(code) == market.name for code in codes)
            for subscriber in group
        ]

    def _take(self, market: _Market, batch: list[Tick]) -> None:
        for tick in batch:
            if market.accept(tick):
                self._fresh.setdefault(tick.code, []).append(tick)
        if self._fresh and self._flusher is None:
            loop = asyncio.get_running_loop()
            due = max(0.0, self._flushed_at + self._flush_s - loop.time())
            self._flusher = loop.call_later(due, self._flush)

    def _flush(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            self._flusher = None
        fresh, self._fresh = self._fresh, {}
        self._flushed_at = asyncio.get_running_loop().time()
        encoded: dict[str, list[bytes]] = {}
        for codes, group in self._groups.items():
            moved = (
                [code for code in codes if code in fresh]
                if len(codes) < len(fresh)
                else [code for code in fresh if code in codes]
            )
            if not moved:
                continue
            for code in moved:
                if code not in encoded:
                    encoded[code] = _rows(fresh[code])
            frame = _frame({code: encoded[code] for code in moved})
            for subscriber in group:
                subscriber.push(frame)


def _rows(ticks: list[Tick]) -> list[bytes]:
    return [_encode(tick) for tick in ticks]


def _frame(rows: dict[str, list[bytes]]) -> Frame:
    return Frame(
        join_rows(rows),
        {code: of[-1] for code, of in rows.items()},
        {code: len(of) for code, of in rows.items()},
    )
