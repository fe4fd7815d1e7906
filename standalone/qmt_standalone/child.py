"""One child process: started, watched, its log kept short, stopped by a deadline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from qmt_runtime.child_process import ChildProcess, stop_all

from .reaper import Reaper

__all__ = ["Child"]

_LOG_LIMIT_BYTES: Final = 8_000_000
_TAIL_BYTES: Final = 4_000


class Child:
    """A process group of our own with a log file.

    Parameters
    ----------
    name
        What people call it: ``producer``, ``streams-redis``.
    log
        Its standard output and error; limited to twice 8 MB.
    cwd
        Its working folder.
    reaper
        Who ends it when this process is killed; ``None`` where there is no reaper.
    """

    def __init__(self, name: str, *, log: Path, cwd: Path, reaper: Reaper | None) -> None:
        self.name = name
        self.log = log
        self._started_ms = 0
        self._cwd = cwd
        self._reaper = reaper
        self._process: ChildProcess | None = None
        self._log_from = 0

    @property
    def pid(self) -> int | None:
        """Process id, ``None`` while it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def started_ms(self) -> int:
        """When it was started last; 0: not yet."""
        return self._started_ms

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it; its standard input stays open as long as this process lives."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # Appending is what lets the log be cut while the child writes.
        with open(self.log, "ab") as log:
            self._log_from = log.tell()
            self._process = ChildProcess(
                command,
                environment=environment,
                cwd=self._cwd,
                output=log,
                # Safe here: the supervisor has one thread.
                before_exec=self._reaper.register_self if self._reaper else None,
            )
        self._started_ms = self._process.started_ms

    def exit_code(self) -> int | None:
        """Return how it ended, ``None`` while it runs."""
        return None if self._process is None else self._process.exit_code()

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return 0.0 if self._process is None else self._process.age_s

    def stop(self, timeout_s: float) -> None:
        """Ask it to end; kill it and what it started when it has not by the deadline."""
        if self._process is not None:
            stop_all([self._process], timeout_s, terminate=True)
            self._forget(self._process)

    def bury(self) -> None:
        """Clear away after it died: its own children, its pipe, its registration."""
        if self._process is not None:
            self._process.clear_away()
            self._forget(self._process)

    def _forget(self, process: ChildProcess) -> None:
        if self._reaper is not None:
            self._reaper.forget(process.pid)
        self._process = None

    def new_log(self) -> str:
        """Return what it has logged since its last start, at most the last 4 kB."""
        try:
            with open(self.log, "rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(min(self._log_from, end), end - _TAIL_BYTES))
                return log.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def limit_log(self, limit_bytes: int = _LOG_LIMIT_BYTES) -> None:
        """Move the log aside when it is too long; one older part is kept."""
        if not self.log.exists() or self.log.stat().st_size <= limit_bytes:
            return
        shutil.copyfile(self.log, self.log.with_suffix(".old.log"))
        os.truncate(self.log, 0)
        self._log_from = 0
