"""Workers as processes over simulated terminals, plain RQ callers, and the oracle's truth."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import redis
from rq import Queue
from rq.serializers import JSONSerializer
from waiting import wait_for

from qmt_protocol.codes import asset_class
from qmt_protocol.jobs import CATALOGUE, RESULT_TTL_S, parse_params
from qmt_protocol.keys import JobKeys, Keys
from qmt_protocol.times import parse_start
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

END_STATES = ("done", "failed")


class WorkerProcess:
    """A running `qmt-worker`."""

    def __init__(
        self, simulated_port: int, streams_url: str, jobs_url: str, *flags: str, **env: str
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qmt_worker", *flags],
            stdin=subprocess.PIPE,
            env={
                **os.environ,
                "TZ": "Asia/Shanghai",
                "QMT_STREAMS_URL": streams_url,
                "QMT_JOBS_URL": jobs_url,
                "QMT_TERMINAL_PORT": str(simulated_port),
                "QMT_NATIVE_MODULE": "qmt_simulator.native",
                "QMT_LOG_LEVEL": "warning",
                "QMT_SIMULATOR_ROLE": "worker",
                **env,
            },
        )

    def children(self) -> list[psutil.Process]:
        """Return all processes below it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> float:
        """Stop it as a service manager does; returns the seconds that took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(60)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return time.monotonic() - began


class Answer:
    """What a job left behind."""

    def __init__(self, progress: list[dict[str, Any]], manifest: Any, table: Any) -> None:
        self.progress = progress
        self.manifest = manifest
        self.table = table

    @property
    def state(self) -> str:
        return str(self.progress[-1]["state"])

    @property
    def error(self) -> dict[str, Any]:
        assert self.state == "failed", self.progress[-1]
        error: dict[str, Any] = self.progress[-1]["error"]
        return error

    def frame(self, code: str) -> Any:
        """Return one code's rows as a pandas frame."""
        assert self.state == "done", self.progress[-1]
        frame = self.table.to_pandas()
        return frame[frame["code"] == code].reset_index(drop=True)


class Caller:
    """Enqueues jobs as a client does, by plain RQ, and reads what comes back."""

    def __init__(self, jobs: redis.Redis, streams: redis.Redis) -> None:
        self.jobs = jobs
        self.streams = streams
        self.keys = JobKeys()

    def enqueue(self, name: str, *, check: bool = True, **params: Any) -> str:
        spec = CATALOGUE[name]
        document = parse_params(name, params).model_dump(mode="json") if check else params
        job_id = uuid.uuid4().hex
        Queue(spec.queue, connection=self.jobs, serializer=JSONSerializer).enqueue_call(
            spec.function,
            kwargs={"params": document, "version": 2},
            job_id=job_id,
            timeout=int(spec.timeout_s) + 60,
            result_ttl=RESULT_TTL_S,
            failure_ttl=RESULT_TTL_S,
            ttl=60,
        )
        return job_id

    def entries(self, job_id: str) -> list[dict[str, Any]]:
        return [
            json.loads(fields[b"p"]) for _id, fields in self.jobs.xrange(self.keys.progress(job_id))
        ]

    def wait(self, job_id: str) -> Answer:
        def ended() -> list[dict[str, Any]]:
            entries = self.entries(job_id)
            return entries if entries and entries[-1]["state"] in END_STATES else []

        entries = wait_for(ended, f"job {job_id} ends")
        raw = self.jobs.get(self.keys.manifest(job_id))
        manifest = None if raw is None else json.loads(raw)
        table = None
        if manifest and manifest["kind"] == "table":
            parts = [
                self.jobs.get(self.keys.chunk(job_id, number))
                for number in range(manifest["chunks"])
            ]
            table = pa.concat_tables(
                [pa.ipc.open_stream(io.BytesIO(part)).read_all() for part in parts]
            )
        return Answer(entries, manifest, table)

    def ask(self, name: str, **params: Any) -> Answer:
        return self.wait(self.enqueue(name, **params))

    def heartbeats(self) -> list[dict[str, Any]]:
        """Return the workers' heartbeats with their ages by Redis time."""
        seconds, micros = self.streams.time()
        told = self.streams.hgetall(Keys().status)
        seen = dict(self.streams.zrange(Keys().seen, 0, -1, withscores=True))
        return [
            {**json.loads(raw), "age_s": seconds + micros / 1e6 - seen[member] / 1000}
            for member, raw in told.items()
            if member in seen  # it beats by two commands
        ]

    def wait_for_terminal(self, state: str) -> dict[str, Any]:
        """Wait until all live workers tell this state of the terminal."""

        def told() -> list[dict[str, Any]]:
            beats = [beat for beat in self.heartbeats() if beat["age_s"] < 3]
            return beats if all(beat["terminal"]["state"] == state for beat in beats) else []

        return wait_for(told, f"the workers say that the terminal is {state}")[0]


TODAY_MS = parse_start("20261120")
DAY_MS = 86_400_000
FROZEN = (
    *("--start", "2026-11-20 10:30:00", "--speed", "0", "--real-hours"),
    *("--cache-delay-s", "0.1,0.4"),
)


def wait_for_running(caller: Caller, job_id: str) -> None:
    wait_for(lambda: caller.entries(job_id), f"job {job_id} runs")


class Rig:
    """A worker over a terminal whose clock stands at 10:30 of an ordinary day."""

    def __init__(self, profile: str, streams: RedisServer, jobs: RedisServer) -> None:
        self.simulated = TerminalProcess(*FROZEN, "--profile", profile)
        self.worker = WorkerProcess(
            self.simulated.port, streams.url, jobs.url, "--queue", "qmt-query"
        )
        self.profile = profile
        self.oracle = self.simulated.oracle
        self.codes = self.oracle.codes()

    def stop(self) -> None:
        self.worker.stop()
        self.simulated.stop()

    def truth(
        self, code: str, period: str, adjust: str = "none", start_ms: int = 0
    ) -> pd.DataFrame:
        return pd.DataFrame(dict(self.oracle.bars(code, period, start_ms, adjust=adjust)))


def ten_codes(rig: Rig, period: str, seed: int) -> list[str]:
    """Return ten codes at random that trade today, whatever they are."""
    codes = rig.codes.copy()
    random.Random(seed).shuffle(codes)
    chosen: list[str] = []
    for code in codes:
        times = rig.oracle.bars(code, period, TODAY_MS - 120 * DAY_MS)["time"]
        if len(times) >= 60 and times[-1] >= TODAY_MS:
            chosen.append(code)
            if len(chosen) == 10:
                break
    return chosen


def assert_equals_truth(got: pd.DataFrame, truth: pd.DataFrame, code: str) -> None:
    derivative = asset_class(code) in ("future", "option")
    times = got["time"].astype("datetime64[ms, UTC]").astype("int64").to_numpy()
    np.testing.assert_array_equal(times, truth["time"].to_numpy(), err_msg=code)
    for column in ("open", "high", "low", "close", "volume", "amount", "preClose", "suspendFlag"):
        np.testing.assert_array_equal(
            got[column].to_numpy(), truth[column].to_numpy(), err_msg=f"{code} {column}"
        )
    for column, missing in (("settelementPrice", np.nan), ("openInterest", 0)):
        expected = truth[column].to_numpy() if derivative else np.full(len(truth), missing)
        np.testing.assert_array_equal(got[column].to_numpy(), expected, err_msg=f"{code} {column}")
