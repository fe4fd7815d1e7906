"""What waits for one connection: frames that many share, and rows whose frames are made when due.

A connection is given 64 KiB at a time, and more only when it has taken most of that. So nothing is
copied for one that does not read, and nothing is made for it that it does not take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from .wires import FRAGMENT_BYTES

if TYPE_CHECKING:
    from .budget import Budget
    from .frame import Sink

__all__ = ["Outbox"]


class _Later(NamedTuple):
    """Frames that are made one by one, when the one before was taken."""

    frames: Iterator[bytes]
    size_bytes: int
    """What is held to make them."""


class Outbox:
    """Gives a connection what it takes, and keeps the rest in order.

    Parameters
    ----------
    budget
        Counts the frames that wait.
    """

    def __init__(self, sink: Sink, budget: Budget) -> None:
        self._sink = sink
        self._budget = budget
        self._queue: deque[bytes | _Later] = deque()
        self._queued_bytes = 0
        self._later_bytes = 0
        self._frame = b""
        """The frame that is being given, up to where, and whether others share it."""
        self._at = 0
        self._is_shared = False
        self.given_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether the connection was given everything, and takes more."""
        return not (self._queue or self._at < len(self._frame) or self._sink.paused)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the connection has not taken yet."""
        return self._sink.waiting_bytes + self._queued_bytes + len(self._frame) - self._at

    @property
    def own_bytes(self) -> int:
        """What of it is held for this connection alone."""
        frame_bytes = 0 if self._is_shared else len(self._frame)
        return self._sink.waiting_bytes + self._later_bytes + frame_bytes

    def put(self, frame: bytes) -> None:
        """Add a complete frame."""
        if self._queue or self._at < len(self._frame):
            self._queue.append(frame)
            self._queued_bytes += len(frame)
            self._budget.share(frame)
            return
        self._frame, self._at = frame, 0
        self.flow()
        if self._at < len(self._frame):
            self._is_shared = True
            self._budget.share(frame)

    def put_later(self, frames: Iterator[bytes], size_bytes: int) -> None:
        """Add frames that are made when the connection takes them."""
        self._queue.append(_Later(frames, size_bytes))
        self._queued_bytes += size_bytes
        self._later_bytes += size_bytes
        self.flow()

    def flow(self) -> None:
        """Give the connection what it takes."""
        sink = self._sink
        while not sink.paused and not sink.gone:
            if self._at == len(self._frame) and not self._turn():
                return
            piece = memoryview(self._frame)[self._at : self._at + FRAGMENT_BYTES]
            self._at += len(piece)
            self.given_bytes += len(piece)
            sink.push(piece)
            if self._at == len(self._frame):
                self._let_go()

    def _turn(self) -> bool:
        """Turn to the next frame, if there is one."""
        while self._queue:
            head = self._queue[0]
            if isinstance(head, bytes):
                self._queue.popleft()
                self._queued_bytes -= len(head)
                self._frame, self._at, self._is_shared = head, 0, True
                return True
            frame = next(head.frames, b"")
            if frame:
                self._frame, self._at = frame, 0
                return True
            self._queue.popleft()
            self._queued_bytes -= head.size_bytes
            self._later_bytes -= head.size_bytes
        return False

    def _let_go(self) -> None:
        if self._is_shared:
            self._budget.unshare(self._frame)
        self._frame, self._at, self._is_shared = b"", 0, False

    def clear(self) -> None:
        """Forget what the connection was not given."""
        self._let_go()
        for one in self._queue:
            if isinstance(one, bytes):
                self._budget.unshare(one)
        self._queue.clear()
        self._queued_bytes = self._later_bytes = 0

    async def drain(self) -> None:
        """Wait until the connection has taken most of everything, or is gone."""
        while True:
            await self._sink.drain()
            if self._sink.gone or not (self._queue or self._frame):
                return
