"""Tables that jobs left, read chunk by chunk: as one Arrow stream, or as JSON rows of codes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
import pyarrow as pa

from qmt_protocol.errors import CodecError
from qmt_protocol.jobs import Manifest
from qmt_reading.jobs.queue import MANIFEST_KEY

from .records import records_by_code
from .stored_formats import maker_of

__all__ = ["held_bytes", "json_rows", "one_stream"]

_ROWS_AT_ONCE: Final = 4_096
_ROW_BYTES: Final = 1_000
_MOST_BYTES: Final = 32_000_000
"""Of one answer, as measured: a chunk, its table, and some rows of it decoded."""
_json: Final = msgspec.json.Encoder().encode
Tables = AsyncGenerator[pa.Table, None]


def held_bytes(manifest: Manifest) -> int:
    """Return what an answer of a table holds at most."""
    return min(_MOST_BYTES, max(1, manifest.rows) * _ROW_BYTES)


async def one_stream(manifest: Manifest, tables: Tables) -> AsyncGenerator[bytes, None]:
    """Yield one Arrow IPC stream of all of a job's tables, which carries the manifest.

    Raises
    ------
    JobNotFound, CodecError
    """
    extra = {MANIFEST_KEY: manifest.model_dump_json().encode()}
    maker = None
    async with aclosing(tables):
        async for table in tables:
            if maker is None:
                schema = table.schema.with_metadata({**(table.schema.metadata or {}), **extra})
                maker = maker_of("arrow", schema, {})
                yield maker.begin()
            for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
                try:
                    yield maker.add(batch)
                except pa.ArrowException as error:
                    raise CodecError(
                        f"The result's chunks do not fit together: {error}."
                    ) from error
    if maker is None:
        raise CodecError("The result has no chunk.")
    yield maker.end({})


async def json_rows(
    head: dict[str, Any],
    meta: dict[str, Any],
    tables: Tables,
    period: str,
    fields: Sequence[str] | None,
    codes: Sequence[str] | None,
) -> AsyncGenerator[bytes, None]:
    """Yield a history answer as JSON: ``head``, then ``data``, then ``meta``.

    Parameters
    ----------
    codes
        ``data`` has a list of rows for each of these; ``None``: it is one list of rows.

    Raises
    ------
    JobNotFound, CodecError
    """
    writer = _Rows(codes)
    yield _json(head)[:-1] + b',"data":' + writer.begin()
    async with aclosing(tables):
        async for table in tables:
            for start in range(0, len(table), _ROWS_AT_ONCE):
                part = table.slice(start, _ROWS_AT_ONCE)
                yield await asyncio.to_thread(_written, writer, part, period, fields)
    yield writer.end() + b',"meta":' + _json(meta) + b"}"


def _written(writer: _Rows, table: pa.Table, period: str, fields: Sequence[str] | None) -> bytes:
    found = records_by_code(table, period, None if fields is None else list(fields))
    return b"".join(part for code, rows in found.items() for part in writer.add(code, rows))


class _Rows:
    """Puts the rows of codes, which stand together, between brackets and commas."""

    def __init__(self, codes: Sequence[str] | None) -> None:
        self._codes = codes
        self._seen: dict[str, None] = {}
        self._code = ""

    def begin(self) -> bytes:
        return b"[" if self._codes is None else b"{"

    def add(self, code: str, rows: list[dict[str, Any]]) -> Iterator[bytes]:
        if code == self._code:
            yield b","
        elif code in self._seen or (self._codes is None and self._seen):
            raise CodecError("The rows of one code do not stand together in the result.")
        elif self._codes is not None:
            yield (b"]," if self._seen else b"") + _json(code) + b":["
        self._code = code
        self._seen[code] = None
        yield _json(rows)[1:-1]

    def end(self) -> bytes:
        if self._codes is None:
            return b"]"
        absent = [_json(code) + b":[]" for code in self._codes if code not in self._seen]
        parts = [b"]"] * bool(self._seen) + ([b",".join(absent)] if absent else [])
        return b",".join(parts) + b"}"
