"""An encoded frame, and the connection that takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from .wires import Row

__all__ = ["Frame", "Sink"]


class Frame(NamedTuple):
    """One encoded frame and what is in it, shared by all clients that get it."""

    data: bytes
    rows: Sequence[Row]
    offsets: dict[str, tuple[str, str]]


class Sink(Protocol):
    """A client's connection."""

    @property
    def paused(self) -> bool:
        """Whether the connection takes no more for now; `on_drained` is called when it does."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes that it has not taken yet."""

    @property
    def incoming_bytes(self) -> int:
        """Bytes that came from it and that nobody has looked at."""

    def push(self, frame: bytes | memoryview) -> None:
        """Send a frame, or the next whole fragments of one."""

    def on_drained(self, call: Callable[[], None]) -> None:
        """Have a function called whenever little is left waiting."""

    async def drain(self) -> None:
        """Wait until little is left waiting, or the client is gone."""

    @property
    def gone(self) -> bool:
        """Whether nothing can be sent any more."""

    def abandon(self, code: int, reason: str) -> None:
        """Close without waiting for room to write."""
