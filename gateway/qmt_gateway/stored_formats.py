"""Stored rows as JSON, Arrow or Parquet, part by part: nothing is held but the part at hand."""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from qmt_protocol.columns import bars_from, ticks_from

__all__ = ["MEDIA", "Format", "Maker", "maker_of"]

Format = Literal["json", "arrow", "parquet"]
MEDIA: Final[dict[Format, str]] = {
    "json": "application/json",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}
_json: Final = msgspec.json.Encoder().encode


class Maker(Protocol):
    """Writes one answer."""

    def begin(self) -> bytes:
        """Return what comes before all rows."""

    def add(self, batch: pa.RecordBatch) -> bytes:
        """Return some rows."""

    def end(self, facts: dict[str, Any]) -> bytes:
        """Return what comes behind all rows; JSON tells facts of the whole."""


def maker_of(form: Format, schema: pa.Schema, meta: dict[str, Any]) -> Maker:
    """Return the maker of an answer.

    Parameters
    ----------
    schema
        `TICK_COLUMNS` or `BAR_COLUMNS`; for Arrow and Parquet also some columns of them.
    meta
        What JSON tells beside the rows.
    """
    return _Json(schema, meta) if form == "json" else _Columns(form, schema)


class _Json:
    def __init__(self, schema: pa.Schema, meta: dict[str, Any]) -> None:
        self._of_ticks = "flags" in schema.names
        self._meta = meta
        self._comma = b""

    def begin(self) -> bytes:
        return b'{"meta":%b,"data":[' % _json(self._meta)

    def add(self, batch: pa.RecordBatch) -> bytes:
        rows: list[dict[str, Any]]
        if self._of_ticks:
            rows = [
                {"code": tick.code, "id": tick.id, "flags": int(tick.flags), **tick}
                for tick in ticks_from(batch)
            ]
        else:
            rows = [{"code": bar.code, "id": bar.id, **bar} for bar in bars_from(batch)]
        comma, self._comma = self._comma, b"," if rows else self._comma
        return comma + _json(rows)[1:-1]

    def end(self, facts: dict[str, Any]) -> bytes:
        return b"]," + _json(facts)[1:]


class _Columns:
    def __init__(self, form: Format, schema: pa.Schema) -> None:
        self._file = _Drained()
        self._writer: Any = (
            pa.ipc.new_stream(self._file, schema)
            if form == "arrow"
            else pq.ParquetWriter(self._file, schema, compression="zstd")
        )

    def begin(self) -> bytes:
        return self._file.take()

    def add(self, batch: pa.RecordBatch) -> bytes:
        self._writer.write_batch(batch)
        return self._file.take()

    def end(self, facts: dict[str, Any]) -> bytes:
        self._writer.close()
        return self._file.take()


class _Drained:
    """A file that is only written to; what was written is taken from it."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._at += len(part)
        return len(part)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Do nothing: it is taken as it is."""

    def close(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
