"""What was lost before Redis had it, gathered into exact gap events."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from qmt_protocol.ticks import exchange_ms

from .ring import Entry

__all__ = ["Losses"]


class Losses:
    """Counts lost ticks per reason and code until they are told as events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost: dict[str, dict[str, list[int]]] = {}
        self.total_ticks = 0

    def add_push(
        self, reason: str, received_ms: int, push: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Note the ticks of a push as lost."""
        for code, tick in push.items():
            at_ms = exchange_ms(tick, received_ms)[0] if isinstance(tick, Mapping) else received_ms
            self._add(reason, str(code), at_ms)

    def add_entries(self, reason: str, entries: Sequence[Entry]) -> None:
        """Note encoded ticks as lost."""
        for code, at_ms, _ in entries:
            self._add(reason, code, at_ms)

    def _add(self, reason: str, code: str, at_ms: int) -> None:
        with self._lock:
            self.total_ticks += 1
            codes = self._lost.setdefault(reason, {})
            seen = codes.get(code)
            if seen is None:
                codes[code] = [at_ms, at_ms, 1]
            else:
                seen[0], seen[1] = min(seen[0], at_ms), max(seen[1], at_ms)
                seen[2] += 1

    def take(self) -> list[dict[str, Any]]:
        """Return one gap event per reason and start anew.

        Each has ``from_ms``, ``to_ms`` and ``ticks`` in all, and ``codes``: code to
        [first ms, last ms, ticks].
        """
        with self._lock:
            lost, self._lost = self._lost, {}
        return [
            {
                "kind": "gap",
                "reason": reason,
                "from_ms": min(first for first, _, _ in codes.values()),
                "to_ms": max(last for _, last, _ in codes.values()),
                "ticks": sum(ticks for _, _, ticks in codes.values()),
                "codes": codes,
            }
            for reason, codes in lost.items()
        ]
