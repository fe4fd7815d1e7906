"""The market: one pure function of seed and time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from qmt_simulator.market.calendar import (
    days_of,
    midnight_ms,
    ordinal_of_ms,
    to_day,
    to_ordinal,
    trading_calendar,
)
from qmt_simulator.market.daily import Daily, DailyBars
from qmt_simulator.market.hashing import I64
from qmt_simulator.market.history import LONG, History, adjust_bars
from qmt_simulator.market.instruments import Kind, catalogue
from qmt_simulator.market.layout import STANDARD, Layout
from qmt_simulator.market.records import I32, Bars, Dividend, Ticks
from qmt_simulator.market.reference import document, instrument_types
from qmt_simulator.market.sectors import Sectors
from qmt_simulator.market.ticker import Ticker, empty_ticks


class Market:
    """A market from a seed, at any time, without state.

    Two markets of the same arguments agree on every number; what is kept are only caches.

    Parameters
    ----------
    seed : int
    interval_ms : int
        Every instrument ticks once in so many ms, at an offset of its own. A whole part of a
        minute, at most 15,000 (four ticks a minute).
    around_the_clock : bool
        The current China day trades from 00:00 to 24:00, weekends too; earlier days follow the
        exchange. What is current is the day of the `now_ms` given, and in `due` and `ticks` every
        day in turn. A weekend day that traded leaves no trace in what comes after it.

    Attributes
    ----------
    codes : list of str, by instrument number
    index : dict, code to instrument number

    Raises
    ------
    ValueError
        For an interval that does not divide the minute.
    KeyError
        From methods that take a code, for an unknown one, where nothing else is said.

    Notes
    -----
    Days begin on 2015-01-05. Amounts are whole yuan, so that their sums are exact as floats; every
    price is the float nearest to its decimal, except in the depth, where levels are counted off in
    floating point as a terminal does.
    """

    def __init__(
        self, seed: int = 20260101, *, interval_ms: int = 3000, around_the_clock: bool = False
    ) -> None:
        if not 1 <= interval_ms <= 15_000 or 60_000 % interval_ms:
            raise ValueError(f"interval_ms must divide 60000 and be at most 15000: {interval_ms}")
        self._calendar = trading_calendar()
        self._cat = catalogue(seed, to_day)
        self.codes: list[str] = self._cat.codes
        self.index: dict[str, int] = self._cat.index
        self._daily = Daily(seed, self._cat, self._calendar)
        self._ticker = Ticker(self._cat, self._calendar, self._daily, interval_ms, around_the_clock)
        self._history = History(self._cat, self._calendar, self._daily, self._ticker)
        self._sectors = Sectors(self._cat)
        self._futures = self._cat.of_kind(Kind.FUTURE)
        self._dividends: dict[int, list[Dividend]] = {}
        self._all_bars: tuple[int, DailyBars] | None = None

    # Reference data

    def detail(self, code: str, now_ms: int) -> dict[str, Any] | None:
        """The native instrument document on the trading day of `now_ms` (or the last before it).

        None for an unknown code and before the first listing day.
        """
        number = self.index.get(code)
        day = self._session(now_ms)
        if number is None or day < self._cat.open_ordinal[number]:
            return None
        bar = self._day_bars(day).take(np.array([number]))
        up, down = self._daily.paths.limits(bar.idx, bar.reference)
        main = self._cat.rows[number].kind is Kind.FUTURE and code == self.main_contract(
            code[:2], midnight_ms(day)
        )
        return document(self._cat, number, bar, (int(up[0]), int(down[0])), to_day(day), main)

    def _day_bars(self, day: int) -> DailyBars:
        """Daily bars of every instrument, kept for the last day asked for."""
        if self._all_bars is None or self._all_bars[0] != day:
            numbers = np.arange(len(self.codes), dtype=np.int64)
            until = np.minimum(self._cat.expire_ordinal, day)
            self._all_bars = (day, self._daily.bars(numbers, until))
        return self._all_bars[1]

    def main_contract(self, product: str, now_ms: int) -> str:
        """The contract of a product (IF, IH, IC, IM) that expires next; '' for none."""
        day = ordinal_of_ms(now_ms)
        expire = self._cat.expire_ordinal
        live = [
            (int(expire[i]), self.codes[i])
            for i in self._futures
            if expire[i] >= day and self.codes[i].startswith(product)
        ]
        return min(live)[1] if live else ""

    def types(self, code: str) -> dict[str, bool]:
        """Type names and whether the code is of them; empty for an unknown code."""
        number = self.index.get(code)
        return {} if number is None else instrument_types(self._cat.rows[number].kind)

    def sectors(self, now_ms: int | None = None) -> dict[str, list[str]]:
        """Codes by sector, of what is listed at a time (by default now)."""
        day = ordinal_of_ms(_now_ms() if now_ms is None else now_ms)
        listed = self._ticker.listed(day)
        gone = self._cat.expire_ordinal < day
        out = {
            name: [code for code in codes if listed[self.index[code]]]
            for name, codes in self._sectors.static.items()
        }
        for name, kind, market in (("中金所", Kind.FUTURE, "IF"), ("上证期权", Kind.OPTION, "SHO")):
            numbers = [i for i in self._cat.of_kind(kind) if self.codes[i].endswith("." + market)]
            out[name] = [self.codes[i] for i in numbers if listed[i]]
            out["过期" + name] = [self.codes[i] for i in numbers if gone[i]]
        return out

    def index_weights(self, code: str) -> dict[str, float]:
        """Members of an index and their weights in percent; empty if it has none."""
        return self._sectors.weights(code)

    def trading_days(self, start: int, end: int, now_ms: int) -> list[int]:
        """Trading days in [start, end] up to the day of `now_ms`, all YYYYMMDD."""
        days = self._history.days(to_ordinal(start), to_ordinal(end), now_ms)
        return [int(day) for day in days_of(days)]

    def holidays(self) -> list[int]:
        """Weekdays without trading that are known, YYYYMMDD."""
        return list(self._calendar.holidays)

    def dividends(self, code: str, now_ms: int | None = None) -> list[Dividend]:
        """Ex-dates of an instrument up to the day of `now_ms` (by default now), oldest first."""
        number = self.index[code]
        found = self._dividends.get(number)
        if found is None:
            found = self._dividends[number] = self._daily.paths.dividends.of(number)
        today = to_day(ordinal_of_ms(_now_ms() if now_ms is None else now_ms))
        return [item for item in found if item.ex_date <= today]

    # Ticks

    def due(self, after_ms: int, upto_ms: int) -> tuple[I32, I64]:
        """All ticks in (after, upto]: instrument numbers and times, by time and then number."""
        return self._ticker.due(after_ms, upto_ms)

    def ticks(self, idx: I32, time_ms: I64) -> Ticks:
        """What instruments tick at due times; row k tells of instrument idx[k] at time_ms[k]."""
        return self._ticker.ticks(idx, time_ms)

    def _session(self, now_ms: int) -> int:
        """The newest day at or before an instant on which the market is open."""
        today = ordinal_of_ms(now_ms)
        if self._ticker.trades_on(today):
            return today
        at = self._calendar.position(today)
        if at < 0:
            raise ValueError(f"the market begins on {self._calendar.days[0]}: {now_ms}")
        return int(self._calendar.ordinals[at])

    def snapshot(self, now_ms: int) -> Ticks:
        """The newest tick at or before now of every listed instrument, in order of number.

        Outside hours that is the last session's closing tick. Suspended instruments have zero
        prices, `lastClose`, and phase 17.
        """
        day = self._session(now_ms)
        layout = self._ticker.live if day == ordinal_of_ms(now_ms) else STANDARD
        numbers = np.flatnonzero(self._ticker.listed(ordinal_of_ms(now_ms)))
        tod = now_ms - midnight_ms(day)
        times = layout.newest(tod, self._ticker.offset[numbers], self._ticker.interval_ms)
        begun = times >= 0
        parts = [self._snapshot_of(numbers[begun], times[begun], day, layout)]
        if not begun.all():
            before = self._calendar.position(day - 1)
            if before >= 0:
                rest = numbers[~begun]
                earlier = int(self._calendar.ordinals[before])
                rest = rest[self._ticker.listed(earlier)[rest]]
                end = STANDARD.newest(
                    86_400_000, self._ticker.offset[rest], self._ticker.interval_ms
                )
                parts.append(self._snapshot_of(rest, end, earlier, STANDARD))
        out = Ticks.concat(parts)
        return out.take(np.argsort(out.idx, kind="stable"))

    def _snapshot_of(self, numbers: I64, tod: I64, day: int, layout: Layout) -> Ticks:
        at = np.full(len(numbers), self._calendar.position(day), dtype=np.int64)
        off = self._daily.paths.suspended(numbers, at)
        ticks = self._ticker.rows(numbers[~off], tod[~off] + midnight_ms(day), layout)
        return Ticks.concat([ticks, self._ticker.suspended_rows(numbers[off], day, layout)])

    def day_ticks(self, code: str, day: int, now_ms: int) -> Ticks:
        """All ticks of one code's day (YYYYMMDD) up to now, the opening auction's included."""
        number, ordinal = self.index[code], to_ordinal(day)
        today = ordinal_of_ms(now_ms)
        open_days = self._history.days(ordinal, ordinal, now_ms)
        if (
            not len(open_days)
            or not self._ticker.listed(ordinal)[number]
            or self._history.suspended(number, open_days)[0]
        ):
            return empty_ticks()
        layout = self._ticker.live if ordinal == today else STANDARD
        offset, interval = int(self._ticker.offset[number]), self._ticker.interval_ms
        tod = layout.times(offset, interval, now_ms - midnight_ms(ordinal))
        idx = np.full(len(tod), number, dtype=np.int64)
        return self._ticker.rows(idx, tod + midnight_ms(ordinal), layout)

    # Bars

    def bars(self, code: str, period: str, start_ms: int, end_ms: int, now_ms: int) -> Bars:
        """Bars whose labels lie in [start, end], the forming one as of now included.

        Parameters
        ----------
        period : {'1m', '5m', '15m', '30m', '60m', '1h', '1d', '1w', '1mon', '1q', '1hy', '1y'}

        Raises
        ------
        ValueError
            For another period.
        """
        return self._history.bars(self.index[code], period, start_ms, end_ms, now_ms)

    def adjusted(self, code: str, bars: Bars, kind: str) -> Bars:
        """Adjusted bars (复权) as of the instant the bars tell of, not rounded.

        Periods longer than a day are merged from adjusted days, so that an ex-date within a week
        does no harm.

        Parameters
        ----------
        bars : Bars
            As `bars` returned them, or some of their rows.
        kind : {'none', 'front', 'back', 'front_ratio', 'back_ratio'}

        Raises
        ------
        ValueError
            For another kind.
        """
        dividends = self.dividends(code, bars.as_of_ms)
        if bars.period not in LONG or kind == "none" or not len(bars):
            return adjust_bars(bars, dividends, kind)
        whole = self._history.bars(
            self.index[code], bars.period, int(bars.time[0]), int(bars.time[-1]), bars.as_of_ms,
            lambda days: adjust_bars(days, dividends, kind),
        )  # fmt: skip
        return whole.take(np.isin(whole.time, bars.time))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
