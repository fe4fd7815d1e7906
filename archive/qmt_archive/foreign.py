"""CSV and Parquet in xtquant's own columns, checked value by value on the way in.

Whatever is wrong is told by file, row and column. Rows are counted as a person sees them: a CSV's
first row of values is row 2, its header being row 1 and empty lines left out; a Parquet file's is
row 1.
"""

from __future__ import annotations

import codecs
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
import pyarrow.parquet as pq

from qmt_protocol.archive import is_simulated
from qmt_protocol.arrow_stream import ARROW_ERRORS, check_values
from qmt_protocol.bars import BAR_FIELDS
from qmt_protocol.codes import convert_code
from qmt_protocol.columns import BAR_COLUMNS, TICK_COLUMNS
from qmt_protocol.decoding import reason_of
from qmt_protocol.errors import BadFile, CodecError, InvalidCode
from qmt_protocol.tables import BOOKS
from qmt_protocol.ticks import TICK_FIELDS
from qmt_protocol.times import DAY_MS
from qmt_reading.stored.parquet_groups import whole_groups

from .adding import FIRST_NUMBER, PRICES, Ints, as_published, columns_in, constant
from .plausible import Labels, Wrong, without_marks, wrong_bar, wrong_tick

__all__ = ["ForeignFile"]

_LEVELS: Final = 5
_ROWS: Final = 65_536
_BLOCK_BYTES: Final = 8 << 20
_NEEDED: Final = {
    "tick": ("time", "lastPrice", "volume"),
    "bar": ("time", "open", "high", "low", "close", "volume"),
}
_FILE_CODE: Final = re.compile(r"([^.\s]+\.[A-Z][A-Z0-9]{0,7})(?:[._ -].*)?\.(?:csv|parquet)")
_INDEX_NAMES: Final = ("__index_level_0__", "Unnamed: 0", "")
_CHINA_MS: Final = 8 * 3_600_000
_FIRST_MS: Final = 631_123_200_000  # 1990-01-01 in China: no exchange is older
_MS: Final = r"^[0-9]{12,13}(\.0+)?$"
_ZONED: Final = r"[0-9]:?[0-9]{2}.*([Zz]|[+-][0-9]{2}:?[0-9]{2})$"
_SHAPES: Final = (
    (r"^(\d{4})(\d{2})(\d{2})(\d{2})(\d{2})(\d{2})(\d{3})$", r"\1-\2-\3 \4:\5:\6.\7"),
    (r"^(\d{4})(\d{2})(\d{2})(\d{2})(\d{2})(\d{2})$", r"\1-\2-\3 \4:\5:\6"),
    (r"^(\d{4})(\d{2})(\d{2})$", r"\1-\2-\3"),
)
_EXACT: Final = 2**53
_FIELDS: Final = frozenset(name for name, _, _ in (*TICK_FIELDS, *BAR_FIELDS)) | {"flags"}
_pack: Final = msgspec.msgpack.Encoder().encode


@dataclass
class ForeignFile:
    """One file to import.

    Parameters
    ----------
    path
        Ends with ``.csv`` or ``.parquet``.
    period
        ``tick``, or the period of the bars in it.
    market
        Market of codes that are written without one.

    Attributes
    ----------
    forming : int
        Bars left out, after reading, because they were not closed.
    simulated : bool
        Whether it says, in what was read, that the simulator invented it.
    """

    path: Path
    period: str
    market: str = ""
    forming: int = field(default=0, init=False)
    simulated: bool = field(default=False, init=False)
    _columns: dict[str, Any] = field(default_factory=dict, init=False)
    _first_row: int = field(default=0, init=False)
    _latest_ms: int = field(default=0, init=False)
    _labels: Labels = field(default_factory=lambda: Labels("tick"), init=False)

    def tables(self) -> Iterator[tuple[pa.Table, Ints]]:
        """Yield checked rows in `TICK_COLUMNS` or `BAR_COLUMNS`, and in which row each stands.

        Raises
        ------
        BadFile
            At the first row that is wrong.
        """
        self._latest_ms = time.time_ns() // 1_000_000 + DAY_MS
        is_tick = self.period == "tick"
        self._labels = Labels(self.period)
        for batch, first_row in self._batches():
            self._columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            self._note_simulated()
            self._first_row = first_row
            table, is_closed = (self._ticks(), None) if is_tick else self._bars()
            rows = first_row + np.arange(len(table))
            if is_closed is not None:
                self.forming += len(table) - int(pc.sum(is_closed).as_py() or 0)
                table, rows = table.filter(is_closed), rows[is_closed.to_numpy(False)]
            yield table, rows
        if why := self._labels.wrong_as_a_whole():
            self.fail(
                f"{why}: they are not those of {self.period} bars",
                column="time",
                hint="Import each file as the period it has.",
            )

    def fail(self, what: str, at: int | None = None, column: str = "", hint: str = "") -> NoReturn:
        """Raise the error that names a place in the file.

        Parameters
        ----------
        at
            The row as a person counts; ``None``: none.
        """
        where = "" if at is None else f", row {at:,}"
        where += f", column {column}" if column else ""
        raise BadFile(
            f"{self.path.name}{where}: {what}.",
            hint=hint or "Nothing was imported. Correct the file and import it again.",
            file=str(self.path),
            row=at,
            column=column,
        )

    # Reading

    def _batches(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        suffix = self.path.suffix.lower()
        if suffix not in (".csv", ".parquet"):
            self.fail("it is neither .csv nor .parquet")
        try:
            yield from self._csv() if suffix == ".csv" else self._parquet()
        except FileNotFoundError:
            self.fail("there is no such file", hint="Check the path.")
        except (*ARROW_ERRORS, CodecError) as error:
            self.fail(f"it cannot be read: {reason_of(error)}")

    def _csv(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        wrong: list[Any] = []

        def note(row: Any) -> str:
            wrong.append(row)
            return "skip"

        self._check_text()
        shape = pv.ParseOptions(invalid_row_handler=note)
        with pv.open_csv(self.path, _one_thread(_BLOCK_BYTES), shape) as opened:
            names = opened.schema.names
        wrong.clear()
        if len(set(names)) != len(names):
            self.fail(f"a column is there twice: {', '.join(names)}", 1)
        text = pv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        )
        row = 2
        with pv.open_csv(self.path, _one_thread(_BLOCK_BYTES), shape, text) as opened:
            for batch in opened:
                self._refuse(wrong)
                yield batch, row
                row += len(batch)
        self._refuse(wrong)

    def _check_text(self) -> None:
        """Make sure that a CSV is text: Arrow cannot name a row of another encoding."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        size_bytes, row = 0, 1
        with self.path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    row += error.object.count(b"\n", 0, error.start)
                    self.fail("it is not UTF-8", row, hint="Save it as UTF-8 and import it again.")
                size_bytes += len(block)
                row += block.count(b"\n")
        if not size_bytes:
            self.fail("it is empty")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            self.fail("it is not UTF-8 to its end", row)

    def _refuse(self, wrong: list[Any]) -> None:
        """Raise for the first line that has not as many values as the header."""
        for one in wrong:
            self.fail(
                f"it has {one.actual_columns} values, the header {one.expected_columns}", one.number
            )

    def _parquet(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        row = 1
        with pq.ParquetFile(self.path) as opened:
            self.simulated = is_simulated(opened.schema_arrow.metadata)
            groups = range(opened.metadata.num_row_groups)
            for batch in whole_groups(opened, groups, _ROWS, opened.schema_arrow.names):
                check_values(batch, "it")
                yield batch, row
                row += len(batch)

    # Checking

    def _ticks(self) -> pa.Table:
        self._need("tick")
        ids = self._times()
        rows = len(ids)
        columns: dict[str, pa.Array] = {
            "code": self._codes(rows),
            "id_ms": ids,
            "id_seq": pa.array(np.full(rows, FIRST_NUMBER, np.int32)),
            "time": ids.cast(TICK_COLUMNS.field("time").type),
            "flags": pa.array(np.zeros(rows, np.uint8)),
            "source": constant("import", rows),
        }
        for name, kind, _ in TICK_FIELDS:
            if name in BOOKS:
                columns.update(self._book(name, rows))
            elif name != "time" and name in self._columns:
                columns[name] = self._numbers(name, whole=kind == "int")
        self._refuse_wrong(wrong_tick(columns))
        columns = {name: as_published(c) if name in PRICES else c for name, c in columns.items()}
        known = {name for name, _, _ in TICK_FIELDS}
        columns["extra"] = self._extra(known.union(TICK_COLUMNS.names), rows)
        columns["odd"] = self._maps("odd", rows)
        return columns_in(TICK_COLUMNS, columns, rows)

    def _bars(self) -> tuple[pa.Table, pa.Array | None]:
        self._need("bar")
        labels = self._times()
        rows = len(labels)
        codes = self._codes(rows)
        self._refuse_wrong(self._labels.wrong(labels, codes))
        columns: dict[str, pa.Array] = {
            "code": codes,
            "period": constant(self.period, rows),
            "id_ms": labels,
            "id_seq": pa.array(np.zeros(rows, np.int32)),
            "time": labels.cast(BAR_COLUMNS.field("time").type),
            "source": constant("import", rows),
        }
        for name, kind, _ in BAR_FIELDS:
            if kind != "bool" and name != "time" and name in self._columns:
                columns[name] = self._numbers(name, whole=kind == "int")
        self._refuse_wrong(wrong_bar(columns))
        columns = {name: as_published(c) if name in PRICES else c for name, c in columns.items()}
        columns["extra"] = self._extra({*BAR_COLUMNS.names}, rows)
        columns["odd"] = self._maps("odd", rows)
        columns["closed"] = pa.array(np.ones(rows, dtype=bool))
        return columns_in(BAR_COLUMNS, columns, rows), self._closed(rows)

    def _note_simulated(self) -> None:
        """Take the column that an export of simulated rows has."""
        column = self._columns.pop("simulated", None)
        if column is not None:
            texts = {str(one).lower() for one in pc.unique(column).to_pylist()}
            self.simulated |= "true" in texts

    def _need(self, kind: str) -> None:
        if "time" not in self._columns:
            for name in _INDEX_NAMES:
                if name in self._columns:
                    self._columns["time"] = self._columns[name]
                    break
        for name in _INDEX_NAMES:
            self._columns.pop(name, None)
        lacking = [name for name in _NEEDED[kind] if name not in self._columns]
        if lacking:
            self.fail(
                f"it has no column {', '.join(lacking)}",
                column=lacking[0],
                hint=f"{self.period} needs code (or a file name such as 600519.SH.csv), "
                f"{', '.join(_NEEDED[kind])}; docs/tables.md has all columns.",
            )

    def _times(self) -> pa.Array:
        column = self._columns["time"]
        if pa.types.is_timestamp(column.type):
            ids = column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64())
            ids = ids if column.type.tz else pc.subtract(ids, _CHINA_MS)
        elif pa.types.is_date(column.type):
            ids = pc.subtract(column.cast(pa.timestamp("ms")).cast(pa.int64()), _CHINA_MS)
        else:
            # A number is either ms or digits of a date: the same as text.
            ids = self._cast("time", _text(column), _moments, "no time")
        null = _first(ids.is_null())
        if null is not None:
            self._fail_at(null, "time", "there is no time")
        outside = pc.or_(pc.less(ids, _FIRST_MS), pc.greater(ids, self._latest_ms))
        if (at := _first(outside)) is not None:
            self._fail_at(
                at, "time", f"{column[at].as_py()!r} is before the exchanges or in the future"
            )
        return ids

    def _codes(self, rows: int) -> pa.Array:
        if "code" not in self._columns:
            match = _FILE_CODE.fullmatch(self.path.name)
            if match is None:
                self.fail(
                    "it has no column code, and its name begins with none",
                    column="code",
                    hint="Add the column, or name it such as 600519.SH.csv.",
                )
            return constant(self._code(match[1], None), rows)
        column = self._columns["code"]
        if not pa.types.is_dictionary(column.type):
            column = _text(column).dictionary_encode()
        null = _first(column.is_null())
        if null is not None:
            self._fail_at(null, "code", "there is no code")
        used = set(pc.unique(column.indices).to_pylist())
        names = []
        for number, name in enumerate(column.dictionary.to_pylist()):
            if number not in used:
                names.append("")
                continue
            at = _first(pc.equal(column.indices, number)) or 0
            names.append(self._code(str(name).strip(), self._first_row + at))
        plain = pa.DictionaryArray.from_arrays(column.indices.cast(pa.int32()), pa.array(names))
        return plain.cast(pa.string()).dictionary_encode()

    def _code(self, name: str, row: int | None) -> str:
        try:
            return convert_code(name, self.market)
        except InvalidCode as error:
            self.fail(error.message.rstrip("."), row, "code", error.hint or "")

    def _numbers(self, name: str, *, whole: bool = False) -> pa.Array:
        return self._as_numbers(name, self._columns[name], whole=whole)

    def _as_numbers(
        self, name: str, column: pa.Array, *, whole: bool, per_row: int = 1
    ) -> pa.Array:
        if isinstance(column, pa.DictionaryArray):
            column = column.dictionary_decode()
        kind = column.type
        if pa.types.is_null(kind):
            return column.cast(pa.int64() if whole else pa.float64())
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            turn = _whole_numbers if whole else _floats
            numbers = self._cast(name, _text(column), turn, "no number", per_row)
            return numbers if whole else without_marks(numbers)
        if pa.types.is_boolean(kind) or not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        ):
            self.fail(f"it holds {kind}, not numbers", column=name)
        if not whole:
            return without_marks(column.cast(pa.float64(), safe=False))
        if pa.types.is_integer(kind):
            return column.cast(pa.int64())
        values = column.cast(pa.float64(), safe=False)
        values = pc.if_else(pc.fill_null(pc.is_nan(values), True), None, values)
        wrong = pc.or_(
            pc.not_equal(pc.round(values), values), pc.greater_equal(pc.abs(values), float(_EXACT))
        )
        if (at := _first(pc.fill_null(wrong, False))) is not None:
            self._fail_at(at // per_row, name, f"{column[at].as_py()!r} is no whole number")
        return values.cast(pa.int64())

    def _book(self, name: str, rows: int) -> dict[str, pa.Array]:
        """Return the five columns of one side of the book: from a list, or level by level."""
        whole = name.endswith("Vol")
        levels = [f"{name}{level}" for level in range(1, _LEVELS + 1)]
        if name not in self._columns:
            return {one: self._numbers(one, whole=whole) for one in levels if one in self._columns}
        column = self._columns[name]
        if not pa.types.is_nested(column.type):
            column = self._split(name, column)
        if not (
            pa.types.is_list(column.type)
            or pa.types.is_large_list(column.type)
            or pa.types.is_fixed_size_list(column.type)
        ):
            self.fail(f"it holds {column.type}, not lists of levels", column=name)
        counts = pc.fill_null(pc.list_value_length(column), 0)
        if (at := _first(pc.greater(counts, _LEVELS))) is not None:
            self._fail_at(at, name, f"it has {counts[at].as_py()} levels; a book has five")
        # A level that is not there is empty, unless there is no book at all.
        padded = pc.list_slice(column, 0, _LEVELS, return_fixed_size_list=True)
        flat = (
            padded.fill_null([None] * _LEVELS).flatten() if padded.null_count else padded.flatten()
        )
        numbers = self._as_numbers(name, flat, whole=whole, per_row=_LEVELS)
        there = pc.greater(counts, 0)
        return {
            one: pc.if_else(
                there,
                pc.fill_null(numbers.take(pa.array(np.arange(at, rows * _LEVELS, _LEVELS))), 0),
                None,
            )
            for at, one in enumerate(levels)
        }

    def _split(self, name: str, column: pa.Array) -> pa.Array:
        """Return texts such as ``[1.0, 2.0]`` or ``[1. 2.]`` as lists."""
        text = pc.utf8_trim(_text(column), "[]() ")
        text = pc.replace_substring_regex(text, r"[,;\s]+", ",")
        return pc.split_pattern(pc.if_else(pc.equal(text, ""), None, text), ",")

    def _closed(self, rows: int) -> pa.Array | None:
        column = self._columns.get("closed")
        if column is None:
            return None
        if not pa.types.is_boolean(column.type):
            column = self._cast(
                "closed", pc.utf8_lower(_text(column)), lambda one: one.cast(pa.bool_()), "no bool"
            )
        return pc.fill_null(column, True)

    def _extra(self, known: set[str], rows: int) -> pa.Array:
        """Return what the schema does not name, so that nothing is lost."""
        given = self._maps("extra", rows, packed=False)
        ignored = {"code", "time", "period", "closed", "extra", "odd", "source", "flags"}
        more = [
            name
            for name in self._columns
            if name not in known and name not in ignored and not name.startswith("Unnamed")
        ]
        for name in more:
            for at, value in enumerate(self._plain_values(name)):
                if value is not None:
                    given[at] = {**(given[at] or {}), name: value}
        return pa.array([None if not one else _pack(one) for one in given], pa.binary())

    def _plain_values(self, name: str) -> list[Any]:
        column = self._columns[name]
        if not pa.types.is_string(column.type):
            try:
                values: list[Any] = column.to_pylist()
                _pack(values)
            except (TypeError, OverflowError) as error:
                self.fail(f"it holds {column.type}: {error}", column=name)
            return values
        for kind in (pa.int64(), pa.float64()):
            try:
                numbers: list[Any] = column.cast(kind).to_pylist()
            except pa.ArrowInvalid:
                continue
            return numbers
        return list(column.to_pylist())

    def _maps(self, name: str, rows: int, *, packed: bool = True) -> Any:
        """Return a column of JSON objects, as export writes ``extra`` and ``odd``."""
        column = self._columns.get(name)
        maps: list[Any] = [None] * rows
        if column is not None and column.null_count < rows:
            for at, text in enumerate(column.to_pylist()):
                if text is None:
                    continue
                try:
                    maps[at] = json.loads(text, parse_constant=_no_json)
                except (ValueError, TypeError) as error:
                    self._fail_at(at, name, f"it is no JSON object: {error}")
                if not isinstance(maps[at], dict) or (name == "odd" and not _is_wire(maps[at])):
                    self._fail_at(at, name, "it is no JSON object as export writes it")
        if not packed:
            return maps
        return pa.array([None if one is None else _pack(one) for one in maps], pa.binary())

    def _cast(
        self,
        name: str,
        column: pa.Array,
        turn: Callable[[pa.Array], pa.Array],
        what: str,
        per_row: int = 1,
    ) -> pa.Array:
        """Turn a column as a whole; where that fails, find the row."""
        try:
            return turn(column)
        except (pa.ArrowInvalid, ValueError):
            at = _first_wrong(column, turn)
            self._fail_at(at // per_row, name, f"{column[at].as_py()!r} is {what}")

    def _refuse_wrong(self, wrong: Wrong | None) -> None:
        if wrong is not None:
            self._fail_at(wrong.at, wrong.column, wrong.what, wrong.hint)

    def _fail_at(self, at: int, column: str, what: str, hint: str = "") -> NoReturn:
        self.fail(what, self._first_row + at, column, hint)


def _no_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _is_wire(values: dict[str, Any]) -> bool:
    """Whether a map holds only fields and numbers of them, as the wire does."""
    flat = (item for one in values.values() for item in (one if isinstance(one, list) else [one]))
    return _FIELDS.issuperset(values) and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) for one in flat
    )


def _first_wrong(column: pa.Array, turn: Callable[[pa.Array], pa.Array]) -> int:
    """Return the first place that cannot be turned, by halves."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            turn(column.slice(low, middle - low))
            low = middle
        except (pa.ArrowInvalid, ValueError):
            high = middle
    return low


def _one_thread(block_bytes: int) -> pv.ReadOptions:
    # With threads Arrow does not know which row is wrong.
    return pv.ReadOptions(use_threads=False, block_size=block_bytes)


def _first(mask: Any) -> int | None:
    at = pc.index(mask, True).as_py()
    return None if at < 0 else int(at)


def _text(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = column.cast(pa.int64(), safe=False)
    return pc.utf8_trim_whitespace(column.cast(pa.string()))


def _floats(column: pa.Array) -> pa.Array:
    empty = pc.equal(column, "")
    return pc.if_else(empty, None, column).cast(pa.float64())


def _whole_numbers(column: pa.Array) -> pa.Array:
    column = pc.if_else(
        pc.or_(pc.equal(column, ""), pc.equal(pc.utf8_lower(column), "nan")), None, column
    )
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        values = column.cast(pa.float64())
        if pc.any(pc.greater_equal(pc.abs(values), float(_EXACT))).as_py():
            raise ValueError("too large") from None
        return values.cast(pa.int64())  # safe: a fraction is an error


def _moments(column: pa.Array) -> pa.Array:
    """Return ms since the epoch of texts: ms, digits of a date and time, or ISO; China time."""
    is_ms = pc.match_substring_regex(column, _MS)
    ms = pc.replace_substring_regex(pc.if_else(is_ms, column, None), r"\.0+$", "").cast(pa.int64())
    rest = pc.if_else(is_ms, None, column)
    for shape, iso in _SHAPES:
        rest = pc.replace_substring_regex(rest, shape, iso)
    zoned = pc.match_substring_regex(rest, _ZONED)
    aware = pc.if_else(zoned, rest, None).cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
    plain = pc.if_else(zoned, None, rest).cast(pa.timestamp("ms")).cast(pa.int64())
    return pc.coalesce(ms, aware, pc.subtract(plain, _CHINA_MS))
