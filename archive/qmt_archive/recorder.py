"""Following the feeds into the archive: each tick and closed bar once, whatever happens between.

What was read waits in memory as columns. Every so often it is written as small files, and the
manifest is replaced by one that names them and the positions behind them: before that nothing has
happened, after that all of it. Nothing is read meanwhile, so a slow or full disk only delays; what
waits, waits in Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import msgspec
import redis.asyncio
import structlog

from qmt_protocol.archive import (
    ArchivedFile,
    ArchivedMarket,
    Manifest,
    Missing,
    bar_folder,
    kept_missing,
    tick_folder,
)
from qmt_protocol.bars import Bar, decode_bar
from qmt_protocol.cursor.batch import Batch
from qmt_protocol.cursor.position import EVENTS, Offset, Position
from qmt_protocol.cursor.scope import Scope
from qmt_protocol.errors import (
    AccessDenied,
    ArchiveDamaged,
    ArchiveUnavailable,
    CodecError,
    Gap,
    QMTError,
    RedisUnavailable,
)
from qmt_protocol.events import archive_stream
from qmt_protocol.feed import decode_rows, is_entry_id
from qmt_protocol.ids import BEGINNING, id_key
from qmt_protocol.status import (
    HEARTBEAT_EVERY_S,
    LOST_AFTER_S,
    new_heartbeat,
)
from qmt_protocol.ticks import TickRow
from qmt_protocol.urls import address_of
from qmt_reading.live.feed import FeedReader
from qmt_reading.live.follower import Follower
from qmt_reading.processes import read_status
from qmt_reading.stored.ordering import in_order
from qmt_runtime.connections import connect_async, redis_call, to_its_end
from qmt_runtime.heartbeats import write_heartbeat_async

from .buffers import Buffers, Piece, sort_bars
from .locks import WriterLock
from .maintenance import Group, compact, groups_due
from .parquet import write_rows
from .recovery import Recovery
from .settings import RunSettings
from .store import ArchiveStore

__all__ = ["Recorder"]

log: Final = structlog.get_logger(__name__)

_POLL_S: Final = 0.1
_MARKETS_EVERY_S: Final = 10.0
_MAINTAIN_EVERY_S: Final = 5.0
_DELETE_AFTER_S: Final = 120.0
_RETRY_S: Final = 1.0
_RETRY_CAP_S: Final = 30.0
_EVENTS_WAITING: Final = 100
_ILL_S: Final = 5.0
_ILL_SAID_EVERY_S: Final = 60.0
_LAST_REPORT_S: Final = 2.0
_MISSING_KEPT: Final = 10_000

_T = TypeVar("_T")


class _Broken(Exception):
    """A market's feed cannot be read on: its streams have to be asked."""


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        pass


class Recorder:
    """Writes one archive, until `stop` is called.

    Parameters
    ----------
    settings
        What to follow, and how often to write.
    store
        The archive, loaded.
    lock
        The right to write it, held.
    """

    def __init__(self, settings: RunSettings, store: ArchiveStore, lock: WriterLock) -> None:
        self._settings = settings
        self._store = store
        self._lock = lock
        self._keys = settings.keys
        self._events = archive_stream(self._keys)
        self._address = address_of(settings.streams_url)
        self._buffers = Buffers()
        self._offsets: dict[str, Offset] = {}
        self._settles: dict[str, tuple[int, int]] = {}
        """Market to the feed entry id before which its offset must not be committed."""
        self._shut: dict[str, float] = {}
        """Market to until when (monotonic) it is left out."""
        self._missing: list[Missing] = []
        self._simulated: frozenset[str] = frozenset()
        """Markets that the simulator publishes."""
        self._events_id = ""
        self._since: float | None = None
        """When the oldest of what waits was read."""
        self._unsent: deque[dict[str, Any]] = deque(maxlen=_EVENTS_WAITING)
        self._leaving: deque[tuple[float, str]] = deque()
        self._damaged: set[str] = set()
        self._ill: dict[str, float] = {}
        """Market whose keys in Redis are not what they must be, and until when it is left alone."""
        self._ill_said: dict[str, tuple[str, float]] = {}
        """What was said of each, and when (monotonic)."""
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._started_ms = time.time_ns() // 1_000_000
        self._now_ms = self._started_ms
        self._rate = (time.monotonic(), 0)
        self._figures: dict[str, Any] = {
            "ticks": 0,
            "bars": 0,
            "writes": 0,
            "compactions": 0,
            "writable": True,
            "error": "",
        }

    def stop(self) -> None:
        """Make `run` write what waits and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Record until stopped.

        Raises
        ------
        ArchiveUnavailable
            When the archive is no longer ours to write, or cannot be written when it must stop.
        ArchiveDamaged
            When what the archive held last cannot be read, and it is needed to go on.
        """
        self._redis: redis.asyncio.Redis = connect_async(self._settings.streams_url)
        reporting = asyncio.create_task(self._report())
        maintenance = asyncio.create_task(self._maintain())
        try:
            await self._record((reporting, maintenance))
        finally:
            maintenance.cancel()
            self._ended.set()
            await asyncio.wait([reporting], timeout=_LAST_REPORT_S)
            reporting.cancel()
            await asyncio.gather(maintenance, reporting, return_exceptions=True)
            self._store.delete([path for _, path in self._leaving])
            await to_its_end(self._redis.aclose())

    async def _record(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        # Cut short, as Redis may be away: only a flush is waited for.
        following = asyncio.create_task(self._follow_on(tasks))
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([following, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            following.cancel()
            await asyncio.wait([following])
        if not following.cancelled():
            following.result()
        await self._flush(last=True)

    # Reading

    async def _follow_on(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Follow the feeds until cancelled, also over a time without Redis."""
        failure = ""
        while True:
            try:
                await self._follow(tasks)
                failure = ""
            except _Broken as error:
                log.warning("the feed was lost; the streams are asked", reason=str(error))
                await self._flush()
            except CodecError as error:
                self._leave_aside(error)
                await asyncio.sleep(_RETRY_S)
            except (AccessDenied, RedisUnavailable) as error:
                market = error.data.get("market")
                if market:  # the others are recorded meanwhile
                    self._shut[market] = time.monotonic() + _MARKETS_EVERY_S
                    await self._flush()
                if error.message != failure:
                    log.warning(
                        "Redis is away" if not market else "a market cannot be read",
                        error=str(error),
                    )
                failure = error.message
                await asyncio.sleep(_RETRY_S)

    def _leave_aside(self, error: CodecError) -> None:
        """Follow the other markets while what one has in Redis cannot be read."""
        now, market = time.monotonic(), str(error.data.get("market", ""))
        if market:
            self._ill[market] = now + _ILL_S
        said, at = self._ill_said.get(market, ("", 0.0))
        if said == error.message and now - at < _ILL_SAID_EVERY_S:
            return
        self._ill_said[market] = error.message, now
        log.error("a market cannot be followed", market=market, error=str(error))
        self._add_event("archive unreadable", market=market, reason=error.message)

    async def _follow(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Read the feeds until a market has to be added or recovered."""
        markets = await self._open_markets()
        if not markets:
            await asyncio.sleep(_RETRY_S)
            return
        self._forget_unwritten()
        seen: dict[str, str] = {}
        for market in await self._lost(markets):
            seen.update(await self._recover(market))
        offsets = {name: at for name in markets if (at := self._offset(name)) is not None}
        offsets[EVENTS] = ("", self._store.manifest.events or BEGINNING)
        follower = Follower(
            self._redis,
            self._keys,
            Scope(tuple(markets), None, None),
            position=Position(offsets=offsets, seen=seen),
            on_gap=self._on_gap,
            check=lambda: self._check(tasks),
            address=self._address,
        )
        next_look = time.monotonic() + _MARKETS_EVERY_S
        async with aclosing(follower.batches(block=False)) as batches:
            async for batch in batches:
                moved = self._take(batch)
                # Gaps were told before anything behind them is given.
                self._events_id = follower.reader.events_id
                if self._is_due():
                    await self._flush()
                if not moved:
                    await asyncio.sleep(_POLL_S)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + _MARKETS_EVERY_S
                    if set(await self._open_markets()) - set(markets):
                        await self._flush()
                        return

    @staticmethod
    def _check(tasks: Sequence[asyncio.Task[None]]) -> None:
        """Raise what ended a task that must not end."""
        for task in tasks:
            if task.done():
                task.result()

    def _forget_unwritten(self) -> None:
        self._buffers = Buffers()
        self._offsets, self._settles = {}, {}
        self._missing, self._since = [], None
        self._events_id = self._store.manifest.events

    async def _open_markets(self) -> list[str]:
        """Return the markets to follow without those that could not be read a moment ago."""
        now = time.monotonic()
        return [one for one in await self._markets() if self._shut.get(one, 0.0) <= now]

    async def _markets(self) -> list[str]:
        """Return the markets to follow: those set, or those that were ever published."""
        if self._settings.archive_markets:
            await self._look_who_publishes()
            return self._settings.archive_markets
        status = await read_status(self._redis, self._keys, self._address)
        self._simulated = status.simulated_markets
        found = set(self._store.manifest.markets)
        for one in status.processes:
            if one.beat.role == "producer":
                found.update(one.beat.markets)
        now = time.monotonic()
        return sorted(market for market in found if self._ill.get(market, 0.0) <= now)

    async def _lost(self, markets: Sequence[str]) -> list[str]:
        """Return the markets whose feed cannot be read on from the manifest's position."""
        held = self._store.manifest.markets
        offsets = {m: (held[m].epoch, held[m].position) for m in markets if m in held}
        lost = [market for market in markets if market not in held]
        if offsets:
            reader = FeedReader(
                self._redis, self._keys, list(offsets), offsets=offsets, address=self._address
            )
            lost += [one.market for one in (await reader.read(block=False)).breaks]
        return lost

    async def _recover(self, market: str) -> dict[str, str]:
        """Read a market's streams, commit, and return the last id of each code then archived."""
        log.info("reading streams", market=market)
        recovery = Recovery(
            self._redis,
            self._keys,
            self._address,
            self._store,
            market,
            self._take_stored,
            self._take_bars,
        )
        offset = await recovery.recover()
        for missing in recovery.missing:
            self._note(missing)
        for error in recovery.damaged:
            self._report_damaged(error)
        for gap in recovery.gaps:
            self._on_gap(gap)
        self._offsets[market] = offset
        # The streams gave more than there was at the offset. Until the feed has been read so far,
        # only the last id of each code says what is archived: a offset would bring it again.
        self._settles[market] = id_key(recovery.settled)
        await self._flush()
        return recovery.seen

    async def _take_stored(self, rows: Sequence[tuple[str, str, Any]]) -> None:
        market = rows[0][0].rpartition(".")[2]
        self._add_ticks(market, self._decoded(rows))
        if self._is_due():
            await self._flush()

    async def _take_bars(self, bars: Sequence[Bar]) -> None:
        self._add_bars(bars[0].code.rpartition(".")[2], bars)
        if self._is_due():
            await self._flush()

    def _take(self, batch: Batch) -> bool:
        """Take what was read; return whether there was anything."""
        moved = False
        for market, offset in batch.offsets.items():
            if market != EVENTS and offset != self._offset(market):
                self._offsets[market] = offset
                self._buffers.add_entry(market, *offset)
                self._begin_waiting()
                moved = True
        if batch.rows:
            market = batch.rows[0][0].rpartition(".")[2]
            self._add_ticks(market, self._decoded(batch.rows))
        bars = []
        for code, period, entry_id, k1 in batch.bars:
            try:
                bar = decode_bar(k1, code, period, entry_id)
            except CodecError as error:
                log.error("a bar cannot be read", code=code, id=entry_id, error=error.message)
                continue
            if bar.closed:
                bars.append(bar)
        if bars:
            self._add_bars(bars[0].code.rpartition(".")[2], bars)
        return moved

    def _offset(self, market: str) -> Offset | None:
        if market in self._offsets:
            return self._offsets[market]
        at = self._store.manifest.markets.get(market)
        return None if at is None else (at.epoch, at.position)

    def _decoded(self, rows: Sequence[tuple[str, str, Any]]) -> list[tuple[str, str, TickRow]]:
        """Decode ticks; name those that are none."""
        good, unreadable = decode_rows(rows)
        for error in unreadable:
            self._note_unreadable(error)
        return good

    def _note_unreadable(self, error: CodecError) -> None:
        code, entry_id = str(error.data.get("code", "")), str(error.data.get("id", ""))
        log.error("a tick cannot be read", code=code, id=entry_id, error=error.message)
        if not is_entry_id(entry_id):
            return  # it is of no time
        at_ms = id_key(entry_id)[0]
        self._note(
            Missing(
                market=code.rpartition(".")[2],
                from_ms=at_ms,
                to_ms=at_ms,
                codes=[code],
                reason="unreadable",
            )
        )

    def _add_ticks(self, market: str, rows: list[tuple[str, str, TickRow]]) -> None:
        self._buffers.add_ticks(market, rows)
        self._figures["ticks"] += len(rows)
        self._begin_waiting()

    def _add_bars(self, market: str, bars: Sequence[Bar]) -> None:
        self._buffers.add_bars(market, bars)
        self._figures["bars"] += len(bars)
        self._begin_waiting()

    def _begin_waiting(self) -> None:
        if self._since is None:
            self._since = time.monotonic()

    def _on_gap(self, gap: Gap) -> None:
        known = gap.data
        if "event" in known:  # something that is none in the stream of gaps: nothing is known of it
            log.error("events cannot be read", reason=gap.message)
            return
        after = known.get("after")
        if after is not None and known.get("reason") in ("trimmed", "epoch"):
            raise _Broken(gap.message)
        at_ms = 0 if after is None else id_key(after[1])[0]
        codes = known.get("codes") or {}
        if known.get("reason") == "unreadable":
            log.error("something cannot be read", error=gap.message)
            if not (at_ms or known.get("from_ms")):
                return  # it is of no time
        self._note(
            Missing(
                market=str(known.get("market") or ""),
                from_ms=int(known.get("from_ms") or at_ms),
                to_ms=int(known.get("to_ms") or at_ms),
                codes=sorted(codes),
                reason=str(known.get("reason", "unknown")),
            )
        )

    def _note(self, missing: Missing) -> None:
        """Keep what is known to be absent, once."""
        if missing in self._missing or any(
            missing == msgspec.structs.replace(one, state="open", found=0)
            for one in self._store.manifest.missing
        ):
            return
        self._missing.append(missing)
        self._begin_waiting()
        self._add_event(
            "archive missing",
            market=missing.market,
            from_ms=missing.from_ms,
            to_ms=missing.to_ms,
            codes=len(missing.codes),
            reason=missing.reason,
        )

    # Writing

    def _is_due(self) -> bool:
        if self._buffers.rows >= self._settings.archive_flush_rows:
            return True
        since = self._since
        return since is not None and time.monotonic() - since >= self._settings.archive_flush_s

    async def _flush(self, *, last: bool = False) -> None:
        """Write what waits and commit it; try until that is done. A stop waits for it.

        Parameters
        ----------
        last
            The process is to end: give up at the first failure. What waits is in Redis.
        """
        writing = asyncio.create_task(self._flush_now(last))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            writing.result()
            raise

    async def _flush_now(self, last: bool) -> None:
        pieces = self._buffers.take()
        offsets = {
            market: offset
            for market, offset in self._offsets.items()
            if id_key(offset[1]) >= self._settles.get(market, (0, 0))
        }
        missing, self._missing = self._missing, []
        events_id, self._since = self._events_id, None
        manifest = self._store.manifest
        moved = any(
            (at := manifest.markets.get(market)) is None or (at.epoch, at.position) != offset
            for market, offset in offsets.items()
        )
        if not (pieces or missing or moved or events_id != manifest.events):
            return
        if pieces and not last:
            await self._look_who_publishes()
        files = await self._persist(lambda: self._write(pieces), last)

        def change(manifest: Manifest) -> Manifest:
            markets = {m: ArchivedMarket(epoch=e, position=p) for m, (e, p) in offsets.items()}
            return msgspec.structs.replace(
                manifest,
                markets={**manifest.markets, **markets},
                files=[*manifest.files, *files],
                missing=kept_missing([*manifest.missing, *missing]),
                events=events_id,
            )

        def commit() -> None:
            self._lock.check()
            self._store.commit(change)

        await self._persist(commit, last)
        for market in offsets:
            self._settles.pop(market, None)
            del self._offsets[market]
        self._figures["writes"] += 1

    async def _look_who_publishes(self) -> None:
        """Note the simulator's markets, to label what is written; not known, it is as it was."""
        try:
            status = await read_status(self._redis, self._keys, self._address)
        except QMTError as error:
            log.debug("who publishes is not known", error=error.message)
            return
        self._simulated = status.simulated_markets

    async def _persist(self, act: Callable[[], _T], last: bool) -> _T:
        """Do something to the archive's place until it succeeds."""
        pause_s = _RETRY_S
        while True:
            try:
                done = await asyncio.to_thread(act)
            except ArchiveUnavailable as error:
                if self._figures["writable"]:
                    log.error("the archive cannot be written", error=str(error))
                    self._add_event("archive unwritable", reason=error.message)
                self._figures.update(writable=False, error=error.message)
                if last or self._stopping.is_set() or error.data.get("taken"):
                    raise
                await _wait(self._stopping, pause_s)
                pause_s = min(2 * pause_s, _RETRY_CAP_S)
                continue
            if not self._figures["writable"]:
                log.info("the archive is written again")
                self._add_event("archive written again")
            self._figures.update(writable=True, error="")
            return done

    def _write(self, pieces: Sequence[Piece]) -> list[ArchivedFile]:
        files: list[ArchivedFile] = []
        try:
            files.extend(map(self._write_piece, pieces))
        except BaseException:
            self._store.delete([one.path for one in files])  # nothing names them yet
            raise
        return files

    def _write_piece(self, piece: Piece) -> ArchivedFile:
        ticks = piece.kind == "tick"
        table = in_order([piece.table]) if ticks else sort_bars(piece.table)
        ids = table.column("id_ms").to_numpy()
        folder = (
            tick_folder(piece.market, piece.day)
            if ticks
            else bar_folder(piece.period, piece.market, piece.day)
        )
        path = self._store.new_path(folder, f"part-{int(ids.min())}")
        simulated = piece.market in self._simulated
        size_bytes = self._store.write(
            path,
            lambda file: write_rows(
                file, piece.kind, [table], piece.ranges, dense=False, simulated=simulated
            ),
        )
        return ArchivedFile(
            path=path,
            kind=piece.kind,
            market=piece.market,
            day=piece.day,
            period=piece.period,
            rows=len(table),
            size_bytes=size_bytes,
            first_ms=int(ids.min()),
            last_ms=int(ids.max()),
            ranges=piece.ranges,
            simulated=simulated,
        )

    async def _publish_positions(self) -> None:
        markets = self._store.manifest.markets
        if not markets:
            return
        async with redis_call(self._address), self._redis.pipeline(transaction=False) as pipe:
            for market, at in markets.items():
                pipe.set(self._keys.archived(market), at.position)
            await pipe.execute()

    # Tending

    async def _maintain(self) -> None:
        """Compact what is over, beside the reading, and delete what was replaced."""
        silence_ms = int(self._settings.archive_compact_after_s * 1000)
        while True:
            await asyncio.sleep(min(_MAINTAIN_EVERY_S, max(0.2, silence_ms / 1000)))
            while self._leaving and self._leaving[0][0] <= time.monotonic():
                self._store.delete([self._leaving.popleft()[1]])
            for group in groups_due(self._store.manifest, self._now_ms, silence_ms):
                await self._compact(group)

    async def _compact(self, group: Group) -> None:
        if any(one.path in self._damaged for one in group.files):
            return
        try:
            done = await asyncio.to_thread(compact, self._store, group, self._lock.check)
        except ArchiveDamaged as error:
            self._report_damaged(error)
            return
        except ArchiveUnavailable as error:
            log.warning("a day is compacted later", error=error.message)
            return
        # Readers that hold the older manifest read on for a while.
        leave_at = time.monotonic() + _DELETE_AFTER_S
        self._leaving += [(leave_at, path) for path in done.replaced]
        self._figures["compactions"] += 1
        if group.kind == "tick":
            if done.repeats:
                log.error("ticks were stored twice", day=group.day, repeats=done.repeats)
            self._add_event(
                "archive compacted", market=group.market, day=group.day, ticks=done.file.rows
            )

    # Reporting

    def _report_damaged(self, error: ArchiveDamaged) -> None:
        path = str(error.data.get("path", ""))
        if path not in self._damaged:
            self._damaged.add(path)
            log.error("a file is damaged", error=str(error))
            self._add_event("archive damaged", path=path, reason=error.message)

    def _add_event(self, kind: str, **facts: Any) -> None:
        self._unsent.append({"kind": kind, "at_ms": time.time_ns() // 1_000_000, **facts})

    async def _report(self) -> None:
        """Write a heartbeat each second, and events as they come."""
        while not self._ended.is_set():
            await self._report_once()
            await _wait(self._ended, HEARTBEAT_EVERY_S)
        await self._report_once()

    async def _report_once(self) -> None:
        beat = self._heartbeat()
        try:
            async with redis_call(self._address):
                self._now_ms = await write_heartbeat_async(self._redis, self._keys, beat)
                while self._unsent:
                    body = msgspec.json.encode(self._unsent[0])
                    await self._redis.xadd(
                        self._events.key, {"e": body}, maxlen=self._events.kept, approximate=False
                    )
                    self._unsent.popleft()
            await self._publish_positions()
        except QMTError as error:
            log.debug("no heartbeat", error=error.message)

    def _heartbeat(self) -> Any:
        now, ticks = time.monotonic(), int(self._figures["ticks"])
        since, before = self._rate
        if now - since >= LOST_AFTER_S:
            self._rate = (now, ticks)
        manifest = self._store.manifest
        return new_heartbeat(
            "archive",
            self._started_ms,
            markets=sorted(manifest.markets),
            rates={"ticks_per_s": round((ticks - before) / max(now - since, 0.001), 1)},
            figures={
                **self._figures,
                "waiting_rows": self._buffers.rows,
                "files": len(manifest.files),
                "days": len(manifest.days),
                "missing": sum(one.state == "open" for one in manifest.missing),
                "generation": manifest.generation,
                "address": self._store.address,
            },
        )
