"""What ``qmt`` writes: tables for people, CSV, JSON lines and Parquet for programs.

There is one rule for times. They are China time; CSV and JSON say so (``+08:00``) unless naive ones
are wanted, Parquet has the zone in its type, a table for people leaves it out. Bars of a day and
longer have a date. Ticks have milliseconds.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from qmt_protocol.columns import BAR_COLUMNS, TICK_COLUMNS, bars_from, ticks_from
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.periods import DAILY_PERIODS
from qmt_protocol.tables import table_of
from qmt_protocol.times import CHINA
from qmt_reading.stored.ordering import moments

from .writing import timeless

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMS", "form_of", "write_batches", "write_frame"]

FORMS: Final = ("table", "csv", "json", "parquet")
_ENDINGS: Final = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "table",
}
_ROWS_AT_ONCE: Final = 16_384
_ZONE: Final = "+08:00"
_json: Final = msgspec.json.Encoder().encode


def form_of(output: Path | None, given: str, forms: Sequence[str], default: str) -> str:
    """Return how to write: as ``--format`` says, else by the file's ending.

    Parameters
    ----------
    given
        What ``--format`` says; empty: nothing.
    forms
        What there is.
    default
        For standard output.

    Raises
    ------
    InvalidRequest
        For an ending that says nothing, or something else than ``given``, and for Parquet on a
        terminal.
    """
    if given and given not in forms:
        raise InvalidRequest(
            f"--format {given!r} is not served.", hint=f"Choose one of {', '.join(forms)}."
        )
    if output is None:
        form = given or default
        if form == "parquet" and sys.stdout.isatty():
            raise InvalidRequest("Parquet is not for a terminal.", hint="Give --output FILE.")
        return form
    said = _ENDINGS.get(output.suffix.lower(), "")
    if said in forms and given in ("", said):
        return said
    if given and said not in forms:
        return given
    endings = ", ".join(ending for ending, form in _ENDINGS.items() if form in forms)
    if given:
        raise InvalidRequest(
            f"{output.name} says {said}, and --format says {given}.", hint="Leave one of them out."
        )
    raise InvalidRequest(
        f"How {output.name} is to be written is not clear from its name.",
        hint=f"End it in one of {endings}, or give --format.",
    )


def write_frame(
    frame: pd.DataFrame, form: str, file: IO[bytes], period: str, *, naive: bool = False
) -> None:
    """Write a long frame of `history`.

    Parameters
    ----------
    form
        One of `FORMS`.
    naive
        China time without its zone.
    """
    frame = frame.reset_index()
    frame.insert(0, "code", frame.pop("code").astype(str))
    frame.attrs = {}
    if form == "table":
        shape = "%Y-%m-%d" if period in DAILY_PERIODS else "%Y-%m-%d %H:%M:%S"
        frame["time"] = frame["time"].dt.strftime(f"{shape}.%f" if period == "tick" else shape)
        if period == "tick":
            frame["time"] = frame["time"].str[:-3]
        file.write((frame.to_string(index=False, na_rep="") + "\n").encode())
        return
    table = pa.Table.from_pandas(frame, preserve_index=False)
    column = table.column("time")
    if not column.type.tz:
        column = pc.assume_timezone(column, CHINA.key)
    table = table.set_column(1, "time", column.cast(pa.timestamp("ms", CHINA.key)))
    _write([table], table.schema, form, file, period, naive=naive)


def write_batches(
    batches: Iterable[pa.RecordBatch],
    form: str,
    file: IO[bytes],
    period: str,
    fields: Sequence[str] | None,
    *,
    naive: bool = False,
) -> None:
    """Write stored rows as they come.

    Parameters
    ----------
    form
        ``csv`` and ``parquet``: the columns of docs/tables.md behind code and time, or
        ``fields`` of them; ``json``: one tick or bar per line with all that it has, ``id`` and
        ``flags`` too.
    naive
        China time without its zone.
    """
    if form == "json":
        for batch in batches:
            for at in range(0, len(batch), _ROWS_AT_ONCE):
                some = batch.slice(at, _ROWS_AT_ONCE)
                times = _time_texts(moments(some), period, naive=naive).to_pylist()
                rows = _documents(some, period) if fields is None else _chosen(some, fields)
                _write_lines(zip(rows, times, strict=True), file)
        return
    names = ["code", "time", *(fields or (column.name for column in table_of(period)))]
    schema = _schema(period, list(dict.fromkeys(names)))
    tables = (_table(batch, schema) for batch in batches)
    _write(tables, schema, form, file, period, naive=naive)


def _write(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    form: str,
    file: IO[bytes],
    period: str,
    *,
    naive: bool,
) -> None:
    """Write tables that begin with code and time."""
    if form == "json":
        for table in tables:
            for at in range(0, len(table), _ROWS_AT_ONCE):
                some = table.slice(at, _ROWS_AT_ONCE)
                times = _time_texts(some.column("time"), period, naive=naive).to_pylist()
                rows = some.drop_columns(["time"]).to_pylist()
                _write_lines(zip(rows, times, strict=True), file)
        return
    as_text = form == "csv"
    place = schema.get_field_index("time")
    schema = schema.set(place, _time_field(period, as_text=as_text, naive=naive))
    writer: Any = (
        pv.CSVWriter(
            file,
            schema,
            write_options=pv.WriteOptions(quoting_style="none", quoting_header="none"),
        )
        if as_text
        else pq.ParquetWriter(file, schema, compression="zstd")
    )
    with writer:
        for table in tables:
            times = table.column(place)
            column = (
                _time_texts(times, period, naive=naive)
                if as_text
                else _times(times, schema.field(place).type)
            )
            writer.write_table(table.set_column(place, schema.field(place), column))


def _write_lines(rows: Iterable[tuple[dict[str, Any], str]], file: IO[bytes]) -> None:
    lines = (
        _json({"code": row.pop("code"), **_head(row), "time": time, **row}) for row, time in rows
    )
    file.write(b"".join(itertools.chain.from_iterable((line, b"\n") for line in lines)))


def _head(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.pop(name) for name in ("id", "flags") if name in row}


def _time_field(period: str, *, as_text: bool, naive: bool) -> pa.Field:
    if as_text:
        return pa.field("time", pa.string())
    if period in DAILY_PERIODS:
        return pa.field("time", pa.date32())
    return pa.field("time", pa.timestamp("ms", None if naive else CHINA.key))


def _times(column: Any, kind: pa.DataType) -> Any:
    if pa.types.is_timestamp(kind) and kind.tz:
        return column.cast(kind)
    return pc.local_timestamp(column).cast(kind)


def _time_texts(column: Any, period: str, *, naive: bool) -> Any:
    """Return China time of timestamps with a zone as ISO 8601."""
    local = pc.local_timestamp(column)
    if period in DAILY_PERIODS:
        return pc.strftime(local, "%Y-%m-%d")
    # Arrow's %S has as many digits behind the point as the type.
    local = local.cast(pa.timestamp("ms" if period == "tick" else "s"), safe=False)
    text = pc.strftime(local, "%Y-%m-%dT%H:%M:%S")
    return text if naive else pc.binary_join_element_wise(text, _ZONE, "")


def _schema(period: str, names: Sequence[str]) -> pa.Schema:
    whole = TICK_COLUMNS if period == "tick" else BAR_COLUMNS
    fields = [whole.field(name) for name in names]
    return pa.schema(
        [
            field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field
            for field in fields
        ]
    )


def _table(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    columns = [
        moments(batch).cast(field.type)
        if field.name == "time"
        else batch.column(field.name).cast(field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _documents(batch: pa.RecordBatch, period: str) -> Iterable[dict[str, Any]]:
    if period == "tick":
        for tick in ticks_from(batch):
            yield {"code": tick.code, "id": tick.id, "flags": int(tick.flags), **timeless(tick)}
    else:
        for bar in bars_from(batch):
            yield {"code": bar.code, "id": bar.id, **timeless(bar)}


def _chosen(batch: pa.RecordBatch, fields: Sequence[str]) -> Iterable[dict[str, Any]]:
    names = [name for name in dict.fromkeys(["code", *fields]) if name != "time"]
    columns = [batch.column(name).to_pylist() for name in names]
    ids = zip(batch.column("id_ms").to_pylist(), batch.column("id_seq").to_pylist(), strict=True)
    for (at_ms, number), row in zip(ids, zip(*columns, strict=True), strict=True):
        values = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        yield {"code": values.pop("code"), "id": f"{at_ms}-{number}", **values}
