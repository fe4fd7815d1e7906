"""Starts the parts in order, restarts what dies, stops all in reverse order."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from qmt_runtime.retry import Backoff

from .child import Child
from .errors import PartFailed
from .parts import Part, Stack
from .reaper import Reaper

__all__ = ["Stopped", "Supervisor"]

_LOOK_S: Final = 0.1
_FIRST_STARTS: Final = 3
"""How often a part is tried, each time on another port, before the start is given up."""
_WAITS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
_STEADY_S: Final = 30.0
"""A part that ran so long begins its backoff anew."""
_LOG_EVERY_S: Final = 5.0
_TAIL_LINES: Final = 12


class Stopped(Exception):
    """The user asked to stop while parts were being started."""


@dataclass
class _Running:
    part: Part
    child: Child
    backoff: Backoff = field(default_factory=lambda: Backoff(_WAITS_S, steady_s=_STEADY_S))
    restart_at: float | None = None


class Supervisor:
    """Runs a stack's parts; single-threaded, driven by `look`.

    Parameters
    ----------
    stack
        What runs, and where.
    reaper
        Ends the parts when this process is killed; ``None`` on Windows.
    told
        Receives one line for each thing that happens.
    stopping
        Whether the user wants everything stopped.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        reaper: Reaper | None,
        say: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._stack = stack
        self._reaper = reaper
        self._say = say
        self._stopping = stopping
        self._running: dict[str, _Running] = {}
        self._logs_at = 0.0

    def start(self) -> None:
        """Start every part, one after the other; wait until it is healthy where that matters.

        Raises
        ------
        PartFailed
            When a part does not become healthy; the message has its reason and its log's end.
        Stopped
            When the user asked to stop meanwhile.
        """
        for part in self._stack.parts(self._child):
            child = Child(
                part.name,
                log=self._stack.data_dir / "logs" / f"{part.name}.log",
                cwd=self._stack.data_dir,
                reaper=self._reaper,
            )
            one = self._running[part.name] = _Running(part, child)
            if not part.awaited:
                self._launch(one)
                self._say(f"{part.name} starts beside")
                continue
            began = time.monotonic()
            self._start_first(one)
            self._say(f"{part.name} {time.monotonic() - began:.1f} s")
        self._write_run_file()

    def _start_first(self, one: _Running) -> None:
        for attempt in range(_FIRST_STARTS):
            if attempt and one.part.move is not None:
                one.part.move()
            self._launch(one)
            reason = self._wait_until_healthy(one)
            if not reason:
                return
            if one.child.exit_code() is None or one.part.move is None:
                break  # it runs and is unwell: another port would not help
            one.child.bury()
        raise PartFailed(_failure(one, reason), hint="With --data-dir logs are kept.")

    def _wait_until_healthy(self, one: _Running) -> str:
        """Return ``""`` when it is healthy, else why it is not."""
        deadline = time.monotonic() + self._stack.settings.start_timeout_s
        reason = "not asked yet"
        while time.monotonic() < deadline:
            if self._stopping():
                raise Stopped
            code = one.child.exit_code()
            if code is not None:
                return f"it ended with exit code {code}"
            reason = one.part.unwell(one.child)
            if not reason and one.child.exit_code() is None:
                return ""
            time.sleep(_LOOK_S)
        return f"not healthy within {self._stack.settings.start_timeout_s:.0f} s: {reason}"

    def look(self) -> None:
        """Restart what died, keep logs short; to be called several times a second."""
        now = time.monotonic()
        for one in self._running.values():
            code = one.child.exit_code()
            if one.restart_at is None and code is not None:
                wait_s = one.backoff.failed(one.child.age_s)
                one.restart_at = now + wait_s
                one.child.bury()
                self._say(f"{one.part.name} ended (exit code {code}); restart in {wait_s:g} s")
            elif one.restart_at is not None and now >= one.restart_at:
                self._launch(one)
                self._say(f"{one.part.name} restarted, pid {one.child.pid}")
                self._write_run_file()
        if now - self._logs_at > _LOG_EVERY_S:
            self._logs_at = now
            for one in self._running.values():
                one.child.limit_log()

    def stop(self) -> None:
        """Stop every part, the last started first, each by its own deadline."""
        for one in reversed(self._running.values()):
            one.child.stop(one.part.stop_s)
        self._running.clear()

    def _launch(self, one: _Running) -> None:
        one.restart_at = None
        one.child.start(one.part.command(), one.part.environment())

    def _child(self, name: str) -> Child:
        return self._running[name].child

    def _write_run_file(self) -> None:
        """Write ``run.json``, by which programs find this run; it holds the passwords."""
        stack = self._stack
        document = {
            "simulated": stack.simulated,
            "http_url": stack.http_url,
            "streams_url": stack.streams.url,
            "jobs_url": stack.jobs.url,
            "archive_url": str(stack.archive_dir),
            "simulator_port": stack.simulator_port if stack.simulated else None,
            "pid": os.getpid(),
            "pids": {name: one.child.pid for name, one in self._running.items()},
        }
        new = stack.data_dir / "run.json.new"
        new.touch(mode=0o600)
        new.write_text(json.dumps(document, indent=1), encoding="utf-8")
        new.replace(stack.data_dir / "run.json")


def _failure(one: _Running, reason: str) -> str:
    tail = one.child.new_log().strip().splitlines()[-_TAIL_LINES:]
    lines = "".join(f"\n  | {line}" for line in tail) or "\n  | (its log is empty)"
    return f"{one.part.name} did not start: {reason}.{lines}\n"
