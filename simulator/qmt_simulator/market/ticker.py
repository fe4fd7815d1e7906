"""Ticks: which are due, and what they say."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from qmt_simulator.market.calendar import (
    CHINA_OFFSET_MS,
    DAY_MS,
    TradingCalendar,
    midnight_ms,
    ordinal_of_ms,
)
from qmt_simulator.market.daily import Daily, DailyBars
from qmt_simulator.market.hashing import I64, combine, unit, unit16
from qmt_simulator.market.instruments import Catalogue, Kind
from qmt_simulator.market.intraday import Block, Columns, Moment, at_slot, day_parts
from qmt_simulator.market.layout import (
    AROUND_THE_CLOCK,
    PHASE_AUCTION,
    PHASE_SUSPENDED,
    STANDARD,
    VIRTUAL,
    Layout,
)
from qmt_simulator.market.records import Ticks

DEPTH: Final = 5
_STATUS: Final = 3
_WHOLE_MARKET: Final = 64
_KEPT_DAYS: Final = 3
_KEPT_PARTS: Final = 2
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(slots=True)
class _Day:
    """One day of a set of instruments: daily bars, keys and parts, row by row."""

    bars: DailyBars
    keys: np.ndarray
    parts: Block
    row_of: I64


class Ticker:
    """Ticks of any instruments at any due time."""

    def __init__(
        self,
        catalogue: Catalogue,
        calendar: TradingCalendar,
        daily: Daily,
        interval_ms: int,
        around_the_clock: bool,
    ) -> None:
        self._cat, self._calendar, self._daily = catalogue, calendar, daily
        self.interval_ms = interval_ms
        self.slots = 60_000 // interval_ms
        self.live = AROUND_THE_CLOCK if around_the_clock else STANDARD
        spread = unit(combine(catalogue.keys, 17)) * interval_ms
        self.offset = np.asarray(spread.astype(np.int64))
        self._by_offset = np.lexsort((np.arange(len(spread)), self.offset))
        self._active: OrderedDict[int, tuple[I64, I64]] = OrderedDict()
        self._days: OrderedDict[tuple[int, str], _Day] = OrderedDict()
        self._parts: OrderedDict[tuple[int, str, int], tuple[_Day, Columns | None]]
        self._parts = OrderedDict()
        self._derivative = np.isin(catalogue.kind, (Kind.FUTURE, Kind.OPTION))
        # Shares traded at a time, to tell the number of trades from the volume.
        self._trade_lots = 2 + (catalogue.keys & np.uint64(15)).astype(np.int64)

    def listed(self, ordinal: int) -> np.ndarray:
        """Which instruments are listed on a day."""
        cat = self._cat
        return np.asarray((cat.open_ordinal <= ordinal) & (ordinal <= cat.expire_ordinal))

    def trades_on(self, ordinal: int) -> bool:
        """Whether the market is open on a day that is the current one."""
        return self.live is AROUND_THE_CLOCK or self._calendar.is_trading(ordinal)

    def _ticking(self, ordinal: int) -> tuple[I64, I64]:
        """Instruments that tick on a day, by offset, and their offsets."""
        found = self._active.get(ordinal)
        if found is None:
            at = np.full(len(self._cat.codes), self._calendar.position(ordinal), dtype=np.int64)
            numbers = np.arange(len(at), dtype=np.int64)
            on = self.listed(ordinal) & ~self._daily.paths.suspended(numbers, at)
            order = self._by_offset[on[self._by_offset]]
            found = (order, self.offset[order])
            _remember(self._active, ordinal, found, _KEPT_DAYS)
        return found

    def due(self, after_ms: int, upto_ms: int) -> tuple[np.ndarray, I64]:
        """All ticks in (after, upto], by time and then instrument."""
        numbers: list[I64] = []
        times: list[I64] = []
        for ordinal in range(ordinal_of_ms(after_ms), ordinal_of_ms(upto_ms) + 1):
            if self._calendar.position(ordinal) < 0 or not self.trades_on(ordinal):
                continue
            order, offsets = self._ticking(ordinal)
            start = midnight_ms(ordinal)
            for base in self._cycles(after_ms - start, upto_ms - start):
                low = np.searchsorted(offsets, after_ms - start - base, side="right")
                high = np.searchsorted(offsets, upto_ms - start - base, side="right")
                if low < high:
                    numbers.append(order[low:high])
                    times.append(offsets[low:high] + (start + base))
        if not numbers:
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
        return np.concatenate(numbers).astype(np.int32), np.concatenate(times)

    def _cycles(self, after: int, upto: int) -> list[int]:
        """Beginnings of the rounds (every instrument once) that may touch a window of the day."""
        out: list[int] = []
        step = self.interval_ms
        for segment in self.live.segments:
            end = segment.start_ms + step if segment.single else segment.end_ms
            first = max(segment.start_ms, after // step * step - step)
            first = segment.start_ms + (first - segment.start_ms) // step * step
            out.extend(range(first, min(end, upto + 1), step))
        return out

    def ticks(self, idx: np.ndarray, time_ms: I64) -> Ticks:
        """What instruments tick at due times of days that are (or were) the current day."""
        return self.rows(np.asarray(idx, dtype=np.int64), np.asarray(time_ms), self.live)

    def rows(self, idx: I64, time_ms: I64, layout: Layout) -> Ticks:
        """Ticks at due times of days of one layout; row k tells of instrument idx[k]."""
        ordinals = (time_ms + CHINA_OFFSET_MS) // DAY_MS
        tod = time_ms + CHINA_OFFSET_MS - ordinals * DAY_MS
        column = layout.column(tod - self.offset[idx])
        part = np.where(column >= 0, layout.part_of[column], VIRTUAL)
        groups = ordinals * 64 + part
        if len(groups) and (groups == groups[0]).all():
            return self._group(idx, time_ms, tod, column, layout, int(ordinals[0]), int(part[0]))
        out: list[Ticks] = []
        places: list[np.ndarray] = []
        for group in np.unique(groups).tolist():
            rows = np.flatnonzero(groups == group)
            first = rows[0]
            out.append(
                self._group(idx[rows], time_ms[rows], tod[rows], column[rows], layout,
                            int(ordinals[first]), int(part[first]))
            )  # fmt: skip
            places.append(rows)
        if not out:
            return empty_ticks()
        order = np.empty(len(idx), dtype=np.intp)
        order[np.concatenate(places)] = np.arange(len(idx))
        return Ticks.concat(out).take(order)

    def _group(
        self, idx: I64, time_ms: I64, tod: I64, column: I64, layout: Layout, ordinal: int, part: int
    ) -> Ticks:
        day, columns = self._tables(idx, ordinal, layout, part)
        row = day.row_of[idx]
        if columns is None:
            return self._virtual(idx, time_ms, day, row)
        moment = self._moment(idx, tod, column, layout, day, columns, row)
        return self._assemble(idx, time_ms, column, layout, day, row, moment)

    def _moment(
        self, idx: I64, tod: I64, column: I64, layout: Layout, day: _Day, columns: Columns, row: I64
    ) -> Moment:
        slot = (tod - self.offset[idx]) % 60_000 // self.interval_ms
        slots = np.full(len(idx), self.slots, dtype=np.int64)
        if layout.auctions:
            single = (column == 0) | (column == 241)
            slot, slots = np.where(single, 0, slot), np.where(single, 1, slots)
        return at_slot(columns, day.keys[row], row, column, slot, slots)

    def state(
        self, number: int, ordinal: int, tod_ms: int, layout: Layout
    ) -> tuple[int, Moment] | None:
        """Column and state of one instrument at its newest trade at or before a time of day.

        None before the day's first trade.
        """
        offset = self.offset[number : number + 1]
        at = layout.newest(tod_ms, offset, self.interval_ms)
        column = layout.column(at - offset)
        if at[0] < 0 or column[0] < 0:
            return None
        idx = np.array([number], dtype=np.int64)
        day, columns = self._tables(idx, ordinal, layout, int(layout.part_of[column[0]]))
        if columns is None:
            return None
        row = day.row_of[idx]
        return int(column[0]), self._moment(idx, at, column, layout, day, columns, row)

    def _tables(
        self, idx: I64, ordinal: int, layout: Layout, part: int
    ) -> tuple[_Day, Columns | None]:
        """A day with the columns of one part (None for the virtual matches before the open).

        Worked out and kept for the whole market when many instruments are asked for at once, else
        for those alone.
        """
        key = (ordinal, layout.name, part)
        found = self._parts.get(key)
        if found is not None:
            return found
        numbers = np.unique(idx)
        whole = len(numbers) >= _WHOLE_MARKET
        day = self._days.get(key[:2]) if whole else self._day(numbers, ordinal, layout)
        if day is None:
            day = self._day(np.sort(self._ticking(ordinal)[0]), ordinal, layout)
            _remember(self._days, key[:2], day, _KEPT_DAYS)
        columns = None if part == VIRTUAL else Columns.of(day.parts, day.keys, layout, part)
        if whole:
            _remember(self._parts, key, (day, columns), _KEPT_PARTS)
        return day, columns

    def _day(self, numbers: I64, ordinal: int, layout: Layout) -> _Day:
        bars = self._daily.bars(numbers, np.full(len(numbers), ordinal, dtype=np.int64))
        keys = self._daily.keys(numbers, bars.ordinal)
        parts = day_parts(bars, keys, self._cat.worth[numbers], layout)
        row_of = np.zeros(len(self._cat.codes), dtype=np.int64)
        row_of[numbers] = np.arange(len(numbers))
        return _Day(bars, keys, parts, row_of)

    def _assemble(
        self, idx: I64, time_ms: I64, column: I64, layout: Layout, day: _Day, row: I64, m: Moment
    ) -> Ticks:
        bars, steps = day.bars, self._cat.steps[idx]
        derivative = self._derivative[idx]
        out = blank(idx, time_ms)
        out.lastPrice = m.close / steps
        out.open = bars.open[row] / steps
        out.high = m.day_high / steps
        out.low = m.day_low / steps
        out.lastClose = bars.reference[row] / steps
        out.amount = m.day_amount.astype(np.float64)
        out.volume = m.day_volume
        out.pvolume = m.day_volume * self._cat.lot[idx]
        out.stockStatus[:] = _STATUS
        phase = layout.phase(column)
        interest = interest_at(bars, row, m.day_volume)
        out.openInt = np.where(derivative, interest, phase).astype(np.int32)
        trades = (m.day_volume + self._trade_lots[idx] - 1) // self._trade_lots[idx]
        out.transactionNum = np.minimum(trades, 2**31 - 1).astype(np.int32)
        out.lastSettlementPrice = bars.settlement_before[row] / steps
        closed = derivative & (column == 241) & layout.auctions
        out.settlementPrice = np.where(closed, bars.settlement[row] / steps, 0.0)
        self._depth(out, m.close, bars.reference[row], combine(day.keys[row], time_ms))
        return out

    def _depth(self, out: Ticks, last: I64, reference: I64, word: np.ndarray) -> None:
        """Five levels a side around the last price, within the limits; none for indices."""
        idx = out.idx.astype(np.int64)
        steps = self._cat.steps[idx]
        up, down = self._daily.paths.limits(idx, reference)
        at_ask = ((word & np.uint64(1)) > 0) & (last > down) | (last == down)
        at_ask &= last < up
        best_ask = last + np.where(at_ask, 0, 1)
        level = np.arange(DEPTH, dtype=np.int64)
        tick = 1.0 / steps[:, None]
        quoted = (self._cat.kind[idx] != Kind.INDEX)[:, None]
        asks = quoted & (best_ask[:, None] + level <= up[:, None])
        bids = quoted & (best_ask[:, None] - 1 - level >= np.maximum(down, 1)[:, None])
        # Levels are counted off in floating point, as a terminal does: 11.370000000000001.
        ask, bid = (best_ask / steps)[:, None], ((best_ask - 1) / steps)[:, None]
        out.askPrice = np.where(asks, ask + level * tick, 0.0)
        out.bidPrice = np.where(bids, bid - level * tick, 0.0)
        lots = 1.0 + 0.01 * self._cat.turnover[idx] / (reference * self._cat.worth[idx])
        scale = np.minimum(lots, 1e6)[:, None]
        more = combine(word, 1)
        for volumes, words, there in ((out.askVol, word, asks), (out.bidVol, more, bids)):
            for side in range(DEPTH):
                share = unit16(words, side % 4) * (1.0 if side < 4 else 0.7) + 0.02
                volumes[:, side] = np.where(there[:, side], 1 + share * scale[:, 0], 0)

    def _virtual(self, idx: I64, time_ms: I64, day: _Day, row: I64) -> Ticks:
        """Ticks of the opening call auction: no price yet, the match on the first level."""
        bars, steps = day.bars, self._cat.steps[idx]
        out = blank(idx, time_ms)
        out.lastClose = bars.reference[row] / steps
        out.lastSettlementPrice = bars.settlement_before[row] / steps
        out.stockStatus[:] = 1
        derivative = self._derivative[idx]
        out.openInt = np.where(derivative, bars.interest_before[row], PHASE_AUCTION).astype(
            np.int32
        )
        word = combine(day.keys[row], time_ms)
        reference, opened = bars.reference[row], bars.open[row]
        match = np.floor(reference + (opened - reference) * unit16(word, 0)).astype(np.int64)
        quoted = self._cat.kind[idx] != Kind.INDEX
        price = np.where(quoted, match / steps, 0.0)
        lots = np.where(quoted, 1 + (unit16(word, 1) * 500).astype(np.int64), 0)
        out.askPrice[:, 0], out.bidPrice[:, 0] = price, price
        out.askVol[:, 0], out.bidVol[:, 0] = lots, lots
        return out

    def suspended_rows(self, idx: I64, ordinal: int, layout: Layout) -> Ticks:
        """What stands for suspended instruments: the last close and nothing else."""
        bars = self._daily.bars(idx, np.full(len(idx), ordinal, dtype=np.int64))
        out = blank(idx, midnight_ms(ordinal) + layout.start_ms + self.offset[idx])
        out.lastClose = bars.reference / self._cat.steps[idx]
        out.lastSettlementPrice = out.lastClose.copy()
        out.stockStatus[:] = 1
        out.openInt[:] = PHASE_SUSPENDED
        return out


def interest_at(bars: DailyBars, row: I64, volume: I64) -> I64:
    """Open interest when so much of the day's volume has been traded."""
    share = volume / np.maximum(bars.volume[row], 1)
    before = bars.interest_before[row]
    change = (bars.interest[row] - before) * share
    return np.asarray(before + np.floor(change).astype(np.int64))


def blank(idx: I64, time_ms: I64) -> Ticks:
    """Ticks of which only instrument and time are set; every column is its own array."""
    n = len(idx)

    def none() -> np.ndarray:
        return np.zeros(n)

    return Ticks(
        idx=idx.astype(np.int32),
        time=np.asarray(time_ms, dtype=np.int64),
        lastPrice=none(),
        open=none(),
        high=none(),
        low=none(),
        lastClose=none(),
        amount=none(),
        volume=np.zeros(n, dtype=np.int64),
        pvolume=np.zeros(n, dtype=np.int64),
        stockStatus=np.zeros(n, dtype=np.int32),
        openInt=np.zeros(n, dtype=np.int32),
        transactionNum=np.zeros(n, dtype=np.int32),
        lastSettlementPrice=none(),
        settlementPrice=none(),
        pe=none(),
        askPrice=np.zeros((n, DEPTH)),
        bidPrice=np.zeros((n, DEPTH)),
        askVol=np.zeros((n, DEPTH), dtype=np.int32),
        bidVol=np.zeros((n, DEPTH), dtype=np.int32),
        volRatio=none(),
        speed1Min=none(),
        speed5Min=none(),
    )


def empty_ticks() -> Ticks:
    """No ticks."""
    none = np.zeros(0, dtype=np.int64)
    return blank(none, none)


def _remember(cache: OrderedDict[_K, _V], key: _K, value: _V, kept: int) -> None:
    cache[key] = value
    while len(cache) > kept:
        cache.popitem(last=False)
