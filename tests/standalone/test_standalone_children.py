"""Children and the reaper, with small processes in place of the parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from standalone_runs import gone
from waiting import wait_for

from qmt_standalone.child import Child
from qmt_standalone.reaper import Reaper

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(600)"
)
PARENT = (
    "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; "
    "time.sleep(600)']); print(p.pid, flush=True); time.sleep(600)"
)


def make(tmp_path: Path, code: str, reaper: Reaper | None = None) -> Child:
    child = Child("one", log=tmp_path / "one.log", cwd=tmp_path, reaper=reaper)
    child.start([sys.executable, "-c", code], os.environ)
    return child


def test_a_stubborn_child_is_killed_at_the_deadline(tmp_path: Path) -> None:
    child = make(tmp_path, STUBBORN)
    wait_for(lambda: "up" in child.new_log(), "the child")
    pid = child.pid
    assert pid is not None
    child.stop(0.3)
    assert gone(pid)
    assert child.pid is None


def test_stopping_reaches_what_the_child_started(tmp_path: Path) -> None:
    child = make(tmp_path, PARENT)
    grandchild = int(wait_for(child.new_log, "the grandchild"))
    child.stop(5)
    wait_for(lambda: gone(grandchild), "the grandchild's end")


def test_the_log_since_the_start_and_its_limit(tmp_path: Path) -> None:
    code = "import sys; print('x' * 50 + 'first' if len(sys.argv) < 2 else 'second')"
    child = make(tmp_path, code)
    wait_for(lambda: child.exit_code() is not None, "the end")
    child.bury()
    child.start([sys.executable, "-c", code, "again"], os.environ)
    wait_for(lambda: child.exit_code() is not None, "the end")
    assert child.new_log().split() == ["second"]
    child.bury()

    child.limit_log(limit_bytes=1000)
    assert (tmp_path / "one.log").stat().st_size > 0
    child.limit_log(limit_bytes=10)
    assert (tmp_path / "one.log").stat().st_size == 0
    assert "first" in (tmp_path / "one.old.log").read_text("utf-8")


def test_a_child_goes_on_writing_after_its_log_was_cut(tmp_path: Path) -> None:
    child = make(tmp_path, "import time\nwhile True: print('line', flush=True); time.sleep(0.02)")
    wait_for(lambda: len(child.new_log()) > 50, "a log")
    child.limit_log(limit_bytes=10)
    wait_for(lambda: "line" in child.new_log(), "new lines")
    assert b"\0" not in (tmp_path / "one.log").read_bytes()
    child.stop(5)


def test_the_reaper_ends_what_a_killed_supervisor_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    script = f"""
import os, sys, time
from pathlib import Path
from qmt_standalone.child import Child
from qmt_standalone.reaper import Reaper
reaper = Reaper(Path({str(folder)!r}))
for name, code in (("stubborn", {STUBBORN!r}), ("parent", {PARENT!r})):
    child = Child(name, log=Path({str(tmp_path)!r}) / (name + ".log"), cwd=Path("/"), reaper=reaper)
    child.start([sys.executable, "-c", code], os.environ)
    print(child.pid, flush=True)
time.sleep(600)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    pids = [int(supervisor.stdout.readline()) for _ in range(2)]
    wait_for(lambda: "up" in (tmp_path / "stubborn.log").read_text("utf-8"), "stubborn")
    pids.append(int(wait_for(lambda: (tmp_path / "parent.log").read_text("utf-8"), "parent")))
    supervisor.kill()
    supervisor.wait(60)
    supervisor.stdout.close()
    for pid in pids:
        wait_for(lambda pid=pid: gone(pid), f"the end of {pid}")
    wait_for(lambda: not folder.exists(), "the folder's removal")


def test_the_reaper_spares_what_ended_in_order() -> None:
    """A group that was stopped is forgotten: its number may be another's by now."""
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qmt_standalone.reaper"],
            input=f"+{bystander.pid}\n-{bystander.pid}\n".encode(),
            timeout=120,
            check=False,
        )
        assert done.returncode == 0
        assert bystander.poll() is None
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait(60)
