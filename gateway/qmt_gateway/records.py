"""History tables as the JSON records that qmt-bridge-pro's callers know."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from qmt_protocol.periods import DAILY_PERIODS

__all__ = ["records_by_code"]

_CHINA_OFFSET_MS: Final = 8 * 3_600_000
_DAY_MS: Final = 86_400_000


def records_by_code(
    table: pa.Table, period: str, fields: list[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return each code's rows as ``{"date": ..., field: value, ...}``, in the table's order.

    Parameters
    ----------
    table
        A history answer, see `qmt_protocol.arrow.history_schema`.
    period
        Its period: ``date`` is ``YYYYMMDD`` for a day and longer, else ``YYYYMMDDHHMMSS``, both
        China time, as xtdata labels its rows.
    fields
        Columns wanted, in this order; ``time`` is the label in ms since the epoch. ``None``: all.
    """
    names = [name for name in table.column_names if name not in ("code", "time")]
    requested = names if fields is None else fields
    times = np.asarray(table.column("time").cast(pa.int64()).to_numpy())
    columns = [_dates(times, daily=period in DAILY_PERIODS)]
    columns += [
        times.tolist() if name == "time" else table.column(name).to_numpy().tolist()
        for name in requested
    ]
    keys = ("date", *requested)
    rows = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
    grouped: dict[str, list[dict[str, Any]]] = {}
    for code, row in zip(table.column("code").to_pylist(), rows, strict=True):
        grouped.setdefault(code, []).append(row)
    return grouped


def _dates(times: np.ndarray[Any, Any], *, daily: bool) -> list[str]:
    china = times + _CHINA_OFFSET_MS
    days = np.floor_divide(china, _DAY_MS).astype("datetime64[D]")
    months = days.astype("datetime64[M]")
    number = (
        (months.astype("datetime64[Y]").astype(np.int64) + 1970) * 10_000
        + (months.astype(np.int64) % 12 + 1) * 100
        + ((days - months).astype(np.int64) + 1)
    )
    if not daily:
        seconds = china % _DAY_MS // 1000
        clock = seconds // 3600 * 10_000 + seconds // 60 % 60 * 100 + seconds % 60
        number = number * 1_000_000 + clock
    return [str(one) for one in number.tolist()]
