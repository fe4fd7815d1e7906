"""Daily bars, from which everything within the day follows. Prices are whole price ticks."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from qmt_simulator.market.calendar import TradingCalendar
from qmt_simulator.market.hashing import F64, I64, combine, unit, unit16
from qmt_simulator.market.instruments import Catalogue, Kind
from qmt_simulator.market.paths import Paths

LEAST_LOTS = 2000


@dataclass(slots=True)
class DailyBars:
    """Daily bars of n (instrument, day) pairs, int64[n] each.

    `volume` in lots, `amount` in whole yuan, prices in price ticks; `key` seeds the day within.
    """

    idx: I64
    ordinal: I64
    reference: I64
    open: I64
    high: I64
    low: I64
    close: I64
    volume: I64
    amount: I64
    suspended: np.ndarray
    interest: I64
    interest_before: I64
    settlement: I64
    settlement_before: I64

    def take(self, rows: np.ndarray) -> DailyBars:
        """The chosen pairs."""
        return DailyBars(*(getattr(self, field.name)[rows] for field in fields(self)))


class Daily:
    """Daily bars of any instruments on any days."""

    def __init__(self, seed: int, catalogue: Catalogue, calendar: TradingCalendar) -> None:
        self._cat, self._calendar = catalogue, calendar
        self.paths = Paths(seed, catalogue, calendar.ordinals)
        self._day_keys = combine(catalogue.keys, 31)

    def keys(self, idx: I64, ordinal: I64) -> np.ndarray:
        """One key for each (instrument, day)."""
        return combine(self._day_keys[idx], ordinal)

    def bars(self, idx: I64, ordinal: I64) -> DailyBars:
        """Daily bars.

        A day on which the exchange is closed gets a bar too, between its neighbours and within
        the limits: a market that trades around the clock has one.
        """
        idx = np.asarray(idx, dtype=np.int64)
        ordinal = np.asarray(ordinal, dtype=np.int64)
        days = self._calendar.ordinals
        at = np.searchsorted(days, ordinal, side="right") - 1
        reference, close = self.paths.closes(idx, at)
        extra = days[np.maximum(at, 0)] != ordinal
        suspended = self.paths.suspended(idx, at)
        key = self.keys(idx, ordinal)
        before = at - 1
        if extra.any():
            before = np.where(extra, at, before)
            moved = close * (0.01 * (unit(combine(key, 1)) - 0.5))
            up, down = self.paths.limits(idx, close)
            shifted = np.clip(close + moved.astype(np.int64), down, up)
            reference = np.where(extra, close, reference)
            close = np.where(extra & ~suspended, shifted, close)
        o, h, low = self._range(idx, key, reference, close)
        volume, amount = self._volume(idx, key, reference, o, h, low, close)
        for column in (volume, amount):
            column[suspended] = 0
        for column in (o, h, low):
            column[suspended] = close[suspended]
        derivative = np.isin(self._cat.kind[idx], (Kind.FUTURE, Kind.OPTION))
        settlement = self._settlement(idx, ordinal, close, derivative)
        previous = self._settlement(idx, days[np.maximum(before, 0)], reference, derivative)
        interest = self._interest(idx, at, derivative)
        return DailyBars(
            idx, ordinal, reference, o, h, low, close, volume, amount, suspended,
            interest, self._interest(idx, before, derivative), settlement, previous,
        )  # fmt: skip

    def _range(self, idx: I64, key: np.ndarray, reference: I64, close: I64) -> tuple[I64, I64, I64]:
        up, down = self.paths.limits(idx, reference)
        word = combine(key, 2)
        room = np.minimum(np.maximum(self._cat.limit[idx], 0.05), 0.2) * reference
        o = reference + np.floor(
            (close - reference) * (unit16(word, 0) * 0.6) + (unit16(word, 1) - 0.5) * 0.06 * room
        ).astype(np.int64)
        o = np.clip(o, down, up)
        over = np.floor(unit16(word, 2) ** 2 * 0.2 * room).astype(np.int64)
        under = np.floor(unit16(word, 3) ** 2 * 0.2 * room).astype(np.int64)
        high = np.minimum(np.maximum(o, close) + over, up)
        low = np.maximum(np.minimum(o, close) - under, down)
        return o, high, low

    def _volume(
        self, idx: I64, key: np.ndarray, reference: I64, o: I64, h: I64, low: I64, c: I64
    ) -> tuple[I64, I64]:
        cat = self._cat
        word = combine(key, 3)
        swing = (h - low) / np.maximum(reference, 1)
        busy = 0.5 + unit16(word, 0) + 15.0 * swing
        average = (o + h + low + c) // 4
        worth = cat.worth[idx]
        volume = LEAST_LOTS + np.floor(cat.turnover[idx] * busy / (average * worth)).astype(
            np.int64
        )
        return volume, np.floor(volume * (average * worth)).astype(np.int64)

    def _settlement(self, idx: I64, ordinal: I64, close: I64, derivative: np.ndarray) -> I64:
        """Settlement price of a day with this close; the close itself for what has none."""
        nudge = (unit(combine(self.keys(idx, ordinal), 5)) - 0.5) * 0.002 * close
        return np.where(derivative, close + np.floor(nudge).astype(np.int64), close)

    def _interest(self, idx: I64, at: I64, derivative: np.ndarray) -> I64:
        """Open interest at the end of a day, contracts; 0 for what has none."""
        wave = unit(combine(combine(self._cat.keys[idx], 44), at))
        return np.where(derivative, (20000 + 60000 * wave).astype(np.int64), 0)

    def price(self, idx: I64, ticks: I64) -> F64:
        """Yuan of price ticks, the float nearest to the decimal."""
        return np.asarray(ticks / self._cat.steps[idx], dtype=np.float64)
