"""Ticks and bars as Arrow columns, as they lie in the archive's Parquet files, and the way back.

A column holds what a strategy wants to see: prices in yuan, counts as int64, a null where the
terminal sent nothing. What a column cannot say exactly (a fraction among counts, a book that is
not of five levels, a number that the wire spells unusually) stands as it was on the wire in
``odd``, so what is read back equals what was published, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .bars import BAR_FIELDS, Bar
from .decoding import DECODE_ERRORS, check_plain, reason_of
from .errors import CodecError
from .numbers import PRICE_SCALE, decode_price, decode_prices, scale_prices
from .ticks import TICK_FIELDS, Tick, TickFlag, TickRow

__all__ = [
    "BAR_COLUMNS",
    "TICK_COLUMNS",
    "bars_from",
    "bars_table",
    "rows_from",
    "ticks_from",
    "ticks_table",
    "unpack_map",
]

_LEVELS: Final = range(1, 6)
_DEPTH: Final = len(_LEVELS)
_SAFE_UNITS: Final = 2**43
"""Scaled prices up to here come back from yuan as they were."""
_EXACT: Final = 2**53
_TEXT: Final = pa.dictionary(pa.int32(), pa.string())
_MOMENT: Final = pa.timestamp("ms", tz="Asia/Shanghai")
_ARROW: Final = {
    "time": _MOMENT,
    "price": pa.float64(),
    "prices": pa.float64(),
    "float": pa.float64(),
    "int": pa.int64(),
    "ints": pa.int64(),
    "bool": pa.bool_(),
}
_LISTS: Final = {"prices": "price", "ints": "int"}
_NAMES: Final = tuple(name for name, _, _ in TICK_FIELDS)
_KINDS: Final = {**{name: kind for name, kind, _ in TICK_FIELDS}, "flags": "int"}
_BAR_KINDS: Final = {name: kind for name, kind, _ in BAR_FIELDS if kind != "bool"}


def _field(name: str, kind: pa.DataType, unit: str, *, null: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"unit": unit})


def _levels(name: str) -> list[str]:
    """Return the columns of a side of the book: ``askPrice1`` and so on."""
    return [f"{name}{level}" for level in _LEVELS]


_ID: Final = (
    _field("id_ms", pa.int64(), "ms since the epoch; first part of the entry id", null=False),
    _field("id_seq", pa.int32(), "second part of the entry id", null=False),
)
_SOURCE: Final = _field("source", _TEXT, "live, backfill or import", null=False)
_EXTRA: Final = _field("extra", pa.binary(), "msgpack map of keys that are not named here")
_ODD: Final = _field("odd", pa.binary(), "msgpack map of field to wire value, overrides columns")
_BOOK: Final = ("askPrice", "askVol", "bidPrice", "bidVol")
_UNITS: Final = {name: unit for name, _, unit in TICK_FIELDS}

TICK_COLUMNS: Final = pa.schema(
    [
        _field("code", _TEXT, "instrument code", null=False),
        *_ID,
        *(
            _field(name, _ARROW[kind], unit)
            for name, kind, unit in TICK_FIELDS
            if kind not in _LISTS
        ),
        *(
            _field(level, _ARROW[_KINDS[name]], _UNITS[name].partition(",")[0])
            for name in _BOOK
            for level in _levels(name)
        ),
        _EXTRA,
        _ODD,
        _field("flags", pa.uint8(), "bits, see t1", null=False),
        _SOURCE,
    ]
)
"""Columns of archived ticks; the fields of ``t1`` by their names, books level by level."""

BAR_COLUMNS: Final = pa.schema(
    [
        _field("code", _TEXT, "instrument code", null=False),
        _field("period", _TEXT, "length of the bar", null=False),
        *_ID,
        *(
            _field(name, _MOMENT if name == "time" else _ARROW[kind], unit)
            for name, kind, unit in BAR_FIELDS
        ),
        _EXTRA,
        _ODD,
        _SOURCE,
    ]
)
"""Columns of archived bars; the fields of ``k1`` by their names."""

_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode
_unpack_odd: Final = msgspec.msgpack.Decoder(dict[str, float | int | list[float | int]]).decode
_Odd = dict[int, dict[str, Any]]
_Mask = npt.NDArray[np.bool_]


# -- writing ------------------------------------------------------------------------------------


def ticks_table(rows: Sequence[tuple[str, str, TickRow]], source: str = "live") -> pa.Table:
    """Return ticks in `TICK_COLUMNS`, in the order given.

    Parameters
    ----------
    rows
        Code, entry id and decoded ``t1`` array, as a ``b1`` batch holds them.
    source
        Where they come from: ``live``, ``backfill`` or ``import``.

    Raises
    ------
    CodecError
        When an entry id is none.
    """
    if not rows:
        return TICK_COLUMNS.empty_table()
    codes, ids, arrays = zip(*rows, strict=True)
    fields = list(zip(*arrays, strict=True))
    odd: _Odd = {}
    columns = _id_columns(codes, ids)
    for (name, kind, _), values in zip(TICK_FIELDS, fields, strict=False):
        if kind in _LISTS:
            columns.update(_book(name, values, odd))
        else:
            columns[name] = _column(name, kind, values, odd)
    columns["flags"] = _flags(fields[-1], odd)
    return _table(TICK_COLUMNS, columns, fields[-2], odd, source)


def bars_table(bars: Sequence[Bar], source: str = "live") -> pa.Table:
    """Return bars in `BAR_COLUMNS`, in the order given.

    Raises
    ------
    CodecError
        When an entry id is none.
    """
    if not bars:
        return BAR_COLUMNS.empty_table()
    odd: _Odd = {}
    columns = _id_columns([bar.code for bar in bars], [bar.id for bar in bars])
    columns["period"] = pa.array([bar.period for bar in bars]).dictionary_encode()
    for name, kind, _ in BAR_FIELDS:
        values: list[Any] = [bar.get(name) for bar in bars]
        if kind == "bool":
            columns[name] = pa.array(values, pa.bool_())
            continue
        wide = "time" if name == "time" else "float" if kind == "price" else kind
        columns[name] = _column(name, wide, values, odd, wire=False)
    named = {name for name, _, _ in BAR_FIELDS}
    extra = [
        None if named.issuperset(bar) else {key: bar[key] for key in bar if key not in named}
        for bar in bars
    ]
    return _table(BAR_COLUMNS, columns, extra, odd, source)


def _table(
    schema: pa.Schema,
    columns: dict[str, pa.Array],
    extra: Sequence[Mapping[str, Any] | None],
    odd: _Odd,
    source: str,
) -> pa.Table:
    rows = len(extra)
    columns["extra"] = _maps(extra)
    columns["odd"] = (
        _maps([odd.get(at) for at in range(rows)]) if odd else pa.nulls(rows, pa.binary())
    )
    columns["source"] = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [source])
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _maps(maps: Sequence[Mapping[str, Any] | None]) -> pa.Array:
    if not any(one is not None for one in maps):
        return pa.nulls(len(maps), pa.binary())
    return pa.array([None if one is None else _pack(one) for one in maps], pa.binary())


def _id_columns(codes: Sequence[str], ids: Sequence[str]) -> dict[str, pa.Array]:
    parts = "-".join(ids).split("-")
    try:
        ms = np.array(list(map(int, parts[::2])), np.int64)
        seq = np.array(list(map(int, parts[1::2])), np.int32)
        if len(ms) != len(ids) or len(seq) != len(ids):
            raise ValueError("not two numbers each")
    except (ValueError, OverflowError) as error:
        raise CodecError(f"Entry ids from {ids[0]!r} on: {error}.") from error
    return {
        "code": pa.array(codes, pa.string()).dictionary_encode(),
        "id_ms": pa.array(ms),
        "id_seq": pa.array(seq),
    }


def _column(
    name: str, kind: str, values: Sequence[Any], odd: _Odd, *, wire: bool = True
) -> pa.Array:
    numbers, null, unfit = _numbers(kind, values, wire=wire)
    for at in unfit:
        odd.setdefault(at, {})[name] = values[at]
    return pa.array(numbers, mask=null).cast(_ARROW[kind])


def _flags(values: Sequence[int], odd: _Odd) -> pa.Array:
    flags = [value if 0 <= value < 256 else 0 for value in values]
    if flags != list(values):
        for at, value in enumerate(values):
            if not 0 <= value < 256:
                odd.setdefault(at, {})["flags"] = value
    return pa.array(flags, pa.uint8())


def _book(name: str, lists: Sequence[list[Any] | None], odd: _Odd) -> dict[str, pa.Array]:
    """Return the five columns of one side of the book."""
    unfit: set[int] = set()
    if set(map(type, lists)) != {list} or set(map(len, lists)) != {_DEPTH}:  # type: ignore[arg-type]
        unfit = {at for at, one in enumerate(lists) if one is not None and len(one) != _DEPTH}
        lists_of_five = [
            one if one is not None and len(one) == _DEPTH else [*(one or ()), *_NOTHING][:_DEPTH]
            for one in lists
        ]
    else:
        lists_of_five = lists  # type: ignore[assignment]
    flat = list(chain.from_iterable(lists_of_five))
    numbers, null, unfit_levels = _numbers(_LISTS[_KINDS[name]], flat)
    for at in unfit.union(level // _DEPTH for level in unfit_levels):
        odd.setdefault(at, {})[name] = lists[at]
    by_level = numbers.reshape(-1, _DEPTH)
    masks = None if null is None else null.reshape(-1, _DEPTH)
    return {
        column: pa.array(
            np.ascontiguousarray(by_level[:, at]), mask=None if masks is None else masks[:, at]
        )
        for at, column in enumerate(_levels(name))
    }


_NOTHING: Final = [None] * _DEPTH


def _numbers(
    kind: str, values: Sequence[Any], *, wire: bool = True
) -> tuple[npt.NDArray[Any], _Mask | None, Iterable[int]]:
    """Return a column's numbers, where they are null, and the places that ``odd`` must tell.

    ``wire``: a float must also come back as it was spelled on the wire.
    """
    array = np.array(values)
    if array.dtype == np.int64:
        if kind in ("int", "time"):
            return array, None, ()
        limit = _SAFE_UNITS if kind == "price" else _EXACT - 1
        if -limit <= array.min() and array.max() <= limit:
            return array / PRICE_SCALE if kind == "price" else array.astype(np.float64), None, ()
    null: _Mask | None = None
    if array.dtype == object:
        null = np.array([value is None for value in values])
        values = [0 if value is None else value for value in values]
    if kind in ("int", "time"):
        whole = [
            value if type(value) is int and -(2**63) <= value < 2**63 else None for value in values
        ]
        unfit = np.array([value is None for value in whole])
        array = np.array([value or 0 for value in whole], np.int64)
        return array, unfit if null is None else null | unfit, np.flatnonzero(unfit).tolist()
    literal = np.array([type(value) is float for value in values])
    array = np.array(values) if null is not None or array.dtype != np.float64 else array
    if array.dtype != np.float64:
        array = np.array([float(value) for value in values])
    if kind == "price":
        unfit = ~literal & (np.abs(array) > _SAFE_UNITS)
        unfit[literal] = [type(one) is int for one in scale_prices(array[literal])]
        array = np.where(literal, array, array / PRICE_SCALE)
    else:
        counts = (np.rint(array) == array) & (np.abs(array) < _EXACT)
        unfit = np.where(literal, counts, ~counts)
        if not wire:
            unfit &= ~literal
    return array, null, np.flatnonzero(unfit).tolist()


# -- reading ------------------------------------------------------------------------------------


def ticks_from(batch: pa.RecordBatch) -> list[Tick]:
    """Return the ticks of a batch exactly as they were read live.

    Parameters
    ----------
    batch
        All of `TICK_COLUMNS`, checked (`qmt_protocol.arrow_stream.check_batch`).

    Raises
    ------
    CodecError
        When ``extra`` or ``odd`` of a row cannot be read.
    """
    if not batch.num_rows:
        return []
    columns, flags, extra = _read_ticks(batch, wire=False)
    there = [(name, column) for name, column in zip(_NAMES, columns, strict=True) if column.any]
    names = [name for name, _ in there]
    gaps = any(column.nulls for _, column in there)
    new, known = Tick.__new__, _FLAGS
    ticks: list[Tick] = []
    add = ticks.append
    for code, entry_id, flag, row in zip(
        _texts(batch, "code"),
        _entry_ids(batch),
        flags,
        zip(*(column.values for _, column in there), strict=True) if there else [()] * len(flags),
        strict=True,
    ):
        tick = new(Tick)
        tick.update(zip(names, row, strict=True))
        if gaps and None in row:
            for name, value in zip(names, row, strict=True):
                if value is None:
                    del tick[name]
        tick.code = code
        tick.id = entry_id
        tick.flags = known[flag & 0x7F]
        add(tick)
    for at, more in extra.items():
        ticks[at].update(more)
    return ticks


_FLAGS: Final = [TickFlag(bits) for bits in range(0x80)]


def rows_from(batch: pa.RecordBatch) -> list[tuple[str, str, TickRow]]:
    """Return the ticks of a batch as they were on the wire: code, entry id, ``t1`` array.

    Raises
    ------
    CodecError
        When ``extra`` or ``odd`` of a row cannot be read.
    """
    if not batch.num_rows:
        return []
    columns, flags, extra = _read_ticks(batch, wire=True)
    maps = [extra.get(at) for at in range(batch.num_rows)] if extra else [None] * batch.num_rows
    arrays = zip(*(column.values for column in columns), maps, flags, strict=True)
    return list(zip(_texts(batch, "code"), _entry_ids(batch), arrays, strict=True))


def bars_from(batch: pa.RecordBatch) -> list[Bar]:
    """Return the bars of a batch exactly as they were read live.

    Raises
    ------
    CodecError
        When ``extra`` or ``odd`` of a row cannot be read.
    """
    if not batch.num_rows:
        return []
    odd = _odd_of(batch, _BAR_KINDS)
    columns = {}
    for name, kind, _ in BAR_FIELDS:
        if kind == "bool":
            columns[name] = batch.column(name).to_pylist()
        else:
            columns[name] = _Column(batch, name, kind="int" if name == "time" else kind).values
    for at, fields in odd.items():
        for name, value in fields.items():
            columns[name][at] = value
    extra = _extra_of(batch)
    rows = zip(_texts(batch, "code"), _texts(batch, "period"), _entry_ids(batch), strict=True)
    bars = []
    for at, ((code, period, entry_id), values) in enumerate(
        zip(rows, zip(*columns.values(), strict=True), strict=True)
    ):
        bar = {
            name: value for name, value in zip(columns, values, strict=True) if value is not None
        }
        bar.update(extra.get(at) or {})
        bars.append(Bar(bar, code, period, entry_id))
    return bars


class _Column:
    """One field of a batch as a list, ``None`` where it is null."""

    def __init__(self, batch: pa.RecordBatch, name: str, *, kind: str, wire: bool = False) -> None:
        lists = kind in _LISTS
        arrays = [batch.column(column) for column in (_levels(name) if lists else [name])]
        self.nulls = any(array.null_count for array in arrays)
        self.any = arrays[0].null_count < len(batch)
        numbers = [_plain(array) for array in arrays]
        joined = np.stack(numbers, axis=1).ravel() if lists else numbers[0]
        values = _listed(joined, _LISTS.get(kind, kind) if wire else "")
        if lists:
            values = [values[at : at + _DEPTH] for at in range(0, len(values), _DEPTH)]
        if self.nulls:
            for at in np.flatnonzero(arrays[0].is_null().to_numpy(zero_copy_only=False)).tolist():
                values[at] = None
        self.values = values


def _plain(array: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_timestamp(array.type):
        array = array.view(pa.int64())
    if array.null_count:
        array = array.fill_null(0)
    numbers: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return numbers


def _listed(numbers: npt.NDArray[Any], wire_kind: str) -> list[Any]:
    if wire_kind == "price":
        return scale_prices(numbers)
    return _wire_numbers(numbers) if wire_kind == "float" else list(numbers.tolist())


def _wire_numbers(numbers: npt.NDArray[np.float64]) -> list[Any]:
    """Return floats as `encode_number` would, one by one."""
    whole = (np.rint(numbers) == numbers) & (np.abs(numbers) < _EXACT)
    values: list[Any] = np.where(whole, numbers, 0).astype(np.int64).tolist()
    for at in np.flatnonzero(~whole).tolist():
        values[at] = float(numbers[at])
    return values


def _read_ticks(
    batch: pa.RecordBatch, *, wire: bool
) -> tuple[list[_Column], list[int], dict[int, dict[str, Any]]]:
    columns = [_Column(batch, name, kind=kind, wire=wire) for name, kind, _ in TICK_FIELDS]
    flags: list[int] = batch.column("flags").to_numpy(zero_copy_only=False).tolist()
    for at, fields in _odd_of(batch, _KINDS).items():
        for name, value in fields.items():
            if name == "flags":
                flags[at] = value
                continue
            column = columns[_NAMES.index(name)]
            column.values[at] = value if wire else _in_yuan(_KINDS[name], value)
            column.any = True
    return columns, flags, _extra_of(batch)


def _in_yuan(kind: str, value: Any) -> Any:
    if kind == "price":
        return decode_price(value)
    if kind == "prices":
        return decode_prices(value)
    return float(value) if kind == "float" else value


def _extra_of(batch: pa.RecordBatch) -> dict[int, dict[str, Any]]:
    """Return what no column has, by row."""
    found: dict[int, dict[str, Any]] = {}
    for at, packed in _maps_of(batch, "extra"):
        try:
            found[at] = unpack_map(packed)
        except DECODE_ERRORS as error:
            raise _unreadable(batch, at, "extra", error) from error
    return found


def _odd_of(batch: pa.RecordBatch, kinds: Mapping[str, str]) -> dict[int, dict[str, Any]]:
    """Return what a column cannot say, by row."""
    found: dict[int, dict[str, Any]] = {}
    for at, packed in _maps_of(batch, "odd"):
        try:
            found[at] = fields = _unpack_odd(packed)
            for name, value in fields.items():
                if isinstance(value, list) != (kinds[name] in _LISTS):
                    raise ValueError(f"{name} is {value!r}")
        except (*DECODE_ERRORS, KeyError) as error:
            raise _unreadable(batch, at, "odd", error) from error
    return found


def _unreadable(batch: pa.RecordBatch, at: int, name: str, error: Exception) -> CodecError:
    code, ms, number = (batch.column(one)[at].as_py() for one in ("code", "id_ms", "id_seq"))
    return CodecError(
        f"{code} {ms}-{number}: its {name} cannot be read: {reason_of(error)}.", code=code
    )


def unpack_map(packed: bytes) -> dict[str, Any]:
    """Return a value of the column ``extra``.

    Raises
    ------
    ValueError, msgspec.MsgspecError, RecursionError
        When it is no map of plain values; see `qmt_protocol.decoding.DECODE_ERRORS`.
    """
    values = _unpack(packed)
    check_plain(values)
    return values


def _maps_of(batch: pa.RecordBatch, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the values of a binary column, with their rows, where there are any."""
    column = batch.column(name)
    if column.null_count < len(column):
        for at in np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).tolist():
            yield at, column[at].as_py()


def _texts(batch: pa.RecordBatch, name: str) -> list[str]:
    column = batch.column(name)
    if not isinstance(column, pa.DictionaryArray):
        column = column.dictionary_encode()
    names = column.dictionary.to_pylist()
    return [names[at] for at in column.indices.to_numpy().tolist()]


def _entry_ids(batch: pa.RecordBatch) -> list[str]:
    ms = batch.column("id_ms").to_numpy().tolist()
    seq = batch.column("id_seq").to_numpy().tolist()
    return [f"{at}-{number}" for at, number in zip(ms, seq, strict=True)]
