"""The ``qmt`` command, as a process: output that pipes, errors in one line, exit codes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
import redis
from fake_worker import FakeWorker, beat, make_tick, publish, table

MakeWorker = Callable[..., FakeWorker]
CODE = "600519.SH"
T0 = 1_767_576_600_000
LABELS = [1_767_542_400_000, 1_767_628_800_000]


def bars(params: dict[str, Any]) -> Any:
    return table(params["period"], dict.fromkeys(params["codes"], LABELS), params["fields"])


@pytest.fixture
def environment(
    streams: redis.Redis, jobs: redis.Redis, target: dict[str, str], tmp_path: Path
) -> dict[str, Any]:
    return {
        "cwd": tmp_path,
        "env": {
            **os.environ,
            "QMT_STREAMS_URL": target["url"],
            "QMT_JOBS_URL": target["jobs_url"],
            # A Windows console's code page must not matter.
            "PYTHONIOENCODING": "cp1252",
        },
    }


Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
COMMAND = [sys.executable, "-m", "qmt_client"]


@pytest.fixture
def qmt(environment: dict[str, Any]) -> Run:
    """Run ``qmt`` to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*COMMAND, *arguments], capture_output=True, timeout=120, check=False, **environment
        )

    return run


def test_history_as_csv_pipes(qmt: Run, make_worker: MakeWorker) -> None:
    with make_worker(history=bars):
        ended = qmt("history", CODE, "000001.SZ", "-n", "2", "-f", "csv", "--fields", "close")
    assert ended.returncode == 0, ended.stderr
    rows = list(csv.DictReader(io.StringIO(ended.stdout.decode())))
    assert [row["code"] for row in rows] == [CODE, CODE, "000001.SZ", "000001.SZ"]
    assert rows[0]["time"] == "2026-01-05"
    assert rows[0]["close"] == "0.5"
    assert ended.stderr == b"SIMULATED data\n"


def test_history_into_files(qmt: Run, make_worker: MakeWorker, tmp_path: Path) -> None:
    with make_worker(history=bars):
        assert qmt("history", CODE, "-o", "bars.parquet").returncode == 0
        assert qmt("history", CODE, "-o", "bars.json").returncode == 0
        piped = qmt("history", CODE, "-f", "parquet")
        shown = qmt("history", CODE)
    frame = pd.read_parquet(tmp_path / "bars.parquet")
    assert list(frame.columns[:2]) == ["code", "time"]
    assert len(frame) == 2
    assert piped.stdout == (tmp_path / "bars.parquet").read_bytes()
    first = json.loads((tmp_path / "bars.json").read_text().splitlines()[0])
    assert (first["code"], first["time"]) == (CODE, "2026-01-05")
    assert CODE in shown.stdout.decode()


MINUTE = T0 + 60_000


@pytest.mark.parametrize(
    ("period", "at_ms", "zoned"),
    [("1d", LABELS[0], "2026-01-05"), ("1m", MINUTE, "2026-01-05T09:31:00+08:00")],
)
def test_one_rule_for_times_in_every_form(
    qmt: Run, make_worker: MakeWorker, tmp_path: Path, period: str, at_ms: int, zoned: str
) -> None:
    """By another reader, in a session in UTC: nothing lies a day early."""

    def one(params: dict[str, Any]) -> Any:
        return table(period, {CODE: [at_ms]}, params["fields"])

    with make_worker(history=one):
        for form in ("csv", "json", "parquet"):
            done = qmt("history", CODE, "-p", period, "-o", f"a.{form}", "--fields", "close")
            assert done.returncode == 0, done.stderr
            qmt("--naive", "history", CODE, "-p", period, "-o", f"naive.{form}")
    told = json.loads((tmp_path / "a.json").read_text())["time"]
    assert told == zoned == (tmp_path / "a.csv").read_text().splitlines()[1].split(",")[1]
    naive = json.loads((tmp_path / "naive.json").read_text())["time"]
    assert naive == zoned.removesuffix("+08:00")
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        kind, day = db.execute(
            f"SELECT typeof(time), time::date::text FROM '{tmp_path}/a.parquet'"
        ).fetchall()[0]
        assert (kind, day) == ("DATE" if period == "1d" else "TIMESTAMP WITH TIME ZONE", zoned[:10])
        text = db.execute(f"SELECT time::text FROM '{tmp_path}/naive.parquet'").fetchall()[0][0]
    assert text == naive.replace("T", " ")


def test_json_is_json(qmt: Run, make_worker: MakeWorker, streams: redis.Redis) -> None:
    def holes(params: dict[str, Any]) -> Any:
        made = table(params["period"], {CODE: LABELS}, None)
        values = pa.array([math.nan, math.inf])
        return made.set_column(made.schema.get_field_index("close"), "close", values)

    with make_worker(history=holes):
        lines = qmt("history", CODE, "-f", "json").stdout.splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["close"] for row in rows] == [None, None]
    assert [row["time"] for row in rows] == ["2026-01-05", "2026-01-06"]
    beat(streams, "producer", markets=["SH"])
    publish(streams, "SH", [(CODE, {**make_tick(T0), "pe": math.nan, "askPrice": [math.inf]})])
    for command in (("tick", CODE, "--json"), ("ticks", CODE, "--json")):
        told = json.loads(qmt(*command).stdout, parse_constant=pytest.fail)
        assert told["pe"] is None
        assert told["askPrice"][0] is None
        assert told["time"] == "2026-01-05T09:30:00.000+08:00"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "a.xlsx"], "End it in one of .csv, .json"),
        (["-o", "rows"], "End it in one of"),
        (["-o", "a.csv", "-f", "json"], "Leave one of them out"),
        (["-o", "a.XLSX", "-p", "1m"], "not clear from its name"),
    ],
)
def test_an_ending_that_says_nothing_is_refused_before_anything_is_asked(
    qmt: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    for command in ("history", "stored"):
        ended = qmt(command, CODE, *arguments)
        assert ended.returncode == 1
        assert said in ended.stderr.decode()
    assert list(tmp_path.iterdir()) == []


def test_endings_in_capitals_and_a_form_that_is_given(
    qmt: Run, make_worker: MakeWorker, tmp_path: Path
) -> None:
    with make_worker(history=bars):
        assert qmt("history", CODE, "-o", "A.CSV").returncode == 0
        assert qmt("history", CODE, "-f", "csv", "-o", "b.dat").returncode == 0
        assert qmt("history", CODE, "-o", "c.jsonl").returncode == 0
    text = (tmp_path / "A.CSV").read_bytes()
    assert text.startswith(b"code,time,open")
    assert (tmp_path / "b.dat").read_bytes() == text
    assert json.loads((tmp_path / "c.jsonl").read_text().splitlines()[0])["code"] == CODE


def test_the_version(qmt: Run) -> None:
    assert qmt("--version").stdout.decode().split() == ["qmt", version("qmt-redis-bridge")]


def test_codes_of_a_sector(qmt: Run, make_worker: MakeWorker) -> None:
    with make_worker(history=bars, sector_stocks=lambda params: [CODE, "000001.SZ"]) as worker:
        ended = qmt("history", "600000.SH", "--sector", "沪深300", "-n", "1", "-f", "csv")
    assert ended.returncode == 0, ended.stderr
    assert worker.seen[-1][1]["codes"] == ["600000.SH", CODE, "000001.SZ"]
    assert qmt("history").returncode == 1


def test_ticks_and_their_json(qmt: Run, streams: redis.Redis, producer: Callable[[], None]) -> None:
    publish(streams, "SH", [(CODE, make_tick(T0, 1686.5, 7))])
    shown = qmt("tick", CODE).stdout.decode()
    assert "2026-01-05 09:30:00.000" in shown
    assert "1686.5" in shown
    told = json.loads(qmt("tick", CODE, "--json").stdout)
    assert told["code"] == CODE
    assert told["volume"] == 7


def test_following_ends_with_ctrl_c(
    environment: dict[str, Any], streams: redis.Redis, producer: Callable[[], None]
) -> None:
    publish(streams, "SH", [(CODE, make_tick(T0))])
    child = subprocess.Popen(
        [*COMMAND, "ticks", CODE, "--follow", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **environment,
    )
    assert child.stdout is not None
    with child:
        try:
            os.set_blocking(child.stdout.fileno(), False)
            line = b""
            for at in range(1, 300):
                producer()
                publish(streams, "SH", [(CODE, make_tick(T0 + 1000 * at, 10, at))])
                time.sleep(0.1)
                line += child.stdout.readline() or b""
                if line.endswith(b"\n"):
                    break
            child.send_signal(signal.SIGINT)
            child.wait(60)
        finally:
            child.kill()
    assert json.loads(line.splitlines()[0])["code"] == CODE
    assert child.returncode == 130


def test_sectors_and_details_in_chinese(qmt: Run, make_worker: MakeWorker) -> None:
    detail = {CODE: {"InstrumentName": "贵州茅台", "UpStopPrice": None}}
    with make_worker(
        sector_stocks=lambda params: [CODE, "000001.SZ"], instrument_detail=lambda params: detail
    ) as worker:
        assert qmt("sector", "沪深300").stdout.decode().split() == [CODE, "000001.SZ"]
        assert json.loads(qmt("sector", "沪深300", "--json").stdout) == [CODE, "000001.SZ"]
        assert "贵州茅台" in qmt("detail", CODE).stdout.decode()
        assert json.loads(qmt("detail", CODE, "--json").stdout) == detail
    assert worker.seen[0][1] == {"sector": "沪深300"}


def test_download_and_status(qmt: Run, make_worker: MakeWorker) -> None:
    with make_worker(download=lambda params: {CODE: {"rows": 9}}) as worker:
        assert qmt("download", CODE, "--start", "20260105").stdout.decode() == f"{CODE}  9\n"
        shown = qmt("status")
    assert worker.seen[0][1]["start_ms"] == LABELS[0]
    assert "alive" in shown.stdout.decode()
    assert "worker" in shown.stdout.decode()


def test_status_tells_what_a_worker_could_not_run(qmt: Run, streams: redis.Redis) -> None:
    last = {"id": "x", "reason": "The job's data are not JSON."}
    beat(streams, "worker", queues=["qmt-query"], figures={"dead": 3, "last_dead": last})
    assert (
        "3 on the jobs server could not be used; the last, job x: The job's data are not JSON."
        in (qmt("status").stdout.decode())
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["history", "sh600519"], "Did you mean 600519.SH?"),
        (["history", CODE], "Start qmt-worker"),
        (["tick", CODE], "Start qmt-producer"),
        (["history", CODE, "-p", "2d"], "is not a period"),
        (["history", CODE, "-n", "１２"], "is not a whole number"),
        (["--timeout", "nan", "history", CODE], "is no time"),
        (["--url", "redis://127.0.0.1:1", "status"], "127.0.0.1:1"),
        (["--port", "1", "status"], "127.0.0.1:1"),
    ],
)
def test_errors_are_one_line_with_the_hint(qmt: Run, arguments: list[str], said: str) -> None:
    ended = qmt(*arguments)
    assert ended.returncode == 1
    assert ended.stdout == b""
    line = ended.stderr.decode()
    assert line.count("\n") == 1
    assert line.startswith("qmt: ")
    assert said in line


def test_an_absent_code_is_an_error_and_one_among_many_a_warning(
    qmt: Run, make_worker: MakeWorker
) -> None:
    def first_only(params: dict[str, Any]) -> Any:
        rows = {code: LABELS for code in params["codes"] if code == CODE}
        return table("1d", rows)

    with make_worker(history=first_only) as worker:
        worker.meta["absent"] = {"600518.SH": "not listed in the range"}
        alone = qmt("history", "600518.SH")
        among = qmt("history", CODE, "600518.SH", "-f", "csv")
    assert alone.returncode == 1
    assert "qmt: 600518.SH: not listed in the range." in alone.stderr.decode()
    assert among.returncode == 0
    assert "600518.SH" in among.stderr.decode()
    assert "600518.SH" not in among.stdout.decode()
