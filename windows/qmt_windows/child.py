"""One supervised process: started, started again, stopped; its lines go to a log of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from .logs import LineLog

__all__ = ["CONFIGURED_WRONG", "Child", "Ending", "exit_words", "is_native_abort", "stop_all"]

CONFIGURED_WRONG: Final = 2
"""Exit code of a process that cannot run as it is configured."""
_RESTART_ME: Final = 3
"""Exit code of a producer whose feed stayed deaf."""
_BACKOFF_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
_STEADY_S: Final = 60.0
_LOOP_AFTER: Final = 3
"""So many quick endings in a row are a trouble even where each is in order."""
_LONGEST_LINE: Final = 64 * 1024
_ASK_S: Final = 2.5
_KILLED_S: Final = 1.0
_LOOK_S: Final = 0.02

_NATIVE_ABORTS: Final = frozenset({0xC0000409, -6})
_NATIVE: Final = {
    0xC0000409: "native abort 原生库中止 (0xC0000409)",
    -6: "native abort 原生库中止 (signal 6)",
    0xC0000005: "native access violation 原生库内存访问错误 (0xC0000005)",
    -11: "native access violation 原生库内存访问错误 (signal 11)",
    0xC0000374: "native heap corruption 原生库堆损坏 (0xC0000374)",
    0xC00000FD: "native stack overflow 原生库栈溢出 (0xC00000FD)",
    0xC000013A: "ended by Ctrl-C or a closed window 被 Ctrl-C 或关闭窗口结束 (0xC000013A)",
    -9: "killed 被强制结束 (signal 9)",
    -15: "ended from outside 被外部结束 (signal 15)",
}


def is_native_abort(code: int) -> bool:
    """Whether a native library ended the process by an abort."""
    return code in _NATIVE_ABORTS


def _kind_of(code: int) -> str:
    if code == CONFIGURED_WRONG:
        return "misconfigured"
    return "aborted" if is_native_abort(code) else "crashed"


def exit_words(code: int) -> str:
    """Return in words how a process ended."""
    if code in _NATIVE:
        return _NATIVE[code]
    if code == CONFIGURED_WRONG:
        return "configured wrong 配置有误 (exit 2)"
    if code == _RESTART_ME:
        return "asked to be started again 请求重启 (exit 3)"
    return f"exit {code if code < 2**31 else hex(code)}"


@dataclass(frozen=True)
class Ending:
    """How a child ended that was not told to."""

    code: int
    reason: str
    """In words, with the last thing it said."""
    after_s: float
    again_in_s: float | None
    """``None``: it is not started again as it is configured."""


class Child:
    """A process with a state: ``running``, ``waiting``, ``misconfigured``, ``held``, ``stopped``.

    Single-threaded but for the thread that carries its lines; driven by `look`.

    Parameters
    ----------
    name
        What people call it: ``producer``, ``worker-query``.
    arguments
        What comes after ``python``.
    cwd
        Its working folder.
    log
        Where its lines go.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, cwd: str, log: LineLog) -> None:
        self.name = name
        self.log = log
        self.state = "stopped"
        self.since_ms = _now_ms()
        self.started_ms = 0
        self.restarts = 0
        self.trouble = ""
        """Why it is in trouble; ``""`` once it has run steadily."""
        self.trouble_kind = ""
        """``crashed``, ``aborted`` or ``misconfigured``."""
        self._arguments = list(arguments)
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: threading.Thread | None = None
        self._said: list[str] = []
        self._failures = 0
        self._started_s = 0.0
        self._due_s = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id, ``None`` while it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def due(self) -> bool:
        """Whether it is time to start it."""
        return self.state == "stopped" or (
            self.state == "waiting" and time.monotonic() >= self._due_s
        )

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it; it ends when its standard input closes, however this process ends."""
        if self.started_ms:
            self.restarts += 1
        self._said = []
        python, extra = _python()
        self._started_s = time.monotonic()
        self.started_ms = _now_ms()
        try:
            self._process = subprocess.Popen(
                [python, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env={**environment, **extra},
                start_new_session=sys.platform != "win32",
                creationflags=_creation_flags(),
            )
        except OSError as error:  # no memory, or a virus scanner holds the file
            self.trouble = f"cannot be started: {error}"
            self.trouble_kind = "crashed"
            self.log.write(self.trouble)
            self._back_off()
            return
        assert self._process.stdout is not None
        self._pump = threading.Thread(
            target=self._carry, args=(self._process.stdout,), name=f"{self.name} log", daemon=True
        )
        self._pump.start()
        self._enter("running")

    def look(self) -> Ending | None:
        """Return how it ended if it has; note when it runs steadily."""
        if self.state != "running" or self._process is None:
            return None
        after_s = time.monotonic() - self._started_s
        code = self._process.poll()
        if code is None:
            if after_s > _STEADY_S:
                self._failures = 0
                self.trouble = ""
            return None
        self._bury()
        if after_s > _STEADY_S:
            self._failures = 0
        again_in_s: float | None = None
        if code == CONFIGURED_WRONG:
            self._enter("misconfigured")
        else:
            again_in_s = self._back_off()
        said = self._last_words()
        reason = exit_words(code) + (f": {said}" if said else "")
        if code not in (0, _RESTART_ME) or self._failures > _LOOP_AFTER:
            self.trouble = reason
            self.trouble_kind = _kind_of(code)
        return Ending(code, reason, after_s, again_in_s)

    def _back_off(self) -> float:
        wait_s = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        self._due_s = time.monotonic() + wait_s
        self._enter("waiting")
        return wait_s

    def hold(self) -> None:
        """Stop it and do not start it until `release`."""
        stop_all([self])
        self._enter("held")

    def release(self) -> None:
        """Let a child that was held or configured wrong be started again."""
        if self.state in ("held", "misconfigured"):
            self._failures = 0
            self._enter("stopped")

    def ask_to_end(self) -> None:
        """Close its standard input, which is how it is told to end."""
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except OSError:
                pass  # it ended first

    def ended(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def clear_away(self) -> None:
        """Forget the process, with whatever it started, once it has ended."""
        if self._process is not None:
            try:
                self._process.wait(_KILLED_S)
            except subprocess.TimeoutExpired:
                self.log.write(f"{self.name} does not end")
            self._bury()
        if self.state == "running":
            self._enter("stopped")

    def _bury(self) -> None:
        process = self._process
        if process is None:
            return
        self.ask_to_end()
        if sys.platform != "win32":
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # nothing is left of the group
        if self._pump is not None:
            # A grandchild may hold the pipe a moment longer; the thread ends with it.
            self._pump.join(_KILLED_S)
        self._process = None

    def _enter(self, state: str) -> None:
        self.state = state
        self.since_ms = _now_ms()

    def _carry(self, pipe: IO[bytes]) -> None:
        with pipe:
            while line := pipe.readline(_LONGEST_LINE):
                text = self.log.write(line.decode("utf-8", "replace").rstrip("\r\n"))
                if text:
                    self._said = [*self._said[-19:], text]

    def _last_words(self) -> str:
        """Return the last line that says why, of the last twenty."""
        for line in reversed(self._said):
            told = _told(line)
            if told:
                return told[-300:]
        return ""


def _told(line: str) -> str:
    """Return what a line says to a person; ``""`` for a log line of no weight."""
    if not line.startswith("{"):
        return line.strip()
    try:
        document: dict[str, Any] = json.loads(line)
    except ValueError:
        return line.strip()
    if document.get("level") not in ("warning", "error", "critical"):
        return ""
    facts = [str(document[key]) for key in ("error", "message", "reason") if document.get(key)]
    return ": ".join([str(document.get("event", "")), *facts])


def stop_all(children: Sequence[Child], *, within_s: float = _ASK_S) -> None:
    """Stop children together: ask, wait, kill; takes a second longer than `within_s` at most."""
    for child in children:
        child.ask_to_end()
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and not all(child.ended() for child in children):
        time.sleep(_LOOK_S)
    for child in children:
        child.kill()
    for child in children:
        child.clear_away()


def _python() -> tuple[str, dict[str, str]]:
    """Return the Python to start, and what must be in its environment.

    On Windows a virtual environment's ``python.exe`` only starts the real one: the child's pid
    would not be that of its heartbeat, and killing it would leave the real one behind.
    """
    base = getattr(sys, "_base_executable", sys.executable)
    if sys.platform == "win32" and sys.prefix != sys.base_prefix and base != sys.executable:
        return base, {"__PYVENV_LAUNCHER__": sys.executable}
    return sys.executable, {}


def _creation_flags() -> int:
    """Return flags that keep a child away from our console on Windows.

    In the same console Ctrl-C and the closing of the window would reach it beside us.
    """
    if sys.platform == "win32":
        return subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    else:  # noqa: RET505 - so that either system's checker sees its own
        return 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
