"""The `qmt-simulator` process: how it starts, refuses to start, and ends."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from xtdata_scripts import ScriptedTerminal

from qmt_simulator.control import Control, ControlError
from qmt_simulator.process import TerminalProcess


def test_ready_line_and_status(terminal: ScriptedTerminal) -> None:
    assert terminal.ready["ready"] is True
    assert terminal.ready["simulated"] is True
    assert terminal.ready["control_port"] == terminal.port
    with Control(terminal.port) as control:
        status = control.status()
    assert status["pid"] == terminal.ready["pid"] == control.pid
    assert status["instruments"] >= 5400
    assert status["clients"] == []


def test_closed_stdin_ends_it_in_good_order(
    start_terminal: Callable[..., ScriptedTerminal],
) -> None:
    terminal = start_terminal()
    assert terminal.process.stdin is not None
    terminal.process.stdin.close()
    assert terminal.process.wait(60) == 0
    with pytest.raises(ControlError, match="no terminal at"):
        Control(terminal.port)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--interval-ms", "7000"], "--interval-ms must divide 60000"),
        (["--clock", "fixed"], "--clock fixed needs --start"),
        (["--start", "yesterday"], "does not match format"),
        (["--profile", "gold"], "invalid choice"),
    ],
)
def test_wrong_flags_are_explained(flags: list[str], text: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qmt_simulator", *flags], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert text in done.stderr


def test_a_taken_port_is_explained(terminal: ScriptedTerminal) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qmt_simulator", "--port", str(terminal.port)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("qmt-simulator: ")
    assert "Traceback" not in done.stderr


def test_starting_one_that_cannot_start_raises() -> None:
    with pytest.raises(RuntimeError, match="ended at once"):
        TerminalProcess("--interval-ms", "7", stderr=subprocess.DEVNULL)


def test_the_native_stub_needs_neither_numpy_nor_the_market() -> None:
    script = (
        "import sys; from qmt_simulator import native; native.rpc_init('x');"
        "print(sorted({'numpy', 'pandas', 'qmt_simulator.market'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"
