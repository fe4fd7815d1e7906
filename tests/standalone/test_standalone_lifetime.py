"""How a run begins and ends: by itself, by a signal, killed; two at once; what it cannot start."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import httpx
import pytest
from standalone_runs import Demo
from waiting import wait_for

Make = Callable[..., Demo]


def test_for_ends_by_itself_and_leaves_nothing(make_demo: Make) -> None:
    demo = make_demo("--for", "2", keep_data=False).start()
    assert demo.wait() == 0, demo.text()
    assert demo.processes() == []
    assert list(demo.temporary.iterdir()) == []
    assert "stopped" in demo.text()
    assert re.search(r"SIMULATED [\d,]+ ticks/s .* [\d,-]+ archived\n", demo.text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_starting_stops_all(make_demo: Make, number: signal.Signals) -> None:
    demo = make_demo(keep_data=False).start()
    wait_for(lambda: "jobs-redis" in demo.text(), "the second part")
    demo.signal(number)
    assert demo.wait() == 0, demo.text()
    assert demo.processes() == []


@pytest.mark.long
def test_two_runs_at_once_and_one_is_killed(make_demo: Make) -> None:
    """Both want the same port; after kill -9 of one nothing of it is left, the other goes on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = str(held.getsockname()[1])
    one = make_demo("--http-port", port, "--interval-ms", "15000").start()
    other = make_demo("--http-port", port, "--interval-ms", "15000").start()
    one.wait_until_ready()
    other.wait_until_ready()
    assert {one.run["http_url"], other.run["http_url"]} > {f"http://127.0.0.1:{port}"}
    assert one.run["streams_url"] != other.run["streams_url"]
    moved = other if other.run["http_url"] != f"http://127.0.0.1:{port}" else one
    assert f"port {port} is taken" in moved.text()

    assert len(one.processes()) >= 9
    assert all(run.run["pids"]["archive"] for run in (one, other))
    one.signal(signal.SIGKILL)
    assert one.wait() == -signal.SIGKILL
    wait_for(lambda: one.processes() == [], "an end of every process")

    answer = httpx.get(f"{other.run['http_url']}/healthz", timeout=120, trust_env=False)
    assert answer.status_code == 200
    other.signal(signal.SIGINT)
    assert other.wait() == 0
    assert other.processes() == []


def test_a_killed_run_removes_its_temporary_folder(make_demo: Make) -> None:
    demo = make_demo(keep_data=False).start()
    wait_for(lambda: "simulator" in demo.text(), "the third part")
    demo.signal(signal.SIGKILL)
    demo.wait()
    wait_for(lambda: demo.processes() == [], "an end of every process")
    wait_for(lambda: list(demo.temporary.iterdir()) == [], "an empty folder")


def test_a_part_that_cannot_start_is_named_with_its_log(make_demo: Make) -> None:
    demo = make_demo("--start", "no time at all").start()
    assert demo.wait() == 1
    assert "simulator did not start: it ended with exit code" in demo.text()
    assert re.search(r"\n  \| .*no time at all", demo.text())
    assert demo.processes() == []


def test_one_data_folder_has_one_run(make_demo: Make) -> None:
    demo = make_demo().start()
    wait_for(lambda: "streams-redis" in demo.text(), "the first part")
    second = subprocess.run(
        [sys.executable, "-m", "qmt_standalone", "--data-dir", str(demo.data_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert second.returncode == 1
    assert "Another qmt-standalone runs in" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--terminal"], "runs on Windows only"),
        (["--redis-server", "/no/such/server"], "is not a Redis or Valkey server"),
        (["--profile", "guessed"], "profile"),
        (["--for", "-1"], "for"),
    ],
)
def test_wrong_settings_are_told(make_demo: Make, arguments: list[str], message: str) -> None:
    demo = make_demo(*arguments).start()
    assert demo.wait() != 0
    assert message in demo.text()
    assert "Traceback" not in demo.text()
    assert demo.processes() == []
