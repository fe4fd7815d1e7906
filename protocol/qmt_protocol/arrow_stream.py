"""Arrow that others wrote: each border where it enters goes through here.

pyarrow reads what it is given without looking at every value, and a value that lies ends the
process: an offset behind the buffer, an index behind the dictionary. It also makes as much memory
as a compressed buffer says it needs. So the header of each message is checked first, by the bytes
there are; then the schema; then pyarrow reads; then every value is checked, before anything else
touches it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .codes import CODE
from .decoding import printable, reason_of
from .errors import CodecError
from .limits import (
    MAX_ARROW_BODY_BYTES,
    MAX_ARROW_HEADER_BYTES,
    MAX_RESULT_BYTES,
    MAX_TEXT_BYTES,
    MAX_TEXTS,
)

__all__ = ["ARROW_ERRORS", "ArrowStream", "check_batch", "check_values", "read_table"]

Accepts = Callable[[pa.Schema], bool]

_PREFIX: Final = struct.Struct("<Ii")
_CONTINUES: Final = 0xFFFFFFFF
_END: Final = _PREFIX.pack(_CONTINUES, 0)
_ALIGNED: Final = 8
_NAMED: Final = 20
_V5: Final = 4
_SCHEMA, _DICTIONARY, _RECORDS = 1, 2, 3
_CODE: Final = rf"\A(?:{CODE})\z"
_EXTENSION: Final = b"ARROW:extension:"
ARROW_ERRORS: Final = (
    *(pa.ArrowException, OSError, ValueError, TypeError, LookupError),
    *(OverflowError, MemoryError, SystemError),
)
"""What pyarrow raises on bytes that are not what they should be."""


class ArrowStream:
    """Decodes one Arrow IPC stream as its bytes come, whole messages at a time.

    Parameters
    ----------
    accepts
        Tells of the schema whether it is what was asked for.
    what
        Whose stream it is, for the error: it begins the sentence.
    most_bytes
        How long it may be; ``None``: without limit, for who lets go of its batches.

    Attributes
    ----------
    schema : pyarrow.Schema or None
        Known once its message is there.
    """

    def __init__(
        self, accepts: Accepts, what: str, *, most_bytes: int | None = MAX_RESULT_BYTES
    ) -> None:
        self.schema: pa.Schema | None = None
        self._accepts = accepts
        self._what = what
        self._most_bytes = most_bytes
        self._bytes = 0
        self._waiting = bytearray()
        self._message: _Message | None = None
        self._head = b""
        self._dictionaries: dict[int, bytes] = {}
        self._dictionary_waits = False
        self._ended = False

    def feed(self, data: bytes) -> list[pa.RecordBatch]:
        """Take the next bytes; return the batches that are whole with them.

        Raises
        ------
        CodecError
            When they are no Arrow, of another schema, or hold a value that cannot be.
        """
        self._bytes += len(data)
        if self._most_bytes is not None and self._bytes > self._most_bytes:
            self._fail(f"it has more than {self._most_bytes} bytes")
        self._waiting += data
        batches = []
        while (message := self._next()) is not None:
            whole = bytes(self._waiting[: message.size_bytes])
            del self._waiting[: message.size_bytes]
            self._message = None
            if (batch := self._take(message, whole)) is not None:
                batches.append(batch)
        return batches

    def end(self) -> pa.Schema:
        """Make sure that nothing is missing, and return the schema.

        Raises
        ------
        CodecError
            When the stream breaks off.
        """
        if not self._ended or self.schema is None:
            self._fail("it breaks off")
        if self._dictionary_waits:  # no writer sends one but for rows: they would lack in silence
            self._fail("it has a dictionary, and no rows behind it")
        return self.schema

    def _next(self) -> _Message | None:
        """Return the next message that is there as a whole."""
        if self._ended:
            if self._waiting:
                self._fail("something follows its end")
            return None
        if self._message is None:
            if len(self._waiting) < _PREFIX.size:
                return None
            mark, header_bytes = _PREFIX.unpack_from(self._waiting)
            if mark != _CONTINUES or not 0 <= header_bytes <= MAX_ARROW_HEADER_BYTES:
                self._fail("a message does not begin as one")
            if header_bytes == 0:
                self._ended = True
                del self._waiting[: _PREFIX.size]
                return self._next()
            begin = _PREFIX.size + header_bytes
            if len(self._waiting) < begin:
                return None
            try:
                self._message = _read_message(bytes(self._waiting[_PREFIX.size : begin]))
            except (struct.error, ValueError) as error:
                self._fail(f"the header of a message: {reason_of(error)}")
        return self._message if len(self._waiting) >= self._message.size_bytes else None

    def _take(self, message: _Message, whole: bytes) -> pa.RecordBatch | None:
        if message.kind == _SCHEMA:
            self._take_schema(whole)
            return None
        if self.schema is None:
            self._fail("its schema does not come first")
        if message.kind == _DICTIONARY:
            if not any(pa.types.is_dictionary(field.type) for field in self.schema):
                self._fail("it has a dictionary, and no column of one")  # read with each batch
            self._dictionaries[message.dictionary] = whole
            self._dictionary_waits = True
            if sum(map(len, self._dictionaries.values())) > MAX_ARROW_BODY_BYTES:
                self._fail("its dictionaries are too large")
            return None
        return self._decoded(whole)

    def _take_schema(self, whole: bytes) -> None:
        if self.schema is not None:
            self._fail("it has two schemas")
        if _EXTENSION in whole:  # reading one would run code
            self._fail("it has a type that is not Arrow's own")
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(whole))
            accepted = self._accepts(schema)
            names = ", ".join(f"{field.name} {field.type}" for field in list(schema)[:_NAMED])
        except ARROW_ERRORS as error:
            self._fail(f"its schema: {reason_of(error)}")
        if not accepted:
            self._fail(f"its columns are not those asked for, but {printable(names)}")
        self.schema, self._head = schema, whole

    def _decoded(self, whole: bytes) -> pa.RecordBatch:
        # Each batch is read as a stream of its own: schema, dictionaries as they are now, batch.
        parts = [self._head, *self._dictionaries.values(), whole, _END]
        try:
            with pa.ipc.open_stream(pa.py_buffer(b"".join(parts))) as reader:
                batch = reader.read_next_batch()
        except (*ARROW_ERRORS, StopIteration) as error:
            self._fail(reason_of(error))
        check_batch(batch, self._what)
        self._dictionary_waits = False
        return batch

    def _fail(self, why: str) -> NoReturn:
        raise CodecError(
            f"{self._what} is not the Arrow stream that it should be: {why}.",
            hint="Who wrote it may be of another version, or the bytes were damaged on their way.",
        )


def read_table(chunks: Iterable[bytes], accepts: Accepts, what: str) -> pa.Table:
    """Put chunks together in one table, each a complete Arrow IPC stream of the same schema.

    Parameters
    ----------
    accepts, what
        See `ArrowStream`.

    Raises
    ------
    CodecError
        When one is no such stream, or they do not fit together, or are `MAX_RESULT_BYTES` in all.
    """
    schema: pa.Schema | None = None
    batches: list[pa.RecordBatch] = []
    left = MAX_RESULT_BYTES
    for chunk in chunks:
        stream = ArrowStream(accepts, what, most_bytes=left)
        batches += stream.feed(chunk)
        left -= len(chunk)
        found = stream.end()
        schema = schema or found
        if not found.equals(schema):
            raise CodecError(f"{what}: its parts have different columns.")
    if schema is None:
        raise CodecError(f"{what} has no part.")
    return pa.Table.from_batches(batches, schema=schema)


def check_batch(batch: pa.RecordBatch | pa.Table, what: str) -> None:
    """Check every value of a batch; until then nothing but this may look at one.

    Offsets, indices and texts are what they must be (pyarrow's full validation), there is a value
    where there must be one, texts of dictionaries are short, codes are codes, ids are in range.

    Raises
    ------
    CodecError
    """
    check_values(batch, what)
    try:
        for field, column in zip(batch.schema, batch.columns, strict=True):
            _check_column(field, column)
    except ARROW_ERRORS as error:
        raise _impossible(what, error) from error


def check_values(batch: pa.RecordBatch | pa.Table, what: str) -> None:
    """Do of `check_batch` what holds for any columns: each value can be looked at.

    Raises
    ------
    CodecError
    """
    try:
        batch.validate(full=True)
    except ARROW_ERRORS as error:
        raise _impossible(what, error) from error


def _impossible(what: str, error: BaseException) -> CodecError:
    return CodecError(
        f"{what} holds what cannot be: {reason_of(error)}.",
        hint="Who wrote it may be of another version, or the bytes were damaged on their way.",
    )


_ID_ENDS: Final = {"id_ms": 10**14, "id_seq": 10**9}


def _check_column(field: pa.Field, column: Any) -> None:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    for chunk in chunks:
        if not field.nullable and chunk.null_count:
            raise ValueError(f"no {field.name} in a row")
        if isinstance(chunk, pa.DictionaryArray):
            if chunk.dictionary.null_count:
                raise ValueError(f"no {field.name} in its dictionary")
            _check_texts(field.name, chunk.dictionary)
        elif field.name == "code":
            _check_texts(field.name, pc.unique(chunk))
        elif field.name in _ID_ENDS and len(chunk):
            numbers = np.asarray(chunk.to_numpy())
            if numbers.min() < 0 or numbers.max() >= _ID_ENDS[field.name]:
                raise ValueError(f"an {field.name} out of range")


def _check_texts(name: str, texts: pa.Array) -> None:
    if len(texts) > MAX_TEXTS:
        raise ValueError(f"{len(texts)} different {name}s")
    if len(texts) and pc.max(pc.binary_length(texts)).as_py() > MAX_TEXT_BYTES:
        raise ValueError(f"a {name} that is too long")
    if name == "code":
        wrong = texts.filter(pc.invert(pc.match_substring_regex(texts, _CODE)))
        if len(wrong):
            raise ValueError(f"{wrong[0].as_py()!r} is no code")


# -- the header of a message: flatbuffers ---------------------------------------------------------


@dataclass(frozen=True)
class _Message:
    kind: int
    size_bytes: int
    dictionary: int = 0


def _read_message(header: bytes) -> _Message:
    """Read what a message says of itself.

    Raises
    ------
    struct.error, ValueError
        When it points outside of itself, or its parts do not lie one behind the other in it.
    """
    message = _Fields(header, _number(header, "<I", 0))
    body_bytes = message.number(3, "<q")
    if message.number(0, "<h") != _V5:
        raise ValueError("it is of another version of Arrow")
    if not 0 <= body_bytes <= MAX_ARROW_BODY_BYTES or body_bytes % _ALIGNED:
        raise ValueError(f"a body of {body_bytes} bytes")
    kind = message.number(1, "<B")
    size_bytes = _PREFIX.size + len(header) + body_bytes
    if size_bytes % _ALIGNED:
        raise ValueError(f"a header of {len(header)} bytes")
    if kind == _SCHEMA and not body_bytes:
        return _Message(kind, size_bytes)
    if kind == _RECORDS:
        _check_records(message.table(2), body_bytes)
        return _Message(kind, size_bytes)
    if kind == _DICTIONARY:
        dictionary = message.table(2)
        if dictionary.number(2, "<B"):
            raise ValueError("a dictionary in parts")
        _check_records(dictionary.table(1), body_bytes)
        return _Message(kind, size_bytes, dictionary.number(0, "<q"))
    raise ValueError(f"a message of kind {kind}")


def _check_records(records: _Fields, body_bytes: int) -> None:
    if records.has(3):
        raise ValueError("its buffers are compressed, and nobody here compresses them")
    if records.has(4):
        raise ValueError("it has buffers of a kind that is not used here")
    rows = records.number(0, "<q")
    if not 0 <= rows <= 8 * MAX_ARROW_BODY_BYTES:
        raise ValueError(f"{rows} rows")
    for length, nulls in records.pairs(1):
        if length != rows or not 0 <= nulls <= rows:
            raise ValueError("a column of another length")
    end = 0
    for offset, length in records.pairs(2):
        # One behind the other: else a small body could be read as many columns' worth.
        if offset < end or offset % _ALIGNED or length < 0 or offset + length > body_bytes:
            raise ValueError("a buffer outside of its place")
        end = offset + length


class _Fields:
    """A flatbuffers table: its fields by their numbers, each read within bounds."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._vtable = at - _number(data, "<i", at)
        self._size = _number(data, "<H", self._vtable)

    def _place(self, field: int) -> int:
        slot = 4 + 2 * field
        offset = _number(self._data, "<H", self._vtable + slot) if slot + 2 <= self._size else 0
        return self._at + offset if offset else 0

    def has(self, field: int) -> bool:
        return bool(self._place(field))

    def number(self, field: int, shape: str) -> int:
        place = self._place(field)
        return _number(self._data, shape, place) if place else 0

    def table(self, field: int) -> _Fields:
        place = self._place(field)
        if not place:
            raise ValueError("a part of it is missing")
        return _Fields(self._data, place + _number(self._data, "<I", place))

    def pairs(self, field: int) -> Iterable[tuple[int, int]]:
        """Return a vector of two int64 each."""
        place = self._place(field)
        if not place:
            return ()
        place += _number(self._data, "<I", place)
        count, begin = _number(self._data, "<I", place), place + 4
        if begin + 16 * count > len(self._data):
            raise ValueError("a vector behind its end")
        return struct.iter_unpack("<qq", self._data[begin : begin + 16 * count])


def _number(data: bytes, shape: str, at: int) -> int:
    if at < 0:
        raise ValueError("a place before its begin")
    number: int = struct.unpack_from(shape, data, at)[0]
    return number
