"""The ``qmt`` command, as a process: output that pipes, errors in one line, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
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
    assert rows[0]["time"] == "2026-01-05 00:00:00+08:00"
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
    assert first["code"] == CODE
    assert CODE in shown.stdout.decode()


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
