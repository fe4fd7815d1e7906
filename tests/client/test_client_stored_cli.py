"""``qmt stored`` and ``qmt replay``: rows into pipes and files, errors in one line."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
import pytest
import redis
from client_archive import CODES, Archive, key_of, make_wires, publish_wires
from fake_worker import beat

from qmt_protocol.ticks import decode_tick


@dataclass
class Run:
    """Runs ``qmt`` to its end."""

    environment: dict[str, str]
    folder: Path

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "qmt_client", *arguments],
            capture_output=True,
            timeout=120,
            check=False,
            cwd=self.folder,
            env={**os.environ, **self.environment},
        )


DAY = ("--start", "20261120", "--end", "20261120")
GONE = ("--start", "20261121", "--end", "20261121")
WIRES = sorted(make_wires(120), key=key_of)


@pytest.fixture
def qmt(streams: redis.Redis, target: dict[str, str], tmp_path: Path) -> Run:
    """Run ``qmt`` over an archive of half of the ticks and streams of the rest."""
    archive = Archive(tmp_path / "archive")
    archive.add(WIRES[:70])
    publish_wires(streams, WIRES[60:])
    beat(streams, "producer", markets=["SH", "SZ", "BJ"])
    environment = {
        "QMT_STREAMS_URL": target["url"],
        "QMT_ARCHIVE_URL": archive.url,
        "PYTHONIOENCODING": "cp1252",
    }
    return Run(environment, tmp_path)


def text_of(at_ms: int) -> str:
    at = dt.datetime.fromtimestamp(at_ms / 1000, dt.timezone(dt.timedelta(hours=8)))
    return at.isoformat(timespec="milliseconds")


def without_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_reader_that_leaves_early_is_no_error(qmt: Run, tmp_path: Path, form: str) -> None:
    Archive(tmp_path / "large").add(sorted(make_wires(20_000), key=key_of))
    with subprocess.Popen(
        [sys.executable, "-m", "qmt_client", "stored", "*", "-f", form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **qmt.environment, "QMT_ARCHIVE_URL": str(tmp_path / "large")},
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(20)
        child.stdout.close()
        told = child.stderr.read()
    assert (child.returncode, told) == (0, b"SIMULATED data\n")


def test_a_day_without_data_is_an_error_that_says_so(qmt: Run, tmp_path: Path) -> None:
    for told in (qmt("stored", "600519.SH", *GONE), qmt("replay", "600519.SH", *GONE, "-x", "max")):
        assert told.returncode == 1
        assert told.stdout == b""
        assert "Nothing is stored of 600519.SH in the range" in told.stderr.decode()
    assert qmt("stored", "600519.SH", *GONE, "-o", "day.csv").returncode == 1
    assert not list(tmp_path.glob("day.csv*"))


def test_stored_into_a_pipe(qmt: Run) -> None:
    ended = qmt("stored", "*", *DAY)
    assert ended.returncode == 0, ended.stderr
    rows = list(csv.DictReader(io.StringIO(ended.stdout.decode())))
    ticks = [decode_tick(t1, code, at) for code, at, t1 in WIRES]
    assert [row["code"] for row in rows] == [tick.code for tick in ticks]
    assert [float(row["lastPrice"]) for row in rows] == [tick["lastPrice"] for tick in ticks]
    assert [row["time"] for row in rows] == [text_of(tick.time_ms) for tick in ticks]
    ended = qmt("stored", "600519.SH,000001.SZ", *DAY, "-f", "json")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    chosen = [tick for tick in ticks if tick.code in ("600519.SH", "000001.SZ")]
    assert lines == [
        {
            **{"code": tick.code, "id": tick.id, "flags": int(tick.flags)},
            "time": text_of(tick.time_ms),
            **{name: without_nan(value) for name, value in tick.items() if name != "time"},
        }
        for tick in chosen
    ]
    assert list(lines[0])[:4] == ["code", "id", "flags", "time"]
    ended = qmt("stored", "600519.SH", *DAY, "-f", "json", "--fields", "lastPrice")
    first = json.loads(ended.stdout.splitlines()[0])
    assert list(first) == ["code", "id", "time", "lastPrice"]
    replayed = qmt("replay", "*", *DAY, "-x", "max", "--json").stdout
    assert replayed == qmt("stored", "*", *DAY, "-f", "json").stdout


def test_stored_into_a_file(qmt: Run, tmp_path: Path) -> None:
    assert qmt("stored", *CODES, *DAY, "-o", "day.parquet").returncode == 0
    frame = polars.read_parquet(tmp_path / "day.parquet")
    assert frame["code"].to_list() == [code for code, _, _ in WIRES]
    piped = qmt("stored", *CODES, *DAY, "-f", "parquet", "--fields", "volume")
    assert polars.read_parquet(piped.stdout).columns == ["code", "time", "volume"]


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
