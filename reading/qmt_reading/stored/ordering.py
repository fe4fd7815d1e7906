"""The order of stored rows, (``id_ms``, ``code``, ``id_seq``), on Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "KEYS",
    "Key",
    "behind",
    "conform",
    "ids_of",
    "in_order",
    "last_key",
    "moments",
    "newest",
    "split",
    "where_code",
]

KEYS: Final = ("code", "id_ms", "id_seq")
"""Columns that say which row it is."""
_LAST_MS: Final = 9_000_000_000_000
_SPAN_BITS: Final = 31
_CODE_BITS: Final = 16
_NUMBER_BITS: Final = 16

Ints = npt.NDArray[np.int64]
Key = tuple[int, str, int]
"""``id_ms``, code, ``id_seq`` of a row."""


def ids_of(table: pa.Table | pa.RecordBatch) -> Ints:
    """Return the ``id_ms`` of each row."""
    column = table.column("id_ms")
    return np.asarray(column.to_numpy(), dtype=np.int64)


def moments(table: pa.Table | pa.RecordBatch) -> Any:
    """Return the exchange time of each row; its entry id's where it has none a frame can hold."""
    own, entry = table.column("time"), table.column("id_ms")
    ms = own.cast(pa.int64())
    good = pc.and_(pc.greater(ms, 0), pc.less_equal(ms, _LAST_MS))
    return pc.if_else(pc.fill_null(good, False), ms, entry).cast(own.type)


def split(table: pa.Table, at_ms: int) -> tuple[pa.Table, pa.Table]:
    """Return the rows of a sorted table before a moment, and those from it on."""
    cut = int(np.searchsorted(ids_of(table), at_ms))
    return table.slice(0, cut), table.slice(cut)


def last_key(batch: pa.RecordBatch) -> Key:
    """Return the key of the last row."""
    ms, code, number = (batch.column(name)[-1].as_py() for name in ("id_ms", "code", "id_seq"))
    return ms, code, number


def behind(batch: pa.RecordBatch, key: Key) -> pa.RecordBatch:
    """Return the rows of a sorted batch that come behind a key."""
    ids = ids_of(batch)
    begin, end = (int(np.searchsorted(ids, key[0], side)) for side in ("left", "right"))
    while begin < end and last_key(batch.slice(begin, 1)) <= key:
        begin += 1
    return batch.slice(begin)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table in a schema; columns that it lacks are null.

    Raises
    ------
    KeyError
        When it lacks one that cannot be.
    """
    for field in schema:
        if not field.nullable and field.name not in table.column_names:
            raise KeyError(field.name)
    if table.schema.equals(schema):
        return pa.Table.from_arrays(table.columns, schema=schema)  # without Parquet's own offsets
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def where_code(column: pa.ChunkedArray, codes: pa.Array) -> Ints:
    """Return at which rows one of some codes stands."""
    found: list[Ints] = []
    start = 0
    for chunk in column.chunks:
        requested = pc.is_in(chunk.dictionary, value_set=codes).to_numpy(zero_copy_only=False)
        numbers = chunk.indices.to_numpy()
        found.append(np.flatnonzero(requested[numbers]).astype(np.int64) + start)
        start += len(chunk)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def in_order(tables: Sequence[pa.Table]) -> pa.Table:
    """Put tables of one schema together in order, in one chunk; of a repeated row keep the first.

    Each table may be in any order; of sorted ones the merge costs least.
    """
    tables = [table for table in tables if len(table)] or list(tables[:1])
    whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    if not len(whole):
        return whole
    ids = ids_of(whole)
    codes = whole.column("code").chunk(0)
    numbers = np.asarray(whole.column("id_seq").to_numpy(), dtype=np.int64)
    ranks = _ranks(codes)
    span = ids - ids.min()
    if (
        span.max() < 1 << _SPAN_BITS
        and len(codes.dictionary) <= 1 << _CODE_BITS
        and numbers.min() >= 0
        and numbers.max() < 1 << _NUMBER_BITS
    ):
        key = span << (_CODE_BITS + _NUMBER_BITS) | ranks << _NUMBER_BITS | numbers
        if np.all(key[1:] > key[:-1]):
            return whole
        order = np.argsort(key, kind="stable")
        key = key[order]
        news = key[1:] != key[:-1]
    else:
        order = np.lexsort((numbers, ranks, ids))
        news = np.zeros(len(order) - 1, dtype=bool)
        for part in (ids, ranks, numbers):
            news |= part[order][1:] != part[order][:-1]
    return whole.take(order[np.concatenate(([True], news))])


def newest(table: pa.Table) -> pa.Table:
    """Return, of a sorted table of bars, of each code and label the row with the highest number."""
    if len(table) < 2:
        return table
    ids, ranks = ids_of(table), _ranks(table.column("code").chunk(0))
    last = np.concatenate(((ids[1:] != ids[:-1]) | (ranks[1:] != ranks[:-1]), [True]))
    return table if last.all() else table.take(np.flatnonzero(last))


def _ranks(codes: pa.DictionaryArray) -> Ints:
    """Return each row's code as a number that sorts as the code does."""
    places = np.argsort(np.array(codes.dictionary.to_pylist(), dtype=object), kind="stable")
    rank = np.empty(len(places), dtype=np.int64)
    rank[places] = np.arange(len(places))
    ranks: Ints = rank[codes.indices.to_numpy()]
    return ranks
