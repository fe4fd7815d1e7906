"""Warnings, told at the user's own line and every time."""

from __future__ import annotations

import contextvars
import sys
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import qmt_reading
from qmt_protocol.errors import Gap

__all__ = ["QMTWarning", "Waiting", "warn", "warn_absent", "warn_gap"]

_OURS: Final = tuple(
    str(Path(one).resolve().parent) for one in (__file__, str(qmt_reading.__file__))
)
_MOST: Final = 1_000


class QMTWarning(UserWarning):
    """Something is missing or unusual in an answer that is given all the same."""


_waiting: contextvars.ContextVar[deque[str] | None] = contextvars.ContextVar(
    "qmt_client_warnings", default=None
)
# Python tells a warning once for each line, and the second answer would lack codes in silence.
# Behind all other filters, so that the user's own count.
warnings.filterwarnings("always", category=QMTWarning, append=True)


def warn(message: str) -> None:
    """Warn of something missing or unusual in what is given all the same."""
    waiting = _waiting.get()
    if waiting is None:
        _show(message)
    else:
        waiting.append(message)


def warn_gap(gap: Gap) -> None:
    """Tell a gap as a warning."""
    warn(str(gap))


def warn_absent(absent: Mapping[str, str], where: str, *, left_out: bool = True) -> None:
    """Name codes that an answer lacks, with the reason of each."""
    if not absent:
        return
    named = "; ".join(f"{code}: {reason}" for code, reason in list(absent.items())[:5])
    more = f"; and {len(absent) - 5} more" if len(absent) > 5 else ""
    what = "left out" if left_out else "nothing known of"
    warn(f"{where}: {what} {len(absent)} code(s). {named}{more}.")


class Waiting:
    """Warnings of an event loop in a thread of its own, until the user's thread tells them.

    There no line of the user's is on the stack, and filters of ``warnings.catch_warnings`` would
    be another thread's.
    """

    def __init__(self) -> None:
        self._messages: deque[str] = deque(maxlen=_MOST)
        self.context = contextvars.copy_context()
        """What runs in it warns here."""
        self.context.run(_waiting.set, self._messages)

    def show(self) -> None:
        """Tell what waits."""
        while self._messages:
            try:
                message = self._messages.popleft()
            except IndexError:  # another thread was faster
                return
            _show(message)


def _show(message: str) -> None:
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, QMTWarning, stacklevel=level)
