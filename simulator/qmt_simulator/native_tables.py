"""Turns the terminal's column answers into what the native `get_market_data3` returns.

Apart from `native` because it needs numpy, which a process that only takes pushes need not load.
"""

from typing import Any

import numpy as np

_DEPTH = ("askPrice", "bidPrice", "askVol", "bidVol")


def shape(answer: Any, period: str, version: str) -> Any:
    """Return a 'v2', 'v3' or 'v4' answer.

    Parameters
    ----------
    answer : list
        [code, index as int64 bytes, [field, dtype, bytes]] per code, as the terminal sends it.
    period : str
        'tick' or a bar period.
    version : str
        'v4': [(code, index strings, columns)]; 'v3': {code: {field: array}}; 'v2': for ticks
        {code: structured array}, for bars ((codes, times), {field: rows}).
    """
    answer = [
        (code, list(map(str, np.frombuffer(index, "<i8").tolist())), columns)
        for code, index, columns in answer
    ]
    if version == "v4":
        return answer
    tables = {code: _columns(columns) for code, _index, columns in answer}
    if version != "v2":
        return tables
    if period == "tick":
        return {code: _records(columns) for code, columns in tables.items()}
    times = sorted({stamp for _code, index, _columns_of in answer for stamp in index})
    place = {stamp: number for number, stamp in enumerate(times)}
    codes = [code for code, _index, _columns_of in answer]
    fields = list(dict.fromkeys(field for _c, _i, columns in answer for field, _d, _b in columns))
    grids = {field: np.full((len(codes), len(times)), np.nan) for field in fields}
    for row, (code, index, _columns_of) in enumerate(answer):
        at = [place[stamp] for stamp in index]
        for field, values in tables[code].items():
            grids[field][row, at] = values
    whole = {"time", "volume", "openInterest", "suspendFlag"}
    data = {
        field: (grid.astype("<i8") if field in whole and not np.isnan(grid).any() else grid)
        for field, grid in grids.items()
    }
    return (codes, times), data


def _columns(columns: list[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field, dtype, raw in columns:
        values = np.frombuffer(raw, dtype)
        result[field] = list(values.reshape(-1, 5).tolist()) if field in _DEPTH else values
    return result


def _records(columns: dict[str, Any]) -> np.ndarray[Any, Any]:
    kinds = [
        (field, object if isinstance(values, list) else values.dtype)
        for field, values in columns.items()
    ]
    count = len(next(iter(columns.values()), ()))
    records = np.empty(count, dtype=kinds)
    for field, values in columns.items():
        if isinstance(values, list):
            for row, item in enumerate(values):
                records[field][row] = item
        else:
            records[field] = values
    return records
