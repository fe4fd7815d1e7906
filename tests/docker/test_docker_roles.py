"""Every part at work with the rights of its own role, and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis
from docker_servers import Connect, start_server

from qmt_client import QMTClient
from qmt_standalone.redis_server import free_port


def url_of(connect: Connect, role: str) -> str:
    port = connect(role).connection_pool.connection_kwargs["port"]
    return f"redis://{role}:secret-of-{role}@127.0.0.1:{port}/0"


@contextmanager
def running(name: str, folder: Path, *arguments: str, **settings: str) -> Iterator[Path]:
    """Run one part; it ends when its standard input closes."""
    log = folder / f"{name}.log"
    inherited = {key: value for key, value in os.environ.items() if key[:4] != "QMT_"}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"qmt_{name}", *arguments, "--exit-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**inherited, **settings},
        )
    try:
        yield log
    finally:
        process.communicate(timeout=30)


def eventually_well(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            status = httpx.get(f"{url}/api/v1/status", timeout=5, trust_env=False).json()
            well = {
                queue
                for one in status["processes"]
                if one.get("terminal", {}).get("state") == "ok"
                for queue in (*one.get("queues", ()), one["role"])
            }
            if {"producer", "qmt-query", "qmt-download"} <= well:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, "the parts are not well"
        time.sleep(0.2)


@pytest.mark.timeout(150)
def test_each_part_works_with_its_own_user(tmp_path: Path) -> None:
    streams_process, streams = start_server("streams", tmp_path / "streams")
    jobs_process, jobs = start_server("jobs", tmp_path / "jobs")
    terminal, http = free_port(), free_port()

    def urls(role: str, jobs_role: str) -> dict[str, str]:
        return {
            "QMT_STREAMS_URL": url_of(streams, role),
            "QMT_JOBS_URL": url_of(jobs, jobs_role),
            "QMT_NATIVE_MODULE": "qmt_simulator.native",
            "QMT_TERMINAL_PORT": str(terminal),
            "TZ": "CST-8",
        }

    try:
        with (
            running("simulator", tmp_path, "--port", str(terminal), TZ="CST-8"),
            running("producer", tmp_path, **urls("producer", "worker")) as producer_log,
            running("worker", tmp_path, **urls("worker", "worker")) as worker_log,
            running("gateway", tmp_path, "--port", str(http), **urls("gateway", "gateway")) as log,
        ):
            url = f"http://127.0.0.1:{http}"
            eventually_well(url)
            asked = {"stock": "000001.SZ", "period": "1d", "count": 60}
            answer = httpx.get(f"{url}/api/history", params=asked, timeout=60, trust_env=False)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["data"]) == 60

            with QMTClient(url_of(streams, "client"), jobs_url=url_of(jobs, "client")) as client:
                assert len(client.history("600519.SH", period="1d", count=20)) == 20
                assert client.full_tick(["600519.SH"])["600519.SH"]["lastPrice"] > 0
                ticks = client.ticks(["600519.SH"])
                assert next(iter(ticks)).code == "600519.SH"
                assert (
                    len(client.download("000001.SZ", "1d", start="20260901", end="20260930")) == 1
                )

            with streams("reader") as reader:
                assert reader.xrevrange("{qmt:SH}:tick:600519.SH", count=1)
                assert json.loads(reader.hget("qmt:schema", "t1"))["fields"]
                with pytest.raises(redis.exceptions.NoPermissionError):
                    reader.delete("{qmt:SH}:tick:600519.SH")
            for part in (producer_log, worker_log, log):
                assert "NOPERM" not in part.read_text("utf-8")
    finally:
        for process in (streams_process, jobs_process):
            process.terminate()
            process.wait(10)
