"""Simulated terminals, and a process time zone as xtquant needs it."""

import os
import time
from collections.abc import Iterator

import pytest
from terminal_rig import open_terminal

from qmt_simulator.process import TerminalProcess
from qmt_terminal import Terminal


@pytest.fixture
def china_time() -> Iterator[None]:
    """Put this process on China Standard Time."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Shanghai"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.fixture
def simulated(simulated_midsession: TerminalProcess) -> Iterator[TerminalProcess]:
    """The module's terminal without faults."""
    yield simulated_midsession
    simulated_midsession.control.clear_fault()


@pytest.fixture
def terminal(simulated: TerminalProcess, china_time: None) -> Iterator[Terminal]:
    """A door connected to the module's terminal."""
    door = open_terminal(simulated.port)
    door.connect()
    yield door
    door.close()
