"""Log lines that anybody can cause, kept from filling the disk: each once a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

__all__ = ["RareRecords", "Rarely"]

EVERY_S: Final = 60.0
_KINDS: Final = 100


class Rarely:
    """Lets a line through once in `EVERY_S`, with how many were left out before it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[object, float] = {}
        self._left_out: dict[object, int] = {}

    def due(self, kind: object) -> int | None:
        """Return how many lines of a kind were left out, or ``None`` to leave out this one."""
        now = self._clock()
        if now < self._due.get(kind, float("-inf")):
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return None
        if len(self._due) >= _KINDS:
            self._due.clear()
            self._left_out.clear()
        self._due[kind] = now + EVERY_S
        return self._left_out.pop(kind, 0)

    def log(self, write: Callable[..., Any], event: str, **facts: Any) -> None:
        """Write a line if it is due."""
        left_out = self.due(event)
        if left_out is not None:
            write(event, **facts, **({"since_last_line": left_out} if left_out else {}))


class RareRecords(logging.Filter):
    """The same for a library's logger: what a client sends makes it write."""

    def __init__(self) -> None:
        super().__init__()
        self._rarely = Rarely()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.levelno >= logging.ERROR and record.exc_info:
            return True  # a fault of ours, and no two need be the same
        return self._rarely.due((record.name, record.msg)) is not None
