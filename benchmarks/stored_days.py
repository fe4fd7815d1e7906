"""Archives of the size wanted, made of recorded ticks by the archive's own writer."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from qmt_archive.tending import groups, sorted_ticks

from qmt_archive.parquet import write_rows
from qmt_archive.store import Position
from qmt_protocol.archive import ArchivedFile, tick_folder
from qmt_protocol.times import DAY_MS

from .sample import INTERVAL_MS

__all__ = ["Day", "read_base", "write_day", "write_days"]


@dataclass(frozen=True)
class Day:
    """What was written."""

    rows: int
    size_bytes: int
    per_code: dict[str, int]


def read_base(store: Position) -> dict[str, pa.Table]:
    """Return the ticks of a recorded archive of one day, by market, sorted."""
    return {
        group.market: pa.concat_tables(sorted_ticks(store, group)).unify_dictionaries()
        for group in groups(store.manifest)
        if group.kind == "tick"
    }


def write_day(
    store: Position, base: dict[str, pa.Table], steps: int, repeats: int, day: dt.date
) -> Day:
    """Write a day that is the recorded steps again and again, as compacted files."""
    files, per_code = [], {}
    for market, table in base.items():
        tables = _again(table, steps * INTERVAL_MS, repeats)
        files.append(_write(store, market, day, tables, len(table) * repeats))
        for pair in pc.value_counts(table.column("code").cast(pa.string())).to_pylist():
            per_code[pair["values"]] = pair["counts"] * repeats
    store.commit(
        lambda manifest: msgspec.structs.replace(manifest, files=[*manifest.files, *files])
    )
    return Day(sum(one.rows for one in files), sum(one.size_bytes for one in files), per_code)


def write_days(
    store: Position, table: pa.Table, steps: int, repeats: int, days: Sequence[dt.date]
) -> Day:
    """Write days of one market of few codes, each day as `write_day` does."""
    market = str(table.column("code")[0].as_py()).rpartition(".")[2]
    whole = pa.concat_tables(_again(table, steps * INTERVAL_MS, repeats))
    files = []
    for day in days:
        moved = _moved(whole, (day - days[-1]).days * DAY_MS)
        files.append(_write(store, market, day, [moved], len(whole)))
    store.commit(
        lambda manifest: msgspec.structs.replace(manifest, files=[*manifest.files, *files])
    )
    return Day(sum(one.rows for one in files), sum(one.size_bytes for one in files), {})


def _again(table: pa.Table, span_ms: int, repeats: int) -> Iterator[pa.Table]:
    return (_moved(table, number * span_ms) for number in range(repeats))


def _moved(table: pa.Table, by_ms: int) -> pa.Table:
    for name in ("id_ms", "time"):
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        moved = pc.add(table.column(name).cast(pa.int64()), by_ms).cast(field.type)
        table = table.set_column(at, field, moved)
    return table


def _write(
    store: Position,
    market: str,
    day: dt.date,
    tables: Sequence[pa.Table] | Iterator[pa.Table],
    rows: int,
) -> ArchivedFile:
    number = int(day.strftime("%Y%m%d"))
    path = store.new_path(tick_folder(market, number), "day")
    span = [2**62, -(2**62)]

    def seen() -> Iterator[pa.Table]:
        for table in tables:
            ids = np.asarray(table.column("id_ms").to_numpy())
            span[:] = min(span[0], int(ids[0])), max(span[1], int(ids[-1]))
            yield table

    size_bytes = store.write(
        path, lambda file: write_rows(file, "tick", seen(), [], dense=True, simulated=False)
    )
    return ArchivedFile(
        path=path,
        kind="tick",
        market=market,
        day=number,
        rows=rows,
        size_bytes=size_bytes,
        first_ms=span[0],
        last_ms=span[1],
        final=True,
    )
