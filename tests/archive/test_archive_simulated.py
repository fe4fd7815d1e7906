"""Rows of the simulator say so wherever they go: nobody takes them for a market's."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from archive_rig import (
    FRIDAY_MS,
    Publisher,
    archive_process,
    manifest_of,
    run_archive,
    wait_archived,
)

from qmt_client import AsyncQMTClient, QMTClient
from qmt_protocol.archive import is_simulated
from qmt_standalone.redis_server import RedisServer

NOWHERE = "redis://127.0.0.1:1/0"
DAY = "2025-11-20"


@pytest.fixture
def recorded(
    request: pytest.FixtureRequest, streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> Path:
    """The archive of a day that the simulator, or where the test says so a market, made."""
    publisher = Publisher(streams, ["SH"], simulated=getattr(request, "param", True))
    publisher.steps(10)
    publisher.minute(FRIDAY_MS + 60_000)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 200)
    return folder


def labels(folder: Path) -> set[tuple[bool, bool]]:
    """Return of the files what the manifest says, and what they say themselves."""
    return {
        (one.get("simulated", False), is_simulated(pq.read_schema(folder / one["path"]).metadata))
        for one in manifest_of(folder)["files"]
    }


@pytest.mark.parametrize("recorded", [True, False], indirect=True)
def test_the_label_goes_with_the_files(recorded: Path, request: pytest.FixtureRequest) -> None:
    simulated = request.node.callspec.params["recorded"]
    assert labels(recorded) == {(simulated, simulated)}
    assert run_archive(recorded, "compact").returncode == 0
    assert labels(recorded) == {(simulated, simulated)}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_it_goes_through_export_and_import(recorded: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / f"ticks.{form}"
    of = ("--codes", "*", "--format", form, "-o", str(out))
    assert run_archive(recorded, "export", *of).returncode == 0
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(out.read_text())))
        assert {row["simulated"] for row in rows} == {"true"}
    else:
        assert is_simulated(pq.read_schema(out).metadata)
    other = tmp_path / "other"
    done = run_archive(other, "import", str(out), "--streams-url", NOWHERE)
    assert done.returncode == 0, done.stderr
    assert labels(other) == {(True, True)}
    extra = pq.read_table(other / manifest_of(other)["files"][0]["path"], columns=["extra"])
    assert extra.column("extra").null_count == len(extra), "the label is no field of a tick"


def test_on_another_redis_it_is_still_said(
    recorded: Path, tmp_path: Path, jobs: redis.Redis, jobs_server: RedisServer
) -> None:
    """That server knows no simulator: the label is the archive's."""
    jobs.flushall()
    with QMTClient(jobs_server.url, archive_url=str(recorded)) as client:
        frame = client.stored_ticks("*", DAY)
        assert len(frame) == 200
        assert frame.attrs["simulated"] is True
        table: pa.Table = client.stored_ticks("*", as_="arrow")
        assert is_simulated(table.schema.metadata)
        batch = next(client.stored_ticks("*", as_="batches"))
        assert is_simulated(batch.schema.metadata)
        with client.replay("*", DAY, speed="max") as replay:
            assert replay.simulated is None
            next(replay)
            assert replay.simulated is True
    shown = subprocess.run(
        [sys.executable, "-m", "qmt_client", "stored", "*"],
        env={**os.environ, "QMT_URL": jobs_server.url, "QMT_ARCHIVE_URL": str(recorded)},
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert shown.stderr.decode().splitlines()[-1] == "SIMULATED data"


@pytest.mark.parametrize("recorded", [False], indirect=True)
def test_a_markets_own_is_not_said_to_be_simulated(
    recorded: Path, jobs: redis.Redis, jobs_server: RedisServer
) -> None:
    jobs.flushall()
    with QMTClient(jobs_server.url, archive_url=str(recorded)) as client:
        assert client.stored_ticks("*", DAY).attrs["simulated"] is False
    assert asyncio.run(_simulated(jobs_server.url, recorded)) is False


async def _simulated(url: str, folder: Path) -> bool:
    async with AsyncQMTClient(url, archive_url=str(folder)) as client:
        batches = await client.stored_ticks("*", as_="batches")
        return is_simulated((await anext(batches)).schema.metadata)
