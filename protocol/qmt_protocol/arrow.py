"""History tables as Arrow: one schema for worker, gateway and client."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from .arrow_stream import read_table
from .errors import CodecError
from .tables import table_of

__all__ = ["check_history", "history_schema", "is_history", "read_history"]

_TYPES: Final[dict[str, Any]] = {
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "bool": pa.bool_(),
}
_FIRST_MS, _LAST_MS = -86_400_000, 9_000_000_000_000
"""Labels that a frame's nanoseconds can tell: from the day before 1970 to 2255."""


def history_schema(period: str, fields: list[str] | None = None) -> pa.Schema:
    """Return the Arrow schema of a history answer.

    Columns ``code`` (string) and ``time`` (ms, Asia/Shanghai) come first, then the period's
    table, or the named columns of it. Rows are sorted by code as requested, then by time.
    """
    columns = [column for column in table_of(period) if fields is None or column.name in fields]
    return pa.schema(
        [
            pa.field("code", pa.string(), nullable=False),
            pa.field("time", pa.timestamp("ms", tz="Asia/Shanghai"), nullable=False),
            *(
                pa.field(column.name, _TYPES[column.dtype], metadata={"unit": column.unit})
                for column in columns
            ),
        ]
    )


def is_history(schema: pa.Schema) -> bool:
    """Whether a schema is that of a history answer, of whatever period and fields."""
    fields = schema.names[2:]
    return any(schema.equals(history_schema(period, fields)) for period in ("tick", "1d"))


def read_history(
    chunks: Iterable[bytes],
    what: str,
    *,
    period: str | None = None,
    fields: list[str] | None = None,
    codes: Collection[str] | None = None,
) -> pa.Table:
    """Put a history answer's chunks, each a complete Arrow IPC stream, together in one table.

    Parameters
    ----------
    what
        Whose answer it is, for the error.
    period, fields, codes
        What was asked for; ``None`` as period: not known, any will do.

    Raises
    ------
    CodecError
        When it is not exactly that.
    """

    def accepts(schema: pa.Schema) -> bool:
        return (
            is_history(schema) if period is None else schema.equals(history_schema(period, fields))
        )

    table = read_table(chunks, accepts, what)
    check_history(table, what, codes)
    return table


def check_history(table: pa.Table, what: str, codes: Collection[str] | None) -> None:
    """Make sure that a table's codes were asked for, and that its labels are times.

    Raises
    ------
    CodecError
    """
    if not table.num_rows:
        return
    if codes is not None:
        foreign = set(pc.unique(table.column("code")).to_pylist()).difference(codes)
        if foreign:
            raise CodecError(f"{what} has rows of {min(foreign)}, which was not asked for.")
    span = pc.min_max(table.column("time").cast(pa.int64())).as_py()
    if span["min"] < _FIRST_MS or span["max"] > _LAST_MS:
        raise CodecError(f"{what} has a row of no time, {span['min']} to {span['max']} ms.")
