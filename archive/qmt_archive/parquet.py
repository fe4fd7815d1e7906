"""How the archive's Parquet files are written; docs/decisions/0017 has the measurements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from qmt_protocol.archive import FeedRange, simulated_label
from qmt_protocol.columns import BAR_COLUMNS, TICK_COLUMNS

__all__ = ["ROWS_PER_GROUP", "write_rows"]

ROWS_PER_GROUP: Final = 262_144
_QUICK_LEVEL: Final = 1
_DENSE_LEVEL: Final = 6
_RANGES: Final = b"qmt.feed_ranges"
_DELTA: Final = {"id_ms": "DELTA_BINARY_PACKED", "time": "DELTA_BINARY_PACKED"}
# What changes from tick to tick and has many values: its bytes one plane after another.
_SPLIT: Final = (
    *("amount", "volume", "pvolume", "transactionNum"),
    *(f"{side}Vol{level}" for side in ("ask", "bid") for level in range(1, 6)),
)
# The day's own figures repeat with the period of the codes, which zstd finds best in plain values.
_PLAIN: Final = ("lastPrice", "open", "high", "low", "lastClose", "lastSettlementPrice")
_TICK_ENCODING: Final = {**_DELTA, **dict.fromkeys(_SPLIT, "BYTE_STREAM_SPLIT")}
_TICK_DICTIONARY: Final = [
    name for name in TICK_COLUMNS.names if name not in {*_TICK_ENCODING, *_PLAIN, "extra", "odd"}
]
_BAR_DICTIONARY: Final = [
    name for name in BAR_COLUMNS.names if name not in {*_DELTA, "extra", "odd", "closed"}
]


def write_rows(
    file: Any,
    kind: str,
    tables: Iterable[pa.Table],
    ranges: list[FeedRange],
    *,
    dense: bool,
    simulated: bool,
) -> None:
    """Write sorted rows as one Parquet file.

    Parameters
    ----------
    file
        Where to: anything that Arrow can write to.
    kind
        ``tick`` or ``bar``.
    tables
        The rows, in order; they are written as they come, in groups of `ROWS_PER_GROUP`.
    ranges
        Feed entries that the file holds; they go into its metadata.
    dense
        Take more time for fewer bytes.
    simulated
        Whether the simulator invented rows; it goes into the metadata.
    """
    ticks = kind == "tick"
    schema = TICK_COLUMNS if ticks else BAR_COLUMNS
    order = ("id_ms", "code", "id_seq") if ticks else ("code", "id_ms", "id_seq")
    with pq.ParquetWriter(
        file,
        schema.with_metadata({_RANGES: msgspec.json.encode(ranges), **simulated_label(simulated)}),
        compression="zstd",
        compression_level=_DENSE_LEVEL if dense else _QUICK_LEVEL,
        use_dictionary=_TICK_DICTIONARY if ticks else _BAR_DICTIONARY,
        column_encoding=_TICK_ENCODING if ticks else _DELTA,
        sorting_columns=[pq.SortingColumn(schema.get_field_index(name)) for name in order],
    ) as writer:
        for group in _groups(tables):
            writer.write_table(group.replace_schema_metadata(writer.schema.metadata))


def _groups(tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        while rows >= ROWS_PER_GROUP:
            joined = pa.concat_tables(waiting)
            yield _one(joined.slice(0, ROWS_PER_GROUP))
            waiting = [joined.slice(ROWS_PER_GROUP)]
            rows -= ROWS_PER_GROUP
    if rows:
        yield _one(pa.concat_tables(waiting))


def _one(table: pa.Table) -> pa.Table:
    return table.unify_dictionaries().combine_chunks()
