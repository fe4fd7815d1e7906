"""The console: whoever supervises does not wait for it, and no text is too much for it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from qmt_windows.console import Console, awake, say, without_quick_edit


class Frozen:
    """A console in which somebody selects text: writing does not return."""

    def __init__(self) -> None:
        self.thawed = threading.Event()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.thawed.wait(60)
        self.written.append(text)
        return len(text)

    def flush(self) -> None:
        pass


def test_a_frozen_console_freezes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = Frozen()
    monkeypatch.setattr("sys.stdout", frozen)
    console = Console()
    for number in range(5000):
        console.say(f"line {number}")
    console.close(0.1)
    assert frozen.written == []
    frozen.thawed.set()
    console.close(60)
    assert frozen.written[0] == "line 0\n"
    assert 1000 <= len(frozen.written) <= 1002


def test_what_waits_is_written_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for number in range(100):
        console.say(f"第 {number} 行")
    console.close()
    assert capsys.readouterr().out.splitlines() == [f"第 {number} 行" for number in range(100)]


def test_without_any_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    say("nobody hears it")
    with open(os.devnull, "w", encoding="utf-8") as closed:
        monkeypatch.setattr("sys.stdout", closed)
    say("it was closed")


@pytest.mark.parametrize("encoding", ["cp936", "cp1252"])
def test_help_on_a_legacy_code_page(encoding: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "qmt_windows", "status"],
        capture_output=True,
        timeout=120,
        check=False,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("QMT_")},
            "QMT_HOME": os.devnull + "/用户",
            "QMT_STREAMS_URL": "redis://127.0.0.1:1/0",
            "PYTHONIOENCODING": encoding,
            "PYTHONUTF8": "0",
        },
    )
    assert told.returncode == 1
    assert b"is not running" in told.stdout
    assert b"does not answer" in told.stdout
    if encoding == "cp936":
        assert "未运行" in told.stdout.decode("cp936")
    assert b"Traceback" not in told.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signals_ask_for_the_end() -> None:
    code = (
        "import os, signal, sys, threading\n"
        "from qmt_windows.console import on_stop\n"
        "asked = threading.Event()\n"
        "on_stop(asked.set, threading.Event())\n"
        "for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):\n"
        "    asked.clear()\n"
        "    os.kill(os.getpid(), getattr(signal, name))\n"
        "    asked.wait(5) or sys.exit(1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_elsewhere_there_is_nothing_to_do() -> None:
    with without_quick_edit(), awake():
        pass
