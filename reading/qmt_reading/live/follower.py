"""Following live data over Redis: snapshot, stored, missed and live, each once and in order."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any

import redis.asyncio

from qmt_protocol.cursor.batch import BarRow, Batch, Kind
from qmt_protocol.cursor.conflation import Conflation
from qmt_protocol.cursor.cursor import Cursor
from qmt_protocol.cursor.feed_offset import FeedEntry
from qmt_protocol.cursor.position import EVENTS, Position
from qmt_protocol.cursor.scope import Scope
from qmt_protocol.errors import RedisUnavailable
from qmt_protocol.feed import is_entry_id
from qmt_protocol.ids import id_key
from qmt_protocol.keys import Keys, series_of
from qmt_reading.callbacks import OnGap
from qmt_runtime.connections import redis_call
from qmt_runtime.retry import Retry

from .feed import FeedReader, Reading
from .recovery import recover

__all__ = ["Follower"]


class Follower:
    """Follows the feeds in a scope and recovers, where it can, what the feeds no longer hold.

    Parameters
    ----------
    connection, keys, address
        See `FeedReader`.
    scope
        What is wanted.
    place
        Where to go on; markets that it does not name begin at their present end.
    start_ms
        Begin with the ticks stored since this exchange time, then the batch ``now``.
    snapshot
        Begin with the latest tick of each code, read together with the position.
    conflate
        Of what waits, only the latest tick of each code.
    on_gap
        Told what can no longer be had. Reading goes on behind the gap.
    give_up_after_s
        How long a lost connection is tried again; ``None``: without limit.
    check
        Called between reads; what it raises ends the iteration.
    events
        Follow the producers' events, and tell the gaps among them.

    Attributes
    ----------
    cursor : Cursor
        What was given.
    reader : FeedReader
        Where the feeds are read.
    connected : bool
        Whether the last read was answered.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        keys: Keys,
        scope: Scope,
        *,
        position: Position | None = None,
        start_ms: int | None = None,
        snapshot: bool = False,
        conflate: bool = False,
        on_gap: OnGap | None = None,
        give_up_after_s: float | None = None,
        check: Callable[[], None] | None = None,
        events: bool = True,
        address: str = "Redis",
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._address = address
        self.scope = scope
        self._start_ms = start_ms
        self._snapshot = snapshot
        self._conflate = conflate
        self._check = check or (lambda: None)
        self._retry = Retry(give_up_after_s)
        self.cursor = Cursor(scope, position, on_gap=on_gap or (lambda _: None), start_ms=start_ms)
        self.reader = FeedReader(
            connection,
            keys,
            scope.markets,
            offsets=self.cursor.offsets,
            events=events,
            address=address,
        )
        self.connected = False

    async def begin(self) -> None:
        """Take up the position: what is published from here on will be delivered.

        Raises
        ------
        RedisUnavailable
            When the server does not answer.
        """
        reader, cursor = self.reader, self.cursor
        resumed = list(reader.positions)
        fresh = [market for market in reader.markets if market not in resumed]
        found = await reader.begin({market: self.scope.codes_of(market) for market in fresh})
        cursor.begin(found, await reader.filed(resumed), with_snapshot=self._snapshot)
        if reader.events_id:
            cursor.offsets[EVENTS] = ("", reader.events_id)
        self.connected = True

    async def batches(self, *, block: bool = True) -> AsyncGenerator[Batch, None]:
        """Yield what is wanted, in order; see `Batch`.

        Nothing is read ahead of the caller but the entries of one read.

        Parameters
        ----------
        block
            ``False``: an empty batch is yielded where nothing new was found.

        Raises
        ------
        RedisUnavailable
            When Redis does not answer at the start, or stays away for ``give_up_after_s``.
        """
        cursor = self.cursor
        async for batch in self._opening():
            yield batch
        waiting: _Waiting | None = None
        has_stored = self._start_ms is not None
        while True:
            if has_stored and not cursor.settling:
                has_stored = False
                yield Batch("now", offsets=dict(cursor.offsets))
            reading = await self._read(block and waiting is None)
            if waiting is not None and (reading.breaks or not reading.entries):
                yield waiting.batch()
                waiting = None
            self._note(reading)
            entries = self._in_order(reading)
            async for batch in self._recover():
                yield batch
            for entry in entries:
                batch = cursor.take(entry, self.reader.positions[entry.market].epoch)
                if self._conflate:
                    waiting = waiting or _Waiting()
                    waiting.add(batch)
                else:  # one without rows moves the position
                    yield batch
            if not block and not reading.entries:
                yield Batch("missed", offsets=dict(cursor.offsets))

    async def _opening(self) -> AsyncGenerator[Batch, None]:
        """Yield what comes before the feeds."""
        cursor = self.cursor
        if not cursor.has_begun:
            await self.begin()
        yield cursor.opening()
        if self._snapshot:
            yield cursor.snapshot(await self._last_bars())
        async for batch in self._recover():
            yield batch

    async def _last_bars(self) -> list[BarRow]:
        """Return the last stored bar of what is wanted; the feed's older ones are then dropped."""
        bars: list[BarRow] = []
        requested = sorted(self.scope.bars or ())
        async with (
            redis_call(self._address),
            self._connection.pipeline(transaction=False) as pipe,
        ):
            for code, period in requested:
                pipe.xrevrange(self._keys.bar(period, code), count=1)
            for (code, period), entries in zip(requested, await pipe.execute(), strict=True):
                for raw_id, fields in entries:
                    entry_id = raw_id.decode()
                    if b"k1" in fields and is_entry_id(entry_id):
                        bars.append((code, period, entry_id, fields[b"k1"]))
        return bars

    async def _read(self, block: bool) -> Reading:
        while True:
            self._check()
            try:
                reading = await self.reader.read(block=block)
            except RedisUnavailable as error:
                await self._wait_for_redis(error)
                continue
            self._answered()
            return reading

    def _note(self, reading: Reading) -> None:
        """Tell what is lost, by the producers and by the feeds."""
        for event_id, event in reading.events:
            self.cursor.note_event(event_id, event)
        for one in reading.breaks:
            self.cursor.break_off(one)

    def _in_order(self, reading: Reading) -> list[FeedEntry]:
        """Return the entries of a reading but those of markets that are read again from a place."""
        entries = [entry for entry in reading.entries if entry.market not in self.cursor.recovering]
        if len({entry.market for entry in entries}) > 1:
            entries.sort(key=lambda entry: id_key(entry.id))
        return entries

    async def _recover(self) -> AsyncGenerator[Batch, None]:
        """Yield from the codes' own streams what the feeds no longer hold."""
        while self.cursor.recovering:
            recovering = recover(
                self._connection, self._keys, self._address, self.reader, self.cursor
            )
            try:
                async with aclosing(recovering) as batches:
                    async for batch in batches:
                        yield batch
            except RedisUnavailable as error:
                await self._wait_for_redis(error)
                continue
            self._answered()

    async def _wait_for_redis(self, error: RedisUnavailable) -> None:
        self.connected = False
        await self._retry.wait(error)

    def _answered(self) -> None:
        self.connected = True
        self._retry.succeeded()


class _Waiting:
    """Batches put together to the latest row of each code."""

    def __init__(self) -> None:
        self._kept: Conflation[Any] = Conflation(lambda row: id_key(row[-2])[0])
        self._kind: Kind = "live"

    def add(self, batch: Batch) -> None:
        self._kept.add(_keyed(batch), batch.offsets)
        self._kind = batch.kind

    def batch(self) -> Batch:
        rows = list(self._kept.rows.values())
        ticks, bars = ([row for row in rows if len(row) == size] for size in (3, 4))
        return Batch(self._kind, ticks, bars, self._kept.offsets)


def _keyed(batch: Batch) -> Iterable[tuple[str, Any]]:
    yield from ((row[0], row) for row in batch.rows)
    yield from ((series_of(row[1], row[0]), row) for row in batch.bars)
