"""What the gateway's tests stand on: its process, and a producer and worker that speak the wire.

The two write Redis with the protocol's codecs and the msgpack package; nothing of producer, worker
or client is used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pyarrow as pa
import redis
from heartbeats import BEATS_ON_MS, write_heartbeat
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from waiting import WITHIN_S

from qmt_protocol.arrow import history_schema
from qmt_protocol.errors import QMTError
from qmt_protocol.keys import JobKeys, Keys
from qmt_protocol.status import Heartbeat
from qmt_protocol.ticks import encode_tick

DAY_MS = 86_400_000
OPEN_MS = 1_767_576_600_000  # 2026-01-05 09:30 China time
FIRST_DAY_MS = 1_767_542_400_000  # 2026-01-05 00:00 China time


@dataclass
class Producer:
    """Publishes ticks as the producer does, filed at once."""

    streams: redis.Redis
    keys: Keys = field(default_factory=Keys)

    def beat(self, *, age_ms: int = 0, markets: tuple[str, ...] = ("SH", "SZ")) -> None:
        beat = Heartbeat(role="producer", host="win", pid=1, simulated=True, markets=list(markets))
        _beat(self.streams, self.keys, beat, age_ms)

    def publish(self, *ticks: tuple[str, dict[str, Any]], flags: int = 0) -> list[str]:
        """Publish ticks of one market as one batch; return their entry ids."""
        market = ticks[0][0].rpartition(".")[2]
        rows, ids = [], []
        for code, tick in ticks:
            data = encode_tick(tick, flags)
            entry_id = self.streams.xadd(
                self.keys.tick(code), {"t1": data}, id=f"{tick['time']}-*"
            ).decode()
            row = [entry_id, msgpack.unpackb(data, strict_map_key=False)]
            if not flags:
                self.streams.hset(self.keys.latest(market), code, msgpack.packb(row))
            rows.append([code, *row])
            ids.append(entry_id)
        feed = self.keys.feed(market)
        at = self.streams.xadd(feed, {"b1": msgpack.packb(rows)}, maxlen=20_000)
        self.streams.set(self.keys.filed(market), at)
        return ids

    def flood(self, codes: list[str], batches: int, first_ms: int) -> None:
        """Put many batches of one market into its feed alone, one tick of each code in each."""
        market = codes[0].rpartition(".")[2]
        pipe = self.streams.pipeline(transaction=False)
        for batch in range(batches):
            at_ms = first_ms + batch
            tick = encode_tick(a_tick(10.0, batch, at_ms))
            row = [f"{at_ms}-0", msgpack.unpackb(tick)]
            data = msgpack.packb([[code, *row] for code in codes])
            pipe.xadd(self.keys.feed(market), {"b1": data}, maxlen=2_000)
            if batch % 10 == 9:
                pipe.execute()
        pipe.execute()


def a_tick(price: float, volume: int, time_ms: int, **more: Any) -> dict[str, Any]:
    return {
        "time": time_ms,
        "lastPrice": price,
        "volume": volume,
        "askPrice": [price + 0.01, 0.0, 0.0, 0.0, 0.0],
        "askVol": [7, 0, 0, 0, 0],
        **more,
    }


def _beat(streams: redis.Redis, keys: Keys, beat: Heartbeat, age_ms: int) -> None:
    write_heartbeat(streams, keys, beat, ahead_ms=-age_ms or BEATS_ON_MS)


Answer = Callable[[dict[str, Any]], Any]


class Worker:
    """Answers jobs with what a test lays down: a table, a document, an error or silence."""

    def __init__(self, streams: redis.Redis, jobs: redis.Redis) -> None:
        self.streams, self.jobs = streams, jobs
        self.keys, self.job_keys = Keys(), JobKeys()
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.meta: dict[str, Any] = {"simulated": True, "source": {"edition": "test"}, "absent": {}}
        self.cancelled: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def beat(self, *, age_ms: int = 0, terminal: dict[str, Any] | None = None) -> None:
        beat = Heartbeat(
            role="worker",
            host="win",
            pid=2,
            simulated=True,
            queues=["qmt-query", "qmt-download"],
            terminal=terminal or {"state": "ok"},
        )
        _beat(self.streams, self.keys, beat, age_ms)

    def __enter__(self) -> Worker:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _run(self) -> None:
        queues = [
            Queue(name, connection=self.jobs, serializer=JSONSerializer)
            for name in ("qmt-query", "qmt-download")
        ]
        beaten = time.monotonic()
        while not self._end.is_set():
            if time.monotonic() - beaten > 1:
                self.beat()
                beaten = time.monotonic()
            for queue in queues:
                job_id = self.jobs.lpop(queue.key)
                if job_id is not None:
                    job = Job.fetch(
                        job_id.decode(), connection=self.jobs, serializer=JSONSerializer
                    )
                    self._do(job.id, job.func_name.removeprefix("qmt."), job.kwargs["params"])
            self._end.wait(0.005)

    def _do(self, job_id: str, name: str, params: dict[str, Any]) -> None:
        self.asked.append((name, params))
        self._tell(job_id, state="running", total=2)
        try:
            made = self.answers[name](params)
        except QMTError as error:
            self._tell(job_id, state="failed", error=error.to_dict())
            return
        except TimeoutError:
            self._never_ends(job_id)
            return
        manifest: dict[str, Any] = {"job": name, "meta": self.meta}
        if isinstance(made, pa.Table):
            half = made.num_rows // 2
            for number, part in enumerate((made.slice(0, half), made.slice(half))):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, part.schema) as writer:
                    writer.write_table(part)
                chunk = self.job_keys.chunk(job_id, number)
                self.jobs.set(chunk, sink.getvalue().to_pybytes(), ex=60)
            manifest |= {"kind": "table", "chunks": 2, "rows": made.num_rows}
        else:
            manifest |= {"kind": "document", "document": made}
        self.jobs.set(self.job_keys.manifest(job_id), json.dumps(manifest), ex=60)
        self._tell(job_id, state="done", finished=2, total=2)

    def _never_ends(self, job_id: str) -> None:
        until = time.monotonic() + WITHIN_S
        while not self._end.is_set() and time.monotonic() < until:
            if self.jobs.exists(self.job_keys.cancel(job_id)):
                self.cancelled.append(job_id)
                return
            self.beat()
            time.sleep(0.05)

    def _tell(self, job_id: str, **progress: Any) -> None:
        self.jobs.xadd(self.job_keys.progress(job_id), {"p": json.dumps(progress)})
        self.jobs.expire(self.job_keys.progress(job_id), 60)


def bars(params: dict[str, Any], *, rows: int = 3, step_ms: int = DAY_MS) -> pa.Table:
    """Bars of all codes asked for; the second close is NaN."""
    schema = history_schema(params["period"], params["fields"])
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    first_ms = FIRST_DAY_MS if step_ms == DAY_MS else OPEN_MS
    for code in params["codes"]:
        for row in range(rows):
            columns["code"].append(code)
            columns["time"].append(first_ms + row * step_ms)
            for column in list(schema)[2:]:
                price = float("nan") if (column.name, row) == ("close", 1) else 10.5 + row
                made = {"double": price, "bool": True}.get(str(column.type), 100 + row)
                columns[column.name].append(made)
    return pa.table(columns, schema=schema)


@dataclass
class GatewayProcess:
    """A running ``python -m qmt_gateway``."""

    process: subprocess.Popen[str]
    url: str
    log_path: str

    @property
    def ws_url(self) -> str:
        return f"ws{self.url[4:]}/ws/realtime"

    def log(self) -> str:
        with open(self.log_path, encoding="utf-8") as log:
            return log.read()


def allow_descriptors(count: int) -> None:
    """Let this process open no more files than so many, ever."""
    import resource  # not on every system

    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


@contextmanager
def gateway(
    streams_url: str,
    jobs_url: str,
    directory: Any,
    *flags: str,
    descriptors: int = 0,
    **settings: str,
) -> Iterator[GatewayProcess]:
    """Run a gateway on a free port until the block ends.

    Parameters
    ----------
    descriptors
        How many files and connections the system lets it open; 0: what it lets this process.
    """
    log_path = str(directory / f"gateway-{uuid.uuid4().hex[:8]}.log")
    env = {name: value for name, value in os.environ.items() if not name.startswith("QMT_")}
    env |= {"QMT_STREAMS_URL": streams_url, "QMT_JOBS_URL": jobs_url, "PYTHONWARNINGS": "error"}
    env |= {f"QMT_BRIDGE_{name.upper()}": value for name, value in settings.items()}
    with open(log_path, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "qmt_gateway", "--port", "0", *flags],
            env=env,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            **({"preexec_fn": lambda: allow_descriptors(descriptors)} if descriptors else {}),
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        started = GatewayProcess(process, "", log_path)
        assert line, started.log()
        started.url = json.loads(line)["url"]
        yield started
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
