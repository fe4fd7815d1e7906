"""``qmt stored`` and ``qmt replay``: rows into pipes and files, errors in one line."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars
import pytest
import redis
from client_archive import CODES, Archive, key_of, make_wires, publish_wires
from fake_worker import beat

from qmt_protocol.ticks import decode_tick

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
DAY = ("--start", "20261120", "--end", "20261120")
WIRES = sorted(make_wires(120), key=key_of)


@pytest.fixture
def qmt(streams: redis.Redis, target: dict[str, str], tmp_path: Path) -> Run:
    """Run ``qmt`` over an archive of half of the ticks and streams of the rest."""
    archive = Archive(tmp_path / "archive")
    archive.add(WIRES[:70])
    publish_wires(streams, WIRES[60:])
    beat(streams, "producer", markets=["SH", "SZ", "BJ"])
    environment = {
        **os.environ,
        "QMT_STREAMS_URL": target["url"],
        "QMT_ARCHIVE_URL": archive.url,
        "PYTHONIOENCODING": "cp1252",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "qmt_client", *arguments],
            capture_output=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            env=environment,
        )

    return run


def test_stored_into_a_pipe(qmt: Run) -> None:
    ended = qmt("stored", "*", *DAY)
    assert ended.returncode == 0, ended.stderr
    rows = list(csv.DictReader(io.StringIO(ended.stdout.decode())))
    ticks = [decode_tick(t1, code, at) for code, at, t1 in WIRES]
    assert [row["code"] for row in rows] == [tick.code for tick in ticks]
    assert [float(row["lastPrice"]) for row in rows] == [tick["lastPrice"] for tick in ticks]
    assert rows[0]["time"][:11] == "2026-11-20 "
    assert rows[0]["time"].endswith(f".{ticks[0].time_ms % 1000:03d}")
    ended = qmt("stored", "600519.SH,000001.SZ", *DAY, "-f", "json")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    chosen = [tick for tick in ticks if tick.code in ("600519.SH", "000001.SZ")]
    assert repr(lines) == repr(
        [{"code": t.code, "id": t.id, "flags": int(t.flags), **t} for t in chosen]
    )
    ended = qmt("stored", "600519.SH", *DAY, "-f", "json", "--fields", "lastPrice")
    first = json.loads(ended.stdout.splitlines()[0])
    assert list(first) == ["code", "id", "lastPrice"]


def test_stored_into_a_file(qmt: Run, tmp_path: Path) -> None:
    assert qmt("stored", *CODES, *DAY, "-o", "day.parquet").returncode == 0
    frame = polars.read_parquet(tmp_path / "day.parquet")
    assert frame["code"].to_list() == [code for code, _, _ in WIRES]
    piped = qmt("stored", *CODES, *DAY, "-f", "parquet", "--fields", "volume")
    assert polars.read_parquet(piped.stdout).columns == ["code", "time", "volume"]
    assert qmt("stored", *CODES, "-p", "1m", "-o", "bars.csv").returncode == 0
    assert (tmp_path / "bars.csv").read_text().startswith("code,time,open,high")


def test_replay_into_a_pipe(qmt: Run) -> None:
    ended = qmt("replay", "*", *DAY, "--speed", "max", "--json")
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(line["code"], line["id"]) for line in lines] == [(code, at) for code, at, _ in WIRES]
    shown = qmt("replay", "600519.SH", *DAY, "-x", "1000", "-n", "2")
    assert len(shown.stdout.splitlines()) == 2
    assert b"600519.SH" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stored", "600519"], "600519.SH"),
        (["stored", "600519.SH", "--start", "20261120", "--end", "20261119"], "before the start"),
        (["stored", "600519.SH", "--fields", "colour"], "colour"),
        (["replay", "600519.SH", "--speed", "fast"], "fast"),
        (["--archive-url", "nowhere", "stored", "600519.SH"], "no archive"),
    ],
)
def test_errors_are_one_line(qmt: Run, arguments: list[str], says: str) -> None:
    ended = qmt(*arguments)
    assert ended.returncode == 1
    assert ended.stdout == b""
    assert says in ended.stderr.decode()
    assert len(ended.stderr.splitlines()) == 1
