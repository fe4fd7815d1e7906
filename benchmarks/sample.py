"""A whole market's ticks as a terminal pushes them, made in this process from the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import numpy as np

from qmt_producer.candidates import Entry
from qmt_producer.push_codec import Encoded, PushCodec
from qmt_producer.ring import NewBatch
from qmt_protocol.codes import market_of
from qmt_simulator import bson, tickrows
from qmt_simulator.clock import parse_start
from qmt_simulator.market import Market

__all__ = ["INTERVAL_MS", "MARKETS", "Pushes", "batches_of", "entries_of", "relabelled"]

MARKETS: Final = ("SH", "SZ", "BJ")
INTERVAL_MS: Final = 3000
BATCH: Final = 500
_MORNING_MS: Final = parse_start("2025-11-20 09:30:00")
_NOON_MS: Final = parse_start("2025-11-20 11:30:00")
_AFTERNOON_MS: Final = parse_start("2025-11-20 13:00:00")
_HALF_DAY: Final = (_NOON_MS - _MORNING_MS) // INTERVAL_MS


class Pushes:
    """Pushes of one trading day, one for every three seconds of continuous trading.

    Parameters
    ----------
    codes
        At most so many stocks and funds of Shanghai, Shenzhen and Beijing; 0: all of them.
    """

    def __init__(self, codes: int = 0) -> None:
        self._market = _market()
        names = self._market.codes
        ours = np.array([name.rpartition(".")[2] in MARKETS for name in names])
        if codes:
            idx, _ = self._market.due(_MORNING_MS, _MORNING_MS + INTERVAL_MS)
            chosen = np.zeros(len(names), dtype=bool)
            chosen[np.unique(idx[ours[idx]])[:codes]] = True
            ours &= chosen
        self._ours = ours
        self._encoder = tickrows.TickEncoder(names)
        self._codec = PushCodec(bson.decode)

    def push(self, step: int) -> bytes:
        """Return the BSON of the step's push; 4,800 steps are a day."""
        half, within = divmod(step, _HALF_DAY)
        begin = (_MORNING_MS, _AFTERNOON_MS)[half] + within * INTERVAL_MS
        idx, time_ms = self._market.due(begin, begin + INTERVAL_MS)
        ours = self._ours[idx]
        ticks = self._market.ticks(idx[ours], time_ms[ours])
        rows = tickrows.Rows(ticks, np.zeros(len(ticks.idx), np.uint32))
        return tickrows.document([part.tobytes() for _, part in self._encoder.groups(rows)])

    def entries(self, step: int) -> list[Entry]:
        """Return the step's ticks as the ring holds them."""
        return entries_of(self._codec.encode(self.push(step), 0))

    def documents(self, step: int) -> dict[str, dict[str, Any]]:
        """Return the step's ticks as xtdata's callback gets them."""
        return bson.decode(self.push(step))


@cache
def _market() -> Market:
    return Market()


def entries_of(encoded: list[Encoded]) -> list[Entry]:
    """Return what can go to the ring; a tick that could not be encoded is an error here."""
    entries: list[Entry] = []
    for code, at_ms, t1 in encoded:
        if not isinstance(t1, bytes):
            raise t1
        entries.append((code, at_ms, t1))
    return entries


def batches_of(entries: list[Entry]) -> Iterator[NewBatch]:
    """Yield a push of ticks as the intake cuts it: by market, at most 500 in each batch."""
    by_market: dict[str, list[Entry]] = {}
    for entry in entries:
        by_market.setdefault(market_of(entry[0]), []).append(entry)
    for market, of_market in by_market.items():
        for at in range(0, len(of_market), BATCH):
            yield market, "tick", 0, of_market[at : at + BATCH]


def relabelled(entries: list[Entry], codes: int) -> list[Entry]:
    """Return ticks of as many invented codes of one market, for counts no market has."""
    return [(f"{number:06d}.SH", *entries[number % len(entries)][1:]) for number in range(codes)]
