"""What was lost before Redis had it, gathered into exact gap events."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

__all__ = ["Losses"]


class Losses:
    """Counts lost ticks per reason and code until they are told as events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost: dict[str, dict[str, list[int]]] = {}
        self.total_ticks = 0

    def add(self, reason: str, ticks: Iterable[tuple[str, int]]) -> None:
        """Note ticks, as (code, exchange ms), as lost."""
        with self._lock:
            codes = self._lost.setdefault(reason, {})
            for code, at_ms in ticks:
                self.total_ticks += 1
                seen = codes.setdefault(code, [at_ms, at_ms, 0])
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
