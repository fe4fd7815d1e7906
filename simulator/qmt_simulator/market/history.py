"""Bars of one instrument: stored periods and those derived from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from qmt_simulator.market.calendar import (
    CHINA_OFFSET_MS,
    DAY_MS,
    TradingCalendar,
    days_of,
    midnight_ms,
    ordinal_of_ms,
)
from qmt_simulator.market.daily import Daily
from qmt_simulator.market.dividends import adjust
from qmt_simulator.market.hashing import F64, I64
from qmt_simulator.market.instruments import Catalogue, Kind
from qmt_simulator.market.intraday import Columns, Moment, day_parts
from qmt_simulator.market.layout import STANDARD, Layout
from qmt_simulator.market.records import Bars, Dividend
from qmt_simulator.market.ticker import Ticker, interest_at

MINUTES: Final = {"1m": 1, "5m": 5, "15m": 15, "30m": 30, "60m": 60, "1h": 60}
# Months in the longer periods; a week is told by 0.
LONG: Final = {"1w": 0, "1mon": 1, "1q": 3, "1hy": 6, "1y": 12}
PERIODS: Final = (*MINUTES, "1d", *LONG)
STOCK_INTEREST: Final = 15


class History:
    """Bars as of any moment."""

    def __init__(
        self, catalogue: Catalogue, calendar: TradingCalendar, daily: Daily, ticker: Ticker
    ) -> None:
        self._cat, self._calendar = catalogue, calendar
        self._daily, self._ticker = daily, ticker
        self._derivative = np.isin(catalogue.kind, (Kind.FUTURE, Kind.OPTION))

    def days(self, start: int, end: int, now_ms: int) -> I64:
        """Ordinals of the trading days in [start, end] that have begun by now."""
        today = ordinal_of_ms(now_ms)
        days = self._calendar.ordinals
        low, high = np.searchsorted(days, [start, min(end, today) + 1])
        found = days[low:high]
        if (
            start <= today <= end
            and self._ticker.trades_on(today)
            and not self._calendar.is_trading(today)
            and self._calendar.position(today) >= 0
        ):
            found = np.append(found, today)
        return found

    def bars(
        self, number: int, period: str, start_ms: int, end_ms: int, now_ms: int,
        change: Callable[[Bars], Bars] | None = None,
    ) -> Bars:  # fmt: skip
        """Bars whose labels lie in [start, end]; `change` is applied before any merging."""
        if period not in PERIODS:
            raise ValueError(f"unknown period {period!r}")
        change = change or (lambda bars: bars)
        start_ms = max(start_ms, midnight_ms(int(self._calendar.ordinals[0])))
        end_ms = min(end_ms, now_ms + DAY_MS)
        if end_ms < start_ms:
            return empty_bars(period, now_ms)
        if period in MINUTES:
            out = self._intraday(number, start_ms, end_ms, now_ms, MINUTES[period])
            out.period = period
            # Adjustment is the same for all minutes of a day: order does not matter here.
            out = change(out)
        else:
            begin = ordinal_of_ms(start_ms)
            end = ordinal_of_ms(end_ms)
            if period in LONG:
                begin = self._bucket_start(begin, period)
                end = self._bucket_end(end, period)
            out = change(self._days(number, begin, end, now_ms))
            if period in LONG:
                ordinals = (out.time + CHINA_OFFSET_MS) // DAY_MS
                out = _merge(out, self._bucket(ordinals, period))
            out.period = period
        return out.take((out.time >= start_ms) & (out.time <= end_ms))

    def _listed_days(self, number: int, start: int, end: int, now_ms: int) -> I64:
        cat = self._cat
        start = max(start, int(cat.open_ordinal[number]))
        end = min(end, int(cat.expire_ordinal[number]))
        return self.days(start, end, now_ms) if start <= end else np.zeros(0, dtype=np.int64)

    def suspended(self, number: int, ordinals: I64) -> np.ndarray:
        """Whether an instrument is suspended on days."""
        at = np.searchsorted(self._calendar.ordinals, ordinals, side="right") - 1
        return self._daily.paths.suspended(np.full(len(at), number, dtype=np.int64), at)

    def _days(self, number: int, start: int, end: int, now_ms: int) -> Bars:
        ordinals = self._listed_days(number, start, end, now_ms)
        today = ordinal_of_ms(now_ms)
        tod = now_ms - midnight_ms(today)
        state = None
        if len(ordinals) and ordinals[-1] == today:
            if self.suspended(number, ordinals[-1:])[0]:
                begun = tod >= self._ticker.live.start_ms
            else:
                state = self._ticker.state(number, today, tod, self._ticker.live)
                begun = state is not None
            ordinals = ordinals if begun else ordinals[:-1]
        if not len(ordinals):
            return empty_bars("1d", now_ms)
        n = len(ordinals)
        idx = np.full(n, number, dtype=np.int64)
        day = self._daily.bars(idx, ordinals)
        row = np.arange(n)
        interest = interest_at(day, row, day.volume)
        settlement = np.where(self._derivative[idx], day.settlement, 0)
        if state is not None:
            column, m = state
            day.high[-1], day.low[-1], day.close[-1] = m.day_high[0], m.day_low[0], m.close[0]
            interest[-1] = interest_at(day, row[-1:], m.day_volume)[0]
            day.volume[-1], day.amount[-1] = m.day_volume[0], m.day_amount[0]
            if column < len(self._ticker.live.part_of) - 1:
                settlement[-1] = 0
        before = self.suspended(number, np.maximum(ordinals - 1, self._calendar.ordinals[0]))
        flag = np.where(day.suspended, 1, np.where(before, -1, 0)).astype(np.int32)
        steps = self._cat.steps[number]
        return Bars(
            time=ordinals * DAY_MS - CHINA_OFFSET_MS,
            open=day.open / steps,
            high=day.high / steps,
            low=day.low / steps,
            close=day.close / steps,
            volume=day.volume,
            amount=day.amount.astype(np.float64),
            settelementPrice=settlement / steps,
            openInterest=np.where(self._derivative[idx], interest, STOCK_INTEREST),
            preClose=day.reference / steps,
            suspendFlag=flag,
            period="1d",
            as_of_ms=now_ms,
        )

    def _intraday(self, number: int, start_ms: int, end_ms: int, now_ms: int, minutes: int) -> Bars:
        today = ordinal_of_ms(now_ms)
        ordinals = self._listed_days(number, ordinal_of_ms(start_ms), ordinal_of_ms(end_ms), now_ms)
        ordinals = ordinals[~self.suspended(number, ordinals)]
        parts: list[Bars] = []
        past = ordinals
        if len(ordinals) and ordinals[-1] == today:
            past = ordinals[:-1]
        if len(past):
            parts.append(self._minutes(number, past, STANDARD, minutes, now_ms))
        if len(past) < len(ordinals):
            layout = self._ticker.live
            state = self._ticker.state(number, today, now_ms - midnight_ms(today), layout)
            if state is not None:
                parts.append(self._minutes(number, ordinals[-1:], layout, minutes, now_ms, state))
        return Bars.concat(parts) if parts else empty_bars("1m", now_ms)

    def _minutes(
        self,
        number: int,
        ordinals: I64,
        layout: Layout,
        minutes: int,
        now_ms: int,
        state: tuple[int, Moment] | None = None,
    ) -> Bars:
        idx = np.full(len(ordinals), number, dtype=np.int64)
        day = self._daily.bars(idx, ordinals)
        keys = self._daily.keys(idx, ordinals)
        parts = day_parts(day, keys, self._cat.worth[idx], layout)
        block = Columns.of(parts, keys, layout, None).block
        columns = block.open.shape[1]
        group = layout.bar_of.copy()
        labels = layout.label_ms
        if state is not None:
            last, m = state
            for name in ("open", "high", "low", "close", "volume", "amount"):
                values = getattr(block, name)
                values[:, last] = getattr(m, name)
            columns = last + 1
            group = group[:columns]
        if minutes > 1:
            # The auction's minute goes with the first bar; a bar ends where its last minute does.
            shift = 1 if layout.auctions else 0
            ends = np.arange(minutes - 1 + shift, len(labels), minutes)
            group = np.maximum(group - shift, 0) // minutes
            labels = labels[ends]
        first = np.flatnonzero(np.diff(group, prepend=-1))
        steps = self._cat.steps[number]
        n = len(first)
        o = block.open[:, first].ravel()
        h = np.maximum.reduceat(block.high[:, :columns], first, axis=1).ravel()
        low = np.minimum.reduceat(block.low[:, :columns], first, axis=1).ravel()
        last_of = np.append(first[1:], columns) - 1
        close = block.close[:, last_of]
        volume = np.add.reduceat(block.volume[:, :columns], first, axis=1)
        amount = np.add.reduceat(block.amount[:, :columns], first, axis=1).ravel()
        before = np.concatenate([day.reference[:, None], close[:, :-1]], axis=1).ravel()
        interest = np.full(volume.size, STOCK_INTEREST, dtype=np.int64)
        if self._derivative[number]:
            row = np.repeat(np.arange(len(ordinals)), n)
            interest = interest_at(day, row, np.cumsum(volume, axis=1).ravel())
        time = (ordinals * DAY_MS - CHINA_OFFSET_MS)[:, None] + labels[:n]
        return Bars(
            time=time.ravel(),
            open=o / steps,
            high=h / steps,
            low=low / steps,
            close=close.ravel() / steps,
            volume=volume.ravel(),
            amount=amount.astype(np.float64),
            settelementPrice=np.zeros(volume.size),
            openInterest=interest,
            preClose=before / steps,
            suspendFlag=np.zeros(volume.size, dtype=np.int32),
            as_of_ms=now_ms,
        )

    def _bucket(self, ordinals: I64, period: str) -> I64:
        months = LONG[period]
        if months == 0:
            return (ordinals + 3) // 7
        days = days_of(ordinals)
        return np.asarray((days // 10000 * 12 + days // 100 % 100 - 1) // months)

    def _bucket_start(self, ordinal: int, period: str) -> int:
        around = np.arange(ordinal - 370, ordinal + 1, dtype=np.int64)
        bucket = self._bucket(around, period)
        return int(around[np.searchsorted(bucket, bucket[-1])])

    def _bucket_end(self, ordinal: int, period: str) -> int:
        around = np.arange(ordinal, ordinal + 371, dtype=np.int64)
        bucket = self._bucket(around, period)
        return int(around[np.searchsorted(bucket, bucket[0], side="right") - 1])


def _merge(bars: Bars, bucket: I64) -> Bars:
    """Daily bars merged; a longer bar is labelled by its last trading day so far."""
    if not len(bars):
        return bars
    first = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - 1))
    last = np.append(first[1:], len(bars)) - 1
    return Bars(
        time=bars.time[last],
        open=bars.open[first],
        high=np.maximum.reduceat(bars.high, first),
        low=np.minimum.reduceat(bars.low, first),
        close=bars.close[last],
        volume=np.add.reduceat(bars.volume, first),
        amount=np.add.reduceat(bars.amount, first),
        settelementPrice=bars.settelementPrice[last],
        openInterest=bars.openInterest[last],
        preClose=bars.preClose[first],
        suspendFlag=np.minimum.reduceat(np.maximum(bars.suspendFlag, 0), first),
        as_of_ms=bars.as_of_ms,
    )


def adjust_bars(bars: Bars, dividends: list[Dividend], kind: str) -> Bars:
    """Bars with adjusted open, high, low, close and preClose; see `dividends.adjust`."""
    days = days_of((bars.time + CHINA_OFFSET_MS) // DAY_MS)

    def of(prices: F64) -> F64:
        return adjust(prices, days, dividends, kind)

    out = bars.take(slice(None))
    out.open, out.high, out.low = of(bars.open), of(bars.high), of(bars.low)
    out.close, out.preClose = of(bars.close), of(bars.preClose)
    return out


def empty_bars(period: str, now_ms: int) -> Bars:
    """No bars."""
    ints, floats = np.zeros(0, dtype=np.int64), np.zeros(0)
    return Bars(
        ints, floats, floats, floats, floats, ints, floats, floats, ints, floats,
        np.zeros(0, dtype=np.int32), period, now_ms,
    )  # fmt: skip
