"""History tables as Arrow: one schema for worker, gateway and client."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from .tables import table_of

__all__ = ["history_schema"]

_TYPES: Final[dict[str, Any]] = {
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "bool": pa.bool_(),
}


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
