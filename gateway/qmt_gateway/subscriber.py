"""What waits for one WebSocket client: frames while it keeps up, else the latest ticks."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

import msgspec

__all__ = ["Frame", "Subscriber", "join_rows"]

_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Frame:
    """One encoded frame, shared by all clients with the same codes."""

    text: str
    """``{code: [row, ...]}`` as JSON."""
    latest: dict[str, bytes]
    """Code to its newest row as JSON, for clients that must be conflated."""
    rows: dict[str, int]
    """Code to how many rows the frame has of it."""


class Subscriber:
    """One client's place in the hub: its codes and its bounded queue.

    Up to `max_bytes` of frames wait. Beyond that the queue is conflated: of each code only the
    newest row stays, and `skipped` counts the rows that were dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self.codes: frozenset[str] = frozenset()
        self.skipped: Counter[str] = Counter()
        self.gaps: set[str] = set()
        """Markets of which ticks were lost before they reached the gateway."""
        self.closed: str = ""
        """Why the hub gave it up; empty while it is served."""
        self._max_bytes = max_bytes
        self._frames: deque[Frame] = deque()
        self._queued_bytes = 0
        self._conflated: dict[str, bytes] = {}
        self._woken = False
        self._ready = asyncio.Event()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait; those of frames are shared with other clients."""
        return self._queued_bytes

    def push(self, frame: Frame) -> None:
        """Queue a frame; conflate when it is too much."""
        if self._conflated:
            self._conflate(frame)
        elif self._frames and self._queued_bytes + len(frame.text) > self._max_bytes:
            for waiting in (*self._frames, frame):
                self._conflate(waiting)
            self._frames.clear()
        else:
            self._frames.append(frame)
            self._queued_bytes += len(frame.text)
        self._ready.set()

    def _conflate(self, frame: Frame) -> None:
        for code, row in frame.latest.items():
            self.skipped[code] += frame.rows[code] - (code not in self._conflated)
            self._conflated[code] = row
        self._queued_bytes = sum(map(len, self._conflated.values()))

    def close(self, reason: str) -> None:
        """Give the client up: `next_frame` returns what waits, then ``None``."""
        self.closed = reason
        self._ready.set()

    def tell_gap(self, market: str) -> None:
        """Note that ticks of a market were lost before they reached the gateway."""
        self.gaps.add(market)
        self.wake()

    def wake(self) -> None:
        """Let `next_frame` return at once, empty when nothing waits: there is news to tell."""
        self._woken = True
        self._ready.set()

    async def next_frame(self) -> str | None:
        """Wait for the next frame; ``None`` when the hub has given the client up."""
        while not self._frames and not self._conflated:
            if self.closed:
                return None
            if self._woken:
                self._woken = False
                return ""
            self._ready.clear()
            await self._ready.wait()
        if self._frames:
            frame = self._frames.popleft()
            self._queued_bytes -= len(frame.text)
            return frame.text
        text = join_rows({code: [row] for code, row in self._conflated.items()})
        self._conflated.clear()
        self._queued_bytes = 0
        return text


def join_rows(rows: dict[str, list[bytes]]) -> str:
    """Put encoded rows together to a frame."""
    parts = (b"%b:[%b]" % (_encode(code), b",".join(of)) for code, of in rows.items())
    return (b"{" + b",".join(parts) + b"}").decode()
