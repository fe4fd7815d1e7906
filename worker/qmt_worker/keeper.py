"""Keeps the child process that talks to the terminal, gives it jobs, and kills it in time."""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from qmt_protocol.errors import (
    ConfigurationError,
    JobFailed,
    QMTError,
    TimedOut,
    error_from_dict,
)
from qmt_runtime.retry import Backoff

from . import child
from .settings import WorkerSettings

__all__ = ["ChildKeeper", "Result"]

_READY_TIMEOUT_S: Final = 20.0
_LOOK_S: Final = 0.1
_CANCEL_EVERY_S: Final = 0.25
_WAITS_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
_STEADY_S: Final = 30.0
_MAX_WAITING: Final = 4
"""Messages of a job held in memory: with chunks of 8 MB the child then waits."""

_log: Final = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished job hands back beside its chunks."""

    rows: int
    document: Any
    meta: dict[str, Any]


class _Child:
    """One child process and the line to it."""

    def __init__(self, settings: WorkerSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(
            target=child.main, args=(theirs, settings), name="qmt-worker-child", daemon=True
        )
        self.process.start()
        theirs.close()
        self.started_s = time.monotonic()
        self.ready = threading.Event()
        self.gone = threading.Event()
        self.messages: queue.Queue[tuple[Any, ...]] = queue.Queue(_MAX_WAITING)

    def put(self, message: tuple[Any, ...]) -> None:
        """Hold a message for the running job; a dead child's are of no use to anyone."""
        while not self.gone.is_set():
            try:
                self.messages.put(message, timeout=_LOOK_S)
                return
            except queue.Full:
                continue

    def kill(self) -> None:
        self.gone.set()
        self.process.kill()

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        self.process.join(5)
        code = self.process.exitcode
        if code is None:
            return "it does not end"
        return f"exit code {code}" if code >= 0 else f"signal {-code}"


class ChildKeeper:
    """Runs jobs one at a time in a child process that it restarts whenever it dies.

    Parameters
    ----------
    settings
        How the child reaches the terminal.
    on_state
        Called, on the keeper's thread, whenever the terminal's state has changed.
    """

    def __init__(self, settings: WorkerSettings, on_state: Callable[[], None]) -> None:
        self._settings = settings
        self._on_state = on_state
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._current: _Child | None = None
        self.failure: ConfigurationError | None = None
        """Why no child can work here at all; the worker shall end then."""
        self.terminal = child.state("restarting", "the worker is starting")
        """The terminal as the child last told it: a heartbeat's ``terminal``."""
        self._thread = threading.Thread(target=self._keep, name="child-keeper", daemon=True)

    def start(self) -> None:
        """Start the child."""
        self._thread.start()

    def stop(self) -> None:
        """Give up the running job and end the child."""
        self.abandon()
        self._thread.join(5)

    def abandon(self) -> None:
        """Make `run` give up; safe inside a signal handler."""
        self._stop.set()
        current = self._current
        if current is not None:
            current.kill()

    # -- the keeper's thread --------------------------------------------------------------------

    def _keep(self) -> None:
        backoff = Backoff(_WAITS_S, steady_s=_STEADY_S)
        while not self._stop.is_set() and self.failure is None:
            started = _Child(self._settings)
            self._current = started
            if self._stop.is_set():  # told so while it was starting
                started.kill()
            try:
                self._read(started)
            except (EOFError, OSError):
                pass  # the child's end of the line closed: it is dead or dying
            started.gone.set()
            started.process.kill()
            ending = started.ending
            started.line.close()
            if self._stop.is_set() or self.failure is not None:
                break
            if self.terminal["state"] in ("ok", "quote_server_down"):
                # The terminal may be as well as ever: this says nothing against the next job.
                self._report(child.state("restarting", f"the terminal process ended ({ending})"))
            wait_s = backoff.failed(time.monotonic() - started.started_s)
            _log.warning("child ended", ending=ending, failures=backoff.failures)
            self._stop.wait(wait_s)
        self._on_state()

    def _read(self, started: _Child) -> None:
        while True:
            message = started.line.recv()
            if message[0] == "state":
                self._report(message[1])
            elif message[0] == "ready":
                started.ready.set()
            elif message[0] == "unusable":
                error = error_from_dict(message[1])
                self.failure = (
                    error
                    if isinstance(error, ConfigurationError)
                    else ConfigurationError(error.message, hint=error.hint)
                )
                return
            else:
                started.put(message)

    def _report(self, terminal: dict[str, Any]) -> None:
        if terminal != self.terminal:
            self.terminal = terminal
            self._on_state()

    # -- the worker's thread --------------------------------------------------------------------

    def run(
        self,
        name: str,
        params: dict[str, Any],
        timeout_s: float,
        *,
        cancelled: Callable[[], bool],
        on_progress: Callable[[int, int, str], None],
        on_chunk: Callable[[bytes], None],
    ) -> Result:
        """Run one job of the catalogue in the child.

        Raises
        ------
        QMTError
            What the job failed with in the child.
        TimedOut
            When it is not done within `timeout_s`; the child has been killed.
        JobFailed
            When it was cancelled, the child died, or the worker is being stopped.
        """
        with self._lock:
            worked = self._usable_child(cancelled)
            try:
                worked.line.send(("job", name, params))
            except OSError:
                raise self._died(worked) from None
            try:
                ended = self._follow(worked, name, timeout_s, cancelled, on_progress, on_chunk)
            except BaseException:
                # A job that is not followed to its end must not go on, or answer later.
                worked.kill()
                raise
            if isinstance(ended, QMTError):
                raise ended
            return ended

    def _usable_child(self, cancelled: Callable[[], bool]) -> _Child:
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline_s and not self._stop.is_set():
            current = self._current
            if current is not None and not current.gone.is_set() and current.ready.wait(_LOOK_S):
                return current
            if cancelled():
                raise JobFailed("The job was cancelled.", reason="cancelled")
            self._stop.wait(_LOOK_S / 4)
        if self._stop.is_set():
            raise _stopping()
        raise JobFailed(
            "The process that talks to the terminal does not start.",
            hint="See the worker's log.",
            reason="no child",
        )

    def _follow(
        self,
        worked: _Child,
        name: str,
        timeout_s: float,
        cancelled: Callable[[], bool],
        on_progress: Callable[[int, int, str], None],
        on_chunk: Callable[[bytes], None],
    ) -> Result | QMTError:
        deadline_s = time.monotonic() + timeout_s
        look_s = 0.0
        while True:
            now_s = time.monotonic()
            if now_s >= deadline_s:
                raise TimedOut(
                    f"The job {name} was not done within {timeout_s:g} s and was ended.",
                    hint="Ask for less at once, or look whether the terminal hangs.",
                    job=name,
                    timeout_s=timeout_s,
                )
            if self._stop.is_set():
                raise _stopping()
            if now_s >= look_s:
                look_s = now_s + _CANCEL_EVERY_S
                if cancelled():
                    raise JobFailed("The job was cancelled.", reason="cancelled")
            try:
                message = worked.messages.get(timeout=min(_LOOK_S, deadline_s - now_s))
            except queue.Empty:
                if worked.gone.is_set() and worked.messages.empty():
                    raise self._died(worked) from None
                continue
            kind = message[0]
            if kind == "progress":
                on_progress(*message[1:])
            elif kind == "chunk":
                on_chunk(message[1])
            elif kind == "result":
                return Result(*message[1:])
            elif kind == "error":
                return error_from_dict(message[1], unknown=JobFailed)

    def _died(self, worked: _Child) -> JobFailed:
        if self._stop.is_set():
            return _stopping()
        ending = worked.ending
        return JobFailed(
            f"The process that talks to the terminal died ({ending}): its native library "
            "aborted, or it was killed. It is being restarted.",
            hint="Try again; ask for fewer codes or a shorter range at once if it happens again.",
            reason="child died",
            ending=ending,
        )


def _stopping() -> JobFailed:
    return JobFailed(
        "The worker is being stopped.", hint="Try again in a moment.", reason="worker stopping"
    )
