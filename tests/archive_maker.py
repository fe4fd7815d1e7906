"""Archives as a test needs them, of what lies in streams, written with pyarrow alone.

What the streams hold is read with the msgpack package; the project's codec makes the columns.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgpack
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from qmt_protocol.archive import (
    MANIFEST,
    ArchivedFile,
    Manifest,
    Missing,
    bar_folder,
    encode_manifest,
    tick_folder,
)
from qmt_protocol.bars import decode_bar
from qmt_protocol.columns import bars_table, ticks_table
from qmt_protocol.keys import Keys
from qmt_protocol.times import day_of


class ArchiveMaker:
    """Puts files into a folder and names them in its manifest."""

    def __init__(self, root: Path, streams: redis.Redis, keys: Keys | None = None) -> None:
        self.root = root
        self.missing: list[Missing] = []
        self._streams = streams
        self._keys = keys or Keys()
        self._files: list[ArchivedFile] = []
        self._generation = 0

    @property
    def url(self) -> str:
        return str(self.root)

    def ticks(self, codes: Sequence[str], day: int, files: int = 2) -> int:
        """Store what the streams hold of codes of one market, spread over files by chance."""
        parts: list[list[Any]] = [[] for _ in range(files)]
        for code in codes:
            for entry_id, fields in self._streams.xrange(self._keys.tick(code)):
                row = msgpack.unpackb(fields[b"t1"], strict_map_key=False)
                part = parts[zlib.crc32(code.encode() + entry_id) % files]
                part.append((code, entry_id.decode(), row))
        market = codes[0].rpartition(".")[2]
        for number, rows in enumerate(parts):
            if rows:
                table = ticks_table(sorted(rows, key=lambda row: _order(row[1], row[0])))
                path = f"{tick_folder(market, day)}/{number}.parquet"
                self._write(path, table, "tick", market, day, "tick")
        return sum(map(len, parts))

    def bars(self, codes: Sequence[str], period: str) -> int:
        """Store the closed bars that the streams hold of codes of one market."""
        bars = [
            decode_bar(fields[b"k1"], code, period, entry_id.decode())
            for code in codes
            for entry_id, fields in self._streams.xrange(self._keys.bar(period, code))
        ]
        closed = [bar for bar in bars if bar.closed]
        market, day = codes[0].rpartition(".")[2], day_of(closed[0]["time"])
        path = f"{bar_folder(period, market, day)}/0.parquet"
        self._write(path, bars_table(closed), "bar", market, day, period)
        return len(closed)

    def _write(
        self,
        path: str,
        table: pa.Table,
        kind: Literal["tick", "bar"],
        market: str,
        day: int,
        period: str,
    ) -> None:
        store = self.root / path
        store.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, store, row_group_size=100)
        ids = table.column("id_ms").to_pylist()
        self._files.append(
            ArchivedFile(
                path=path,
                kind=kind,
                market=market,
                day=day,
                period=period,
                rows=table.num_rows,
                size_bytes=store.stat().st_size,
                first_ms=min(ids),
                last_ms=max(ids),
            )
        )
        self.commit()

    def commit(self) -> None:
        """Write the manifest."""
        self._generation += 1
        manifest = Manifest(
            generation=self._generation,
            prefix=self._keys.prefix,
            files=self._files,
            missing=self.missing,
        )
        (self.root / MANIFEST).write_bytes(encode_manifest(manifest))


def _order(entry_id: str, code: str) -> tuple[int, str, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), code, int(number)
