"""`qmt-worker` without a queue: a process for each queue, started again when it dies."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from typing import Final

import structlog

from qmt_protocol.jobs import DOWNLOAD_QUEUE, QUERY_QUEUE
from qmt_protocol.process import when_stdin_ends, when_told_to_stop

__all__ = ["CONFIGURATION_EXIT", "supervise"]

CONFIGURATION_EXIT: Final = 2
"""Exit code of a process that cannot run as it is configured: starting it again is no use."""
_BACKOFF_S: Final = (0.2, 1.0, 2.0, 5.0, 15.0)
_STEADY_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 3.0
_LOOK_S: Final = 0.1

_log: Final = structlog.get_logger(__name__)


@dataclasses.dataclass
class _Served:
    """One queue and its process."""

    queue: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    failures: int = 0
    due_s: float = 0.0

    def start(self) -> None:
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "qmt_worker", *self.arguments),
                *("--queue", self.queue, "--exit-with-stdin"),
            ],
            # It ends when this pipe closes, however this process ends.
            stdin=subprocess.PIPE,
        )

    def ended(self, code: int) -> None:
        steady = time.monotonic() - self.started_s > _STEADY_S
        self.failures = 0 if steady else self.failures + 1
        wait_s = _BACKOFF_S[min(self.failures, len(_BACKOFF_S) - 1)]
        self.due_s = time.monotonic() + wait_s
        self.close()
        _log.warning("queue process ended", queue=self.queue, code=code, again_in_s=wait_s)

    def close(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_TIMEOUT_S)


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
    when_told_to_stop(stop.set)
    if exit_with_stdin:
        when_stdin_ends(stop.set)
    served = [_Served(queue, arguments) for queue in (QUERY_QUEUE, DOWNLOAD_QUEUE)]
    try:
        while not stop.is_set():
            for one in served:
                if one.process is None and time.monotonic() >= one.due_s:
                    one.start()
                code = None if one.process is None else one.process.poll()
                if code == CONFIGURATION_EXIT:
                    return CONFIGURATION_EXIT
                if code is not None:
                    one.ended(code)
            stop.wait(_LOOK_S)
        return 0
    finally:
        for one in served:
            if one.process is not None and one.process.stdin is not None:
                one.process.stdin.close()
        for one in served:
            one.close()
