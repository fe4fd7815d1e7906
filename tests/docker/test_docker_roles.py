"""Every part at work with the rights of its own role, and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis
from docker_servers import Connect, start_server
from waiting import wait_for

from qmt_archive.locks import lock_for
from qmt_archive.store import ArchiveStore
from qmt_client import QMTClient
from qmt_protocol.keys import Keys
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
        process.communicate(timeout=120)


def eventually_well(url: str) -> None:
    def are_well() -> bool:
        try:
            status = httpx.get(f"{url}/api/v1/status", timeout=120, trust_env=False).json()
            well = {
                queue
                for one in status["processes"]
                if one.get("terminal", {}).get("state") == "ok"
                for queue in (*one.get("queues", ()), one["role"])
            }
            well |= {one["role"] for one in status["processes"] if one["role"] == "archive"}
            return {"producer", "archive", "qmt-query", "qmt-download"} <= well
        except httpx.HTTPError:
            return False

    wait_for(are_well, "the parts are well")


def test_each_part_works_with_its_own_user(tmp_path: Path) -> None:
    streams_process, streams = start_server("streams", tmp_path / "streams")
    jobs_process, jobs = start_server("jobs", tmp_path / "jobs")
    terminal, http = free_port(), free_port()
    archive = {"QMT_ARCHIVE_URL": str(tmp_path / "archive"), "QMT_ARCHIVE_FLUSH_S": "1"}
    code = "600519.SH"

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
            running(
                "simulator",
                tmp_path,
                *("--port", str(terminal), "--interval-ms", "12000"),
                TZ="CST-8",
            ),
            running("producer", tmp_path, **urls("producer", "worker")) as producer_log,
            running("worker", tmp_path, **urls("worker", "worker")) as worker_log,
            running(
                "gateway",
                tmp_path,
                "--port",
                str(http),
                **urls("gateway", "gateway"),
                **archive,
            ) as log,
        ):
            # As in compose.yaml: it may come after the gateway.
            with running(
                "archive", tmp_path, "run", **urls("archive", "archive"), **archive
            ) as archive_log:
                url = f"http://127.0.0.1:{http}"
                eventually_well(url)
                with streams("reader") as reader:
                    wait_for(lambda: reader.get("{qmt:SH}:archived"), "an archive")
                    wait_for(lambda: reader.exists(f"{{qmt:SH}}:tick:{code}"), "a tick")
            backfilled = subprocess.run(
                [sys.executable, "-m", "qmt_archive", "backfill", "--json"],
                env={**os.environ, **urls("archive", "archive"), **archive},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert (backfilled.returncode, backfilled.stdout) == (0, "[]\n"), backfilled.stderr
            asked = {"stock": "000001.SZ", "period": "1d", "count": 60}
            answer = httpx.get(f"{url}/api/history", params=asked, timeout=120, trust_env=False)
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
            over_redis = QMTClient(
                url_of(streams, "client"), archive_url=archive["QMT_ARCHIVE_URL"]
            )
            with over_redis, QMTClient(url) as over_http, streams("reader") as reader:
                ids = [entry_id for entry_id, _ in reader.xrange(f"{{qmt:SH}}:tick:{code}")]
                for client in (over_redis, over_http):
                    held = client.stored_ticks(code, as_="arrow").to_pylist()[: len(ids)]
                    assert [f"{one['id_ms']}-{one['id_seq']}".encode() for one in held] == ids
                    assert client.stored_ticks("*", fields=["lastPrice"])["code"].nunique() > 1000
                    bars = client.stored_bars("*", "1m", as_="arrow")
                    assert bars.num_columns > 5
            for part in (producer_log, worker_log, archive_log, log):
                assert "NOPERM" not in part.read_text("utf-8")
    finally:
        for process in (streams_process, jobs_process):
            process.terminate()
            process.wait(60)


class Bucket(ArchiveStore):
    """A place without locks of its own; nothing is read or written there."""

    @property
    def is_local(self) -> bool:
        return False


def test_the_archives_user_may_hold_a_buckets_lease(tmp_path: Path) -> None:
    process, streams = start_server("streams", tmp_path / "streams")
    try:
        url, bucket = url_of(streams, "archive"), Bucket(str(tmp_path))
        with streams("reader") as reader:
            with lock_for(bucket, Keys(), url) as lock:
                lock.check()
                assert reader.exists("qmt:archive")
            assert not reader.exists("qmt:archive")
    finally:
        process.terminate()
        process.wait(60)
