"""Suspended days, which a terminal's cache does not tell from days that it never fetched.

They are learnt when daily bars have been downloaded, and kept in a file: the processes of one
machine, and those that follow them, know them too.
"""

from __future__ import annotations

import bisect
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Spans", "Suspensions", "suspended_rows"]

_NEVER: Final = 1 << 40
_WAIT_S: Final = 5.0
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS suspended (terminal TEXT NOT NULL, code TEXT NOT NULL, "
    "first INTEGER NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (terminal, code, first))"
)
_log: Final = structlog.get_logger(__name__)


class Spans:
    """A set of days, held as ranges closed at both ends."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._spans: list[tuple[int, int]] = []
        for first, last in spans:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Put the days from first to last into the set."""
        kept: list[tuple[int, int]] = []
        for start, end in self._spans:
            if end < first - 1 or start > last + 1:
                kept.append((start, end))
            else:
                first, last = min(first, start), max(last, end)
        bisect.insort(kept, (first, last))
        self._spans = kept

    def __contains__(self, day: int) -> bool:
        at = bisect.bisect_right(self._spans, (day, _NEVER)) - 1
        return at >= 0 and self._spans[at][1] >= day


def suspended_rows(frame: pd.DataFrame) -> pd.Series[bool]:
    """Return which daily rows say of themselves that there was no trading."""
    still: pd.Series[bool] = (frame["volume"] == 0) & (frame["suspendFlag"] == 1)
    return still


class Suspensions:
    """Which days codes were suspended, by terminal.

    Parameters
    ----------
    path
        SQLite file; ``None``: in memory alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file = _open(path)
        self._read: dict[tuple[str, str], Spans] = {}

    def look_again(self) -> None:
        """Forget what was read: another process may have learnt more since."""
        if self._path is not None:
            self._read.clear()

    def of(self, terminal: str, code: str) -> Spans:
        """Return a code's suspended days."""
        key = terminal, code
        if key not in self._read:
            self._read[key] = Spans(self._rows(key))
        return self._read[key]

    def add(self, terminal: str, code: str, runs: Iterable[tuple[int, int]]) -> None:
        """Remember runs of suspended days, first and last of each."""
        rows = [(terminal, code, first, last) for first, last in runs]
        if not rows:
            return
        known = self.of(terminal, code)
        for *_whose, first, last in rows:
            known.add(first, last)
        try:
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO suspended VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            _log.warning("suspended days are not kept", path=str(self._path), error=str(error))

    def _rows(self, key: tuple[str, str]) -> list[tuple[int, int]]:
        requested = "SELECT first, last FROM suspended WHERE terminal = ? AND code = ?"
        try:
            return self._file.execute(requested, key).fetchall()
        except sqlite3.Error as error:
            _log.warning("suspended days cannot be read", path=str(self._path), error=str(error))
            return []


def _open(path: Path | None) -> sqlite3.Connection:
    """Open the file; one that cannot be is told, and memory serves instead."""
    if path is not None:
        try:
            file = sqlite3.connect(path, timeout=_WAIT_S)
            with file:
                file.execute(_TABLE)
        except sqlite3.Error as error:
            _log.warning(
                "the file of suspended days cannot be used", path=str(path), error=str(error)
            )
        else:
            return file
    memory = sqlite3.connect(":memory:")
    memory.execute(_TABLE)
    return memory
