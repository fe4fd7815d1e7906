"""A daily bar that the terminal's cache took in mid-session is not passed off as the day's."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from worker_rig import Caller, WorkerProcess, assert_equals_truth

from qmt_simulator.process import TerminalProcess

CODE = "600519.SH"
CACHED = ("--speed", "0", "--real-hours", "--cache-delay-s", "0.1,1.5")


def test_yesterdays_forming_bar_is_fetched_again(
    tmp_path: Path,
    start_simulated: Callable[..., TerminalProcess],
    start_worker: Callable[..., WorkerProcess],
    caller: Caller,
) -> None:
    folder = ("--data-dir", str(tmp_path / "terminal"))
    thursday = start_simulated("--start", "2026-11-19 10:30:00", *CACHED, *folder)
    worker = start_worker(thursday.port)
    caller.wait_for_terminal("ok")
    before = caller.ask("download", codes=[CODE], period="1d", start_ms=1_793_000_000_000)
    assert before.state == "done"
    worker.stop()
    thursday.stop()

    friday = start_simulated("--start", "2026-11-20 10:30:00", *CACHED, *folder)
    start_worker(friday.port)
    caller.wait_for_terminal("ok")
    got = caller.ask("history", codes=[CODE], period="1d", count=5).frame(CODE)
    truth = pd.DataFrame(dict(friday.oracle.bars(CODE, "1d"))).tail(5)
    assert_equals_truth(got, truth, CODE)
    assert got["closed"].tolist() == [True] * 4 + [False]
