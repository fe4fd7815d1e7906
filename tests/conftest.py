"""Fixtures that all tests share: real Redis servers, each in a folder of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest
import redis
from redis_servers import HERE, MATRIX, MISSING, default_server
from shifted_clock import NO_COMPILER
from warm_start import warm_starts

from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

warm_starts()
# What does not ask for a server of its own, in this process and those that it starts, gets this.
os.environ["QMT_REDIS_SERVER"] = str(default_server())

MID_SESSION: Final = (
    *("--start", "2026-11-20 10:30:00", "--real-hours"),
    *("--cache-delay-s", "0.2,0.6"),
)

SKIPS: Final[dict[str, int]] = {}
"""Every reason for which tests may be skipped, and how many are in a run of all tests."""

TOOLS: Final[dict[str, int]] = {
    "examples/consumers/node needs node, and npm ci in its folder": 9,
    "examples/consumers/cpp needs g++, make, and Debian's hiredis, msgpack and json": 9,
    "examples/consumers/go needs golang-go and Debian's redigo and msgpack.v5 packages": 9,
    "examples/consumers/shell needs bash, redis-tools, jq": 9,
    **{f"{name} is not here: see scripts/servers": 99 for name in MATRIX},
    "mounting a small disk needs root": 9,
    NO_COMPILER: 4,
}
"""Reasons that depend on the machine: tools of other languages. At most so many are skipped."""

EARLY: Final = {
    *("test_standalone_demo.py", "test_standalone_lifetime.py", "test_probe_profiles.py"),
    *("test_windows_box.py", "test_worker_history.py"),
}
"""Files that last long."""

_skipped: Final[Counter[str]] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files that come late by their names: none is left alone at the end."""
    items.sort(key=lambda item: item.path.name not in EARLY)


def pytest_report_header() -> list[str]:
    """Say which servers the tests run against."""
    usual = default_server()
    named = {one.path: one.name + " (the image's)" * one.ships for one in HERE}
    return [
        f"redis server: {named.get(usual, usual)}",
        f"matrix: {', '.join(f'{one.name} {one.version}' for one in HERE)}",
        f"not here: {', '.join(MISSING) or 'none'}",
    ]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count skips by reason."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped[reason.removeprefix("Skipped: ")] += 1


def _wrong_skips(config: pytest.Config) -> list[str]:
    whole = (
        not config.option.keyword
        and not config.option.markexpr
        and not getattr(config.option, "lf", False)
    )
    whole = whole and config.args_source.name == "TESTPATHS" and not config.option.maxfail
    allowed = {**SKIPS, **TOOLS}
    return [
        f"{_skipped[reason]} skipped, {allowed.get(reason, 0)} allowed: {reason}"
        for reason in sorted({*_skipped, *SKIPS})
        if _skipped[reason] > allowed.get(reason, 0)
        or (whole and reason not in TOOLS and _skipped[reason] != allowed.get(reason, 0))
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when something else was skipped than the list above says."""
    if _wrong_skips(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which skips are not on the list."""
    for line in _wrong_skips(config):
        terminalreporter.write_line(f"SKIPS of tests/conftest.py: {line}", red=True)


@pytest.fixture(scope="session")
def streams_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis server for streams, for the whole session."""
    server = RedisServer(tmp_path_factory.mktemp("streams"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def jobs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis server for jobs, for the whole session."""
    server = RedisServer(tmp_path_factory.mktemp("jobs"), aof=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def streams(streams_server: RedisServer) -> Iterator[redis.Redis]:
    """An empty streams database."""
    with redis.Redis.from_url(streams_server.url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def jobs(jobs_server: RedisServer) -> Iterator[redis.Redis]:
    """An empty jobs database."""
    with redis.Redis.from_url(jobs_server.url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def start_simulated() -> Iterator[Callable[..., TerminalProcess]]:
    """Start simulated terminals, in mid-session without flags, that end with the test."""
    with ExitStack() as stack:

        def start(*flags: str, port: int = 0) -> TerminalProcess:
            flags = ("--port", str(port), *(flags or MID_SESSION))
            return stack.enter_context(TerminalProcess(*flags))

        yield start


@pytest.fixture(scope="module")
def simulated_midsession() -> Iterator[TerminalProcess]:
    """One simulated terminal in mid-session for all tests of a module."""
    with TerminalProcess(*MID_SESSION) as terminal:
        yield terminal
