"""Archives for tests: written by pyarrow from ticks as they lie on the wire."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from qmt_protocol.archive import (
    MANIFEST,
    ArchivedFile,
    Manifest,
    Missing,
    bar_folder,
    bar_span,
    decode_manifest,
    encode_manifest,
    tick_folder,
)
from qmt_protocol.bars import Bar
from qmt_protocol.columns import bars_table, ticks_table
from qmt_protocol.keys import Keys
from qmt_protocol.ticks import TickRow, encode_tick
from qmt_protocol.times import day_of

T0 = 1_795_138_200_000  # 2026-11-20 09:30 China time
DAY = 20261120
CODES = ("000001.SZ", "300750.SZ", "600000.SH", "600519.SH", "830799.BJ")
Wire = tuple[str, str, bytes]
"""Code, entry id, t1."""


def make_wires(
    count: int,
    codes: Sequence[str] = CODES,
    *,
    start_ms: int = T0,
    seed: int = 1,
    step: int = 700,
    strange: bool = True,
) -> list[Wire]:
    """Return ticks, full or, where wanted, also sparse and odd; several in a ms; as published."""
    chance = random.Random(seed)
    last: dict[str, tuple[int, int]] = {}
    wires = []
    at_ms = start_ms
    for number in range(count):
        at_ms += chance.choice((0, 0, 1, step))
        code = chance.choice(codes)
        seq = last[code][1] + 1 if last.get(code, (0, 0))[0] == at_ms else 0
        last[code] = at_ms, seq
        tick = _tick(at_ms, number, chance, strange=strange)
        flags = chance.choice((0, 0, 0, 1, 2))
        wires.append((code, f"{at_ms}-{seq}", encode_tick(tick, flags)))
    return wires


def _tick(at_ms: int, number: int, chance: random.Random, *, strange: bool) -> dict[str, Any]:
    price = round(10 + chance.random(), 2)
    tick: dict[str, Any] = {
        "time": at_ms,
        "lastPrice": price,
        "open": 10.0,
        "lastClose": 11.370000000000001,
        "amount": number * 1234.5,
        "volume": number,
        "pvolume": number * 100,
        "openInt": 13,
        "askPrice": [price + level / 100 for level in range(1, 6)],
        "askVol": [number + level for level in range(5)],
        "bidPrice": [price - level / 100 for level in range(1, 6)],
        "bidVol": [0, 0, 0, 0, 0],
    }
    kind = number % 11 if strange else 0
    if kind == 1:
        del tick["askPrice"], tick["open"]
        tick["timetag"] = "20261120 09:30:00"
    elif kind == 2:
        tick["askPrice"] = [price] * 10
        tick["volume"] = 0.5
    elif kind == 3:
        tick["pe"] = float("nan")
        tick["bidVol"] = []
        tick["stockStatus"] = None
    elif kind == 4:
        del tick["time"]
    return tick


def rows(wires: Sequence[Wire]) -> list[tuple[str, str, TickRow]]:
    """Return ticks decoded as in a batch."""
    decode = msgspec.msgpack.Decoder(TickRow).decode
    return [(code, entry_id, decode(t1)) for code, entry_id, t1 in wires]


def key_of(wire: Wire) -> tuple[int, str, int]:
    """Return what stored ticks are ordered by."""
    ms, seq = wire[1].split("-")
    return int(ms), wire[0], int(seq)


def market_of(code: str) -> str:
    return code.rpartition(".")[2]


class Archive:
    """A folder that the test writes as the archive would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)
        self._names = 0
        self.commit(Manifest())

    @property
    def manifest(self) -> Manifest:
        return decode_manifest((self.root / MANIFEST).read_bytes())

    def commit(self, manifest: Manifest) -> None:
        manifest = msgspec.structs.replace(manifest, generation=manifest.generation + 1)
        self.root.mkdir(parents=True, exist_ok=True)
        part = self.root / "manifest.part"
        part.write_bytes(encode_manifest(manifest))
        part.replace(self.root / MANIFEST)

    def add(self, wires: Sequence[Wire], *, group: int = 50, day: int = 0) -> list[ArchivedFile]:
        """Add one file per market and day, with row groups of so many rows."""
        files = self._files(wires, group, day)
        manifest = self.manifest
        self.commit(msgspec.structs.replace(manifest, files=[*manifest.files, *files]))
        return files

    def _files(self, wires: Sequence[Wire], group: int, day: int = 0) -> list[ArchivedFile]:
        files = []
        by: dict[tuple[str, int], list[Wire]] = {}
        for wire in wires:
            of_day = day or day_of(key_of(wire)[0])
            by.setdefault((market_of(wire[0]), of_day), []).append(wire)
        for (market, of_day), some in by.items():
            folder = tick_folder(market, of_day)
            files.append(
                self._write(
                    folder, ticks_table(rows(sorted(some, key=key_of))), market, of_day, group
                )
            )
        return files

    def add_bars(self, bars: Sequence[Bar], *, group: int = 50) -> None:
        """Add closed bars, one file per market and month or year."""
        files = []
        by: dict[tuple[str, str, int], list[Bar]] = {}
        for bar in bars:
            day = day_of(bar["time"])
            by.setdefault((bar.period, market_of(bar.code), bar_span(bar.period, day)), []).append(
                bar
            )
        for (period, market, day), some in by.items():
            table = bars_table(sorted(some, key=lambda bar: (bar.code, bar["time"], bar.id)))
            folder = bar_folder(period, market, day)
            files.append(self._write(folder, table, market, day, group, period))
        manifest = self.manifest
        self.commit(msgspec.structs.replace(manifest, files=[*manifest.files, *files]))

    def _write(
        self, folder: str, table: pa.Table, market: str, day: int, group: int, period: str = "tick"
    ) -> ArchivedFile:
        self._names += 1
        path = f"{folder}/{self._names:06d}.parquet"
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, self.root / path, compression="zstd", row_group_size=group)
        ids = table.column("id_ms").to_pylist()
        return ArchivedFile(
            path=path,
            kind="tick" if period == "tick" else "bar",
            market=market,
            day=day,
            period=period,
            rows=len(table),
            size_bytes=(self.root / path).stat().st_size,
            first_ms=min(ids),
            last_ms=max(ids),
        )

    def compact(self, wires: Sequence[Wire]) -> None:
        """Put all ticks in one file per market and day; the old files are deleted."""
        old = [one.path for one in self.manifest.files]
        self.commit(msgspec.structs.replace(self.manifest, files=self._files(wires, 5_000)))
        for path in old:
            (self.root / path).unlink()

    def miss(self, *missing: Missing) -> None:
        self.commit(msgspec.structs.replace(self.manifest, missing=list(missing)))


def publish_wires(streams: redis.Redis, wires: Sequence[Wire]) -> None:
    """Put ticks into their streams and into ``latest``, as filing does."""
    keys = Keys()
    with streams.pipeline(transaction=False) as pipe:
        for code, entry_id, t1 in wires:
            pipe.xadd(keys.tick(code), {"t1": t1}, id=entry_id)
            entry = msgpack.packb([entry_id, msgpack.unpackb(t1)])
            pipe.hset(keys.latest(market_of(code)), code, entry)
        pipe.execute()


def trim(streams: redis.Redis, before_ms: int, codes: Sequence[str] = CODES) -> None:
    """Drop from the streams what is older."""
    for code in codes:
        streams.xtrim(Keys().tick(code), minid=f"{before_ms}-0", approximate=False)
