"""A market that is being read: its newest rows, and its last batches for those who come back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from qmt_protocol.cursor.batch import Row as TickRow
from qmt_protocol.cursor.position import Offset
from qmt_protocol.errors import QMTError
from qmt_protocol.ids import id_key
from qmt_reading.live.follower import Follower

from .group import Group
from .wires import Row, Rows

__all__ = ["Market", "Recent"]

_RECENT_BATCHES: Final = 32
_RECENT_ROWS: Final = 100_000
Recent = tuple[Offset, Offset, Sequence[TickRow], Sequence[Row]]
"""A batch: the positions before and behind it, its ticks and its bars."""


class Market:
    """A market that is being read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.offset: Offset = ("", "")
        self._latest: dict[str, Row | TickRow] = {}
        self._recent: deque[Recent] = deque()
        self._recent_rows = 0
        self.is_recovering = False
        """Whether a part of what lies behind its offset was given already."""
        self.broken = False
        """Whether a gap lies between the last batch and the next."""
        self.whole: set[Group] = set()
        self.ready = asyncio.Event()
        self.error: QMTError | None = None
        """Why it is read no longer."""
        self.clients = 0
        self.follower: Follower | None = None
        self.away_since: float | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopper: asyncio.TimerHandle | None = None

    def begin(self, ticks: Sequence[TickRow], offset: Offset) -> None:
        """Take the newest tick of each code, as it is at a position."""
        self._latest = {row[0]: row for row in ticks}
        self.offset = offset
        self.ready.set()

    def take_ticks(self, ticks: Rows) -> None:
        """Keep what is the newest of its code."""
        self._latest.update(ticks.newest())

    def take_bar(self, row: Row) -> bool:
        """Keep a bar; ``False`` where it was loaded from its stream, ahead of the feed."""
        held = self.newest(row.key)
        if held is not None and id_key(row.id) <= id_key(held.id):
            return False
        self._latest[row.key] = row
        return True

    def newest(self, key: str) -> Row | None:
        """Return the newest row of a code or bar; what it is encoded as stays with it."""
        held = self._latest.get(key)
        if isinstance(held, tuple):
            held = self._latest[key] = Row(held[0], "", held[1], held[2])
        return held

    def newest_ticks(self) -> list[Row]:
        """Return the newest tick of each code."""
        rows = (self.newest(key) for key in self._latest)
        return [row for row in rows if row is not None and not row.period]

    def note_recent(self, batch: Recent) -> None:
        """Keep a batch for those who come back."""
        self._recent.append(batch)
        self._recent_rows += len(batch[2])
        while len(self._recent) > _RECENT_BATCHES or self._recent_rows > _RECENT_ROWS:
            self._recent_rows -= len(self._recent.popleft()[2])

    def forget_recent(self) -> None:
        """Keep none of the batches so far."""
        self._recent.clear()
        self._recent_rows = 0

    def after(self, offset: Offset) -> list[Recent] | None:
        """Return the batches behind a position.

        ``None``: memory does not reach back to it, or not yet forward to it.
        """
        if self.is_recovering:
            return None
        if offset == self.offset:
            return []
        found: list[Recent] | None = None
        for batch in self._recent:
            if batch[0] == offset:
                found = []
            if found is not None:
                found.append(batch)
        return found
