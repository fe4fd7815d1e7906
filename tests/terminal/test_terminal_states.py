"""The terminal's state: decided from evidence, and each piece of evidence against real things."""

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from terminal_rig import open_terminal
from waiting import wait_for

from qmt_protocol.errors import (
    QMTError,
    TerminalNotConnected,
    TerminalRefused,
    TerminalUnsupported,
)
from qmt_protocol.settings import TerminalSettings
from qmt_simulator.process import TerminalProcess
from qmt_terminal import Terminal
from qmt_terminal.programs import TerminalPrograms
from qmt_terminal.quotes import QuoteServers
from qmt_terminal.states import AWAY, Evidence, decide


@pytest.mark.parametrize(
    ("evidence", "state"),
    [
        (Evidence(connected=False), "not_running"),
        (Evidence(connected=False, programs=("XtMiniQmt.exe",)), "waiting_for_login"),
        (Evidence(connected=False, quote_server_up=False, deaf="silent"), "not_running"),
        (Evidence(connected=True), "ok"),
        (Evidence(connected=True, quote_server_up=True), "ok"),
        (Evidence(connected=True, quote_server_up=False), "quote_server_down"),
        (Evidence(connected=True, quote_server_up=False, deaf="silent"), "quote_server_down"),
        (Evidence(connected=True, quote_server_up=False, pushes_come=True), "ok"),
        (Evidence(connected=True, quote_server_up=True, deaf="silent"), "deaf"),
        (Evidence(connected=True, deaf="silent"), "deaf"),
    ],
)
def test_the_state_follows_from_the_evidence(evidence: Evidence, state: str) -> None:
    decided, reason = decide(evidence)
    assert decided == state
    assert bool(reason) is (state != "ok")
    assert (decided in AWAY) is not evidence.connected


def test_reasons_name_what_was_looked_for_and_what_was_said() -> None:
    away = Evidence(connected=False, why_not="nobody there", sought="XtMiniQmt.exe in D:\\QMT")
    assert "no XtMiniQmt.exe in D:\\QMT (nobody there)" in decide(away)[1]
    waiting = Evidence(connected=False, why_not="nobody there", programs=("XtMiniQmt.exe",))
    assert "XtMiniQmt.exe runs" in decide(waiting)[1]
    assert "nobody there" in decide(waiting)[1]


# -- programs -----------------------------------------------------------------------------------


def programs(path: Path | None = None, *names: str) -> TerminalPrograms:
    found = names or ("XtQmtTest.exe", "qmt_terminal_test")
    return TerminalPrograms(TerminalSettings(terminal_programs=list(found), terminal_path=path))


@contextmanager
def running(*command: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE)
    with process:
        yield process
        process.kill()


def wait_until_found(sought: TerminalPrograms, found: tuple[str, ...]) -> None:
    wait_for(lambda: sought.running(fresh=True) == found, f"these are found: {found}")


@pytest.mark.skipif(sys.platform == "win32", reason="a program of Linux stands in for a terminal's")
def test_a_program_counts_by_its_name_and_its_folder(tmp_path: Path) -> None:
    place = tmp_path / "国金QMT" / "bin.x64"
    place.mkdir(parents=True)
    shutil.copy(Path("/bin/sleep").resolve(), place / "XtQmtTest.exe")
    anywhere = programs()
    assert anywhere.running() == ()
    with running(str(place / "XtQmtTest.exe"), "60") as process:
        wait_until_found(anywhere, ("XtQmtTest.exe",))
        assert programs(place.parent).running() == ("XtQmtTest.exe",)
        assert programs(None, "xtqmttest.EXE").running() == ("XtQmtTest.exe",)
        assert programs(tmp_path / "华泰QMT").running() == ()
        process.kill()
        wait_until_found(anywhere, ())  # its entry is still there: nobody has waited for it
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE


def test_a_module_counts_by_its_name_and_the_folder_it_was_told(tmp_path: Path) -> None:
    (tmp_path / "qmt_terminal_test.py").write_text("import time\ntime.sleep(60)\n")
    command = (sys.executable, "-S", "-E", "-m", "qmt_terminal_test", "--app-dir")
    here, elsewhere = programs(tmp_path / "QMT"), programs(tmp_path / "other")
    with running(*command, str(tmp_path / "QMT" / "bin.x64"), cwd=tmp_path):
        wait_until_found(programs(), ("qmt_terminal_test",))
        assert here.running() == ("qmt_terminal_test",)
        assert elsewhere.running() == ()
    assert here.running() == ("qmt_terminal_test",), "not looked for again so soon"


# -- the quote server ---------------------------------------------------------------------------


def test_the_terminal_tells_of_its_quote_server(
    terminal: Terminal, simulated: TerminalProcess
) -> None:
    assert terminal.quote_server_up() is True
    terminal.watch_quote_server()
    assert terminal.quote_server_up() is True
    for fault, up in ((True, False), (False, True)):
        if fault:
            simulated.control.set_fault("quote_server_down")
        else:
            simulated.control.clear_fault("quote_server_down")
        wait_for(lambda: terminal.quote_server_up() is up, "it is told")  # noqa: B023


class Asked:
    """What a terminal answers; counts how often it is asked."""

    def __init__(self, answer: dict[str, str] | QMTError) -> None:
        self.answer = answer
        self.count = 0

    def __call__(self) -> dict[str, str]:
        self.count += 1
        if isinstance(self.answer, QMTError):
            raise self.answer
        return self.answer


def test_quote_servers_are_asked_for_when_one_changed() -> None:
    quotes, asked = QuoteServers(), Asked({"0_SH_L1": "1.2.3.4:5"})
    quotes.watched = True
    assert [quotes.up(asked) for _ in range(3)] == [True] * 3
    assert asked.count == 1
    quotes.on_status({"address": "5.6.7.8:9", "status": "disconnected"})
    assert quotes.up(asked) is True, "another one is still there"
    asked.answer = {"0_SH_L1": ":"}
    assert quotes.up(asked) is True
    quotes.on_status({"address": "1.2.3.4:5", "status": "disconnected"})
    assert quotes.up(asked) is False
    assert asked.count == 3


@pytest.mark.parametrize("error", [TerminalUnsupported("too old"), TerminalRefused("not now")])
def test_where_it_cannot_be_asked_its_changes_count(error: QMTError) -> None:
    quotes, asked = QuoteServers(), Asked(error)
    assert quotes.up(asked) is None
    for address, status, up in (
        ("a", "connected", True),
        ("b", "connected", True),
        ("a", "disconnected", True),
        ("b", "disconnected", False),
        ("c", "connected", True),
    ):
        quotes.on_status({"address": address, "status": status})
        assert quotes.up(asked) is up
    assert asked.count == (1 if isinstance(error, TerminalUnsupported) else 6)


# -- a terminal that is away --------------------------------------------------------------------


def test_a_night_of_failed_connections_leaves_nothing_behind(
    china_time: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        door = open_terminal(taken.getsockname()[1])
    me = psutil.Process()

    def left() -> tuple[int, int]:
        return me.num_threads(), me.num_fds() if hasattr(me, "num_fds") else 0

    def fail(times: int) -> set[str]:
        reasons: set[str] = set()
        for _ in range(times):
            with pytest.raises(TerminalNotConnected) as caught:
                door.connect()
            reasons.add(str(caught.value.reason))
        return reasons

    first = fail(1)
    assert "无法连接xtquant服务" in first.pop(), "its own words, once"
    before = left()
    (later,) = fail(500)
    assert "nothing listens" in later
    threads, files = left()
    # Less is no leak: a thread of an earlier test may have ended meanwhile.
    assert threads <= before[0]
    assert files <= before[1]
    assert capfd.readouterr() == ("", "")


def test_a_refused_login_leaves_nothing_behind(
    terminal: Terminal, simulated: TerminalProcess
) -> None:
    simulated.control.set_fault("not_logged_in")
    wait_for(lambda: not terminal.connected, "the connection is seen to be dead")

    def native() -> set[Any]:
        return {one for one in threading.enumerate() if one.name.startswith("native-")}

    for _ in range(30):
        with pytest.raises(TerminalNotConnected):
            terminal.connect()
    wait_for(lambda: not native(), "the native threads have ended")
    simulated.control.clear_fault()
    assert terminal.connect().simulated
