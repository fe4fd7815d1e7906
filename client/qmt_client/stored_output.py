"""Stored rows as CSV, JSON lines or Parquet, written as they come."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from qmt_protocol.columns import BAR_COLUMNS, TICK_COLUMNS, bars_from, ticks_from
from qmt_protocol.tables import table_of

from .ordering import moments

__all__ = ["write_batches"]

_TIME: Final = "%Y-%m-%d %H:%M:%S"
_ROWS_AT_ONCE: Final = 16_384


def write_batches(
    batches: Iterable[pa.RecordBatch],
    form: str,
    file: IO[bytes],
    period: str,
    fields: Sequence[str] | None,
) -> None:
    """Write stored rows.

    Parameters
    ----------
    form
        ``csv`` and ``parquet``: the columns of docs/tables.md behind code and time, or
        ``fields`` of them; ``json``: one tick or bar per line with all that it has, ``id`` and
        ``flags`` too.
    """
    if form == "json":
        _write_lines(batches, file, period, fields)
        return
    names = ["code", "time", *(fields or (column.name for column in table_of(period)))]
    names = list(dict.fromkeys(names))
    schema = _schema(period, names)
    if form == "csv":
        schema = schema.set(1, pa.field("time", pa.string()))
        with pv.CSVWriter(
            file,
            schema,
            write_options=pv.WriteOptions(quoting_style="needed", quoting_header="none"),
        ) as writer:
            for batch in batches:
                writer.write(_table(batch, names, schema, as_text=True))
        return
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(_table(batch, names, schema, as_text=False))


def _schema(period: str, names: Sequence[str]) -> pa.Schema:
    whole = TICK_COLUMNS if period == "tick" else BAR_COLUMNS
    fields = [whole.field(name) for name in names]
    return pa.schema(
        [
            field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field
            for field in fields
        ]
    )


def _table(
    batch: pa.RecordBatch, names: Sequence[str], schema: pa.Schema, *, as_text: bool
) -> pa.Table:
    time = moments(batch)
    columns = []
    for name, field in zip(names, schema, strict=True):
        if name != "time":
            columns.append(batch.column(name).cast(field.type))
        elif as_text:
            columns.append(pc.strftime(time, _TIME))  # Arrow's %S has the ms
        else:
            columns.append(time)
    return pa.Table.from_arrays(columns, schema=schema)


def _write_lines(
    batches: Iterable[pa.RecordBatch], file: IO[bytes], period: str, fields: Sequence[str] | None
) -> None:
    for batch in batches:
        for at in range(0, len(batch), _ROWS_AT_ONCE):
            some = batch.slice(at, _ROWS_AT_ONCE)
            lines = _documents(some, period) if fields is None else _chosen(some, fields)
            text = "\n".join(json.dumps(one, ensure_ascii=False) for one in lines)
            file.write(text.encode() + b"\n")


def _documents(batch: pa.RecordBatch, period: str) -> Iterable[dict[str, Any]]:
    if period == "tick":
        return (
            {"code": one.code, "id": one.id, "flags": int(one.flags), **one}
            for one in ticks_from(batch)
        )
    return ({"code": one.code, "id": one.id, **one} for one in bars_from(batch))


def _chosen(batch: pa.RecordBatch, fields: Sequence[str]) -> Iterable[dict[str, Any]]:
    names = list(dict.fromkeys(["code", *fields]))
    columns = [
        (batch.column("id_ms") if name == "time" else batch.column(name)).to_pylist()
        for name in names
    ]
    ids = zip(batch.column("id_ms").to_pylist(), batch.column("id_seq").to_pylist(), strict=True)
    for (at_ms, number), row in zip(ids, zip(*columns, strict=True), strict=True):
        values = dict(
            itertools.compress(zip(names, row, strict=True), [v is not None for v in row])
        )
        code = values.pop("code")
        yield {"code": code, "id": f"{at_ms}-{number}", **values}
