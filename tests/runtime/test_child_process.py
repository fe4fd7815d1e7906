"""Real processes: asked, killed, cleared away with what they started, ended with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import wait_for

from qmt_runtime.child_process import ChildProcess, python, stop_all

OBEDIENT = "import sys; print('up', flush=True); sys.stdin.read(); raise SystemExit(7)"
DEAF = "import signal, time; print('up', flush=True); signal.pause()"
PARENT = (
    "import subprocess, sys; "
    "one = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']); "
    "print(one.pid, flush=True); sys.stdin.read()"
)


def started(code: str) -> tuple[ChildProcess, str]:
    """Start a process, and return it with the first line that it says."""
    command, extra = python("-c", code)
    child = ChildProcess(
        command, environment={**os.environ, **extra}, output=subprocess.PIPE, own_console=True
    )
    return child, child.output.readline().decode().strip()


@pytest.fixture
def children() -> Iterator[list[ChildProcess]]:
    made: list[ChildProcess] = []
    yield made
    stop_all(made, 0.0)
    for child in made:
        child.output.close()


def test_it_is_asked_first_and_killed_where_it_does_not_hear(
    children: list[ChildProcess],
) -> None:
    children += [started(OBEDIENT)[0], started(DEAF)[0]]
    assert [child.exit_code() for child in children] == [None, None]
    assert stop_all(children[:1], 60.0) == []
    assert stop_all(children[1:], 0.1) == []
    assert [child.exit_code() for child in children] == [7, -signal.SIGKILL]
    assert children[0].age_s > 0
    assert stop_all(children, 0.1) == []  # once more is no harm


def test_what_does_not_watch_its_input_is_terminated(children: list[ChildProcess]) -> None:
    children.append(started(DEAF)[0])
    stop_all(children, 60.0, terminate=True)
    assert children[0].exit_code() == -signal.SIGTERM


def test_what_it_started_ends_with_it(children: list[ChildProcess]) -> None:
    child, grandchild = started(PARENT)
    children.append(child)
    child.kill()
    assert child.clear_away()
    wait_for(lambda: not _runs(int(grandchild)), "the grandchild ends")


def test_it_ends_with_us_however_we_end(tmp_path: Path) -> None:
    ours = (
        "import os, sys; from qmt_runtime.child_process import ChildProcess, python; "
        f"child = ChildProcess(python('-c', {OBEDIENT!r})[0], cwd={str(tmp_path)!r}); "
        "print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    said = subprocess.run(
        [sys.executable, "-c", ours], stdout=subprocess.PIPE, check=False, timeout=60
    ).stdout
    pid = next(int(line) for line in said.split() if line.isdigit())
    wait_for(lambda: not _runs(pid), "the child ends")


def test_what_cannot_be_started_says_so() -> None:
    with pytest.raises(OSError, match="no-such-program"):
        ChildProcess(["/no-such-program"])


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
