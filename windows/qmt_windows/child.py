"""One supervised process: started, started again, stopped; its lines go to a log of ours."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from qmt_runtime.child_process import CONFIGURATION_EXIT, ChildProcess, python, stop_all
from qmt_runtime.retry import Backoff

from .logs import LineLog

__all__ = ["Child", "Ending", "exit_words", "is_native_abort", "stop_children"]

_RESTART_ME: Final = 3
"""Exit code of a producer whose feed stayed deaf."""
_WAITS_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
_STEADY_S: Final = 60.0
_LOOP_AFTER: Final = 3
"""So many quick endings in a row are a trouble even where each is in order."""
_LONGEST_LINE: Final = 64 * 1024
_ASK_S: Final = 2.5
_KILLED_S: Final = 1.0

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
    if code == CONFIGURATION_EXIT:
        return "misconfigured"
    return "aborted" if is_native_abort(code) else "crashed"


def exit_words(code: int) -> str:
    """Return in words how a process ended."""
    if code in _NATIVE:
        return _NATIVE[code]
    if code == CONFIGURATION_EXIT:
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

    def __init__(self, name: str, arguments: Sequence[str], *, cwd: Path, log: LineLog) -> None:
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
        self._process: ChildProcess | None = None
        self._pump: threading.Thread | None = None
        self._said: list[str] = []
        self._backoff = Backoff(_WAITS_S, steady_s=_STEADY_S)
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
        command, extra = python(*self._arguments)
        self.started_ms = _now_ms()
        try:
            self._process = ChildProcess(
                command,
                environment={**environment, **extra},
                cwd=self._cwd,
                output=subprocess.PIPE,
                own_console=True,
            )
        except OSError as error:  # no memory, or a virus scanner holds the file
            self.trouble = f"cannot be started: {error}"
            self.trouble_kind = "crashed"
            self.log.write(self.trouble)
            self._back_off()
            return
        self._pump = threading.Thread(
            target=self._carry, args=(self._process.output,), name=f"{self.name} log", daemon=True
        )
        self._pump.start()
        self._enter("running")

    def look(self) -> Ending | None:
        """Return how it ended if it has; note when it runs steadily."""
        if self.state != "running" or self._process is None:
            return None
        after_s = self._process.age_s
        code = self._process.exit_code()
        if code is None:
            if after_s > _STEADY_S:
                self._backoff.reset()
                self.trouble = ""
            return None
        self._process.clear_away()
        self._forget()
        again_in_s: float | None = None
        if code == CONFIGURATION_EXIT:
            self._enter("misconfigured")
        else:
            again_in_s = self._back_off(after_s)
        said = self._last_words()
        reason = exit_words(code) + (f": {said}" if said else "")
        if code not in (0, _RESTART_ME) or self._backoff.failures > _LOOP_AFTER:
            self.trouble = reason
            self.trouble_kind = _kind_of(code)
        return Ending(code, reason, after_s, again_in_s)

    def _back_off(self, after_s: float = 0.0) -> float:
        wait_s = self._backoff.failed(after_s)
        self._due_s = time.monotonic() + wait_s
        self._enter("waiting")
        return wait_s

    def hold(self) -> None:
        """Stop it and do not start it until `release`."""
        stop_children([self])
        self._enter("held")

    def release(self) -> None:
        """Let a child that was held or configured wrong be started again."""
        if self.state in ("held", "misconfigured"):
            self._backoff.reset()
            self._enter("stopped")

    def _forget(self) -> None:
        if self._pump is not None:
            # A grandchild may hold the pipe a moment longer; the thread ends with it.
            self._pump.join(_KILLED_S)
        self._process = None
        if self.state == "running":
            self._enter("stopped")

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
            line_words = _words_of(line)
            if line_words:
                return line_words[-300:]
        return ""


def _words_of(line: str) -> str:
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


def stop_children(children: Sequence[Child], *, within_s: float = _ASK_S) -> None:
    """Stop children together; takes a second longer than `within_s` at most."""
    running = {child: process for child in children if (process := child._process) is not None}
    stuck = stop_all(list(running.values()), within_s)
    for child, process in running.items():
        if process in stuck:
            child.log.write(f"{child.name} does not end")
        child._forget()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
