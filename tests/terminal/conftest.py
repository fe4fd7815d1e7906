"""Simulated terminals, and a process time zone as xtquant needs it."""

import os
import time
from collections.abc import Callable, Iterator

import pytest
from terminal_rig import Simulated, open_terminal

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
def start_simulated() -> Iterator[Callable[..., Simulated]]:
    """Start simulated terminals that end with the test."""
    started: list[Simulated] = []

    def start(*flags: str, port: int = 0) -> Simulated:
        started.append(Simulated(*flags, port=port))
        return started[-1]

    yield start
    for simulated in started:
        simulated.stop()


@pytest.fixture(scope="module")
def shared_simulated() -> Iterator[Simulated]:
    """One research terminal in mid-session for all tests of a module."""
    simulated = Simulated()
    yield simulated
    simulated.stop()


@pytest.fixture
def simulated(shared_simulated: Simulated) -> Iterator[Simulated]:
    """The module's terminal without faults."""
    yield shared_simulated
    shared_simulated.control.clear_fault()


@pytest.fixture
def terminal(simulated: Simulated, china_time: None) -> Iterator[Terminal]:
    """A door connected to the module's terminal."""
    door = open_terminal(simulated.port)
    door.connect()
    yield door
    door.close()
