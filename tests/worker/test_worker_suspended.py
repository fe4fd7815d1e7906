"""Suspended days: known to every process once they were downloaded, and never called missing."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from worker_rig import DAY_MS, FROZEN, TODAY_MS, Caller, WorkerProcess

from qmt_protocol.codes import asset_class
from qmt_protocol.times import day_of
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer
from qmt_worker.suspensions import Suspensions

Run = tuple[str, int, int]
"""Code, first and last ms of a run of suspended days."""


@pytest.fixture(scope="module")
def terminal() -> Iterator[TerminalProcess]:
    started = TerminalProcess(*FROZEN, "--profile", "research")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def suspended(terminal: TerminalProcess) -> list[Run]:
    """Runs of two days or more between days with trades, each of another code."""
    runs: list[Run] = []
    for code in terminal.oracle.codes():
        if asset_class(code) != "stock":
            continue
        bars = terminal.oracle.bars(code, "1d", TODAY_MS - 600 * DAY_MS)
        still = bars["suspendFlag"] == 1
        edges = np.flatnonzero(np.diff(still.astype(int)))
        for start, end in itertools.pairwise(edges):
            if still[start + 1] and end - start >= 2:
                runs.append((code, int(bars["time"][start + 1]), int(bars["time"][end])))
                break
        if len(runs) == 4:
            return runs
    raise AssertionError("the market has too few suspensions")


@pytest.fixture(scope="module")
def start(
    terminal: TerminalProcess,
    worker_streams: RedisServer,
    worker_jobs: RedisServer,
    caller: Caller,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], None]]:
    """Start the worker, in place of the one before: a process for queries, one for downloads."""
    file = tmp_path_factory.mktemp("suspended") / "suspensions.sqlite"
    running: list[WorkerProcess] = []

    def stop() -> None:
        for one in running:
            one.stop()
        running.clear()

    def again() -> None:
        stop()
        caller.jobs.flushall()
        caller.streams.flushall()
        running.append(
            WorkerProcess(
                terminal.port,
                worker_streams.url,
                worker_jobs.url,
                QMT_SUSPENSIONS_FILE=str(file),
            )
        )
        caller.wait_for_terminal("ok")

    yield again
    stop()


@pytest.fixture(scope="module")
def worker(start: Callable[[], None]) -> None:
    start()


def reads(caller: Caller, code: str, first_ms: int, last_ms: int, **options: Any) -> Any:
    return caller.ask("history", codes=[code], start_ms=first_ms, end_ms=last_ms, **options)


def test_what_one_process_downloaded_another_reads(
    worker: None, caller: Caller, suspended: list[Run], terminal: TerminalProcess
) -> None:
    """Downloads and queries have a process each, and its own connection to the terminal."""
    code, first_ms, last_ms = suspended[0]
    before_ms, after_ms = first_ms - 10 * DAY_MS, last_ms + 10 * DAY_MS
    caller.ask("download", codes=[code], period="1d", start_ms=before_ms, end_ms=after_ms)
    got = reads(caller, code, before_ms, after_ms, period="1d", download="never").frame(code)
    truth = terminal.oracle.bars(code, "1d", before_ms)
    inside = truth["time"] <= after_ms
    assert got["suspendFlag"].tolist() == truth["suspendFlag"][inside].tolist()
    assert (got["suspendFlag"] == 1).sum() >= 2
    np.testing.assert_array_equal(got["close"], truth["close"][inside])


def test_a_range_that_begins_suspended(worker: None, caller: Caller, suspended: list[Run]) -> None:
    code, first_ms, last_ms = suspended[1]
    caller.ask("download", codes=[code], period="1d", start_ms=first_ms, end_ms=last_ms)
    got = reads(caller, code, first_ms, last_ms, period="1d", download="never").frame(code)
    assert len(got) >= 2
    assert (got["suspendFlag"] == 1).all()


@pytest.mark.parametrize("period", ["1m", "tick"])
def test_a_download_of_a_suspended_stretch_says_so(
    worker: None, caller: Caller, suspended: list[Run], period: str
) -> None:
    code, first_ms, last_ms = suspended[2]
    answer = caller.ask("download", codes=[code], period=period, start_ms=first_ms, end_ms=last_ms)
    assert answer.state == "done", answer.progress[-1]
    assert answer.manifest["meta"]["absent"][code].startswith("suspended on all ")
    asked = reads(caller, code, first_ms, last_ms, period=period)
    assert asked.manifest["meta"]["absent"][code].startswith("suspended on all ")
    assert (
        reads(caller, code, first_ms, last_ms, period=period, download="never")
        .manifest["meta"]["absent"][code]
        .startswith("suspended on all ")
    )


def test_days_that_were_never_downloaded_are_still_missing(
    worker: None, caller: Caller, suspended: list[Run], terminal: TerminalProcess
) -> None:
    """What a terminal makes up for them looks like suspended days, and is not taken for any."""
    code = next(
        code
        for code in terminal.oracle.codes()
        if asset_class(code) == "stock"
        and code not in {one[0] for one in suspended}
        and len(terminal.oracle.bars(code, "1d", TODAY_MS - 300 * DAY_MS)["time"]) > 150
    )
    times = terminal.oracle.bars(code, "1d", TODAY_MS - 300 * DAY_MS)["time"]
    middle, end = int(times[60]), int(times[100])
    caller.ask("download", codes=[code], period="1d", start_ms=middle, end_ms=end)
    never = reads(caller, code, int(times[20]), end, period="1d", download="never")
    assert never.error["error"] == "history-missing"
    assert never.error["data"]["ranges"][code][0] == day_of(int(times[20]))


def test_history_alone_finds_it_out_and_a_new_worker_knows(
    worker: None, start: Callable[[], None], caller: Caller, suspended: list[Run]
) -> None:
    code, first_ms, last_ms = suspended[3]
    found = reads(caller, code, first_ms, last_ms, period="5m")
    assert found.manifest["meta"]["absent"][code].startswith("suspended on all ")
    start()
    never = reads(caller, code, first_ms, last_ms, period="5m", download="never")
    assert never.manifest["meta"]["absent"][code].startswith("suspended on all ")


def test_a_file_that_is_none_is_told_and_does_not_end_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        "qmt_worker.suspensions._log",
        SimpleNamespace(warning=lambda event, **facts: told.append(f"{event}: {facts['path']}")),
    )
    broken = tmp_path / "suspensions.sqlite"
    broken.write_bytes(b"not a database, but long enough to be read as the head of one" * 20)
    known = Suspensions(broken)
    assert told == [f"the file of suspended days cannot be used: {broken}"]
    known.add("t", "600000.SH", [(5, 6)])
    assert 6 in known.of("t", "600000.SH")
    assert 7 not in known.of("t", "600000.SH")


def test_two_hold_one_file_and_keep_terminals_apart(tmp_path: Path) -> None:
    file = tmp_path / "suspensions.sqlite"
    one, two = Suspensions(file), Suspensions(file)
    one.add("a", "600000.SH", [(10, 12), (20, 20)])
    assert [day in two.of("a", "600000.SH") for day in (10, 12, 13, 20)] == [
        True,
        True,
        False,
        True,
    ]
    assert 10 not in two.of("b", "600000.SH")
    one.add("a", "600000.SH", [(30, 31)])
    assert 30 not in two.of("a", "600000.SH")  # read once a job
    two.look_again()
    assert 30 in two.of("a", "600000.SH")
    rows = sqlite3.connect(file).execute("SELECT count(*) FROM suspended").fetchone()
    assert rows == (3,)
