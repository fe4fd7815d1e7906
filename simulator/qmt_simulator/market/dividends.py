"""Dividends, bonus shares and allotments (除权除息): the schedule, and adjusted prices."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np

from qmt_simulator.market.calendar import days_of
from qmt_simulator.market.hashing import F64, I64, combine, unit16
from qmt_simulator.market.instruments import Catalogue, Kind
from qmt_simulator.market.records import Dividend

_FIRST_YEAR: Final = 2015
_YEARS: Final = 21
_LEVEL_YEAR: Final = 2026
_NEVER: Final = 2**31

# code: year: (yield, stockBonus, stockGift, allotNum); other years pay no shares
FIXED: Final[dict[str, dict[int, tuple[float, float, float, float]]]] = {
    "600519.SH": {},
    "000001.SZ": {2016: (0.012, 0.0, 0.2, 0.0), 2019: (0.014, 0.1, 0.2, 0.0),
                  2023: (0.02, 0.0, 0.5, 0.0)},
    "300750.SZ": {2023: (0.006, 0.0, 0.8, 0.0)},
    "600036.SH": {2020: (0.02, 0.0, 0.0, 0.3)},
}  # fmt: skip


class Paths(Protocol):
    """What is asked of prices and suspensions."""

    def suspended(self, idx: I64, at: I64) -> np.ndarray:
        """Whether instruments are suspended on trading days."""

    def first_trading(self, idx: I64, at: I64) -> I64:
        """The first day at or after `at` on which the instrument trades."""

    def closes(self, idx: I64, at: I64) -> tuple[I64, I64]:
        """Reference and close, in price ticks."""


class Schedule:
    """Planned ex-dates, one a year at most, of every stock.

    A plan gives the yield and the shares; the cash itself is that yield of the real previous
    close, rounded to a tenth of a cent, so that what is published can be checked by hand.
    """

    def __init__(self, seed: int, cat: Catalogue, ordinals: I64, paths: Paths) -> None:
        self._cat, self._ordinals, self._paths = cat, ordinals, paths
        stocks = np.flatnonzero(cat.kind == Kind.STOCK)
        self._row = np.full(len(cat.codes), len(stocks), dtype=np.int64)
        self._row[stocks] = np.arange(len(stocks))
        shape = (len(stocks) + 1, _YEARS)
        year = np.arange(_YEARS, dtype=np.int64)
        days = days_of(ordinals)
        self._year_of = np.clip(days // 10000 - _FIRST_YEAR, 0, _YEARS - 1)
        word = np.zeros(shape, dtype=np.uint64)
        word[:-1] = combine(combine(cat.keys[stocks] + np.uint64(seed & 0xFFFF), 55)[:, None], year)
        begin = np.searchsorted(days, (year + _FIRST_YEAR) * 10000 + 520)
        planned = begin[None, :] + (word & np.uint64(31)).astype(np.int64)
        who = np.broadcast_to(np.append(stocks, 0)[:, None], shape)
        at = paths.first_trading(who, planned)
        opened = np.append(cat.open_ordinal[stocks], _NEVER)[:, None]
        pays = (unit16(word, 1) < 0.7) & (ordinals[at] > opened + 120)
        self._yield = np.floor(unit16(word, 2) * 25.0 + 4.0) / 1000.0
        kind = unit16(word, 3)
        self._bonus = np.where((kind > 0.95) & (kind < 0.97), 0.1, 0.0)
        self._gift = np.where(kind > 0.97, 0.4, np.where(kind > 0.94, 0.2, 0.0))
        self._gift = np.where((kind > 0.92) & (kind < 0.94), 1.0, self._gift)
        self._allot = np.where(kind < 0.01, 0.3, 0.0)
        for code, years in FIXED.items():
            self._fix(self._row[cat.index[code]], years, pays)
        # Whoever has been suspended for good pays nothing any more.
        pays &= ~paths.suspended(who, at)
        pays[-1] = False
        self._at = np.where(pays, at, _NEVER)
        shares = 1.0 + self._bonus + self._gift + self._allot
        # An allotment costs 0.7 of the price of its day.
        ratio = np.where(pays, (1.0 - self._yield + 0.7 * self._allot) / shares, 1.0)
        before = np.cumprod(np.concatenate([np.ones((shape[0], 1)), ratio], axis=1), axis=1)
        self._ratio = ratio
        self._before = before[:, :-1] / before[:, _LEVEL_YEAR - _FIRST_YEAR][:, None]

    def _fix(
        self, row: int, years: dict[int, tuple[float, float, float, float]], pays: np.ndarray
    ) -> None:
        self._bonus[row], self._gift[row], self._allot[row] = 0.0, 0.0, 0.0
        for year, plan in years.items():
            column = year - _FIRST_YEAR
            pays[row, column] = True
            self._yield[row, column], self._bonus[row, column] = plan[:2]
            self._gift[row, column], self._allot[row, column] = plan[2:]
        if not years:
            pays[row] = True

    def level(self, idx: I64, at: I64) -> F64:
        """What the path is multiplied by on a day, all ex-dates up to it taken."""
        row, year = self._row[idx], self._year_of[np.maximum(at, 0)]
        taken = at >= self._at[row, year]
        level = self._before[row, year]
        return np.asarray(np.where(taken, level * self._ratio[row, year], level))

    def _terms(self, row: I64, year: I64, close: F64) -> tuple[F64, F64]:
        """Cash per share and allotment price, by the close before the ex-date (yuan)."""
        cash = np.maximum(np.floor(close * self._yield[row, year] * 1000.0 + 0.5), 1.0) / 1000.0
        price = np.floor(close * 0.7 * 100.0 + 0.5) / 100.0
        return cash, np.where(self._allot[row, year] > 0.0, price, 0.0)

    def reference(self, idx: I64, at: I64, before: I64) -> I64:
        """preClose in price ticks: the close before, or its ex-right price on an ex-date."""
        row, year = self._row[idx], self._year_of[np.maximum(at, 0)]
        hit = np.flatnonzero(self._at[row, year] == at)
        if not len(hit):
            return before
        row, year = row[hit], year[hit]
        steps = self._cat.steps[idx[hit]]
        close = before[hit] / steps
        cash, price = self._terms(row, year, close)
        allot = self._allot[row, year]
        shares = 1.0 + self._bonus[row, year] + self._gift[row, year] + allot
        ex_right = (close - cash + allot * price) / shares
        out = before.copy()
        out[hit] = np.floor(ex_right * steps + 0.5 + 1e-9).astype(np.int64)
        return out

    def of(self, number: int) -> list[Dividend]:
        """Every ex-date of one instrument, the planned ones of coming years included."""
        row = self._row[number : number + 1]
        found = np.flatnonzero(self._at[row[0]] != _NEVER)
        if not len(found):
            return []
        at = self._at[row[0], found]
        idx = np.full(len(at), number, dtype=np.int64)
        # Ex-dates are trading days, and the day before closes where `closes` says.
        close = self._paths.closes(idx, at - 1)[1] / self._cat.steps[number]
        rows = np.full(len(at), row[0])
        cash, price = self._terms(rows, found, close)
        days = days_of(self._ordinals[at]).tolist()
        out = []
        for k, year in enumerate(found.tolist()):
            bonus, gift = float(self._bonus[row[0], year]), float(self._gift[row[0], year])
            allot, paid = float(self._allot[row[0], year]), float(price[k])
            interest = float(cash[k])
            ex_right = (close[k] - interest + allot * paid) / (1.0 + bonus + gift + allot)
            out.append(
                Dividend(
                    days[k], interest, bonus, gift, allot, paid, 0.0, float(close[k] / ex_right)
                )
            )
        return out


def adjust(prices: F64, days: I64, dividends: list[Dividend], kind: str) -> F64:
    """Adjusted prices (复权), not rounded.

    Parameters
    ----------
    prices : float64[n]
        Prices in yuan.
    days : int64[n]
        The YYYYMMDD day of each price.
    dividends : list of Dividend
        Ex-dates in ascending order, none later than what is to be known.
    kind : {'none', 'front', 'back', 'front_ratio', 'back_ratio'}
        `front` takes every later ex-date's affine ex-right step, `back` undoes every ex-date up
        to the day; the ratio kinds divide or multiply by `dr`.

    Raises
    ------
    ValueError
        For another kind.
    """
    out = np.array(prices, dtype=np.float64)
    if kind not in ("none", "front", "back", "front_ratio", "back_ratio"):
        raise ValueError(f"unknown adjustment {kind!r}")
    if kind == "none":
        return out
    forward = kind.startswith("front")
    # Newest first for 'back': the last ex-date is the first to be undone.
    for item in dividends if forward else reversed(dividends):
        rows = days < item.ex_date if forward else days >= item.ex_date
        shares = 1.0 + item.stockBonus + item.stockGift + item.allotNum
        shift = item.allotNum * item.allotPrice - item.interest
        if kind == "front":
            out[rows] = (out[rows] + shift) / shares
        elif kind == "back":
            out[rows] = out[rows] * shares - shift
        elif kind == "front_ratio":
            out[rows] /= item.dr
        else:
            out[rows] *= item.dr
    return out
