"""Started before Redis, and refused by it: a service waits, says why, and works when it may."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx
import pytest
from away_rig import ENDS_WITHIN_S, PROGRAMS, Program, Run, Servers, start
from ill_servers import IllServer, Refusal
from waiting import wait_for

from qmt_protocol.keys import Keys

SERVICES: Final = {
    name: PROGRAMS[name] for name in ("archive run", "gateway", "producer", "worker of a queue")
}
ROLES: Final = {"archive run": "archive", "producer": "producer", "worker of a queue": "worker"}
SAID: Final[dict[Refusal, str]] = {
    "absent": "Connection refused|Connect call failed",
    "hung": "Timeout",
    "LOADING": "loading",
    "WRONGPASS": "username-password",
    "NOPERM": "permission",
    "MISCONF": "MISCONF",
    "OOM": "OOM",
}
LOOKS_FOR_S: Final = 3.0
"""Long enough for each service to ask several times: whoever ends at a refusal has ended then."""


class Stack:
    """Both servers, and the services on them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        both = Servers(folder)
        self.streams, self.jobs = IllServer(both.streams), IllServer(both.jobs)
        self.runs: dict[str, Run] = {}
        self._folder, self._stack = folder, stack
        for one in (self.streams, self.jobs):
            stack.callback(one.server.kill)
            stack.callback(one.stop_loading)

    def start(self, programs: dict[str, Program]) -> None:
        urls = {"streams": self.streams.server.url, "jobs": self.jobs.server.url}
        for name, program in programs.items():
            run = start(program, signal.SIGTERM, self._folder / name, urls)
            self.runs[name] = run
            self._stack.callback(run.process.wait)
            self._stack.callback(run.process.kill)

    def each(self, act: Callable[[IllServer], None]) -> None:
        for one in (self.streams, self.jobs):
            act(one)

    def all_live(self) -> None:
        ended = {name: run.told for name, run in self.runs.items() if run.ended}
        assert not ended

    def all_work(self) -> None:
        """Wait until every service has done from now on what it is there for."""
        with self.streams.connect() as streams, self.jobs.connect() as jobs:
            seconds, micros = streams.time()
            now_ms = seconds * 1000 + micros // 1000
            waiting = set(self.runs)

            def still() -> set[str]:
                self.all_live()
                beats = streams.zrangebyscore(Keys().seen, now_ms, "+inf")
                for name, role in ROLES.items():
                    if any(member.startswith(f"{role}:".encode()) for member in beats):
                        waiting.discard(name)
                if not jobs.scard("rq:workers:qmt-query"):
                    waiting.add("worker of a queue")
                if "gateway" in waiting and self._is_ready():
                    waiting.discard("gateway")
                return waiting

            wait_for(lambda: not still(), f"at work: {waiting}")

    def _is_ready(self) -> bool:
        run = self.runs["gateway"]
        if PROGRAMS["gateway"].works not in run.told:
            return False
        url = run.first_line["url"]
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=30).is_success

    def end(self) -> None:
        for run in self.runs.values():
            run.tell()
        wait_for(lambda: all(run.ended for run in self.runs.values()), "ended", ENDS_WITHIN_S)
        wrong = {name: why for name, run in self.runs.items() if (why := run.wrong(told=True))}
        assert not wrong


def go_through(refusal: Refusal, folder: Path, *, said: bool = True) -> None:
    with ExitStack() as opened:
        stack = Stack(folder, opened)
        stack.each(IllServer.start)
        stack.each(lambda one: one.refuse(refusal))
        stack.start(SERVICES)
        wait_for(lambda: all(run.hears() for run in stack.runs.values()), "started")
        time.sleep(LOOKS_FOR_S)
        stack.all_live()
        stack.each(lambda one: one.serve(refusal))
        stack.all_work()
        stack.each(lambda one: one.refuse(refusal))
        time.sleep(LOOKS_FOR_S)
        stack.all_live()
        stack.each(lambda one: one.serve(refusal))
        stack.all_work()
        stack.end()
        producer = stack.runs["producer"].told.lower()
        assert any(word.lower() in producer for word in SAID[refusal].split("|")), producer


def test_a_wrong_password_at_the_start_and_later(tmp_path: Path) -> None:
    go_through("WRONGPASS", tmp_path / "run")


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("refusal", list(SAID))
def test_every_refusal_at_the_start_and_later(refusal: Refusal, tmp_path: Path) -> None:
    go_through(refusal, tmp_path / "run")
