"""The console and the session on Windows: what would freeze or end us, and how we hear of it.

Elsewhere there is nothing to do but to hear SIGINT, SIGTERM and SIGHUP.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

from .session import watch_session

__all__ = ["Console", "awake", "on_stop", "say", "without_quick_edit"]

_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
_MOST_LINES: Final = 1000
_STOPPED_WITHIN_S: Final = 4.5
"""Windows ends a process 5 s after it was told that its console closes."""


def say(text: str) -> None:
    """Write lines for people; a console that is gone or knows no Chinese does not matter."""
    stream: IO[str] | None = sys.stdout  # pythonw.exe has none
    if stream is None:
        return
    try:
        stream.write(text + "\n")
        stream.flush()
    except (OSError, ValueError):
        pass  # the window was closed


class Console:
    """Writes lines in a thread of its own.

    Whoever writes to a console stands still while somebody selects text in it or has pressed
    Pause; what supervises must not.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Have lines written; they are let go when too many wait."""
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            pass  # the log has it

    def close(self, timeout_s: float = 0.5) -> None:
        """Write what waits, if the console takes it."""
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            return  # it still stands: what waits is let go
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (text := self._waiting.get()) is not None:
            say(text)


def on_stop(stop: Callable[[], None], stopped: threading.Event) -> None:
    """Call `stop` on Ctrl-C, Ctrl-Break, a closed window, log-off, shutdown, SIGTERM.

    Parameters
    ----------
    stop
        Asks for the end; called from any thread.
    stopped
        Set when everything has ended: until then Windows is kept waiting.
    """
    for name in _SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stop())
    if sys.platform == "win32":
        _handle_console_events(stop, stopped)
        watch_session(stop, stopped, _STOPPED_WITHIN_S)


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _STD_INPUT: Final = -10
    _QUICK_EDIT: Final = 0x40
    _EXTENDED_FLAGS: Final = 0x80
    _ES_CONTINUOUS: Final = 0x80000000
    _ES_SYSTEM_REQUIRED: Final = 0x1
    _CLOSE_EVENTS: Final = (2, 5, 6)  # close, log-off, shutdown

    _kernel: Final = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel.GetStdHandle.restype = wintypes.HANDLE
    _kernel.GetStdHandle.argtypes = [wintypes.DWORD]
    _kernel.GetConsoleMode.argtypes = [wintypes.HANDLE, ctypes.POINTER(wintypes.DWORD)]
    _kernel.SetConsoleMode.argtypes = [wintypes.HANDLE, wintypes.DWORD]
    _kernel.SetThreadExecutionState.argtypes = [wintypes.DWORD]
    _kernel.SetThreadExecutionState.restype = wintypes.DWORD
    _HandlerType = ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)
    _kernel.SetConsoleCtrlHandler.argtypes = [_HandlerType, wintypes.BOOL]

    _kept: list[Any] = []
    """The handler must live as long as Windows may call it."""

    def _handle_console_events(stop: Callable[[], None], stopped: threading.Event) -> None:
        def handler(event: int) -> bool:
            if event not in _CLOSE_EVENTS:
                return False  # Python's own handler makes a signal of it
            stop()
            # The process is ended when this returns.
            stopped.wait(_STOPPED_WITHIN_S)
            return True

        callback = _HandlerType(handler)
        if _kernel.SetConsoleCtrlHandler(callback, True):
            _kept.append(callback)

    @contextmanager
    def without_quick_edit() -> Iterator[None]:
        """Keep a click into the window from freezing whoever writes to it."""
        handle = _kernel.GetStdHandle(_STD_INPUT & 0xFFFFFFFF)
        mode = wintypes.DWORD()
        if not _kernel.GetConsoleMode(handle, ctypes.byref(mode)):
            yield  # no console: a pipe, or Task Scheduler
            return
        _kernel.SetConsoleMode(handle, (mode.value & ~_QUICK_EDIT) | _EXTENDED_FLAGS)
        try:
            yield
        finally:
            _kernel.SetConsoleMode(handle, mode.value | _EXTENDED_FLAGS)

    @contextmanager
    def awake() -> Iterator[None]:
        """Keep the machine from going to sleep by itself; closing a lid still does it."""
        _kernel.SetThreadExecutionState(_ES_CONTINUOUS | _ES_SYSTEM_REQUIRED)
        try:
            yield
        finally:
            _kernel.SetThreadExecutionState(_ES_CONTINUOUS)

else:

    @contextmanager
    def without_quick_edit() -> Iterator[None]:
        """Keep a click into the window from freezing whoever writes to it (Windows)."""
        yield

    @contextmanager
    def awake() -> Iterator[None]:
        """Keep the machine from going to sleep by itself (Windows)."""
        yield
