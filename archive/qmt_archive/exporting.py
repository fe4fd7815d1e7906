"""Archived rows as CSV or Parquet in xtquant's own columns."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from qmt_protocol.archive import simulated_label
from qmt_protocol.bars import BAR_FIELDS
from qmt_protocol.codes import market_of
from qmt_protocol.columns import TICK_COLUMNS, unpack_map
from qmt_protocol.errors import ArchiveUnavailable
from qmt_protocol.tables import BOOKS
from qmt_protocol.ticks import TICK_FIELDS
from qmt_reading.stored.archive import ArchivedBars, ArchivedTicks, ArchiveReader

__all__ = ["export_rows"]

Shape = Literal["csv", "parquet"]
_ROWS_PER_GROUP: Final = 262_144
_MAPS: Final = ("extra", "odd")
_TICKS: Final = (
    *(name for name, _, _ in TICK_FIELDS if name not in (*BOOKS, "time")),
    *(name for name in TICK_COLUMNS.names if name.rstrip("12345") in BOOKS),
)
_BARS: Final = tuple(name for name, _, _ in BAR_FIELDS if name != "time")


def export_rows(
    url: str,
    codes: Sequence[str] | None,
    period: str,
    start_ms: int | None,
    end_ms: int | None,
    shape: Shape,
    output: Path | None,
    on_rows: Callable[[int], object] = lambda _: None,
) -> int:
    """Write archived ticks, or closed bars, and return how many.

    Parameters
    ----------
    codes
        Whose; ``None``: all.
    start_ms, end_ms
        First and last exchange time (label), both included.
    output
        The file, which is there only when all is in it; ``None``: standard output.
    on_rows
        Told how many more were written.

    Raises
    ------
    ArchiveUnavailable, ArchiveDamaged
        When the archive cannot be read, or the file cannot be written.
    """
    reader = ArchiveReader(url)
    of = _Requested(reader, codes, period, start_ms, end_ms)
    maps = of.maps()
    if output is None:
        return _write(of, maps, shape, sys.stdout.buffer, on_rows)
    part = output.with_name(output.name + ".part")
    try:
        with part.open("wb") as file:
            count = _write(of, maps, shape, file, on_rows)
        part.replace(output)
    except OSError as error:
        raise ArchiveUnavailable(
            f"{output} cannot be written: {error.strerror or error}.", hint="Check the folder."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return count


class _Requested:
    def __init__(
        self,
        reader: ArchiveReader,
        codes: Sequence[str] | None,
        period: str,
        start_ms: int | None,
        end_ms: int | None,
    ) -> None:
        self._reader = reader
        self._of = (codes, start_ms, end_ms)
        self._period = period
        self.names = _TICKS if period == "tick" else _BARS

    @property
    def simulated(self) -> bool:
        """Whether files that rows are read from hold rows of the simulator."""
        codes = self._of[0]
        markets = self._reader.manifest().simulated_markets
        return bool(markets if codes is None else markets & {market_of(code) for code in codes})

    def rows(self, columns: Sequence[str]) -> ArchivedTicks | ArchivedBars:
        if self._period == "tick":
            return self._reader.ticks(*self._of, columns=columns)
        return self._reader.bars(self._period, *self._of, columns=columns)

    def maps(self) -> list[str]:
        """Return which of the columns that are rarely used hold anything: it takes a reading."""
        found: set[str] = set()
        for batch in self.rows(_MAPS):
            found.update(one for one in _MAPS if batch.column(one).null_count < len(batch))
        return [one for one in _MAPS if one in found]


def _write(
    of: _Requested,
    maps: Sequence[str],
    shape: Shape,
    file: IO[bytes],
    on_rows: Callable[[int], object],
) -> int:
    batches = _foreign(of, maps)
    first = next(batches)
    writer: Any = (
        pq.ParquetWriter(file, first.schema, compression="zstd")
        if shape == "parquet"
        else pv.CSVWriter(file, first.schema, write_options=pv.WriteOptions(quoting_style="needed"))
    )
    count = 0
    with writer:
        waiting, rows = [first], 0
        for table in batches:
            waiting.append(table)
            rows += len(table)
            count += len(table)
            on_rows(len(table))
            if shape == "csv" or rows >= _ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting, rows = [], 0
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return count


def _foreign(of: _Requested, maps: Sequence[str]) -> Iterator[pa.Table]:
    """Yield an empty table, for its schema, then the rows."""
    rows = of.rows(["time", *of.names, *maps])
    simulated = of.simulated
    yield _turned(pa.Table.from_batches([], schema=rows.schema), of.names, maps, simulated)
    for batch in rows:
        yield _turned(pa.Table.from_batches([batch]), of.names, maps, simulated)


def _turned(
    table: pa.Table, names: Sequence[str], maps: Sequence[str], simulated: bool
) -> pa.Table:
    columns = {
        "code": table.column("code").cast(pa.string()),
        # A tick without a time of its own has that of its entry id.
        "time": pc.coalesce(table.column("time").cast(pa.int64()), table.column("id_ms")),
    }
    columns.update({name: table.column(name) for name in names})
    columns.update({name: _as_json(table.column(name)) for name in maps})
    if simulated:  # in the rows themselves: CSV has no other place
        columns["simulated"] = pa.array(np.ones(len(table), dtype=bool))
    return pa.table(columns, metadata=simulated_label(simulated))


def _finite(value: Any) -> Any:
    """Return values without NaN and infinities, which JSON does not have; in a book they are 0."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items() if not _is_endless(one)}
    if isinstance(value, list):
        return [0.0 if _is_endless(one) else _finite(one) for one in value]
    return value


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _as_json(column: pa.ChunkedArray) -> pa.Array:
    texts = np.full(len(column), None, dtype=object)
    for at in np.flatnonzero(column.is_valid().to_numpy()).tolist():
        values = _finite(unpack_map(column[at].as_py()))
        texts[at] = json.dumps(values, ensure_ascii=False, default=bytes.hex)
    return pa.array(texts, pa.string())
