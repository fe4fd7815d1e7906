"""Getting from the codes' own streams what a market's feed no longer holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis.asyncio
import structlog

from qmt_protocol.archive import ArchivedFile, Missing
from qmt_protocol.bars import Bar, decode_bar
from qmt_protocol.cursor.cursor import Cursor
from qmt_protocol.cursor.position import Offset, Position
from qmt_protocol.cursor.scope import Scope
from qmt_protocol.decoding import printable
from qmt_protocol.errors import ArchiveDamaged, CodecError, Gap
from qmt_protocol.feed import is_code_of, is_entry_id
from qmt_protocol.ids import BEGINNING, id_key
from qmt_protocol.keys import Keys, series_of
from qmt_protocol.periods import BAR_PERIODS
from qmt_reading.live.feed import FeedReader
from qmt_reading.live.recovery import recover
from qmt_runtime.connections import redis_call

from .store import ArchiveStore

__all__ = ["Recovery", "last_ids"]

log: Final = structlog.get_logger(__name__)

_PER_CALL: Final = 200
_BARS_PER_READ: Final = 500
_NEWEST_DAYS: Final = 2
_NEWEST_SPANS: Final = 2
_NAMED: Final = 500
_KEYS: Final = ["code", "id_ms", "id_seq"]

TakeTicks = Callable[[Sequence[tuple[str, str, Any]]], Awaitable[None]]
TakeBars = Callable[[Sequence[Bar]], Awaitable[None]]


@dataclass
class Recovery:
    """Reads one market's streams behind what the archive holds of them.

    Parameters
    ----------
    store
        The archive, for the last ids in it.
    take_ticks, take_bars
        Given what was found, in the order of each stream.
    """

    connection: redis.asyncio.Redis
    keys: Keys
    address: str
    store: ArchiveStore
    market: str
    take_ticks: TakeTicks
    take_bars: TakeBars
    seen: dict[str, str] = field(default_factory=dict)
    """Code (of bars: series) to the last id that the archive then has."""
    missing: list[Missing] = field(default_factory=list)
    settled: str = BEGINNING
    """Feed entry id up to which the feed may hold what the streams gave already."""
    gaps: list[Gap] = field(default_factory=list)
    """What the streams hold and cannot be ticks."""
    damaged: list[ArchiveDamaged] = field(default_factory=list)
    """Files whose last ids could not be read. What only they hold comes again, with its ids."""

    async def recover(self) -> Offset:
        """Read all there is; return the feed's offset from which to follow it.

        Raises
        ------
        RedisUnavailable
            When the server does not answer.
        ArchiveUnavailable
            When the newest files of the archive cannot be reached.
        """
        reader = FeedReader(self.connection, self.keys, [self.market], address=self.address)
        found = await reader.snapshot({self.market: None})
        oldest_ms = await self._oldest_ms(list(found.latest))
        known = await asyncio.to_thread(self._archived_ids, oldest_ms)
        trimmed: dict[str, tuple[str, str]] = {}

        def on_gap(gap: Gap) -> None:
            if gap.data["reason"] == "trimmed":
                trimmed.update(gap.data["codes"])
            else:
                self.gaps.append(gap)

        # From the feed's beginning, with the ids of all codes: the streams are read.
        store = Position({self.market: ("", BEGINNING)}, codes=known)
        cursor = Cursor(Scope((self.market,)), store, on_gap=on_gap)
        streams = recover(self.connection, self.keys, self.address, reader, cursor)
        async with aclosing(streams) as batches:
            async for batch in batches:
                if batch.rows:
                    await self.take_ticks(batch.rows)
        self._report_trimmed(known, trimmed)
        self.seen = dict(cursor.last_ids)
        await self._recover_bars()
        self.settled = (await reader.filed([self.market]))[self.market][1]
        return reader.positions[self.market].offset

    def _archived_ids(self, oldest_ms: int | None) -> dict[str, str]:
        manifest = self.store.manifest
        files = manifest.ticks(self.market)
        newest_days = sorted({one.day for one in files})[-_NEWEST_DAYS:]
        # A producer publishes again what Redis lost; a stream begins anew with what we may have.
        needed = [
            one
            for one in files
            if one.day in newest_days or (oldest_ms is not None and one.last_ms >= oldest_ms)
        ]
        return last_ids(self.store, needed, self.damaged.append)

    async def _oldest_ms(self, codes: list[str]) -> int | None:
        """Return the exchange time from which on the market's streams hold anything."""
        oldest: int | None = None
        for start in range(0, len(codes), _PER_CALL):
            async with (
                redis_call(self.address),
                self.connection.pipeline(transaction=False) as pipe,
            ):
                for code in codes[start : start + _PER_CALL]:
                    pipe.xrange(self.keys.tick(code), count=1)
                for entries in await pipe.execute():
                    if entries:
                        at_ms = id_key(entries[0][0].decode())[0]
                        oldest = at_ms if oldest is None else min(oldest, at_ms)
        return oldest

    def _report_trimmed(
        self, known: Mapping[str, str], trimmed: Mapping[str, tuple[str, str]]
    ) -> None:
        """Name what lies between the archive's end and the streams' begin."""
        offset = self.store.manifest.markets.get(self.market)
        mark_ms = 0 if offset is None else id_key(offset.position)[0]
        spans: dict[str, tuple[int, int]] = {}
        for code, (_, first) in trimmed.items():
            # A code that is new to the archive is missed only since the archive has followed.
            from_ms = id_key(known[code])[0] if code in known else mark_ms
            to_ms = id_key(first)[0] if first else from_ms
            if 0 < from_ms < to_ms:
                spans[code] = (from_ms, to_ms)
        if spans:
            self.missing.append(
                Missing(
                    market=self.market,
                    from_ms=min(begin for begin, _ in spans.values()),
                    to_ms=max(end for _, end in spans.values()),
                    codes=sorted(spans) if len(spans) <= _NAMED else [],
                    reason="trimmed before it was archived",
                )
            )

    # Bars

    async def _recover_bars(self) -> None:
        manifest = self.store.manifest
        files = [one for one in manifest.files if one.kind == "bar" and one.market == self.market]
        for period in {one.period for one in files}:
            days = sorted({one.day for one in files if one.period == period})[-_NEWEST_SPANS:]
            of_period = [one for one in files if one.period == period and one.day in days]
            found = await asyncio.to_thread(last_ids, self.store, of_period, self.damaged.append)
            self.seen.update((series_of(period, code), last) for code, last in found.items())
        async for keys in self._bar_streams():
            for key, (period, code) in keys.items():
                await self._recover_bar_stream(key, period, code)

    async def _bar_streams(self) -> AsyncIterator[dict[str, tuple[str, str]]]:
        head = self.keys.bar("", f"x.{self.market}").partition(":bar:")[0] + ":bar:"
        cursor = 0
        while True:
            async with redis_call(self.address):
                found: Any
                cursor, found = await self.connection.scan(
                    cursor, match=f"{head}*", count=1000, _type="stream"
                )
            yield {
                name: (period, code)
                for name in map(printable, found)
                for period, _, code in [name.removeprefix(head).partition(":")]
                if period in BAR_PERIODS and is_code_of(code, self.market)
            }
            if not cursor:
                return

    async def _recover_bar_stream(self, key: str, period: str, code: str) -> None:
        last = self.seen.get(series_of(period, code), BEGINNING)
        while True:
            async with redis_call(self.address):
                entries: Any = await self.connection.xrange(key, f"({last}", count=_BARS_PER_READ)
            bars = []
            for raw_id, fields in entries:
                last = raw_id.decode()
                try:
                    bar = decode_bar(fields.get(b"k1", b""), code, period, last)
                    if not is_entry_id(last):
                        raise CodecError(f"{last} is the id of no date.")
                except CodecError as error:
                    log.error("a bar cannot be read", key=key, error=error.message)
                    continue
                if bar.closed:
                    bars.append(bar)
            if bars:
                await self.take_bars(bars)
            self.seen[series_of(period, code)] = last
            if len(entries) < _BARS_PER_READ:
                return


def last_ids(
    store: ArchiveStore,
    files: Sequence[ArchivedFile],
    on_damaged: Callable[[ArchiveDamaged], None],
) -> dict[str, str]:
    """Return each code's greatest entry id in some files, of what was recorded.

    Rows from elsewhere may lie ahead of it: they do not tell how far the streams were read.

    Raises
    ------
    ArchiveUnavailable
        When the folder or bucket cannot be reached.
    """
    newest: dict[str, tuple[int, int]] = {}
    for file in files:
        if "live" not in file.sources:
            continue
        try:
            for batch in store.read(file, [*_KEYS, "source"]):
                live = pc.equal(batch.column("source").cast(pa.string()), "live")
                for code, last in _last_of(batch.filter(live)):
                    newest[code] = max(last, newest.get(code, (0, 0)))
        except ArchiveDamaged as error:
            on_damaged(error)
    return {code: f"{ms}-{number}" for code, (ms, number) in newest.items()}


def _last_of(batch: pa.RecordBatch) -> Iterator[tuple[str, tuple[int, int]]]:
    code = batch.column("code")
    ms, number = batch.column("id_ms").to_numpy(), batch.column("id_seq").to_numpy()
    order = np.lexsort((number, ms))
    where = np.full(len(code.dictionary), -1, np.int64)
    where[code.indices.to_numpy()[order]] = order  # of a code that repeats the last is kept
    for name, at in zip(code.dictionary.to_pylist(), where.tolist(), strict=True):
        if at >= 0:
            yield name, (int(ms[at]), int(number[at]))
