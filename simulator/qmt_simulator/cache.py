"""What this terminal has on its disk: nothing at first, then what was downloaded or subscribed.

The numbers themselves always come from the market; the cache only knows which parts may be read.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import threading
import time
from pathlib import Path
from typing import Final

from qmt_simulator.clock import DAY_MS, day_of, day_start_ms

BASE_PERIOD: Final = {
    "tick": "tick",
    "1m": "1m",
    "5m": "5m",
    "15m": "5m",
    "30m": "5m",
    "60m": "5m",
    "1h": "5m",
    "1d": "1d",
    "1w": "1d",
    "1mon": "1d",
    "1q": "1d",
    "1hy": "1d",
    "1y": "1d",
}
"""Every period and the stored one it is made of."""

_Key = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Span:
    """A downloaded part, closed at both ends, with what was true at `as_of_ms`."""

    start_ms: int
    end_ms: int
    as_of_ms: int


@dataclasses.dataclass(frozen=True)
class Readable:
    """What may be read of one code and stored period now."""

    spans: tuple[Span, ...]
    live_from_ms: int | None
    edges: dict[int, int]
    """00:00 of days that were only known while they went on, and until when."""

    def seen_until_ms(self, now_ms: int) -> int:
        """Return the market time up to which its newest bar was made."""
        if self.live_from_ms is not None:
            return now_ms
        return min(now_ms, max((span.as_of_ms for span in self.spans), default=0))

    def first_ms(self) -> int | None:
        starts = [span.start_ms for span in self.spans]
        if self.live_from_ms is not None:
            starts.append(self.live_from_ms)
        return min(starts, default=None)


class Cache:
    """The terminal's local cache, safe to use from several threads.

    Parameters
    ----------
    folder : Path, optional
        Keeps the cache across restarts in `cache.json` there.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._spans: dict[_Key, list[Span]] = {}
        self._coming: dict[_Key, list[tuple[float, Span]]] = {}
        self._live: collections.Counter[_Key] = collections.Counter()
        self._live_from_ms: dict[_Key, int] = {}
        self._edges: dict[_Key, dict[int, int]] = {}
        self._dirty = False
        self._file = folder / "cache.json" if folder is not None else None
        if self._file is not None and self._file.exists():
            stored = json.loads(self._file.read_text("utf-8"))
            for code, period, *numbers in stored["spans"]:
                self._merge((code, period), Span(*numbers))
            for code, period, day_ms, as_of_ms in stored["edges"]:
                self._edges.setdefault((code, period), {})[day_ms] = as_of_ms

    def add(self, code: str, period: str, span: Span, delay_s: float = 0.0) -> None:
        """Add a downloaded part that becomes readable after `delay_s`."""
        with self._lock:
            self._coming.setdefault((code, period), []).append((time.monotonic() + delay_s, span))
            self._dirty = True

    def go_live(self, code: str, period: str, from_ms: int) -> None:
        """A subscription feeds the cache from `from_ms` on."""
        with self._lock:
            self._live[code, period] += 1
            known = self._live_from_ms.get((code, period), from_ms)
            self._live_from_ms[code, period] = min(known, from_ms)

    def end_live(self, code: str, period: str, now_ms: int) -> None:
        """One subscription ended; what the last one brought stays."""
        key = (code, period)
        with self._lock:
            self._live[key] -= 1
            if self._live[key] > 0:
                return
            del self._live[key]
            start_ms = self._live_from_ms.pop(key)
            self._merge(key, Span(start_ms, now_ms, now_ms))
            self._dirty = True

    def readable(self, code: str, period: str, *, live: bool = True) -> Readable:
        """Return what of a stored period may be read; `live=False` leaves subscriptions out."""
        key = (code, period)
        with self._lock:
            coming = self._coming.get(key)
            if coming:
                now_s = time.monotonic()
                for _due_s, span in (item for item in coming if item[0] <= now_s):
                    self._merge(key, span)
                self._coming[key] = [item for item in coming if item[0] > now_s]
            return Readable(
                tuple(self._spans.get(key, ())),
                self._live_from_ms.get(key) if live else None,
                dict(self._edges.get(key, ())),
            )

    def save(self) -> None:
        """Write the cache to its folder when it changed."""
        if self._file is None:
            return
        with self._lock:
            if not self._dirty:
                return
            self._dirty = False
            coming = {key: [span for _due, span in items] for key, items in self._coming.items()}
            rows = [
                [*key, span.start_ms, span.end_ms, span.as_of_ms]
                for table in (self._spans, coming)
                for key, spans in table.items()
                for span in spans
            ]
            edges = [
                [*key, day_ms, as_of_ms]
                for key, days in self._edges.items()
                for day_ms, as_of_ms in days.items()
            ]
        partial = self._file.with_suffix(".tmp")
        partial.write_text(json.dumps({"spans": rows, "edges": edges}), "utf-8")
        os.replace(partial, self._file)

    def _merge(self, key: _Key, span: Span) -> None:
        edges = self._edges.setdefault(key, {})
        going_on_ms = day_start_ms(day_of(span.as_of_ms))
        for day_ms in [day for day in edges if span.start_ms < day + DAY_MS and day <= span.end_ms]:
            if day_ms < going_on_ms:
                del edges[day_ms]  # known to its end by now
        if span.start_ms < going_on_ms + DAY_MS and going_on_ms <= span.end_ms:
            edges[going_on_ms] = max(span.as_of_ms, edges.get(going_on_ms, 0))
        merged: list[Span] = []
        for other in sorted([*self._spans.get(key, []), span], key=lambda item: item.start_ms):
            if merged and other.start_ms <= merged[-1].end_ms + 1:
                last = merged[-1]
                merged[-1] = Span(
                    last.start_ms,
                    max(last.end_ms, other.end_ms),
                    max(last.as_of_ms, other.as_of_ms),
                )
            else:
                merged.append(other)
        self._spans[key] = merged
