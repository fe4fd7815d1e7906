"""How far the user of a reader has taken what was given: the position to be saved."""

from __future__ import annotations

from typing import Any

from qmt_protocol.ids import BEGINNING, id_key
from qmt_protocol.keys import want

from .batch import Batch
from .position import EVENTS, Place

__all__ = ["Progress"]


class Progress:
    """Where a user stands who takes batches row by row."""

    def __init__(self, place: Place | None) -> None:
        self._place = place or Place()
        self._ids: dict[str, str] | None = self._place.codes
        self._batch: Batch | None = None
        self._taken: dict[str, str] = {}
        self._in_stored = False

    @property
    def knows_all(self) -> bool:
        """Whether the last entry id of every code is known."""
        return self._ids is not None

    def enter(self, batch: Batch) -> None:
        """Begin with the next batch; all of the one before was taken."""
        self.leave()
        if batch.kind == "begin":
            self._ids = None if batch.ids is None else dict(batch.ids)
        self._in_stored = batch.kind == "stored"
        self._batch = batch

    def take(self, row: Any) -> None:
        """Note that a row of the batch was taken."""
        key = row[0] if len(row) == 3 else want(row[1], row[0])
        if self._batch is not None and self._batch.kind in ("missed", "live"):
            self._taken[key] = row[-2]
        if self._ids is not None:
            self._ids[key] = row[-2]

    def leave(self) -> None:
        """Note that all of the batch was taken."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        place = self._place
        if not batch.marks:  # the position comes with a later part
            place.seen |= self._taken
        self._taken.clear()
        for market, mark in batch.marks.items():
            has_moved = place.marks.get(market) != mark
            place.marks[market] = mark
            until = place.until.get(market, BEGINNING)
            if has_moved and place.seen and id_key(mark[1]) >= id_key(until):
                place.until.pop(market, None)
                place.seen = {
                    key: at for key, at in place.seen.items() if not key.endswith(f".{market}")
                }

    def placed(self, *, with_codes: bool) -> Place:
        """Return the position of who goes on behind the last row taken."""
        # Of what streams gave no mark tells, but the ids of all codes.
        marks = self._place.marks
        begins = any(at == BEGINNING for name, (_, at) in marks.items() if name != EVENTS)
        codes = self._ids if with_codes or self._in_stored or begins else None
        until = dict(self._place.until)
        for market, mark in () if self._batch is None else self._batch.marks.items():
            if self._taken and market != EVENTS:
                until[market] = max(until.get(market, BEGINNING), mark[1], key=id_key)
        return Place(self._place.marks, codes, self._place.seen | self._taken, until)
