"""Closing prices: a price path that is looked up by trading day, never walked along.

The path is a sum of value noise over several spans of days, so the close of any day costs the
same. Its amplitudes are chosen so that even the largest possible move of two days stays inside
the daily limit; a close on the limit is made on purpose. Suspensions stop the path's time.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from qmt_simulator.market.calendar import to_ordinal
from qmt_simulator.market.dividends import Schedule
from qmt_simulator.market.hashing import F64, I64, combine, exp, mix, unit
from qmt_simulator.market.instruments import LONG_SUSPENDED, Catalogue, Kind

_SPANS: Final = (1, 3, 9, 27, 81, 243, 729)
_MARKET_SIGMA: Final = 0.004
_SIGMA_PER_LIMIT: Final = 0.065
_EVENT_DAYS: Final = 16
_EVENT_CHANCE: Final = 0.10
_BLOCK: Final = 64
_SUSPENDED_CHANCE: Final = 0.02
_NEVER: Final = 2**31


def _noise(keys: np.ndarray, time: I64) -> F64:
    """Value noise of roughly Brownian spectrum at whole times."""
    total = np.zeros(np.broadcast(keys, time).shape)
    for level, span in enumerate(_SPANS):
        seed = combine(keys, 1000 + level)
        at = time // span
        here = unit(combine(seed, at)) * 2.0 - 1.0
        if span > 1:
            part = (time - at * span) * (1.0 / span)
            there = unit(combine(seed, at + 1)) * 2.0 - 1.0
            here = here + (there - here) * part
        total += here * float(span) ** 0.5
    return total


class Paths:
    """Closes and previous closes, in price ticks, of any instruments on any trading days."""

    def __init__(self, seed: int, catalogue: Catalogue, ordinals: I64) -> None:
        self._cat = cat = catalogue
        self._ordinals = ordinals
        n, blocks = len(cat.codes), len(ordinals) // _BLOCK + 1
        self._market_key = mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
        limit = np.where(cat.limit > 0.0, cat.limit, 0.02)
        own = limit * _SIGMA_PER_LIMIT
        own[(cat.kind == Kind.ETF) | (cat.kind == Kind.INDEX)] = 0.002
        own[cat.kind == Kind.BOND] = 0.006
        self._sigma = own[cat.follows]
        beta = np.minimum(1.0, cat.limit / 0.10)
        beta[cat.kind == Kind.INDEX] = 1.0
        beta[cat.kind == Kind.BOND] = 0.0
        self._beta = beta[cat.follows]
        self._path_keys = cat.keys[cat.follows]
        stock = cat.kind == Kind.STOCK
        self._eventful = stock
        self._jump_up = np.array([math.log1p(part) for part in cat.limit.tolist()])
        self._jump_down = np.array([math.log1p(-part) for part in cat.limit.tolist()])
        # Suspensions, at most one in each block of days: first day, length, days lost before.
        block = np.arange(blocks, dtype=np.int64)
        word = combine(combine(cat.keys, 77)[:, None], block)
        has = (unit(word) < _SUSPENDED_CHANCE) & stock[:, None]
        self._susp_length = np.where(has, 1 + (word & np.uint64(7)).astype(np.int64), 0).astype(
            np.int16
        )
        self._susp_start = (4 + ((word >> np.uint64(3)) & np.uint64(31))).astype(np.int16)
        lost = np.cumsum(self._susp_length, axis=1, dtype=np.int16)
        self._susp_lost = lost - self._susp_length
        self._gone = np.full(n, _NEVER, dtype=np.int64)
        for code, day in LONG_SUSPENDED.items():
            self._gone[cat.index[code]] = int(np.searchsorted(ordinals, to_ordinal(day)))
        self.dividends = Schedule(seed, cat, ordinals, self)

    def suspended(self, idx: I64, at: I64) -> np.ndarray:
        """Whether instruments are suspended on trading days (positions in the calendar)."""
        at = np.maximum(at, 0)
        block = at // _BLOCK
        since = at - block * _BLOCK - self._susp_start[idx, block]
        return (since >= 0) & (since < self._susp_length[idx, block]) | (at >= self._gone[idx])

    def _trading(self, idx: I64, at: I64) -> I64:
        """The newest day at or before `at` on which the instrument trades."""
        at = np.minimum(at, self._gone[idx] - 1)
        safe = np.maximum(at, 0)
        block = safe // _BLOCK
        start = block * _BLOCK + self._susp_start[idx, block]
        inside = (safe >= start) & (safe < start + self._susp_length[idx, block])
        return np.where(inside, start - 1, at)

    def first_trading(self, idx: I64, at: I64) -> I64:
        """The first day at or after `at` on which the instrument trades."""
        block = at // _BLOCK
        start = block * _BLOCK + self._susp_start[idx, block]
        end = start + self._susp_length[idx, block]
        return np.where((at >= start) & (at < end), end, at)

    def _plain(self, idx: I64, at: I64) -> tuple[I64, np.ndarray]:
        """Closes by the path alone, and +1/-1 on days that close on the limit instead."""
        cat = self._cat
        safe = np.maximum(at, 0)
        block = safe // _BLOCK
        since = safe - block * _BLOCK - self._susp_start[idx, block]
        lost = self._susp_lost[idx, block] + np.clip(since, 0, self._susp_length[idx, block])
        time = at - lost
        keys = self._path_keys[idx]
        x = self._sigma[idx] * _noise(keys, time)
        x += self._beta[idx] * _MARKET_SIGMA * _market_noise(self._market_key, time)
        shifted = time + (keys & np.uint64(15)).astype(np.int64)
        window = shifted // _EVENT_DAYS
        age = shifted - window * _EVENT_DAYS
        chance = unit(combine(combine(keys, 88), window))
        event = (chance < _EVENT_CHANCE) & self._eventful[idx]
        up = chance < 0.6 * _EVENT_CHANCE
        jump = np.where(up, self._jump_up[idx], self._jump_down[idx])
        x += np.where(event, jump * (1.0 - age / _EVENT_DAYS), 0.0)
        price = cat.price[idx] * exp(x) * self.dividends.level(idx, at)
        options = np.flatnonzero(cat.kind[idx] == Kind.OPTION)
        if len(options):
            price[options] = self._option_price(idx[options], at[options], price[options])
        ticks = np.maximum(np.floor(price * cat.steps[idx] + 0.5).astype(np.int64), 2)
        return ticks, np.where(event & (age == 0), np.where(up, 1, -1), 0)

    def _option_price(self, idx: I64, at: I64, spot: F64) -> F64:
        """Intrinsic value plus a bell of time value around the strike."""
        cat = self._cat
        day = self._ordinals[np.maximum(at, 0)]
        years = np.maximum(cat.expire_ordinal[idx] - day, 0) / 365.0
        strike = cat.strike[idx]
        sign = np.where(cat.call[idx], 1.0, -1.0)
        intrinsic = np.maximum(sign * (spot - strike), 0.0)
        root = np.sqrt(years + 0.002)
        distance = (spot - strike) / (spot * 0.2 * root + 0.02)
        return np.asarray(intrinsic + 0.07 * spot * root / (1.0 + distance * distance))

    def limits(self, idx: I64, reference: I64) -> tuple[I64, I64]:
        """Upper and lower limit in price ticks (a tick is never rounded away from 0.5 up)."""
        cat = self._cat
        part = reference * cat.limit[idx]
        options = np.flatnonzero(cat.kind[idx] == Kind.OPTION)
        if len(options):
            part[options] = cat.price[idx[options]] * cat.steps[idx[options]] * 0.10
        up = np.floor(reference + part + 0.5 + 1e-6).astype(np.int64)
        down = np.floor(reference - part + 0.5 + 1e-6).astype(np.int64)
        index = cat.kind[idx] == Kind.INDEX
        return np.where(index, 2**40, up), np.where(index, 0, np.maximum(down, 1))

    def closes(self, idx: I64, at: I64) -> tuple[I64, I64]:
        """Reference (previous close, ex-right) and close, in price ticks.

        Parameters
        ----------
        idx, at : int64[n]
            Instrument numbers and positions of trading days.
        """
        suspended = self.suspended(idx, at)
        day = np.where(suspended, self._trading(idx, at), at)
        day1 = self._trading(idx, day - 1)
        day2 = self._trading(idx, day1 - 1)
        n = len(idx)
        # One call for the three days: the path costs the most here.
        plain, event = self._plain(np.tile(idx, 3), np.concatenate([day, day1, day2]))
        before = self._on_limit(idx, day1, plain[n : 2 * n], event[n : 2 * n], plain[2 * n :])[1]
        reference, close = self._on_limit(idx, day, plain[:n], event[:n], before)
        return np.where(suspended, close, reference), close

    def _on_limit(
        self, idx: I64, at: I64, plain: I64, event: np.ndarray, before: I64
    ) -> tuple[I64, I64]:
        reference = self.dividends.reference(idx, at, before)
        up, down = self.limits(idx, reference)
        close = np.where(event > 0, up, np.where(event < 0, down, plain))
        return reference, close


def _market_noise(key: np.ndarray, time: I64) -> F64:
    """The market's common noise, looked up once per day."""
    if not len(time):
        return np.zeros(0)
    low = int(time.min())
    table = _noise(key, np.arange(low, int(time.max()) + 1, dtype=np.int64))
    return np.asarray(table[time - low], dtype=np.float64)
