"""What was lost before Redis had it, gathered into exact gap events."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

__all__ = ["Codes", "Losses", "gap_of", "merge", "merge_gaps", "spans"]

Codes = dict[str, list[int]]
"""Code to [first exchange ms, last exchange ms, ticks]."""


def spans(ticks: Iterable[tuple[str, int | str]]) -> Codes:
    """Return what ticks, as (code, exchange ms or entry id), come to by code."""
    codes: Codes = {}
    for code, at in ticks:
        at_ms = at if isinstance(at, int) else int(at.partition("-")[0])
        seen = codes.setdefault(code, [at_ms, at_ms, 0])
        seen[0], seen[1] = min(seen[0], at_ms), max(seen[1], at_ms)
        seen[2] += 1
    return codes


def merge(codes: Codes, more: Codes) -> None:
    """Add one account to another."""
    for code, (first_ms, last_ms, ticks) in more.items():
        seen = codes.setdefault(code, [first_ms, last_ms, 0])
        seen[0], seen[1] = min(seen[0], first_ms), max(seen[1], last_ms)
        seen[2] += ticks


def gap_of(reason: str, codes: Codes) -> dict[str, Any]:
    """Return the gap event that names lost ticks.

    It has ``from_ms``, ``to_ms`` and ``ticks`` in all, and ``codes``: code to
    [first ms, last ms, ticks].
    """
    return {
        "kind": "gap",
        "reason": reason,
        "from_ms": min(first for first, _, _ in codes.values()),
        "to_ms": max(last for _, last, _ in codes.values()),
        "ticks": sum(ticks for _, _, ticks in codes.values()),
        "codes": codes,
    }


def merge_gaps(gaps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return fewer gap events that name all that the given ones do.

    Those of a market, a reason and a form become one: from the first to the last, with the sum of
    what is counted, and each code by itself where codes are named. Its ``gaps`` says how many.
    """
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for gap in gaps:
        # Behind a colon are words, of the first case.
        reason = str(gap.get("reason")).partition(":")[0]
        name = (gap.get("market"), reason, frozenset(gap) - {"gaps"})
        merged[name] = _joined(merged[name], gap) if name in merged else gap
    return list(merged.values())


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    joined = {**one, "gaps": one.get("gaps", 1) + other.get("gaps", 1)}
    for field, join in _JOINS.items():
        if field in one:
            joined[field] = join(one[field], other[field])
    return joined


def _joined_codes(one: Codes, other: Codes) -> Codes:
    codes = {code: list(span) for code, span in one.items()}
    merge(codes, other)
    return codes


_JOINS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "at_ms": max,
    "from_ms": min,
    "to_ms": max,
    "ticks": operator.add,
    "bars": operator.add,
    "codes": _joined_codes,
}


class Losses:
    """Counts lost ticks per reason and code until they are told as events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost: dict[str, Codes] = {}
        self.total_ticks = 0

    def add(self, reason: str, ticks: Iterable[tuple[str, int | str]]) -> None:
        """Note ticks, as (code, exchange ms or entry id), as lost."""
        lost = spans(ticks)
        with self._lock:
            self.total_ticks += sum(ticks for _, _, ticks in lost.values())
            merge(self._lost.setdefault(reason, {}), lost)

    def take(self) -> list[dict[str, Any]]:
        """Return one gap event per reason and start anew."""
        with self._lock:
            lost, self._lost = self._lost, {}
        return [gap_of(reason, codes) for reason, codes in lost.items() if codes]
