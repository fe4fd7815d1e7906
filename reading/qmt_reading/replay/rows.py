"""What a replay has read ahead: record batches, cut into pieces that are decoded when needed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Piece", "Read", "RowsAhead"]

_AHEAD_BATCHES: Final = 2
_DECODED_AHEAD: Final = 20_000

Read = Callable[[int | None], "AsyncGenerator[pa.RecordBatch, None]"]
"""Reads from a time on; ``None``: from the replay's own start."""


class Piece:
    """Some rows without a pause in market time among them."""

    __slots__ = ("at", "batch", "ids", "is_on_clock", "items")

    def __init__(self, batch: pa.RecordBatch, ids: npt.NDArray[np.int64]) -> None:
        self.batch = batch
        self.ids = ids
        """``id_ms`` of each row."""
        self.items: list[Any] | None = None
        self.at = 0
        """How many rows were taken."""
        self.is_on_clock = False
        """Whether the clock knows of it."""


class RowsAhead:
    """Reads ahead, within bounds, in a task of its own.

    Parameters
    ----------
    read
        Where the rows come from, in order.
    decode
        Makes ticks or bars of a batch.
    skip_ms
        Longer times between rows are pauses.
    wake
        Called when there is more, or the end.
    """

    def __init__(
        self,
        read: Read,
        decode: Callable[[pa.RecordBatch], list[Any]],
        skip_ms: float,
        wake: Callable[[], None],
    ) -> None:
        self._read = read
        self._decode = decode
        self._skip_ms = skip_ms
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._batches: deque[tuple[pa.RecordBatch, npt.NDArray[np.int64]]] = deque()
        self._pieces: deque[Piece] = deque()
        self._decoded = 0

    @property
    def next_ms(self) -> int | None:
        """Market time of the next row, where it is known."""
        if not self._pieces:
            return None
        piece = self._pieces[0]
        return int(piece.ids[piece.at])

    @property
    def begun(self) -> bool:
        """Whether it reads, or has read, anything."""
        return self._task is not None

    @property
    def ended(self) -> bool:
        """Whether all was taken.

        Raises
        ------
        QMTError
            Instead, why it could not be read.
        """
        if self._task is None or not self._task.done() or self._batches or self._pieces:
            return False
        self._task.result()
        return True

    def start(self, from_ms: int | None) -> None:
        """Begin to read."""
        self._task = asyncio.ensure_future(self._pump(from_ms))
        self._task.add_done_callback(lambda _: self._wake())

    async def stop(self) -> None:
        """Read no more, and forget what was read."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._batches.clear()
        self._pieces.clear()
        self._decoded = 0

    async def _pump(self, from_ms: int | None) -> None:
        async with aclosing(self._read(from_ms)) as batches:
            async for batch in batches:
                if not len(batch):
                    continue
                ids = np.asarray(batch.column("id_ms").to_numpy(), dtype=np.int64)
                self._batches.append((batch, ids))
                self._wake()
                while len(self._batches) >= _AHEAD_BATCHES:
                    self._room.clear()
                    await self._room.wait()

    def first(self, most: int | None) -> Piece | None:
        """Return the piece that is next, of so many rows at most; ``None``: not there yet."""
        if not self._pieces:
            self._cut(most)
        return self._pieces[0] if self._pieces else None

    def decode_ahead(self, most: int) -> bool:
        """Decode a piece more; false when there is none, or enough."""
        if self._decoded >= _DECODED_AHEAD:
            return False
        if all(piece.items is not None for piece in self._pieces) and not self._cut(most):
            return False
        self.items_of(next(piece for piece in self._pieces if piece.items is None))
        return True

    def items_of(self, piece: Piece) -> list[Any]:
        """Return a piece's rows decoded."""
        if piece.items is None:
            piece.items = self._decode(piece.batch)
            self._decoded += len(piece.items)
        return piece.items

    def taken(self, piece: Piece, to: int) -> None:
        """Note up to which row the first piece was taken."""
        if piece.items is not None:
            self._decoded -= to - piece.at
        piece.at = to
        if to == len(piece.ids):
            self._pieces.popleft()

    def _cut(self, most: int | None) -> bool:
        """Cut a piece from what was read."""
        if not self._batches:
            return False
        batch, ids = self._batches[0]
        end = len(ids) if most is None else min(most, len(ids))
        pauses = np.flatnonzero(np.diff(ids[:end]) > self._skip_ms)
        if len(pauses):
            end = int(pauses[0]) + 1
        self._pieces.append(Piece(batch.slice(0, end), ids[:end]))
        if end == len(ids):
            self._batches.popleft()
            self._room.set()
        else:
            self._batches[0] = batch.slice(end), ids[end:]
        return True
