"""Bytes that this process holds for callers who have not taken them yet: one bound for all.

What many callers share is counted once. Beyond the bound those who hold most are cut off, and told
so: what they miss they can ask for again, a process that died would be missed by everybody.
"""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

import structlog

from qmt_protocol.errors import Overloaded

__all__ = ["Budget", "Holder"]

_RELIEVED: Final = 0.9
"""Up to this part of the bound is made free, so that not every frame cuts somebody off."""
_PATIENCE_S: Final = 10.0
"""Who has taken nothing for so long gives way to a new answer."""
_log: Final = structlog.get_logger(__name__)


class Holder(Protocol):
    """One caller for whom bytes are held."""

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for it, shared ones included."""

    @property
    def own_bytes(self) -> int:
        """Those that nobody shares."""

    @property
    def taken_at(self) -> float:
        """When it last took anything, by ``time.monotonic``."""

    def cut(self, reason: str) -> None:
        """Let its bytes go, end it, and tell it why."""


class Budget:
    """What is held, and for whom.

    Parameters
    ----------
    limit_bytes
        Most that may be held.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.cut_off = 0
        """How many callers were cut off."""
        self._holders: set[Holder] = set()
        self._shared: dict[int, tuple[bytes, int]] = {}
        self._shared_bytes = 0
        self._states: dict[Any, int] = {}
        self._released_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that are held for all callers together."""
        own = sum(one.own_bytes for one in self._holders)
        return self._shared_bytes + sum(self._states.values()) + own

    def __len__(self) -> int:
        return len(self._holders)

    def join(self, holder: Holder) -> None:
        """Count a caller."""
        self._holders.add(holder)

    def part(self, holder: Holder) -> None:
        """Count it no longer."""
        self._holders.discard(holder)

    def share(self, data: bytes) -> None:
        """Hold bytes for one more of those who share them."""
        kept = self._shared.get(id(data))
        if kept is None:
            self._shared_bytes += len(data)
        self._shared[id(data)] = (data, 1 if kept is None else kept[1] + 1)

    def unshare(self, data: bytes) -> None:
        """Hold them for one less."""
        _, count = self._shared[id(data)]
        if count > 1:
            self._shared[id(data)] = (data, count - 1)
            return
        del self._shared[id(data)]
        self._shared_bytes -= len(data)
        self.released(len(data))

    def keep(self, state: Any, size_bytes: int) -> None:
        """Count what several share that is no bytes, by its size; 0: it is gone."""
        if size_bytes:
            self._states[state] = size_bytes
        else:
            self.released(self._states.pop(state, 0))

    def relieve(self) -> None:
        """Cut off those who hold most until what is held is within the bound."""
        if self.held_bytes <= self.limit_bytes:
            return
        held_bytes = self.held_bytes
        for one in sorted(self._holders, key=lambda one: one.held_bytes, reverse=True):
            self._cut(one)
            if self.held_bytes <= self.limit_bytes * _RELIEVED:
                break
        _log.warning(
            "callers cut off: too much is unread",
            held=held_bytes,
            limit=self.limit_bytes,
            held_now=self.held_bytes,
        )

    def make_room(self, size_bytes: int) -> None:
        """Make sure that so much more may be held.

        Who has taken nothing for some time gives way.

        Raises
        ------
        Overloaded
            When there is no room.
        """
        free_bytes = self.limit_bytes - self.held_bytes
        if free_bytes >= size_bytes:
            return
        now = time.monotonic()
        idle = [one for one in self._holders if now - one.taken_at > _PATIENCE_S]
        for one in sorted(idle, key=lambda one: one.taken_at):
            self._cut(one)
            if self.limit_bytes - self.held_bytes >= size_bytes:
                return
        raise Overloaded(
            f"{self.held_bytes} bytes wait for callers who do not take them, of "
            f"{self.limit_bytes} that may.",
            hint="Try again; the operator may raise QMT_BRIDGE_MEMORY_BYTES.",
            limit_bytes=self.limit_bytes,
        )

    def _cut(self, holder: Holder) -> None:
        if not holder.held_bytes:
            return
        self.cut_off += 1
        holder.cut("This gateway holds as much as it may for those who do not read.")

    def released(self, size_bytes: int) -> None:
        """Note that so much was let go."""
        self._released_bytes += size_bytes

    def take_released(self) -> int:
        """Return how many bytes were let go since this was last asked."""
        released, self._released_bytes = self._released_bytes, 0
        return released
