"""A worker and a producer that only speak the wire: canned answers, no terminal.

They stand in where a test needs an answer of a chosen shape; the real ones are used elsewhere.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pyarrow as pa
import redis
from heartbeats import write_heartbeat

from qmt_protocol.arrow import history_schema
from qmt_protocol.jobs import RESULT_TTL_S, Manifest, Progress
from qmt_protocol.keys import JobKeys, Keys
from qmt_protocol.status import new_heartbeat
from qmt_protocol.tables import table_of
from qmt_protocol.ticks import encode_tick

META = {"simulated": True, "source": "SIMULATED", "absent": {}, "market_ms": 0}
Answer = Callable[[dict[str, Any]], Any]


def beat(streams: redis.Redis, role: str, **facts: Any) -> None:
    """Write one heartbeat."""
    write_heartbeat(streams, Keys(), new_heartbeat(role, 0, simulated=True, **facts))


def table(period: str, rows: dict[str, list[int]], fields: list[str] | None = None) -> pa.Table:
    """Make a history table: code to the labels (ms) of its rows; every value is told by these."""
    schema = history_schema(period, fields)
    names = [column for column in table_of(period) if fields is None or column.name in fields]
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for code, labels in rows.items():
        for at, label in enumerate(labels):
            columns["code"].append(code)
            columns["time"].append(label)
            for number, column in enumerate(names):
                value: Any = 1000 * number + at
                if column.dtype == "bool":
                    value = at < len(labels) - 1
                elif column.dtype == "float64":
                    value = None if column.name == "settelementPrice" else value + 0.5
                columns[column.name].append(value)
    return pa.table(columns, schema=schema)


class FakeWorker:
    """Serves both queues from a thread; ``answers`` maps a job's name to what it answers.

    An answer is a table, a list of tables (chunks), a document, or an exception document.
    """

    def __init__(self, streams: redis.Redis, jobs: redis.Redis, **answers: Answer) -> None:
        self.streams = streams
        self.jobs = jobs
        self.answers = answers
        self.meta: dict[str, Any] = dict(META)
        self.terminal: dict[str, Any] = {"state": "ok"}
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self._taking = threading.Lock()
        self._held = False
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=one) for one in (self._serve, self._beat)]

    def __enter__(self) -> FakeWorker:
        self.beat()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def beat(self) -> None:
        beat(self.streams, "worker", queues=["qmt-query", "qmt-download"], terminal=self.terminal)

    def _beat(self) -> None:
        while not self._stop.wait(0.5):
            self.beat()

    def _serve(self) -> None:
        while not self._stop.is_set():
            taken = None
            with self._taking:
                if not self._held:
                    queues = ["rq:queue:qmt-query", "rq:queue:qmt-download"]
                    taken = self.jobs.blpop(queues, timeout=0.05)
            if taken:
                self._do(taken[1].decode())
            time.sleep(0.005)

    def hold(self) -> None:
        """Take no further job, while still beating."""
        with self._taking:
            self._held = True

    def go_on(self) -> None:
        """Take jobs again."""
        self._held = False

    def _do(self, job_id: str) -> None:
        keys = JobKeys()
        data = json.loads(_inflate(self.jobs.hget(f"rq:job:{job_id}", "data")))
        name, _, _, kwargs = data
        self.seen.append((name, kwargs["params"]))
        self.progress(job_id, Progress(state="running", total=2, message="begun"))
        answer = self.answers[name.removeprefix("qmt.")](kwargs["params"])
        if isinstance(answer, dict) and "error" in answer:
            self.progress(job_id, Progress(state="failed", error=answer))
            return
        chunks = answer if _is_chunks(answer) else []
        chunks = [answer] if isinstance(answer, pa.Table) else chunks
        for number, chunk in enumerate(chunks):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, chunk.schema) as writer:
                writer.write_table(chunk)
            self.jobs.set(keys.chunk(job_id, number), sink.getvalue().to_pybytes(), ex=RESULT_TTL_S)
        manifest = Manifest(
            job=name.removeprefix("qmt."),
            kind="table" if chunks else "document",
            chunks=len(chunks),
            rows=sum(chunk.num_rows for chunk in chunks),
            document=None if chunks else answer,
            meta=self.meta,
        )
        self.jobs.set(keys.manifest(job_id), manifest.model_dump_json(), ex=RESULT_TTL_S)
        self.progress(job_id, Progress(state="done", finished=2, total=2))

    def progress(self, job_id: str, entry: Progress) -> None:
        self.jobs.xadd(JobKeys().progress(job_id), {"p": entry.model_dump_json()})


def _inflate(data: bytes) -> bytes:
    import zlib

    return zlib.decompress(data) if data[:1] == b"x" else data


def make_tick(at_ms: int, price: float = 10.0, volume: int = 1) -> dict[str, Any]:
    """Return a tick with the keys that matter."""
    return {
        "time": at_ms,
        "lastPrice": price,
        "volume": volume,
        "askPrice": [price + 0.01, 0.0, 0.0, 0.0, 0.0],
        "openInt": 13,
    }


def publish(
    streams: redis.Redis, market: str, ticks: Sequence[tuple[str, dict[str, Any]]]
) -> list[tuple[str, str]]:
    """Publish one batch as the producer does; return code and entry id of each tick."""
    keys = Keys()
    batch: list[Any] = []
    told: list[tuple[str, str]] = []
    for code, tick in ticks:
        data = encode_tick(tick)
        entry_id = streams.xadd(keys.tick(code), {"t1": data}, id=f"{tick['time']}-*").decode()
        row = msgpack.unpackb(data)
        streams.hset(keys.latest(market), code, msgpack.packb([entry_id, row]))
        batch.append([code, entry_id, row])
        told.append((code, entry_id))
    at = streams.xadd(keys.feed(market), {"b1": msgpack.packb(batch)})
    streams.set(keys.filed(market), at)
    return told


def _is_chunks(answer: Any) -> bool:
    return isinstance(answer, list) and bool(answer) and isinstance(answer[0], pa.Table)
