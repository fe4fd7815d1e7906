"""Taking files into the archive: all of them, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qmt_protocol.archive import ArchivedFile
from qmt_protocol.errors import RedisUnavailable
from qmt_protocol.keys import Keys
from qmt_protocol.urls import address_of
from qmt_runtime.connections import connect_async, redis_call, to_its_end

from .adding import Existing, Ints, Known, discard, write_parts
from .foreign import ForeignFile
from .store import ArchiveStore

__all__ = ["Imported", "import_files"]

_ROWS_AT_ONCE: Final = 500_000
_Piece = tuple[ForeignFile, pa.Table, Ints]


@dataclass
class Imported:
    """What an import did."""

    rows: int = 0
    """Rows that are new in the archive."""
    repeats: int = 0
    """Rows that archive or streams have already."""
    forming: int = 0
    """Bars left out because they were not closed."""
    files: list[ArchivedFile] = field(default_factory=list)
    streams: str = ""
    """Why the streams were not asked; empty: they were."""


async def import_files(
    store: ArchiveStore,
    check: Callable[[], None],
    paths: Sequence[Path],
    *,
    period: str,
    market: str = "",
    keys: Keys,
    streams_url: str,
    on_file: Callable[[int], object] = lambda _: None,
) -> Imported:
    """Check files and store their rows as source ``import``, in one commit.

    Rows that archive or streams have are left out: what was recorded counts. Nothing belongs to
    the archive before all files were read to their ends and found good.

    Parameters
    ----------
    store
        The archive, loaded and locked.
    check
        Called before the commit; what it raises ends it.
    period
        ``tick``, or the period of the bars in the files.
    market
        Market of codes that are written without one.
    on_file
        Told how many files were read.

    Raises
    ------
    BadFile
        When something in a file is wrong; nothing was imported.
    ArchiveUnavailable, ArchiveDamaged
        When the archive cannot be read or written.
    """
    connection = connect_async(streams_url)
    address = address_of(streams_url)
    done = Imported()
    try:
        try:
            async with redis_call(address):
                await connection.ping()
        except RedisUnavailable as error:
            done.streams = error.message
        existing = Existing(store, keys, None if done.streams else connection, address)
        work = _Import(store, existing, period, done)
        try:
            for number, path in enumerate(paths):
                file = ForeignFile(path, period, market)
                for table, rows in file.tables():
                    await work.add(file, table, rows)
                done.forming += file.forming
                on_file(number + 1)
            await work.settle()
            newest: dict[str, int] = {}
            for one in done.files:
                newest[one.market] = max(one.last_ms, newest.get(one.market, 0))
            await existing.refuse_ahead(newest)
            check()
        except BaseException:
            discard(store, done.files)
            raise
    finally:
        await to_its_end(connection.aclose())
    if done.files:
        # Not in the try: after a failed commit the files may be named all the same.
        store.commit(
            lambda manifest: msgspec.structs.replace(manifest, files=[*manifest.files, *done.files])
        )
    return done


class _Import:
    def __init__(
        self, store: ArchiveStore, existing: Existing, period: str, done: Imported
    ) -> None:
        self._store = store
        self._existing = existing
        self._period = period
        self._kind = "tick" if period == "tick" else "bar"
        self._done = done
        self._own = Known(self._kind)
        self._known = Known(self._kind)
        self._waiting: list[_Piece] = []
        self._simulated = False

    async def add(self, file: ForeignFile, table: pa.Table, rows: Ints) -> None:
        """Take checked rows of a file."""
        if not len(table):
            return
        before, again = self._own.repeats(table)
        for at in np.flatnonzero(before | again)[:1].tolist():
            file.fail(
                "it repeats an earlier row of this import",
                int(rows[at]),
                hint="A code has one bar of a label, and no two ticks of the same time, price, "
                "volume and first level. Files that overlap can be imported one after the other.",
            )
        self._own.add(table)
        self._simulated |= file.simulated
        self._waiting.append((file, table, rows))
        if sum(len(one) for _, one, _ in self._waiting) >= _ROWS_AT_ONCE:
            await self.settle()

    async def settle(self) -> None:
        """Write what waits and is not there already."""
        if not self._waiting:
            return
        table = pa.concat_tables([one for _, one, _ in self._waiting])
        table = table.unify_dictionaries().combine_chunks()
        self._waiting = []
        codes = pc.unique(table.column("code").cast(pa.string())).to_pylist()
        span = pc.min_max(table.column("id_ms")).as_py()
        await self._existing.note(self._known, codes, self._period, span["min"], span["max"])
        repeats, _ = self._known.repeats(table)
        new = table.filter(pa.array(~repeats))
        self._done.repeats += int(repeats.sum())
        if not len(new):
            return
        if self._kind == "tick":
            new = self._known.numbered(new)
        self._known.add(new)
        self._done.files += write_parts(
            self._store, self._kind, new, "import", simulated=self._simulated
        )
        self._done.rows += len(new)
