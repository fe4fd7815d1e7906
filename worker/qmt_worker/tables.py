"""The terminal's frames as history tables: rows that count, columns and nulls as documented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qmt_protocol.arrow import history_schema
from qmt_protocol.periods import DAILY_PERIODS
from qmt_protocol.tables import BOOKS, TICK_TABLE, bar_nulls, table_of

from .days import Sessions, day_numbers, period_span, start_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CHUNK_BYTES", "arrow_chunks", "arrow_table", "closed", "real_rows"]

CHUNK_BYTES: Final = 6 << 20
_GRACE_MS: Final = 3_000
"""A bar's last tick may come that long after its end."""
_CLOSE_GRACE_MS: Final = 60_000

Bools = npt.NDArray[np.bool_]


def real_rows(frame: pd.DataFrame, period: str, *, suspended: bool) -> pd.DataFrame:
    """Leave out the rows that a terminal makes up where it has no bar.

    Parameters
    ----------
    suspended
        Whether a daily row with a price, no volume and the suspension flag may be the record of
        a suspended day. It is one in a range that was downloaded; elsewhere it may be padding.
    """
    close = frame["close"].to_numpy()
    still = frame["volume"].to_numpy() == 0
    priced = np.isfinite(close) & (close != 0)  # an adjusted price may be below zero
    genuine = priced
    if not (suspended and period in DAILY_PERIODS):
        genuine = priced & (frame["suspendFlag"].to_numpy() != 1)
    kept: pd.DataFrame = frame[~still | genuine]
    return kept


def closed(
    times_ms: npt.NDArray[np.int64],
    period: str,
    now_ms: int,
    sessions: Sessions,
    newest_ms: int = 0,
) -> Bools:
    """Return which bars no longer change: a newer one is there (`newest_ms`), or it is time.

    An intraday bar is labelled with its end; a daily one closes with its trading day. A longer
    one closes with the last weekday of its span, or the day of its label if that is later: holidays
    to come are not known.
    """
    if period not in DAILY_PERIODS:
        return np.asarray((times_ms + _GRACE_MS <= now_ms) | (times_ms < newest_ms))
    ends = np.empty(len(times_ms), dtype=np.int64)
    today_ends: dict[int, int] = {}
    for at, day in enumerate(day_numbers(times_ms).tolist()):
        if day not in today_ends:
            last = period_span(period, day)[1] - 1
            while last > day and (last + 3) % 7 > 4:
                last -= 1
            today_ends[day] = start_of(last) + sessions.close_s * 1000 + _CLOSE_GRACE_MS
        ends[at] = today_ends[day]
    return np.asarray((ends <= now_ms) | (times_ms < newest_ms))


def arrow_table(
    code: str, frame: pd.DataFrame | None, period: str, fields: list[str] | None, is_closed: Bools
) -> pa.Table:
    """Return one code's rows with the schema of `history_schema`."""
    schema = history_schema(period, fields)
    if frame is None or not len(frame):
        return schema.empty_table()
    values = _tick_values(frame) if period == "tick" else _bar_values(code, frame, is_closed)
    rows = len(frame)
    columns: list[Any] = [
        pa.array([code] * rows, pa.string()),
        pa.array(frame["time"].to_numpy(dtype=np.int64), pa.int64()).cast(schema.field(1).type),
    ]
    for column in table_of(period):
        if fields is None or column.name in fields:
            array = values.get(column.name)
            if array is None:
                array = np.full(rows, np.nan if column.dtype == "float64" else 0)
            columns.append(pa.array(np.asarray(array).astype(column.dtype)))
    return pa.Table.from_arrays(columns, schema=schema)


def _bar_values(code: str, frame: pd.DataFrame, is_closed: Bools) -> dict[str, Any]:
    values: dict[str, Any] = {name: frame[name].to_numpy() for name in frame.columns}
    values["closed"] = is_closed
    for name, null in bar_nulls(code).items():
        values[name] = np.full(len(frame), null)
    return values


def _tick_values(frame: pd.DataFrame) -> dict[str, Any]:
    values: dict[str, Any] = {
        column.name: frame[column.name].to_numpy()
        for column in TICK_TABLE
        if column.name in frame.columns
    }
    for name in BOOKS:
        if name not in frame.columns:
            continue
        missing = np.nan if name.endswith("Price") else 0
        levels = np.full((len(frame), 5), missing, dtype=np.float64)
        for at, given in enumerate(frame[name].tolist()):
            some = list(given)[:5] if isinstance(given, (list, tuple, np.ndarray)) else []
            levels[at, : len(some)] = some
        for level in range(5):
            values[f"{name}{level + 1}"] = levels[:, level]
    return values


def arrow_chunks(tables: list[pa.Table]) -> Iterator[tuple[int, bytes]]:
    """Yield rows and Arrow IPC streams that hold the tables, each below some 8 MB."""
    whole = pa.concat_tables(tables)
    per_row = max(1, whole.nbytes // max(1, len(whole)))
    step = max(1, CHUNK_BYTES // per_row)
    for start in range(0, max(1, len(whole)), step):
        part = whole.slice(start, step).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, whole.schema) as writer:
            writer.write_table(part)
        yield len(part), sink.getvalue().to_pybytes()
