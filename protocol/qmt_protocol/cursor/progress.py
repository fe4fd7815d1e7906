"""How far the user of a reader has taken what was given: the position to be saved."""

from __future__ import annotations

from typing import Any

from qmt_protocol.ids import BEGINNING, id_key
from qmt_protocol.keys import series_of

from .batch import Batch
from .position import EVENTS, Position

__all__ = ["Progress"]


class Progress:
    """Where a user stands who takes batches row by row."""

    def __init__(self, position: Position | None) -> None:
        self._position = position or Position()
        self._ids: dict[str, str] | None = self._position.codes
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
        key = row[0] if len(row) == 3 else series_of(row[1], row[0])
        if self._batch is not None and self._batch.kind in ("missed", "live"):
            self._taken[key] = row[-2]
        if self._ids is not None:
            self._ids[key] = row[-2]

    def leave(self) -> None:
        """Note that all of the batch was taken."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        position = self._position
        if not batch.offsets:  # the position comes with a later part
            position.seen |= self._taken
        self._taken.clear()
        for market, offset in batch.offsets.items():
            has_moved = position.offsets.get(market) != offset
            position.offsets[market] = offset
            until = position.until.get(market, BEGINNING)
            if has_moved and position.seen and id_key(offset[1]) >= id_key(until):
                position.until.pop(market, None)
                position.seen = {
                    key: at for key, at in position.seen.items() if not key.endswith(f".{market}")
                }

    def position(self, *, with_codes: bool) -> Position:
        """Return the position of who goes on behind the last row taken."""
        # Of what streams gave no offset tells, but the ids of all codes.
        offsets = self._position.offsets
        begins = any(at == BEGINNING for name, (_, at) in offsets.items() if name != EVENTS)
        codes = self._ids if with_codes or self._in_stored or begins else None
        until = dict(self._position.until)
        for market, offset in () if self._batch is None else self._batch.offsets.items():
            if self._taken and market != EVENTS:
                until[market] = max(until.get(market, BEGINNING), offset[1], key=id_key)
        return Position(self._position.offsets, codes, self._position.seen | self._taken, until)
