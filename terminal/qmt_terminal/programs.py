"""Which terminal programs run on this machine, logged in or not."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from qmt_protocol.settings import TerminalSettings

from .discovery import is_below

__all__ = ["TerminalPrograms"]

_KEEP_S: Final = 2.0
_PLACE: Final = "--app-dir"
"""The flag by which a simulated terminal is told where it is installed."""


class TerminalPrograms:
    """Looks for the terminal's processes, at most once in two seconds.

    A name is that of a program's file, or of a Python module that runs with ``-m``. Where
    `terminal_path` is set only programs below it count.

    Parameters
    ----------
    settings
        Names (``terminal_programs``) and folder (``terminal_path``).
    """

    def __init__(self, settings: TerminalSettings) -> None:
        self._names = {name.lower() for name in settings.terminal_programs}
        self._path: Path | None = settings.terminal_path
        # Command lines cost more, and only modules need them.
        self._modules = {name for name in self._names if not name.endswith(".exe")}
        where = f" in {self._path}" if self._path is not None else ""
        self.sought: Final = ", ".join(settings.terminal_programs) + where
        """What is looked for, in words."""
        self._found: tuple[str, ...] = ()
        self._looked_s = float("-inf")

    def running(self, *, fresh: bool = False) -> tuple[str, ...]:
        """Return the names of those that run; `fresh` looks again in any case."""
        now_s = time.monotonic()
        if fresh or now_s - self._looked_s >= _KEEP_S:
            self._looked_s = now_s
            self._found = self._look()
        return self._found

    def _look(self) -> tuple[str, ...]:
        attributes = ["name"]
        if self._path is not None:
            attributes.append("exe")
        if self._modules:
            attributes.append("cmdline")
        found = []
        for process in psutil.process_iter():
            try:
                name = self._counts(process.as_dict(attributes))
            except (psutil.Error, OSError):
                continue  # it ended meanwhile, or the system does not tell of it
            if name and not _dead(process):
                found.append(name)
        return tuple(sorted(set(found)))

    def _counts(self, info: Mapping[str, Any]) -> str:
        """Return the name by which a process is the terminal; '' where it is none."""
        name = str(info["name"] or "")
        if name.lower() in self._names:
            return name if self._is_there(str(info.get("exe") or "")) else ""
        line: Sequence[str] = info.get("cmdline") or ()
        module = _after(line, "-m")
        if module.lower() in self._modules:
            return module if self._is_there(_after(line, _PLACE)) else ""
        return ""

    def _is_there(self, place: str) -> bool:
        return self._path is None or (bool(place) and is_below(place, self._path))


def _after(line: Sequence[str], flag: str) -> str:
    for at, word in enumerate(line[:-1]):
        if word == flag:
            return line[at + 1]
    return ""


def _dead(process: psutil.Process) -> bool:
    """Whether only its entry is left, until its parent looks: there is none such on Windows."""
    if os.name == "nt":
        return False
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True
