"""Simulated terminals as processes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xtdata_scripts import MIDSESSION, ScriptedTerminal


@pytest.fixture
def start_terminal() -> Iterator[Callable[..., ScriptedTerminal]]:
    """Start terminals with given flags; all of them end with the test."""
    started: list[ScriptedTerminal] = []

    def start(*flags: str) -> ScriptedTerminal:
        started.append(ScriptedTerminal(*flags))
        return started[-1]

    yield start
    for terminal in started:
        terminal.stop()


@pytest.fixture(scope="session")
def push_log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("terminal") / "pushed.log"


@pytest.fixture(scope="session")
def terminal(push_log_file: Path) -> Iterator[ScriptedTerminal]:
    """One research terminal in real time, around the clock, with a push log; a tick a second."""
    with ScriptedTerminal("--push-log", str(push_log_file), "--interval-ms", "1000") as running:
        yield running


@pytest.fixture(scope="session")
def midsession() -> Iterator[ScriptedTerminal]:
    """A research terminal whose clock stands at 10:30:20 of an ordinary trading day."""
    with ScriptedTerminal(*MIDSESSION) as running:
        yield running
