"""Row groups of Parquet files that may be damaged: what they hold, and all of it or an error."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["Ranges", "group_ranges", "whole_groups"]

Ranges = dict[str, tuple[Any, Any]]
"""Column to its least and greatest value; without those of which nothing is told."""


def whole_groups(
    parquet: pq.ParquetFile, groups: Sequence[int], rows: int, names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield all rows of some row groups, at most so many at a time.

    Raises
    ------
    OSError, pyarrow.ArrowException
        When the file is damaged; a page that is gone would else shorten the answer in silence.
    """
    read = 0
    for batch in parquet.iter_batches(rows, row_groups=list(groups), columns=list(names)):
        read += len(batch)
        yield batch
    declared = sum(parquet.metadata.row_group(group).num_rows for group in groups)
    if read != declared:
        raise pa.ArrowInvalid(f"{read:,} rows can be read where its footer tells of {declared:,}")


def group_ranges(parquet: pq.ParquetFile, names: Collection[str]) -> Iterator[Ranges]:
    """Yield the ranges of some columns, row group by row group.

    Raises
    ------
    OSError, pyarrow.ArrowException
        When the file is damaged.
    """
    columns = [parquet.schema.column(number) for number in range(len(parquet.schema))]
    places = {one.path: number for number, one in enumerate(columns) if one.path in names}
    for group in range(parquet.metadata.num_row_groups):
        # Metadata that are wrong are an error where rows are read, or seen here. Where pyarrow
        # makes its own objects of them, they end the process.
        next(parquet.iter_batches(1, row_groups=[group], columns=list(places)), None)
        declared = parquet.metadata.row_group(group)
        ranges: Ranges = {}
        for name, number in places.items():
            chunk = declared.column(number)
            if chunk.physical_type != columns[number].physical_type:
                raise pa.ArrowInvalid(f"Column {name} of row group {group} is of another type")
            statistics = chunk.statistics
            if statistics is not None and statistics.has_min_max:
                ranges[name] = statistics.min, statistics.max
        yield ranges
