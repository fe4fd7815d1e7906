"""Subscribers with the same subscription: their frames are made once, and kept once."""

from __future__ import annotations

from .budget import Budget
from .conflation import Kept
from .frame import Frame
from .subscriber import Subscriber
from .wires import Row, Wire

__all__ = ["Group"]


class Group:
    """Subscribers with the same subscription and wire format."""

    def __init__(
        self, keys: frozenset[str], market: str, wire: Wire, conflate: bool, budget: Budget
    ) -> None:
        self.keys = keys
        """Codes and bars; empty where a market is wanted whole."""
        self.market = market
        self.names = frozenset(key.rpartition(".")[2] for key in keys) or frozenset((market,))
        self.wire = wire
        self.conflate = conflate
        self.subscribers: set[Subscriber] = set()
        self.pending: list[Row] = []
        self._budget = budget
        self._kept: list[Kept] = []
        """For those who do not keep up, by when they fell behind."""

    def send(self, frame: Frame) -> None:
        """Send a frame to all; keep its rows for those for whom too much waits."""
        for kept in self._kept:
            self._keep(kept, frame)
        fresh: Kept | None = None
        for subscriber in self.subscribers:
            if subscriber.keeps_of(self) or subscriber.push(frame):
                continue
            if fresh is None:
                fresh = Kept()
                self._keep(fresh, frame)
            subscriber.fall_behind(self, fresh)
        if fresh is not None:
            self._kept.append(fresh)

    def _keep(self, kept: Kept, frame: Frame) -> None:
        kept.keep(frame)
        self._budget.keep(kept, kept.size_bytes)

    def let_go(self, kept: Kept) -> None:
        """Note that one less gets what is kept."""
        kept.users -= 1
        if not kept.users:
            self._kept.remove(kept)
            self._budget.keep(kept, 0)
