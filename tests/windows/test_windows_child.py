"""One supervised process and its log: real processes that crash, hang, talk and rotate."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import WITHIN_S, wait_for

from qmt_windows.child import Child, Ending, exit_words, is_native_abort, stop_children
from qmt_windows.logs import LineLog, Masker

UNTIL_STDIN_ENDS = "import sys; print('up', flush=True); sys.stdin.read()"


Make = Callable[..., Child]


@pytest.fixture
def child_of(tmp_path: Path) -> Iterator[Make]:
    made: list[Child] = []

    def make(code: str, *, max_mb: float = 1.0, files: int = 3, secret: str = "") -> Child:
        path = tmp_path / "logs" / "child.log"
        log = LineLog(path, max_mb=max_mb, files=files, masker=Masker([secret]))
        made.append(Child("child", ["-c", code], cwd=str(tmp_path), log=log))
        return made[-1]

    yield make
    stop_children(made, within_s=0.5)
    for one in made:
        one.log.close()


def start(child: Child) -> None:
    child.start({**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"})


def until_it_ends(child: Child) -> Ending:
    ending: Ending = wait_for(child.look, "the child's end")
    return ending


def logged(child: Child) -> str:
    return child.log.path.read_text(encoding="utf-8")


def test_it_ends_with_its_standard_input(child_of: Make) -> None:
    child = child_of(UNTIL_STDIN_ENDS)
    start(child)
    assert child.state == "running"
    assert not child.due
    process = psutil.Process(child.pid)
    wait_for(lambda: "up" in logged(child), "its line")
    began = time.monotonic()
    stop_children([child], within_s=WITHIN_S)
    assert time.monotonic() - began < WITHIN_S, "killed, as it did not listen"
    assert not process.is_running()
    assert child.pid is None
    assert child.trouble == ""


def test_one_that_does_not_listen_is_killed_with_what_it_started(child_of: Make) -> None:
    code = (
        "import subprocess, sys, time\n"
        "one = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(one.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    child = child_of(code)
    start(child)
    below = psutil.Process(int(wait_for(lambda: logged(child).strip(), "a pid")))
    began = time.monotonic()
    stop_children([child], within_s=0.3)
    assert time.monotonic() - began < 60
    assert child.pid is None
    wait_for(lambda: not below.is_running() or below.status() == "zombie", "its child's end")


def test_backoff_grows_and_begins_anew_after_a_steady_run(
    child_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = child_of("raise SystemExit('the disk is full')")
    waits = []
    for _ in range(6):
        start(child)
        ending = until_it_ends(child)
        assert child.state == "waiting"
        assert not child.due
        waits.append(ending.again_in_s)
    assert waits == [1, 2, 5, 15, 60, 60]
    assert child.restarts == 5
    assert child.trouble == "exit 1: the disk is full"
    monkeypatch.setattr("qmt_windows.child._STEADY_S", 0.0)
    start(child)
    assert until_it_ends(child).again_in_s == 1


def test_steady_running_ends_the_trouble(
    tmp_path: Path, child_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "flag"
    code = f"import os, sys; os.path.exists({str(flag)!r}) or sys.exit(5); sys.stdin.read()"
    child = child_of(code)
    start(child)
    until_it_ends(child)
    assert child.trouble == "exit 5"
    flag.touch()
    start(child)
    child.look()
    assert child.trouble == "exit 5"
    monkeypatch.setattr("qmt_windows.child._STEADY_S", 0.0)
    child.look()
    assert child.trouble == ""
    stop_children([child])


def test_configured_wrong_is_not_started_again(child_of: Make) -> None:
    child = child_of("import sys; print('the ring is in use'); sys.exit(2)")
    start(child)
    ending = until_it_ends(child)
    assert ending.again_in_s is None
    assert "the ring is in use" in ending.reason
    assert child.state == "misconfigured"
    assert not child.due
    child.release()
    assert child.due


def test_asked_to_be_started_again_is_no_trouble_unless_it_goes_on(child_of: Make) -> None:
    child = child_of("raise SystemExit(3)")
    troubles = []
    for _ in range(4):
        start(child)
        until_it_ends(child)
        troubles.append(bool(child.trouble))
    assert troubles == [False, False, False, True]


def test_one_that_cannot_be_started_is_tried_again(
    child_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = child_of(UNTIL_STDIN_ENDS)
    with monkeypatch.context() as patched:
        patched.setattr("sys.executable", "/no/such/python")
        start(child)
    assert child.state == "waiting"
    assert child.look() is None
    assert "cannot be started" in child.trouble
    start(child)
    assert child.state == "running"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_native_abort_has_its_name(child_of: Make) -> None:
    child = child_of("import os; os.abort()")
    start(child)
    ending = until_it_ends(child)
    assert ending.code == -signal.SIGABRT
    assert "native abort" in ending.reason
    assert child.trouble_kind == "aborted"
    assert is_native_abort(0xC0000409)
    assert "0xC0000409" in exit_words(0xC0000409)
    assert "原生库中止" in exit_words(0xC0000409)
    assert exit_words(7) == "exit 7"
    assert not is_native_abort(1)


def test_the_reason_is_the_last_line_that_weighs(child_of: Make) -> None:
    code = (
        "import sys\n"
        'print(\'{"level": "error", "event": "no luck", "error": "the reason"}\')\n'
        'print(\'{"level": "info", "event": "bye"}\')\n'
        "sys.exit(4)"
    )
    child = child_of(code)
    start(child)
    assert until_it_ends(child).reason == "exit 4: no luck: the reason"


# -- logs ---------------------------------------------------------------------------------------


def test_logs_rotate_while_it_writes_and_no_line_is_lost(tmp_path: Path, child_of: Make) -> None:
    lines = 20_000
    code = (
        f"for number in range({lines}):\n"
        "    print(f'{number:06} 行情 redis://producer:pa55word@10.0.0.5:6379/0')\n"
    )
    child = child_of(code, max_mb=0.3, files=9, secret="pa55word")
    start(child)
    until_it_ends(child)
    child.log.close()
    parts = sorted(
        (tmp_path / "logs").iterdir(), key=lambda one: int("0" + one.suffix[1:4].strip("log"))
    )
    assert 4 <= len(parts) <= 10
    assert all(one.stat().st_size <= 300_000 for one in parts)
    newest_last = [parts[0], *parts[1:]][::-1]
    text = "".join(one.read_text(encoding="utf-8") for one in newest_last)
    numbers = [int(line[:6]) for line in text.splitlines()]
    assert numbers == list(range(lines))
    assert "pa55word" not in text
    assert "redis://producer:***@10.0.0.5" in text


def test_old_parts_are_let_go(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "a.log", max_mb=0.01, files=2, masker=Masker())
    for number in range(3000):
        log.write(f"line {number}")
    log.close()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]


def test_a_log_that_cannot_be_renamed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where an editor has it open."""

    def refuse(*_: Any) -> None:
        raise PermissionError(32, "used by another process")

    log = LineLog(tmp_path / "a.log", max_mb=0.0005, files=2, masker=Masker())
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        for number in range(100):
            log.write(f"line {number}")
    text = (tmp_path / "a.log").read_text(encoding="utf-8")
    assert text.splitlines() == [f"line {number}" for number in range(100)]
    log._handler._not_before_s = 0.0
    log.write("free again")
    log.close()
    assert (tmp_path / "a.log").read_text(encoding="utf-8") == "free again\n"


def test_passwords_are_masked_wherever_they_stand() -> None:
    masker = Masker(["redis://worker:p%40ss-word@h:1/0", "tok/en-1234", "abc"])
    assert masker("rediss://u:other@h") == "rediss://u:***@h"
    assert masker("AUTH p@ss-word and p%40ss-word") == "AUTH *** and ***"
    assert masker("key=tok/en-1234") == "key=***"
    assert masker("abc is too short to be one") == "abc is too short to be one"
    assert masker("redis://:only-password@h:6379") == "redis://:***@h:6379"
    assert masker("08:30 a@b, http://h/x") == "08:30 a@b, http://h/x"
