"""Compaction: the small files of a day (of a month, a year of bars) become one; and pruning.

The rows are read in slices, so memory stays bounded. The manifest names either the small files or
the one; the others are deleted after it was replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from qmt_protocol.archive import (
    ArchivedFile,
    FeedRange,
    Manifest,
    bar_folder,
    tick_folder,
)
from qmt_protocol.ids import id_key
from qmt_protocol.times import DAY_MS, day_start_ms, trading_day
from qmt_reading.stored.archive import ArchiveReader

from .buffers import sort_bars
from .parquet import write_rows
from .store import ArchiveStore

__all__ = ["Compacted", "Group", "compact", "groups", "groups_due", "prune", "sorted_ticks"]

log: Final = structlog.get_logger(__name__)

_CLOSE_MS: Final = (15 * 60 + 30) * 60_000
_BARS_AT_ONCE: Final = 1_000_000


@dataclass(frozen=True)
class Group:
    """The files that become one."""

    kind: str
    market: str
    period: str
    day: int
    files: tuple[ArchivedFile, ...]

    @property
    def is_one(self) -> bool:
        """Whether there is nothing to do."""
        return len(self.files) == 1 and self.files[0].final


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    group: Group
    file: ArchivedFile
    repeats: int
    """Rows that several files held; of bars also older versions."""

    @property
    def replaced(self) -> list[str]:
        """Files that may be deleted."""
        return [one.path for one in self.group.files]


def groups(manifest: Manifest) -> list[Group]:
    """Return all files, grouped by what one file will hold, oldest first."""
    found: dict[tuple[int, str, str, str], list[ArchivedFile]] = {}
    for one in manifest.files:
        found.setdefault((one.day, one.kind, one.period, one.market), []).append(one)
    return [
        Group(kind, market, period, day, tuple(files))
        for (day, kind, period, market), files in sorted(found.items())
    ]


def groups_due(manifest: Manifest, now_ms: int, silence_ms: int) -> list[Group]:
    """Return what is over and not yet in one file.

    A market's day is over when it has a newer one, or after 15:30 when nothing was published for
    ``silence_ms``.
    """
    newest: dict[str, int] = {}
    for one in manifest.files:
        last = trading_day(one.last_ms) if one.kind == "bar" else one.day
        newest[one.market] = max(last, newest.get(one.market, 0))
    due = []
    for group in groups(manifest):
        if group.is_one:
            continue
        last_ms = max(one.last_ms for one in group.files)
        last_day = trading_day(last_ms) if group.kind == "bar" else group.day
        mark = manifest.markets.get(group.market)
        quiet_since_ms = id_key(mark.position)[0] if mark is not None else 0
        over = now_ms >= day_start_ms(last_day) + _CLOSE_MS
        if last_day < newest[group.market] or (over and now_ms - quiet_since_ms >= silence_ms):
            due.append(group)
    return due


def compact(store: ArchiveStore, group: Group, check: Callable[[], None]) -> Compacted:
    """Write a group's files as one and commit it; the old files are left to be deleted.

    Parameters
    ----------
    check
        Called before the commit; what it raises ends it.

    Raises
    ------
    ArchiveDamaged
        When a file cannot be read; nothing was changed.
    ArchiveUnavailable
        When the folder or bucket cannot be read or written; nothing was changed, or all of it was.
    """
    for file in group.files:
        store.check_rows(file)
    rows = _Counted(sorted_ticks(store, group) if group.kind == "tick" else _bars(store, group))
    ranges = joined(one for file in group.files for one in file.ranges)
    if group.kind == "tick":
        folder = tick_folder(group.market, group.day)
    else:
        folder = bar_folder(group.period, group.market, group.day)
    path = store.new_path(folder, "day" if group.kind == "tick" else "all")
    simulated = any(one.simulated for one in group.files)
    size_bytes = store.write(
        path,
        lambda file: write_rows(file, group.kind, rows, ranges, dense=True, simulated=simulated),
    )
    held = sum(one.rows for one in group.files)
    made = ArchivedFile(
        path=path,
        kind="tick" if group.kind == "tick" else "bar",
        market=group.market,
        day=group.day,
        period=group.period,
        rows=rows.count,
        size_bytes=size_bytes,
        first_ms=rows.first_ms,
        last_ms=rows.last_ms,
        sources=sorted({source for one in group.files for source in one.sources}),
        ranges=ranges,
        simulated=simulated,
        final=True,
    )
    old = {one.path for one in group.files}
    check()
    store.commit(
        lambda manifest: msgspec.structs.replace(
            manifest, files=[*(one for one in manifest.files if one.path not in old), made]
        )
    )
    return Compacted(group, made, held - rows.count)


def joined(ranges: Iterator[FeedRange] | Sequence[FeedRange]) -> list[FeedRange]:
    """Return feed ranges with those of one history put together: feeds are read without holes."""
    spans: dict[str, FeedRange] = {}
    for one in ranges:
        held = spans.get(one.epoch, one)
        spans[one.epoch] = FeedRange(
            epoch=one.epoch,
            first=min(held.first, one.first, key=id_key),
            last=max(held.last, one.last, key=id_key),
        )
    return list(spans.values())


class _Counted:
    """Tables as they go by, and what they held."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self.count = 0
        self.first_ms = self.last_ms = 0

    def __iter__(self) -> Iterator[pa.Table]:
        for table in self._tables:
            if len(table):
                span = pc.min_max(table.column("id_ms")).as_py()
                self.first_ms = min(span["min"], self.first_ms) if self.count else span["min"]
                self.last_ms = max(span["max"], self.last_ms) if self.count else span["max"]
                self.count += len(table)
                yield table


class _Fixed(ArchiveReader):
    """A reader of some files, whatever the manifest says meanwhile."""

    def __init__(self, store: ArchiveStore, files: Sequence[ArchivedFile]) -> None:
        super().__init__(store.url)
        self._fixed = Manifest(files=list(files))

    def manifest(self) -> Manifest:
        return self._fixed


def sorted_ticks(store: ArchiveStore, group: Group) -> Iterator[pa.Table]:
    """Yield the rows of tick files in order, each once."""
    rows = _Fixed(store, group.files).ticks()
    for batch in rows:
        yield pa.Table.from_batches([batch])


def _bars(store: ArchiveStore, group: Group) -> Iterator[pa.Table]:
    """Yield the rows of bar files in order, of each bar the newest version.

    Files are sorted by code: of more bars than fit in memory, some codes at a time are read.
    """
    rows = sum(one.rows for one in group.files)
    parts = -(-rows // _BARS_AT_ONCE)
    if parts == 1:
        yield sort_bars(_read_bars(store, group, None))
        return
    counts: dict[str, int] = {}
    for file in group.files:
        for batch in store.read(file, ["code"]):
            for pair in batch.column("code").value_counts().to_pylist():
                counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    some: list[str] = []
    waiting = 0
    for code in sorted(counts):
        some.append(code)
        waiting += counts[code]
        if waiting >= _BARS_AT_ONCE:
            yield sort_bars(_read_bars(store, group, some))
            some, waiting = [], 0
    if some:
        yield sort_bars(_read_bars(store, group, some))


def _read_bars(store: ArchiveStore, group: Group, codes: list[str] | None) -> pa.Table:
    requested = None if codes is None else pa.array(codes, pa.string())
    tables = []
    for file in group.files:
        for batch in store.read(file):
            table = pa.Table.from_batches([batch])
            if requested is not None:
                column = batch.column("code")
                inside = pc.is_in(column.dictionary, value_set=requested)
                mask = np.asarray(inside.to_numpy(zero_copy_only=False))[column.indices.to_numpy()]
                table = table.filter(pa.array(mask))
            if len(table):
                tables.append(table)
    return pa.concat_tables(tables)


def prune(
    store: ArchiveStore, keep_days: int, check: Callable[[], None]
) -> tuple[list[ArchivedFile], Manifest]:
    """Take the tick days before the newest ``keep_days`` out of the archive, and delete them.

    Days are those that the archive holds. Bars stay, and so does what is missing of days kept.
    """
    days = store.manifest.days
    if len(days) <= keep_days:
        return [], store.manifest
    first = days[-keep_days]
    gone = [one for one in store.manifest.files if one.kind == "tick" and one.day < first]
    paths = {one.path for one in gone}
    begin_ms = day_start_ms(first) - DAY_MS
    check()
    manifest = store.commit(
        lambda manifest: msgspec.structs.replace(
            manifest,
            files=[one for one in manifest.files if one.path not in paths],
            missing=[one for one in manifest.missing if one.to_ms >= begin_ms],
        )
    )
    store.delete(sorted(paths))
    return gone, manifest
