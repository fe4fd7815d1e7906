"""`qmt-windows` on Windows CPython: joins, starts the roles, brings them back, ends them all."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for
from wine_environment import WinePython, windows_path
from wine_rig import Bridge, WineProcess, kill_process

from qmt_client import QMTClient

OLD_CONSOLE = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp936"}


@pytest.fixture(scope="module")
def box(windows: WinePython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """Redis and a terminal; `qmt-windows` has joined and is started by the first test."""
    with Bridge(windows, tmp_path_factory.mktemp("box")) as bridge:
        yield bridge


def home(box: Bridge) -> Path:
    return box.folder / "用户 一" / "qmt-bridge"


def settings(box: Bridge) -> dict[str, str]:
    """What is set beside what `join` wrote."""
    return {
        "QMT_HOME": windows_path(home(box)),
        "QMT_TERMINAL_PORT": str(box.terminal.port),
        "QMT_NATIVE_MODULE": "qmt_simulator.native",
        "QMT_LOG_LEVEL": "info",
        **OLD_CONSOLE,
    }


def beat(box: Bridge) -> dict[str, Any]:
    """Return the supervisor's heartbeat."""
    return next((one for one in box.beats() if one["role"] == "windows"), {})


def children(box: Bridge) -> dict[str, Any]:
    return dict(beat(box).get("figures", {}).get("children", {}))


def test_it_joins_by_one_line(box: Bridge) -> None:
    document = {
        "v": 1,
        "streams": box.servers["streams"].url,
        "worker_streams": box.servers["streams"].url,
        "jobs": box.servers["jobs"].url,
        "prefix": "qmt",
    }
    text = base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")
    code, out, err = box.python.run("-m", "qmt_windows", "join", f"qmt1.{text}", env=settings(box))
    assert code == 0, (out, err)
    assert box.servers["streams"].url in (home(box) / "qmt.toml").read_text("utf-8")
    assert box.servers["streams"].password.encode() not in out + err


def test_it_starts_everything(box: Bridge) -> None:
    box.roles["windows"] = windows = _start(box)
    wait_for(
        lambda: sorted(box.roles_well()).count("worker") == 2 and "producer" in box.roles_well(),
        "producer and worker are well",
    )
    wait_for(lambda: set(children(box)) != set(), "the supervisor tells of its children")
    assert windows.alive
    box.wait_flowing()
    with QMTClient(**box.target) as client:
        assert len(client.history("600519.SH", count=5)) == 5
    assert box.servers["streams"].password not in windows.output


def _start(box: Bridge) -> WineProcess:
    return WineProcess(box.python, "-m", "qmt_windows", "run", "--exit-with-stdin", **settings(box))


def test_a_second_one_is_refused(box: Bridge) -> None:
    code, out, err = box.python.run("-m", "qmt_windows", "run", env=settings(box))
    assert code == 2, (out, err)
    assert b"Traceback" not in out + err


def test_a_killed_producer_comes_back(box: Bridge) -> None:
    before = children(box)["producer"]
    kill_process(box.python, "-m", "qmt_producer")
    wait_for(lambda: children(box)["producer"]["restarts"] > before["restarts"], "it is back")
    wait_for(lambda: "producer" in box.roles_well(), "it is well")
    box.wait_flowing()
    assert beat(box)["figures"]["children"]["producer"]["state"] == "running"


@pytest.mark.timeout(600)
def test_inside_windows(box: Bridge, capsys: pytest.CaptureFixture[str]) -> None:
    count = box.run_inside()
    with capsys.disabled():
        print(f"\ninside: {count} passed")


def test_doctor_and_status_tell_on_an_old_code_page(box: Bridge) -> None:
    for command in ("status", "doctor"):
        code, out, err = box.python.run(
            "-m", "qmt_windows", command, env=settings(box), timeout_s=180
        )
        assert code in (0, 1), (command, out, err)
        assert b"Traceback" not in out + err, (out + err).decode("gbk", "replace")
        assert len(out.decode("gbk").splitlines()) > 3, out


def test_every_tick_came_once(box: Bridge) -> None:
    box.quiet()
    verdict = box.account()
    assert verdict.problems == []
    assert verdict.stored > 5_000
    assert verdict.late == 0


def test_everything_ends_with_its_input(box: Bridge) -> None:
    assert box.roles.pop("windows").stop(20) == 0
    wait_for(lambda: not box.python.running(), "all processes are gone")
    logs = {path.name: path.read_text("utf-8") for path in (home(box) / "logs").iterdir()}
    assert {"producer.log"} <= set(logs)
    assert not [name for name, text in logs.items() if box.servers["streams"].password in text]
    assert not (home(box) / "ring.sqlite-wal").exists()
