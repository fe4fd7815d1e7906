"""The process that owns the terminal connection: runs jobs one after another.

It is started by `ChildKeeper` and ends with it: when the line between them closes.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, Final

import structlog

from qmt_protocol.errors import JobFailed, QMTError, TerminalNotConnected
from qmt_protocol.jobs import parse_params
from qmt_runtime.process import start_logging

from .settings import WorkerSettings

__all__ = ["main", "state"]

_LOOK_S: Final = 0.2
_RECONNECT_S: Final = 1.0

_log: Final = structlog.get_logger(__name__)


def state(name: str, reason: str = "", **facts: Any) -> dict[str, Any]:
    """Return a heartbeat's ``terminal``; ``restarting``: nobody looked yet, jobs may come."""
    return {"state": name, "reason": reason, "since_ms": time.time_ns() // 1_000_000, **facts}


def main(line: Connection, settings: WorkerSettings) -> None:
    """Serve jobs until the other end of the line closes."""
    # Ctrl-C in a console reaches every process in it; this one ends when its keeper does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start_logging(settings.log_level)
    inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(line, inbox), daemon=True).start()
    try:
        served = _Served(line, settings)
    except QMTError as error:
        line.send(("unusable", error.to_dict()))
        return
    line.send(("ready",))
    while True:
        try:
            _kind, name, params = inbox.get(timeout=_LOOK_S)
        except queue.Empty:
            served.look()
            continue
        served.run(name, params)


def _listen(line: Connection, inbox: queue.SimpleQueue[tuple[Any, ...]]) -> None:
    try:
        while True:
            inbox.put(line.recv())
    except (EOFError, OSError):
        # Nobody is left to work for, and the main thread may hang in a native call.
        os._exit(0)


class _Served:
    """The terminal, what is remembered of it, and the line to the keeper."""

    def __init__(self, line: Connection, settings: WorkerSettings) -> None:
        from qmt_terminal import Terminal
        from qmt_terminal.calendar_file import CalendarFile
        from qmt_terminal.programs import TerminalPrograms

        from .session import Session
        from .suspensions import Suspensions
        from .tasks import TASKS

        self._line = line
        self._sending = threading.Lock()  # progress comes on native threads
        self._terminal = Terminal(settings)
        self._session = Session(
            self._terminal,
            CalendarFile(settings.calendar_file),
            Suspensions(settings.suspensions_file),
        )
        self._tasks = TASKS
        self._programs = TerminalPrograms(settings)
        self._state: dict[str, Any] = {}
        self._why_not = ""
        self._watched: tuple[int, int] | None = None
        self._next_try_s = 0.0
        self.look()

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            self._line.send(message)

    def look(self) -> None:
        """Reconnect when it is time to, and tell the keeper when the state has changed."""
        if not self._terminal.connected and time.monotonic() >= self._next_try_s:
            self._connect()
        self._report()

    def _connect(self) -> None:
        self._next_try_s = time.monotonic() + _RECONNECT_S
        try:
            self._terminal.connect()
            self._why_not = "the connection broke"
        except QMTError as error:
            self._why_not = str(error.data.get("reason") or error.message)

    def _assess(self) -> tuple[str, str]:
        from qmt_terminal.states import Evidence, decide

        connected = self._terminal.connected
        up: bool | None = None
        if connected:
            try:
                if self._watched != self._terminal.generation:  # also when it came back by itself
                    self._terminal.watch_quote_server()
                    self._watched = self._terminal.generation
                up = self._terminal.quote_server_up()
            except QMTError as error:  # the next look finds the connection gone
                _log.warning("the quote server's state is not known", error=error.message)
        return decide(
            Evidence(
                connected=connected,
                why_not=self._why_not,
                sought=self._programs.sought,
                programs=() if connected else self._programs.running(),
                quote_server_up=up,
            )
        )

    def _report(self) -> None:
        name, reason = self._assess()
        if (name, reason) == (self._state.get("state"), self._state.get("reason")):
            return
        facts: dict[str, Any] = {}
        info, clock = self._terminal.info, self._terminal.clock
        if info is not None:
            facts = {**info.facts(), "simulated": info.simulated}
        if clock is not None:
            facts["clock"] = clock.to_dict()
        terminal = state(name, reason, **facts)
        if name == self._state.get("state"):
            terminal["since_ms"] = self._state["since_ms"]
        self._state = terminal
        self._send(("state", terminal))

    def run(self, name: str, params: dict[str, Any]) -> None:
        """Run one job and send what it yields, its result or its error."""
        try:
            if not self._terminal.connected:
                self._connect()
                self._report()
            if not self._terminal.connected:
                raise TerminalNotConnected(
                    f"No QMT terminal answers the worker: {self._state['reason']}.",
                    hint="Start QMT on the Windows machine and log in with 独立交易 ticked.",
                    reason=self._why_not,
                    state=self._state["state"],
                )
            outcome = self._tasks[name](self._session, parse_params(name, params), self)
            self._send(("result", outcome.rows, outcome.document, outcome.meta))
        except QMTError as error:
            self._send(("error", error.to_dict()))
        except Exception as error:  # noqa: BLE001 - a fault of ours must reach the caller too
            _log.exception("job failed", job=name)
            failure = JobFailed(
                f"The job {name} broke: {type(error).__name__}: {error}",
                hint="This is a fault of the bridge; the worker's log has the traceback.",
            )
            self._send(("error", failure.to_dict()))
        self.look()

    def progress(self, finished: int, total: int, message: str = "") -> None:
        """Tell how far the running job is."""
        self._send(("progress", finished, total, message))

    def chunk(self, data: bytes) -> None:
        """Hand over the next part of the table."""
        self._send(("chunk", data))
