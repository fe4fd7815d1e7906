"""What is kept for those who do not keep up: of each code the newest row, and what was left out.

All of a group who fell behind at the same frame have left out the same ever since: they share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from qmt_protocol.live import Skipped

if TYPE_CHECKING:
    from .subscriber import Frame
    from .wires import Row

__all__ = ["Conflation"]

_KEY_BYTES: Final = 400
"""What a code costs: its row, and its place in two dicts."""


class Conflation:
    """The newest row of each code or bar since some frame."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        """In the order of the latest."""
        self.marks: dict[str, tuple[str, str]] = {}
        self.users = 0
        self._skipped: Counter[str] = Counter()
        self._from_ms = self._to_ms = 0

    @property
    def size_bytes(self) -> int:
        """About what it takes."""
        return len(self.rows) * _KEY_BYTES

    def add(self, frame: Frame) -> None:
        """Keep the newest of a frame."""
        for row in frame.rows:
            self._put(row)
        self.marks.update(frame.marks)

    def _put(self, row: Row) -> None:
        before = self.rows.pop(row.key, None)
        if before is not None:
            self._skipped[row.key] += 1
            self._from_ms = min(self._from_ms or before.at_ms, before.at_ms)
            self._to_ms = max(self._to_ms, before.at_ms)
        self.rows[row.key] = row

    def take_over(self, other: Conflation) -> None:
        """Add what another one keeps, of other codes or later."""
        for row in other.rows.values():
            self._put(row)
        self.marks.update(other.marks)
        self._skipped.update(other._skipped)
        self._from_ms = min(self._from_ms or other._from_ms, other._from_ms or self._from_ms)
        self._to_ms = max(self._to_ms, other._to_ms)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows that are no longer wanted."""
        for key in keys:
            self.rows.pop(key, None)

    def skipped(self) -> Skipped | None:
        """Return what was left out, if anything was."""
        if not self._skipped:
            return None
        return Skipped(
            ticks=self._skipped.total(),
            codes=dict(self._skipped),
            from_ms=self._from_ms,
            to_ms=self._to_ms,
        )
