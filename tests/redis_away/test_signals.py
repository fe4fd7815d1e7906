"""SIGTERM and Ctrl-C end every program soon and in order, however Redis is away."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from archive_maker import ArchiveMaker
from away_rig import (
    ENDS_WITHIN_S,
    PROGRAMS,
    SUPERVISORS,
    Program,
    Run,
    Servers,
    State,
    Which,
    start,
)
from waiting import WITHIN_S

from qmt_protocol.keys import Keys
from qmt_protocol.ticks import encode_tick
from qmt_protocol.times import day_start_ms

DAY = 20261120
STATES: tuple[State, ...] = ("absent", "hung", "gone", "hung later")
_NOTICED_S = 1.0
"""Programs look at Redis each second. One that has not yet met its loss ends all the same."""


@pytest.fixture
def archive(streams: redis.Redis, tmp_path: Path) -> Path:
    """A day of one code, in the open for half an hour."""
    keys, open_ms = Keys("t"), day_start_ms(DAY) + 9 * 3_600_000 + 30 * 60_000
    for number in range(600):
        at_ms = open_ms + number * 3_000
        data = encode_tick({"time": at_ms, "lastPrice": 10.0, "volume": number})
        streams.xadd(keys.tick("600519.SH"), {"t1": data}, f"{at_ms}-0")
    maker = ArchiveMaker(tmp_path / "archive", streams, keys)
    maker.ticks(["600519.SH"], DAY)
    return maker.root


def wait_until(done: Callable[[Run], bool], runs: list[Run], within_s: float) -> list[str]:
    """Wait for all; return those that are not there yet."""
    deadline = time.monotonic() + within_s
    while left := [run for run in runs if not done(run)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return [f"{run.folder.name}: {run.told[-500:]}" for run in left]


def end_all(
    programs: Mapping[str, Program], state: State, which: Which, archive: Path, folder: Path
) -> None:
    """Start programs beside servers of a state, tell each to end, and look how it does."""
    servers = Servers(folder)
    with ExitStack() as stack:
        stack.callback(servers.kill)
        servers.start(state, which)
        runs = []
        for name, program in programs.items():
            for number in (signal.SIGTERM, signal.SIGINT):
                own = folder / f"{name} {number.name}"
                urls = {"streams": servers.streams.url, "jobs": servers.jobs.url}
                runs.append(start(program, number, own, urls, archive))
                stack.callback(runs[-1].process.wait)
                stack.callback(runs[-1].process.kill)
        assert not wait_until(lambda run: run.is_at(state, servers), runs, WITHIN_S)
        servers.spoil(state, which)
        time.sleep(_NOTICED_S)
        ended = {id(run) for run in runs if run.ended}
        for run in runs:
            run.tell()
        assert not wait_until(lambda run: run.ended, runs, ENDS_WITHIN_S)
        wrong = {
            f"{run.folder.name}": why for run in runs if (why := run.wrong(id(run) not in ended))
        }
        assert not wrong


@pytest.mark.parametrize("state", ["absent", "hung later"])
def test_every_program_hears_signals_without_redis(
    state: State, archive: Path, tmp_path: Path
) -> None:
    end_all(PROGRAMS, state, "both", archive, tmp_path / "run")


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("which", ["streams", "jobs", "both"])
def test_every_program_hears_signals_in_every_state(
    state: State, which: Which, archive: Path, tmp_path: Path
) -> None:
    end_all({**PROGRAMS, **SUPERVISORS}, state, which, archive, tmp_path / "run")
