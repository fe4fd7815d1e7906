"""Arrow at every border where it enters: jobs' chunks, a gateway's streams, Parquet files."""

from __future__ import annotations

import asyncio
import io
import json
import random
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_changes import changed
from fuzz_children import Report, in_children
from fuzz_run import ROOT, Target

from qmt_archive.adding import Known
from qmt_archive.backfill import _as_ticks
from qmt_archive.exporting import export_rows
from qmt_archive.foreign import ForeignFile
from qmt_archive.parquet import write_rows
from qmt_archive.store import ArchiveStore
from qmt_archive.verify import verify
from qmt_client.frames import frames_of, long_frame_of, stored_frame
from qmt_client.gateway_answers import Archive
from qmt_client.output import write_batches
from qmt_client.stored_gateway import GatewayStored
from qmt_gateway.records import records_by_code
from qmt_protocol.archive import ArchivedFile, encode_manifest
from qmt_protocol.archive import Manifest as ArchiveManifest
from qmt_protocol.arrow import history_schema, read_history
from qmt_protocol.bars import Bar, decode_bar
from qmt_protocol.columns import bars_from, bars_table, rows_from, ticks_from, ticks_table
from qmt_protocol.jobs import Manifest, parse_params
from qmt_protocol.ticks import decode_row
from qmt_reading.jobs.queue import MANIFEST_KEY, ResultStream, read_chunk
from qmt_reading.requests import StoredRequest
from qmt_reading.stored.archive import ArchiveReader

CODES: Final = ["600519.SH", "600000.SH", "688981.SH"]
FIRST_MS: Final = 1_763_688_600_000
META: Final = {"simulated": True, "source": "SIMULATED", "absent": {"1.SH": "no"}, "market_ms": 0}
_PERIODS: Final = ("1d", "1m", "tick")
_SOME: Final[dict[str, list[str] | None]] = {
    "1d": None,
    "1m": ["close", "volume", "closed"],
    "tick": None,
}


def history_table(period: str, fields: list[str] | None, rows: int = 12) -> pa.Table:
    """Return a history answer with every kind of value."""
    chance = np.random.default_rng(7)
    columns: list[Any] = []
    schema = history_schema(period, fields)
    for field in schema:
        if field.name == "code":
            columns.append(pa.array([CODES[at * len(CODES) // rows] for at in range(rows)]))
        elif field.name == "time":
            columns.append(pa.array(FIRST_MS + 60_000 * np.arange(rows)).cast(field.type))
        elif pa.types.is_floating(field.type):
            values = np.round(chance.random(rows) * 100, 2)
            values[1] = np.nan
            columns.append(pa.array(values, mask=np.arange(rows) == 3))
        elif pa.types.is_boolean(field.type):
            columns.append(pa.array(np.arange(rows) % 2 == 0))
        else:
            columns.append(pa.array(chance.integers(0, 10**6, rows)).cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def result_of(manifest: Manifest, table: pa.Table) -> bytes:
    """Return a job's result as a gateway sends it."""
    told = {MANIFEST_KEY: manifest.model_dump_json().encode()}
    return stream_of(table.replace_schema_metadata({**(table.schema.metadata or {}), **told}))


def stream_of(table: pa.Table, pieces: int = 1, **options: Any) -> bytes:
    """Return a table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    told = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_stream(sink, table.schema, options=told) as writer:
        for piece in range(pieces):
            begin, end = (len(table) * at // pieces for at in (piece, piece + 1))
            writer.write_table(table.slice(begin, end - begin))
    return bytes(sink.getvalue())


def stored_tables() -> tuple[pa.Table, pa.Table]:
    """Return ticks and bars as they are stored, with everything that the vectors have."""
    vectors = json.loads((ROOT / "docs/wire/vectors.json").read_text("utf-8"))["vectors"]
    ticks = [
        decode_row(bytes.fromhex(one["bytes"]), "x") for one in vectors if one["schema"] == "t1"
    ]
    bars = [bytes.fromhex(one["bytes"]) for one in vectors if one["schema"] == "k1"]
    rows = [
        (CODES[at % len(CODES)], f"{FIRST_MS + 3_000 * at}-{at % 3}", ticks[at % len(ticks)])
        for at in range(2 * len(ticks))
    ]
    made = [
        decode_bar(
            bars[at % len(bars)], CODES[at % len(CODES)], "1m", f"{FIRST_MS + 60_000 * at}-0"
        )
        for at in range(2 * len(bars))
    ]
    closed = [Bar({**bar, "closed": True}, bar.code, bar.period, bar.id) for bar in made]
    return ticks_table(rows), bars_table(closed)


class Border:
    """One border: valid inputs, and what is done with an input there."""

    def __init__(self, valid: list[bytes], judge: Callable[[bytes, random.Random], None]) -> None:
        self.valid = valid
        self.judge = judge


class ArrowCases:
    """See `fuzz_children.Cases`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qmt-fuzz-")
        self._loop = asyncio.new_event_loop()
        self._manifest = Manifest(job="history", kind="table", chunks=1, rows=12, meta=META)
        self._borders = list(self._make_borders())
        self._others = [one for border in self._borders for one in border.valid]
        self._border = self._borders[0]

    def close(self) -> None:
        """Remove the files."""
        self._loop.close()
        self._folder.cleanup()

    def input(self, chance: random.Random) -> bytes:
        """Return a changed valid input of some border."""
        self._border = chance.choice(self._borders)
        data = chance.choice(self._border.valid)
        if chance.random() < 0.15:
            data = _other_messages(chance, data)
        others = self._border.valid if chance.random() < 0.7 else self._others
        return changed(chance, data, others)

    def judge(self, data: bytes, chance: random.Random) -> None:
        """Give it to the border."""
        self._border.judge(data, chance)

    # The borders

    def _make_borders(self) -> Iterator[Border]:
        for period in _PERIODS:
            fields = _SOME[period]
            table = history_table(period, fields)
            plain = [
                stream_of(table),
                stream_of(table, 3),
                stream_of(table.slice(0, 0)),
                stream_of(table, compression="zstd"),
                stream_of(table, compression="lz4"),
            ]
            carrying = [result_of(self._manifest, table), stream_of(table)]
            yield Border(plain, partial(self._chunks, period, fields))
            yield Border(plain, partial(self._unknown, period))
            yield Border(carrying, partial(self._result, period, fields))
        ticks, bars = stored_tables()
        for kind, table in (("tick", ticks), ("bar", bars)):
            streams = [
                stream_of(table),
                stream_of(table, 4),
                stream_of(table, 2, compression="lz4"),
            ]
            yield Border(streams, partial(self._stored, kind, None))
        some = ["lastPrice", "volume"]
        request = _request("tick", some)
        yield Border(
            [stream_of(ticks.select(request.schema.names), 3)], partial(self._stored, "tick", some)
        )
        for kind, table in (("tick", ticks), ("bar", bars)):
            yield Border([_parquet(kind, table)], partial(self._archived, kind, len(table)))
        yield from self._foreign_borders(ticks, bars)

    def _chunks(
        self, period: str, fields: list[str] | None, data: bytes, chance: random.Random
    ) -> None:
        """A client or the archive over Redis, and the gateway: it is known what was asked for."""
        table = read_history([data], "job x", period=period, fields=fields, codes=CODES)
        _same(table, _independent(data))
        rows = records_by_code(table, period, fields)
        assert sum(map(len, rows.values())) == len(table)
        assert json.loads(msgspec.json.encode(rows)).keys() == rows.keys()
        self._framed(table, period, fields)
        if period == "tick":
            ticks = _as_ticks(table)
            known = Known("tick")
            known.repeats(ticks)
            known.add(known.numbered(ticks) if len(ticks) else ticks)

    def _framed(self, table: pa.Table, period: str, fields: list[str] | None) -> None:
        of: dict[str, Any] = {"fields": fields, "adjust": "none", "tz": "Asia/Shanghai"}
        long = long_frame_of(table, self._manifest, CODES, period, **of)
        assert len(long) == len(table)
        assert list(long["code"].astype(str)) == table.column("code").to_pylist()
        frames = frames_of(table, self._manifest, CODES, period, **of)
        assert sum(map(len, frames.values())) == len(table)
        for name in table.column_names[2:]:
            column = table.column(name)
            null: Any = False if pa.types.is_boolean(column.type) else 0
            told = column.fill_null(float("nan") if pa.types.is_floating(column.type) else null)
            np.testing.assert_array_equal(long[name].to_numpy(), told.to_numpy())

    def _unknown(self, period: str, data: bytes, chance: random.Random) -> None:
        """The gateway's route for any job's result: it is not known what was asked for."""
        table = read_chunk(data, None, "x")
        _same(table, _independent(data))
        params = parse_params(
            "history", {"codes": CODES, "period": period, "fields": _SOME[period]}
        )
        passed = ResultStream("history", params, "x", "here")
        passed.feed(result_of(self._manifest, table))
        _same(passed.end()[1], table)

    def _result(
        self, period: str, fields: list[str] | None, data: bytes, chance: random.Random
    ) -> None:
        """A client over HTTP."""
        params = parse_params("history", {"codes": CODES, "period": period, "fields": fields})
        result = ResultStream("history", params, "x", "gateway:8000")
        for piece in _pieces(chance, data):
            result.feed(piece)
        manifest, table = result.end()
        _same(table, _independent(data))
        assert manifest.rows == len(table)
        self._framed(table, period, fields)

    def _stored(
        self, kind: str, fields: list[str] | None, data: bytes, chance: random.Random
    ) -> None:
        """Stored ticks or bars from a gateway."""
        request = _request(kind, fields)

        async def body() -> AsyncIterator[bytes]:
            for piece in _pieces(chance, data):
                yield piece

        @asynccontextmanager
        async def stream(path: str, query: dict[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
            yield body()

        async def archive() -> Archive:
            return Archive()

        async def read() -> list[pa.RecordBatch]:
            source = GatewayStored(stream, archive, "gateway")
            return [batch async for batch in source.batches(request, lambda gap: None)]

        batches = self._loop.run_until_complete(read())
        table = pa.Table.from_batches(batches, schema=request.schema)
        _same(table, _independent(data))
        frame = stored_frame(
            table.unify_dictionaries(), CODES, request.period, fields=fields, tz="Asia/Shanghai"
        )
        assert len(frame) == len(table)
        self._decoded(kind, fields, batches)

    def _decoded(self, kind: str, fields: list[str] | None, batches: list[pa.RecordBatch]) -> None:
        period = "tick" if kind == "tick" else "1m"
        for form in ("csv", "parquet"):
            write_batches(batches, form, io.BytesIO(), period, fields)
        if fields is not None:
            return
        for batch in batches:
            if kind == "tick":
                made: list[Any] = ticks_from(batch)
                again = ticks_table(rows_from(batch))
            else:
                made = bars_from(batch)
                again = bars_table(bars_from(batch))
            assert len(made) == len(again) == len(batch)
            msgspec.json.encode([{"code": one.code, "id": one.id, **one} for one in made])

    def _archived(self, kind: str, rows: int, data: bytes, chance: random.Random) -> None:
        """A file of the archive, as clients and the archive itself read it."""
        root = Path(self._folder.name) / "archive"
        root.mkdir(exist_ok=True)
        path = (
            "ticks/market=SH/day=20251121/a.parquet"
            if kind == "tick"
            else ("bars/period=1m/market=SH/month=202511/a.parquet")
        )
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
        file = ArchivedFile(
            path=path,
            kind="tick" if kind == "tick" else "bar",
            market="SH",
            day=20251121 if kind == "tick" else 20251101,
            period="tick" if kind == "tick" else "1m",
            rows=rows,
            size_bytes=len(data),
            first_ms=FIRST_MS,
            last_ms=FIRST_MS + 10**7,
        )
        manifest = ArchiveManifest(generation=1, files=[file])
        (root / "manifest.json").write_bytes(encode_manifest(manifest))
        store = ArchiveStore(str(root))
        store.load()
        verify(store)
        reader = ArchiveReader(str(root))
        rows_read = reader.ticks() if kind == "tick" else reader.bars("1m")
        batches = list(rows_read)
        try:
            written = len(pq.read_table(io.BytesIO(data)))
        except (pa.ArrowException, OSError):  # a page that a reader may leave aside
            written = rows
        assert sum(map(len, batches)) <= written
        self._decoded(kind, None, batches)
        if chance.random() < 0.2:
            export_rows(str(root), None, file.period, None, None, "csv", root / "out.csv")

    def _foreign_borders(self, ticks: pa.Table, bars: pa.Table) -> Iterator[Border]:
        names = ["code", "time", "open", "high", "low", "close", "volume", "amount"]
        for kind, table in (("tick", ticks), ("1m", bars)):
            columns = (
                names if kind != "tick" else ["code", "time", "lastPrice", "volume", "askPrice1"]
            )
            plain = table.select(columns)
            plain = plain.set_column(0, "code", plain.column("code").cast(pa.string()))
            plain = plain.set_column(1, "time", plain.column("time").cast(pa.int64()))
            parquet = []
            for compression in ("zstd", "snappy", "none"):
                file = io.BytesIO()
                pq.write_table(plain, file, compression=compression)
                parquet.append(file.getvalue())
            csv = plain.to_pandas().to_csv(index=False).encode()
            yield Border(parquet, partial(self._foreign, kind, ".parquet"))
            yield Border([csv], partial(self._foreign, kind, ".csv"))

    def _foreign(self, period: str, suffix: str, data: bytes, chance: random.Random) -> None:
        """A file that a user imports."""
        path = Path(self._folder.name) / f"600519.SH{suffix}"
        path.write_bytes(data)
        for table, rows in ForeignFile(path, period).tables():
            assert len(table) == len(rows)
            table.validate(full=True)


def _request(kind: str, fields: list[str] | None) -> StoredRequest:
    columns = None if fields is None else ("time", *fields)
    return StoredRequest(tuple(CODES), (), "tick" if kind == "tick" else "1m", columns=columns)


def _parquet(kind: str, table: pa.Table) -> bytes:
    file = io.BytesIO()
    write_rows(file, kind, [table], [], dense=False, simulated=False)
    return file.getvalue()


def _pieces(chance: random.Random, data: bytes) -> Iterator[bytes]:
    step = chance.choice((7, 1_000, 10**6))
    for at in range(0, len(data), step):
        yield data[at : at + step]


def _other_messages(chance: random.Random, data: bytes) -> bytes:
    """Leave out, repeat or exchange whole messages of an Arrow stream."""
    messages = []
    at = 0
    try:
        while at < len(data):
            offset, size = struct.unpack_from("<Ii", data, at)
            if offset != 0xFFFFFFFF or size <= 0:
                break
            message = pa.ipc.read_message(pa.py_buffer(data[at:]))
            length = 8 + size + (message.body.size if message.body is not None else 0)
            messages.append(data[at : at + length])
            at += length
    except (pa.ArrowException, OSError, struct.error):
        return data
    if not messages:
        return data
    act = chance.randrange(3)
    number = chance.randrange(len(messages))
    if act == 0:
        del messages[number]
    elif act == 1:
        messages.insert(chance.randrange(len(messages) + 1), messages[number])
    else:
        chance.shuffle(messages)
    return b"".join(messages) + data[at:]


def _independent(data: bytes) -> pa.Table:
    """Decode by pyarrow alone what our reader has found safe to decode."""
    return pa.ipc.open_stream(data).read_all()


def _same(table: pa.Table, told: pa.Table) -> None:
    assert table.schema.equals(told.schema)
    assert len(table) == len(told)
    for name in table.column_names:
        ours, theirs = (_values(one.column(name)) for one in (table, told))
        assert repr(ours) == repr(theirs), name


def _values(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return list(column.to_pylist())


def make_cases() -> ArrowCases:
    """Return the cases, in a child."""
    return ArrowCases()


def run(seed: int, count: int, keep: Path | None = None) -> Report:
    """Run the target."""
    return in_children("arrow", seed, count, keep)


TARGET: Final = Target(
    "arrow",
    "Arrow IPC and Parquet at every border: chunks of jobs (client, gateway, backfill), results "
    "and stored rows of a gateway, files of the archive, files to import",
    200_000,
    1_500,
    run,
)
