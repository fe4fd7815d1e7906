"""Processes that we start: they end with us, and what they started ends with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

__all__ = ["CONFIGURATION_EXIT", "ChildProcess", "python", "stop_all"]

CONFIGURATION_EXIT: Final = 2
"""Exit code of a process that cannot run as it is configured: starting it again is no use."""
_POSIX: Final = os.name == "posix"
_KILLED_S: Final = 1.0
_LOOK_S: Final = 0.02


def python(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs this Python, and what must be in its environment beside.

    On Windows a virtual environment's ``python.exe`` only starts the real one: the child's pid
    would not be that of its heartbeat, and killing it would leave the real one behind.
    """
    base = getattr(sys, "_base_executable", sys.executable)
    if sys.platform == "win32" and sys.prefix != sys.base_prefix and base != sys.executable:
        return [base, *arguments], {"__PYVENV_LAUNCHER__": sys.executable}
    return [sys.executable, *arguments], {}


class ChildProcess:
    """A running process; on POSIX it leads a group of its own.

    Its standard input is a pipe that closes when this process ends, however it ends: a child that
    watches it (`when_stdin_ends`) ends too.

    Parameters
    ----------
    command, environment, cwd
        As of `subprocess.Popen`.
    output
        Where its standard output and error go: a file, `subprocess.PIPE`, or ours (``None``).
    own_console
        On Windows, a hidden console: in ours, Ctrl-C and the closing of the window would reach it
        beside us.
    before_exec
        On POSIX, called in the child between fork and exec; safe where this process has one thread.

    Raises
    ------
    OSError
        When it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        output: int | IO[bytes] | None = None,
        own_console: bool = False,
        before_exec: Callable[[], None] | None = None,
    ) -> None:
        self.started_ms: Final = time.time_ns() // 1_000_000
        self._started_s = time.monotonic()
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            cwd=cwd,
            env=None if environment is None else dict(environment),
            start_new_session=_POSIX,
            creationflags=_hidden_console() if own_console else 0,
            preexec_fn=before_exec,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started_s

    @property
    def output(self) -> IO[bytes]:
        """What it writes, where its output is a pipe."""
        assert self._process.stdout is not None
        return self._process.stdout

    def exit_code(self) -> int | None:
        """Return how it ended, ``None`` while it runs."""
        return self._process.poll()

    def ask_to_end(self, *, terminate: bool = False) -> None:
        """Close its standard input, which is how it is told to end.

        Parameters
        ----------
        terminate
            Whether to send SIGTERM too, on POSIX: for what does not watch its standard input.
        """
        if terminate and _POSIX:
            self._process.terminate()
        try:
            assert self._process.stdin is not None
            self._process.stdin.close()
        except OSError:
            pass  # it ended first

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._process.kill()

    def clear_away(self) -> bool:
        """Wait for its end, and end what it started; False when it does not end within a second."""
        try:
            self._process.wait(_KILLED_S)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        self.ask_to_end()
        if sys.platform != "win32":
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # nothing is left of the group
        return ended


def stop_all(
    children: Sequence[ChildProcess], within_s: float, *, terminate: bool = False
) -> list[ChildProcess]:
    """Stop processes together: ask, wait, kill; return those that do not end even so.

    Takes a second longer than `within_s` at most.
    """
    for child in children:
        child.ask_to_end(terminate=terminate)
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s and any(one.exit_code() is None for one in children):
        time.sleep(_LOOK_S)
    for child in children:
        child.kill()
    return [child for child in children if not child.clear_away()]


def _hidden_console() -> int:
    if sys.platform == "win32":
        return subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    else:  # noqa: RET505 - so that either system's checker sees its own
        return 0
