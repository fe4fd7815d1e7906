"""Of what waits for a slow reader, the newest row of each code or bar, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from qmt_protocol.live import Skipped

from .position import Offset

__all__ = ["Conflation"]

Row = TypeVar("Row")


class Conflation(Generic[Row]):
    """The newest row of each code or bar.

    Parameters
    ----------
    at_ms_of
        Returns a row's exchange time.
    """

    def __init__(self, at_ms_of: Callable[[Row], int]) -> None:
        self.rows: dict[str, Row] = {}
        """In the order of the latest."""
        self.offsets: dict[str, Offset] = {}
        self._at_ms_of = at_ms_of
        self._skipped: Counter[str] = Counter()
        self._from_ms = self._to_ms = 0

    def add(self, rows: Iterable[tuple[str, Row]], offsets: Mapping[str, Offset]) -> None:
        """Keep rows, each with its key, in the place of older ones; note where a reader stands."""
        for key, row in rows:
            before = self.rows.pop(key, None)
            if before is not None:
                at_ms = self._at_ms_of(before)
                self._skipped[key] += 1
                self._from_ms = min(self._from_ms or at_ms, at_ms)
                self._to_ms = max(self._to_ms, at_ms)
            self.rows[key] = row
        self.offsets.update(offsets)

    def take_over(self, other: Conflation[Row]) -> None:
        """Add what another one keeps, of other codes or later."""
        self.add(other.rows.items(), other.offsets)
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
