"""History answers as DataFrames: exactly the columns and dtypes of ``qmt_protocol.tables``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from qmt_protocol.arrow import history_schema
from qmt_protocol.bars import Bar
from qmt_protocol.errors import CodecError, InvalidRequest
from qmt_protocol.jobs import Manifest
from qmt_protocol.tables import BOOKS, Column, table_of
from qmt_protocol.ticks import Tick
from qmt_protocol.times import CHINA
from qmt_reading.stored.ordering import moments

from .history_frames import HistoryFrames
from .live import NOW_LIVE

__all__ = ["frames_of", "long_frame_of", "stored_frame", "to_frame", "wide_frame_of"]

_METHODS: Final = {
    "none": "",
    "front": "additive",
    "back": "additive",
    "front_ratio": "ratio",
    "back_ratio": "ratio",
}
_NULLS: Final[dict[str, Any]] = {"float64": np.nan, "int64": 0, "int32": 0, "bool": False}


class _Table:
    """One history answer, taken apart once: numpy columns, index and where each code lies."""

    def __init__(
        self,
        table: pa.Table,
        manifest: Manifest,
        period: str,
        fields: Sequence[str] | None,
        tz: str | None,
    ) -> None:
        by_name = {column.name: column for column in table_of(period)}
        requested = list(by_name) if fields is None else list(dict.fromkeys(fields))
        try:
            table = table.select(["code", "time", *requested])
            table = table.cast(_ordered(history_schema(period, requested), table.schema.names))
        except (pa.ArrowException, KeyError) as error:
            raise CodecError(f"The answer is not a table of period {period}: {error}.") from error
        self.rows = table.num_rows
        self.columns = {name: _numpy(table.column(name), by_name[name]) for name in requested}
        self.index = _index(table.column("time"), tz)
        codes = table.column("code").combine_chunks().dictionary_encode()
        self.codes: list[str] = codes.dictionary.to_pylist()
        self.numbers: npt.NDArray[np.int64] = codes.indices.to_numpy().astype(np.int64)
        self.meta: Mapping[str, Any] = manifest.meta

    def slices(self) -> dict[str, slice]:
        """Return where each code's rows lie."""
        starts = np.flatnonzero(np.diff(self.numbers, prepend=-1)).tolist()
        if len(starts) != len(self.codes):
            raise CodecError("The answer's rows of one code do not stand together.")
        ends = [*starts[1:], self.rows][: len(starts)]
        return {
            code: slice(start, end)
            for code, start, end in zip(self.codes, starts, ends, strict=True)
        }

    def frame(self, rows: slice, attrs: Mapping[str, Any]) -> pd.DataFrame:
        """Return some rows as a frame."""
        frame = pd.DataFrame(
            {name: values[rows] for name, values in self.columns.items()}, index=self.index[rows]
        )
        frame.attrs.update(attrs)
        return frame


def frames_of(
    table: pa.Table,
    manifest: Manifest,
    codes: Sequence[str],
    period: str,
    *,
    fields: Sequence[str] | None,
    adjust: str,
    tz: str | None,
) -> HistoryFrames:
    """Return one frame per code, in the order asked for; absent codes are left out and named.

    A code that is neither in the table nor named absent gets an empty frame of the same columns.
    """
    parts = _Table(table, manifest, period, fields, tz)
    attrs = _attrs(manifest, period, adjust)
    slices = parts.slices()
    absent: dict[str, str] = attrs["absent"]
    return HistoryFrames(
        {
            code: parts.frame(slices.get(code, slice(0, 0)), {**attrs, "code": code})
            for code in codes
            if code in slices or code not in absent
        },
        manifest.meta,
    )


def long_frame_of(
    table: pa.Table,
    manifest: Manifest,
    codes: Sequence[str],
    period: str,
    *,
    fields: Sequence[str] | None,
    adjust: str,
    tz: str | None,
) -> pd.DataFrame:
    """Return all rows as one frame whose first column is ``code``, a categorical."""
    parts = _Table(table, manifest, period, fields, tz)
    frame = parts.frame(slice(None), _attrs(manifest, period, adjust))
    names = list(dict.fromkeys([*codes, *parts.codes]))
    place = {name: at for at, name in enumerate(names)}
    numbers = np.array([place[code] for code in parts.codes], dtype=np.int64)[parts.numbers]
    code = pd.Categorical.from_codes(numbers, categories=pd.Index(names))
    frame.insert(0, "code", pd.Series(code, index=frame.index))
    return frame


def wide_frame_of(
    table: pa.Table,
    manifest: Manifest,
    codes: Sequence[str],
    period: str,
    *,
    fields: Sequence[str] | None,
    adjust: str,
    tz: str | None,
) -> pd.DataFrame:
    """Return one frame whose columns are the codes; of several fields, (field, code)."""
    frames = frames_of(table, manifest, codes, period, fields=fields, adjust=adjust, tz=tz)
    names = list(frames[next(iter(frames))].columns) if frames else list(fields or ())
    columns = {(name, code): frame[name] for name in names for code, frame in frames.items()}
    wide = pd.DataFrame(columns) if columns else pd.DataFrame(index=_no_index(tz))
    wide.index.name = "time"
    wide.columns = pd.MultiIndex.from_tuples(list(columns), names=["field", "code"])
    if fields is not None and len(names) == 1:
        wide.columns = wide.columns.droplevel("field")
    wide.attrs.update(_attrs(manifest, period, adjust))
    return wide


def _no_index(tz: str | None) -> pd.DatetimeIndex:
    return _index(pa.chunked_array([[]], pa.timestamp("ms")), tz)


def to_frame(items: Iterable[Tick | Bar], *, tz: str | None = CHINA.key) -> pd.DataFrame:
    """Return live ticks, or bars, as the frame that stored ones have.

    Parameters
    ----------
    items
        `Tick` or `Bar`, of any codes, in any order; they are not sorted.
    tz
        As of `QMTClient`.

    Returns
    -------
    pandas.DataFrame
        Columns ``code`` and those of docs/tables.md, levels of the book one by one; the index is
        the exchange time, of a bar its label.

    Raises
    ------
    InvalidRequest
        When ticks and bars are mixed, or something is neither.
    """
    rows = [one for one in items if one is not NOW_LIVE]
    ticks = [one for one in rows if isinstance(one, Tick)]
    bars = [one for one in rows if isinstance(one, Bar)]
    if len(rows) not in (len(ticks), len(bars)):
        raise InvalidRequest(
            "to_frame takes ticks, or bars, and nothing else.",
            hint="Make a frame of each.",
            field="items",
        )
    period = "1d" if bars else "tick"
    times = [one.time_ms for one in ticks] or [int(one.id.partition("-")[0]) for one in bars]
    at_ms = pa.array(times, pa.timestamp("ms"))
    frame = pd.DataFrame(
        {column.name: _live_column(rows, column) for column in table_of(period)},
        index=_index(at_ms, tz),
    )
    codes = [one.code for one in rows]
    code = pd.Categorical(codes, categories=pd.Index(list(dict.fromkeys(codes)), dtype=str))
    frame.insert(0, "code", pd.Series(code, index=frame.index))
    return frame


def _live_column(rows: Sequence[Tick | Bar], column: Column) -> npt.NDArray[Any]:
    null = _NULLS[column.dtype]
    side, level = column.name[:-1], column.name[-1:]
    if level.isdigit() and side in BOOKS:
        place = int(level) - 1
        values = [dict(enumerate(one.get(side) or ())).get(place) for one in rows]
    else:
        values = [one.get(column.name) for one in rows]
    return np.array([null if value is None else value for value in values], dtype=column.dtype)


def stored_frame(
    table: pa.Table,
    codes: Sequence[str] | None,
    period: str,
    *,
    fields: Sequence[str] | None,
    tz: str | None,
) -> pd.DataFrame:
    """Return stored rows, in their order, as one frame whose first column is ``code``.

    A tick without a time of its own, or with one that is none, has that of its entry id.
    """
    whole = table_of(period)
    columns = {column.name: column for column in whole}
    if fields is not None:
        columns = {name: columns[name] for name in fields if name in columns}
    code = table.column("code").combine_chunks()
    code = code.chunk(0) if isinstance(code, pa.ChunkedArray) else code
    names = code.dictionary.to_pylist()
    numbers = code.indices.to_numpy()
    index = _index(moments(table), tz)
    frame = pd.DataFrame(
        {
            "code": pd.Categorical.from_codes(numbers, categories=pd.Index(names, dtype=str)),
            **{name: _numpy(table.column(name), column) for name, column in columns.items()},
        },
        index=index,
        copy=False,
    )
    there = {names[number] for number in np.unique(numbers).tolist()}
    absent = {one: _NO_ROW for one in codes or () if one not in there}
    frame.attrs.update(source="stored", absent=absent, period=period)
    return frame


_NO_ROW: Final = "nothing is stored in the range"


def _ordered(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in names])


def _attrs(manifest: Manifest, period: str, adjust: str) -> dict[str, Any]:
    return {
        "simulated": bool(manifest.meta.get("simulated")),
        "source": manifest.meta.get("source", ""),
        "absent": dict(manifest.meta.get("absent") or {}),
        "period": period,
        "adjust": adjust,
        "adjust_method": _METHODS[adjust],
    }


def _numpy(column: Any, of: Column) -> npt.NDArray[Any]:
    if column.null_count:
        column = column.fill_null(_NULLS[of.dtype])
    return np.require(column.to_numpy(), of.dtype, "W")


def _index(column: Any, tz: str | None) -> pd.DatetimeIndex:
    at = column.cast(pa.int64()).to_numpy().astype("datetime64[ms]").astype("datetime64[ns]")
    index = pd.DatetimeIndex(at, name="time").tz_localize("UTC").tz_convert(CHINA)
    return index if tz else index.tz_localize(None)
