"""`qmt-worker` without a queue: a process for each queue, started again when it dies."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

import structlog

from qmt_protocol.jobs import DOWNLOAD_QUEUE, QUERY_QUEUE
from qmt_runtime.child_process import CONFIGURATION_EXIT, ChildProcess, python, stop_all
from qmt_runtime.process import on_stop_signal, when_stdin_ends
from qmt_runtime.retry import Backoff

__all__ = ["supervise"]

_WAITS_S: Final = (0.2, 1.0, 2.0, 5.0, 15.0)
_STEADY_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 3.0
_LOOK_S: Final = 0.1

_log: Final = structlog.get_logger(__name__)


class _Served:
    """One queue and its process."""

    def __init__(self, queue: str, arguments: list[str]) -> None:
        self._queue = queue
        self._command, self._extra = python(
            *("-m", "qmt_worker", *arguments, "--queue", queue, "--exit-with-stdin")
        )
        self._backoff = Backoff(_WAITS_S, steady_s=_STEADY_S)
        self._due_s = 0.0
        self.process: ChildProcess | None = None

    def look(self) -> int | None:
        """Start it when it is time to; return how it ended, if it has."""
        if self.process is None:
            if time.monotonic() >= self._due_s:
                self.process = ChildProcess(
                    self._command, environment={**os.environ, **self._extra}
                )
            return None
        code = self.process.exit_code()
        if code is not None:
            wait_s = self._backoff.failed(self.process.age_s)
            self._due_s = time.monotonic() + wait_s
            self.process.clear_away()
            self.process = None
            _log.warning("queue process ended", queue=self._queue, code=code, again_in_s=wait_s)
        return code


def supervise(arguments: list[str], *, exit_with_stdin: bool) -> int:
    """Run a process for each queue until told to stop; returns the exit code.

    Parameters
    ----------
    arguments
        Flags that each process gets besides its queue.
    exit_with_stdin
        Whether to end when standard input closes.
    """
    stop = threading.Event()
    on_stop_signal(stop.set)
    if exit_with_stdin:
        when_stdin_ends(stop.set)
    served = [_Served(queue, arguments) for queue in (QUERY_QUEUE, DOWNLOAD_QUEUE)]
    try:
        while not stop.is_set():
            if CONFIGURATION_EXIT in [one.look() for one in served]:
                return CONFIGURATION_EXIT
            stop.wait(_LOOK_S)
        return 0
    finally:
        stop_all([one.process for one in served if one.process is not None], _STOP_TIMEOUT_S)
