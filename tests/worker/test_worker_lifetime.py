"""Workers from start to end: lost terminals, killed processes, orderly stops."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

from still_running import still_running
from waiting import wait_for
from worker_rig import Caller, WorkerProcess, wait_for_running

CODE = "600000.SH"


def test_terminal_death_shows_and_heals(
    start_simulated: Any, start_worker: Any, caller: Caller
) -> None:
    simulated = start_simulated()
    worker: WorkerProcess = start_worker(simulated.port, "--queue", "qmt-query")
    beat = caller.wait_for_terminal("ok")
    assert beat["simulated"] is True
    assert beat["queues"] == ["qmt-query"]
    assert beat["terminal"]["edition"] == "research"
    assert beat["terminal"]["clock"]["speed"] == 1
    assert {"address", "path", "broker", "xtquant_version", "xtquant_path"} <= {*beat["terminal"]}
    simulated.control.set_fault("quote_server_down")
    caller.wait_for_terminal("quote_server_down")
    error = caller.ask("history", codes=[CODE], period="1d", count=5).error
    assert (error["error"], error["data"]["state"]) == (
        "terminal-not-connected",
        "quote_server_down",
    )
    assert "行情服务器未连接" in error["message"]
    assert caller.ask("sector_stocks", sector="上证50").state == "done", "it can still be asked"
    simulated.control.clear_fault("quote_server_down")
    caller.wait_for_terminal("ok")
    simulated.stop()
    lost = caller.wait_for_terminal("not_running")
    assert lost["terminal"]["reason"]
    assert lost["terminal"]["since_ms"] > 0
    error = caller.ask("full_tick", codes=[CODE]).error
    assert error["error"] == "terminal-not-connected"
    assert error["data"]["state"] == "not_running"
    start_simulated(port=simulated.port)
    caller.wait_for_terminal("ok")
    assert caller.ask("history", codes=[CODE], period="1d", count=5).manifest["rows"] == 5
    assert worker.process.poll() is None


def test_a_cancelled_job_does_not_look_like_a_lost_terminal(
    start_simulated: Any, start_worker: Any, caller: Caller
) -> None:
    simulated = start_simulated()
    start_worker(simulated.port, "--queue", "qmt-query")
    simulated.control.set_fault("stuck_download")
    job_id = caller.enqueue("history", codes=[CODE], period="1d", count=5)
    wait_for_running(caller, job_id)
    caller.jobs.set(caller.keys.cancel(job_id), "1", ex=60)
    seen: set[str] = set()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        seen |= {beat["terminal"]["state"] for beat in caller.heartbeats()}
        time.sleep(0.02)
    assert caller.wait(job_id).error["data"]["reason"] == "cancelled"
    assert not {"not_running", "waiting_for_login"} & seen
    assert caller.ask("full_tick", codes=[CODE]).state == "done"


# -- both queues, and the end -------------------------------------------------------------------


def test_downloads_are_verified_and_do_not_delay_reads(
    start_simulated: Any, start_worker: Any, caller: Caller
) -> None:
    simulated = start_simulated()
    start_worker(simulated.port)
    wait_for(
        lambda: (
            {queue for beat in caller.heartbeats() for queue in beat["queues"]}
            == {"qmt-query", "qmt-download"}
        ),
        "both queues are served",
    )
    codes = [code for code in simulated.oracle.codes() if code.startswith("6011")][:60]
    job_id = caller.enqueue("download", codes=codes, period="1d", start_ms=1_780_000_000_000)
    wait_for_running(caller, job_id)
    assert caller.ask("sector_stocks", sector="上证50").state == "done"
    assert not any(one["state"] == "done" for one in caller.entries(job_id))
    answer = caller.wait(job_id)
    for code in codes:
        told = answer.manifest["document"][code]
        truth = simulated.oracle.bars(code, "1d", 1_780_000_000_000 - 86_400_000)["time"]
        assert told["rows"] == sum(truth >= 1_780_000_000_000 - 86_400_000 * 1), code
        assert told["rows"] == told["expected_days"]
    assert answer.progress[-2]["finished"] == len(codes)


def test_sigterm_stops_all_of_it_in_time_also_during_a_job(
    start_simulated: Any, start_worker: Any, caller: Caller
) -> None:
    simulated = start_simulated()
    worker: WorkerProcess = start_worker(simulated.port)
    simulated.control.set_fault("stuck_download")
    job_id = caller.enqueue("history", codes=[CODE], period="1d", count=100)
    wait_for_running(caller, job_id)
    below = worker.children()
    assert len(below) >= 4
    assert worker.stop() < 30
    assert worker.process.returncode == 0
    assert still_running(below) == []
    assert caller.wait(job_id).error["data"]["reason"] == "worker stopping"


def test_kill_leaves_nothing_behind(
    start_simulated: Any, start_worker: Any, caller: Caller
) -> None:
    simulated = start_simulated()
    worker: WorkerProcess = start_worker(simulated.port)
    simulated.control.set_fault("stuck_download")
    wait_for_running(caller, caller.enqueue("history", codes=[CODE], period="1d", count=100))
    below = worker.children()
    worker.process.kill()
    worker.process.wait(60)
    assert still_running(below) == []


def test_the_end_of_stdin_ends_the_worker(
    start_simulated: Any, start_worker: Any, caller: Caller
) -> None:
    simulated = start_simulated()
    worker: WorkerProcess = start_worker(simulated.port, "--exit-with-stdin")
    below = worker.children()
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(60) == 0
    assert still_running(below) == []


def test_a_queue_process_that_dies_is_started_again(
    start_simulated: Any, start_worker: Any, caller: Caller
) -> None:
    simulated = start_simulated()
    start_worker(simulated.port)
    beats = caller.heartbeats()
    victim = next(beat["pid"] for beat in beats if beat["queues"] == ["qmt-query"])
    os.kill(victim, signal.SIGKILL)
    # Given to the dying process as like as not: it must not get lost there.
    assert caller.ask("sector_stocks", sector="上证50").state == "done"
    again = {beat["pid"] for beat in caller.heartbeats() if beat["queues"] == ["qmt-query"]}
    assert again - {victim}


def test_a_job_of_a_killed_queue_process_fails_when_it_is_back(
    start_simulated: Any, start_worker: Any, caller: Caller
) -> None:
    simulated = start_simulated()
    start_worker(simulated.port)
    simulated.control.set_fault("stuck_download")
    job_id = caller.enqueue("history", codes=[CODE], period="1d", count=100)
    wait_for_running(caller, job_id)
    beats = caller.heartbeats()
    os.kill(next(one["pid"] for one in beats if one["queues"] == ["qmt-query"]), signal.SIGKILL)
    assert caller.wait(job_id).error["data"]["reason"] == "worker died"
    simulated.control.clear_fault()
    assert caller.ask("history", codes=[CODE], period="1d", count=100).state == "done"


def run_worker(**environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "qmt_worker"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def test_it_refuses_another_time_zone() -> None:
    done = run_worker(TZ="UTC")
    assert done.returncode == 2
    assert "not China Standard Time" in done.stderr
    assert "TZ=Asia/Shanghai" in done.stderr


def test_without_a_native_module_it_says_so_and_ends(caller: Caller, worker_jobs: Any) -> None:
    done = run_worker(
        TZ="Asia/Shanghai", QMT_NATIVE_MODULE="no_such_module", QMT_JOBS_URL=worker_jobs.url
    )
    assert done.returncode == 2
    assert "no_such_module" in done.stderr
