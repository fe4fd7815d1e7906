"""Publishes stored ticks and bars through the ring and the scripts of the live producer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from qmt_producer.candidates import Entry, Kind
from qmt_producer.figures import Rate
from qmt_producer.publisher import Publisher
from qmt_producer.reporter import Reporter
from qmt_producer.ring import Ring
from qmt_protocol.columns import rows_from
from qmt_protocol.errors import QMTError
from qmt_protocol.keys import Keys
from qmt_protocol.limits import MAX_BATCH
from qmt_protocol.status import Heartbeat, new_heartbeat

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Due", "Player", "ReplayBroken"]

_PART_TICKS: Final = 8 * MAX_BATCH
_WAITING_BATCHES: Final = 32
"""Batches that may wait for Redis before more is read."""
_WAIT_S: Final = 0.002
_TIDY_S: Final = 1.0
_LEASE_MS: Final = 4_000
_FUTURE_MS: Final = 10_000
_RING_BYTES: Final = 1_000_000_000
_encode: Final = msgspec.msgpack.Encoder().encode


class ReplayBroken(QMTError):
    """A replay cannot go on."""

    slug = "replay-broken"


@dataclass(frozen=True)
class Due:
    """What is told or published beside the ticks, when the market has come to its moment."""

    at_ms: int
    event: dict[str, Any] | None = None
    market: str = ""
    bars: list[Entry] = field(default_factory=list)


class Player:
    """Publishes a time-ordered sequence of stored ticks through ring, publisher and scripts.

    Parameters
    ----------
    folder
        Where the ring lies; it is of no use after the replay.
    markets
        Which ones appear in it.
    keys, url
        Where it goes.
    feed_keep_ms
        How long the feed reaches back, by Redis' clock.
    facts
        What the heartbeat tells of the replay.
    """

    def __init__(
        self,
        folder: Path,
        markets: list[str],
        *,
        keys: Keys,
        url: str,
        feed_keep_ms: int,
        facts: dict[str, Any],
    ) -> None:
        self._started_ms = time.time_ns() // 1_000_000
        self._simulated = False
        self._facts = facts
        self._ring = Ring(folder / "ring.sqlite", _RING_BYTES)
        self._reporter = Reporter(self._ring, keys=keys, url=url, heartbeat=self._heartbeat)
        self._publisher = Publisher(
            self._ring,
            markets,
            keys=keys,
            url=url,
            lease_ms=_LEASE_MS,
            feed_keep_ms=feed_keep_ms,
            future_ms=_FUTURE_MS,
            ring_keep_ms=0,
            listening=lambda: True,
            on_event=self._reporter.event,
        )
        self._rate = Rate()
        self._next_tidy = 0.0
        self.at_ms = 0
        """Market time reached."""
        self.ticks = 0
        """Ticks given to the ring."""

    def start(self, *, simulated: bool) -> None:
        """Begin to publish and to report.

        Parameters
        ----------
        simulated
            Whether the stored ticks came from the simulator.
        """
        self._simulated = simulated
        self._publisher.thread.start()
        self._reporter.thread.start()

    async def play(self, batches: AsyncIterator[pa.RecordBatch], due: Iterator[Due]) -> None:
        """Publish ticks as they come, and what is due beside them.

        Raises
        ------
        QMTError
            What reading raises.
        """
        next_due = next(due, None)
        async for batch in batches:
            times = batch.column("id_ms").to_numpy()
            begin = 0
            while next_due is not None and next_due.at_ms <= times[-1]:
                end = int(times.searchsorted(next_due.at_ms))
                await self._put(batch.slice(begin, end - begin))
                await self._settle(next_due)
                begin, next_due = end, next(due, None)
            await self._put(batch.slice(begin))
            self.at_ms = int(times[-1])
        while next_due is not None:
            await self._settle(next_due)
            next_due = next(due, None)

    async def drain(self) -> None:
        """Wait until Redis has all that was given."""
        await self._wait(0)

    def stop(self) -> None:
        """Give the leases back and end."""
        self._publisher.stop(0.0)
        self._reporter.stop()
        self._ring.close()

    async def _settle(self, due: Due) -> None:
        if due.event is not None:
            self._reporter.event(due.event)
        if due.bars:
            await self._append("bar", {due.market: due.bars})

    async def _put(self, batch: pa.RecordBatch) -> None:
        for begin in range(0, len(batch), _PART_TICKS):
            part = batch.slice(begin, _PART_TICKS)
            by_market: dict[str, list[Entry]] = {}
            for code, entry_id, row in rows_from(part):
                entries = by_market.setdefault(code.rpartition(".")[2], [])
                entries.append((code, entry_id, _encode(row)))
            await self._append("tick", by_market)
            self.ticks += len(part)

    async def _append(self, kind: Kind, by_market: dict[str, list[Entry]]) -> None:
        now_ms = time.time_ns() // 1_000_000
        await self._wait(_WAITING_BATCHES)
        self._ring.append(
            (market, kind, now_ms, entries[begin : begin + MAX_BATCH])
            for market, entries in by_market.items()
            for begin in range(0, len(entries), MAX_BATCH)
        )
        self._publisher.more.set()

    async def _wait(self, most_batches: int) -> None:
        """Wait until no more than so many batches are ahead of Redis, or not filed there."""
        now = time.monotonic()
        if now >= self._next_tidy:
            self._next_tidy = now + _TIDY_S
            self._ring.tidy(self._publisher.cursors, time.time_ns() // 1_000_000)
        while self._publisher.left > most_batches:
            if not self._publisher.thread.is_alive():
                raise ReplayBroken("The publisher has ended by a fault of its own.")
            if self._publisher.figures.standby:
                raise ReplayBroken("Another producer publishes under this prefix.")
            await asyncio.sleep(_WAIT_S)

    def _heartbeat(self) -> Heartbeat:
        figures = self._publisher.figures
        return new_heartbeat(
            "producer",
            self._started_ms,
            version=version("qmt-redis-bridge"),
            simulated=self._simulated,
            markets=self._publisher.markets,
            terminal={"state": "ok", "reason": "", "since_ms": self._started_ms},
            rates={"ticks_per_s": self._rate.of(figures.published)},
            figures={
                "replay": {**self._facts, "at_ms": self.at_ms},
                "published": figures.published,
                "repeated": figures.repeated,
                "late": figures.late,
                "rejected": figures.rejected,
                "bars": figures.bars,
                "waiting_batches": self._publisher.waiting_batches,
                "latency_ms": figures.latency.summary(),
                "markets": self._publisher.market_figures(),
                "redis_away": figures.redis_away,
            },
        )
