"""Ticks, minutes and days tell one story; the judge is a plain aggregation of the ticks."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from qmt_simulator.market import Bars, Market, Ticks

CHINA = dt.timezone(dt.timedelta(hours=8))
DAY = 20261119  # a Thursday
CODES = [
    "600519.SH",
    "000001.SZ",
    "688981.SH",
    "920002.BJ",
    "430047.BJ",
    "510300.SH",
    "159915.SZ",
    "000001.SH",
    "399006.SZ",
    "IF2612.IF",
]
BOND = "convertible bond"
OPTION = "option"


@lru_cache
def market(interval_ms: int = 3000, around_the_clock: bool = False) -> Market:
    return Market(interval_ms=interval_ms, around_the_clock=around_the_clock)


def ms(day: int, clock: str = "00:00:00") -> int:
    at = dt.datetime.strptime(f"{day} {clock}", "%Y%m%d %H:%M:%S").replace(tzinfo=CHINA)
    return int(at.timestamp() * 1000)


def code_of(name: str) -> str:
    if name == BOND:
        return market().sectors(ms(DAY))["沪深转债"][5]
    if name == OPTION:
        return market().sectors(ms(DAY))["上证期权"][3]
    return name


def by_minute(ticks: Ticks, day: int, standard: bool) -> dict[int, dict[str, Any]]:
    """Bars by label from ticks alone: the rule a reader of the stream would apply."""
    out: dict[int, dict[str, Any]] = {}
    midnight = ms(day)
    volume, amount = 0, 0.0
    columns = (ticks.time, ticks.lastPrice, ticks.volume, ticks.amount)
    for time, price, total, turnover in zip(*(c.tolist() for c in columns), strict=True):
        if price == 0.0:
            continue
        minute = (time - midnight) // 60_000
        end = minute + 1
        if standard:
            end = {9 * 60 + 25: 9 * 60 + 30, 15 * 60: 15 * 60}.get(minute, end)
        label = midnight + min(end * 60_000, 86_399_000)
        bar = out.setdefault(
            label,
            {
                "open": price,
                "high": price,
                "low": price,
                "close": price,
                "volume": 0,
                "amount": 0.0,
            },
        )
        bar["high"], bar["low"] = max(bar["high"], price), min(bar["low"], price)
        bar["close"] = price
        bar["volume"] += total - volume
        bar["amount"] += turnover - amount
        volume, amount = total, turnover
    return out


def merged(bars: Bars, rows: slice) -> dict[str, Any]:
    return {
        "open": bars.open[rows][0],
        "high": bars.high[rows].max(),
        "low": bars.low[rows].min(),
        "close": bars.close[rows][-1],
        "volume": bars.volume[rows].sum(),
        "amount": bars.amount[rows].sum(),
    }


def row(bars: Bars, at: int) -> dict[str, Any]:
    return {
        name: getattr(bars, name)[at]
        for name in ("open", "high", "low", "close", "volume", "amount")
    }


@pytest.mark.parametrize("name", [*CODES, BOND, OPTION])
@pytest.mark.parametrize("interval_ms", [3000, 15000])
def test_a_standard_day_agrees_from_ticks_to_the_daily_bar(name: str, interval_ms: int) -> None:
    m, code = market(interval_ms), code_of(name)
    now = ms(DAY, "18:00:00")
    ticks = m.day_ticks(code, DAY, now)
    one = m.bars(code, "1m", ms(DAY), now, now)
    told = by_minute(ticks, DAY, standard=True)
    assert [int(t) for t in one.time] == sorted(told)
    assert len(one) == 241
    assert [row(one, k) for k in range(241)] == [told[int(t)] for t in one.time]
    day = m.bars(code, "1d", ms(DAY), now, now)
    assert day.time.tolist() == [ms(DAY)]
    assert row(day, 0) == merged(one, slice(None))
    last = {
        "open": ticks.open[-1], "high": ticks.high[-1], "low": ticks.low[-1],
        "close": ticks.lastPrice[-1], "volume": ticks.volume[-1], "amount": ticks.amount[-1],
    }  # fmt: skip
    assert row(day, 0) == last
    assert ticks.lastClose[-1] == day.preClose[0]
    assert np.array_equal(ticks.pvolume, ticks.volume * m._cat.lot[m.index[code]])
    assert one.volume[0] > 0
    assert (one.volume[1:238] > 0).all()


def test_many_slots_a_minute_agree_as_well() -> None:
    now = ms(DAY, "18:00:00")
    ticks = market(250).day_ticks("600519.SH", DAY, now)
    assert len(ticks) > 57_600
    told = by_minute(ticks, DAY, standard=True)
    one = market().bars("600519.SH", "1m", ms(DAY), now, now)
    assert row_table(one) == [told[int(t)] for t in one.time]


@pytest.mark.parametrize("name", [*CODES, BOND])
def test_bars_do_not_depend_on_the_rate_of_ticks(name: str) -> None:
    code, now = code_of(name), ms(DAY, "18:00:00")
    slow = market(15000).bars(code, "1m", ms(DAY), now, now)
    fast = market(3000).bars(code, "1m", ms(DAY), now, now)
    assert row_table(slow) == row_table(fast)


def row_table(bars: Bars) -> list[dict[str, Any]]:
    return [row(bars, k) for k in range(len(bars))]


@pytest.mark.parametrize(
    "name", ["600519.SH", "430047.BJ", "510300.SH", "000300.SH", "IF2612.IF", BOND]
)
@pytest.mark.parametrize("day", [DAY, 20261121])
def test_an_around_the_clock_day_agrees(name: str, day: int) -> None:
    m, code = market(3000, True), code_of(name)
    now = ms(day, "23:59:59") + 999
    ticks = m.day_ticks(code, day, now)
    assert len(ticks) == 28_800
    one = m.bars(code, "1m", ms(day), now, now)
    assert len(one) == 1440
    assert one.time[0] == ms(day, "00:01:00")
    assert one.time[-1] == ms(day, "23:59:59")
    told = by_minute(ticks, day, standard=False)
    assert row_table(one) == [told[int(t)] for t in one.time]
    assert row(m.bars(code, "1d", ms(day), now, now), 0) == merged(one, slice(None))
    if day == DAY:
        # Seen from the next day it had standard hours, and still the same daily bar.
        later = ms(20261120, "10:00:00")
        assert len(m.bars(code, "1m", ms(DAY), ms(DAY, "23:59:59"), later)) == 241
        assert row(m.bars(code, "1d", ms(DAY), ms(DAY), later), 0) == merged(one, slice(None))


@pytest.mark.parametrize("name", ["600519.SH", "510300.SH", "000300.SH", "IF2612.IF", BOND])
@pytest.mark.parametrize(
    "clock", ["09:25:20", "09:28:00", "09:30:10", "10:31:07", "11:29:59", "12:10:00", "13:00:20",
              "14:58:30", "14:59:59", "15:00:01", "15:00:20"],
)  # fmt: skip
def test_the_forming_bars_are_made_of_the_ticks_so_far(name: str, clock: str) -> None:
    m, code, now = market(), code_of(name), ms(DAY, clock)
    ticks = m.day_ticks(code, DAY, now)
    assert ticks.time.max() <= now
    told = by_minute(ticks, DAY, standard=True)
    one = m.bars(code, "1m", ms(DAY), ms(DAY, "23:59:59"), now)
    assert [int(t) for t in one.time] == sorted(told)
    assert row_table(one) == [told[int(t)] for t in one.time]
    day = m.bars(code, "1d", ms(DAY), ms(DAY), now)
    assert row(day, 0) == merged(one, slice(None))
    five = m.bars(code, "5m", ms(DAY), ms(DAY, "23:59:59"), now)
    assert row(five, -1)["close"] == one.close[-1]
    assert five.volume.sum() == one.volume.sum()
    snap = m.snapshot(now)
    at = int(np.flatnonzero(snap.idx == m.index[code])[0])
    for field in Ticks.__dataclass_fields__:
        assert np.array_equal(getattr(snap, field)[at], getattr(ticks, field)[-1]), field


@pytest.mark.parametrize("around_the_clock", [False, True])
def test_pushed_ticks_are_the_ticks_of_the_day(around_the_clock: bool) -> None:
    m = market(3000, around_the_clock)
    start, end = ms(DAY, "10:29:30"), ms(DAY, "10:30:30")
    idx, time = m.due(start, end)
    pushed = m.ticks(idx, time)
    for name in [*CODES, BOND, OPTION]:
        code = code_of(name)
        mine = pushed.take(pushed.idx == m.index[code])
        day = m.day_ticks(code, DAY, end)
        day = day.take(day.time > start)
        assert len(mine) == 20
        for field in Ticks.__dataclass_fields__:
            assert np.array_equal(getattr(mine, field), getattr(day, field)), field


@pytest.mark.parametrize(
    ("period", "minutes", "first", "count"),
    [("5m", 5, "09:35:00", 48), ("15m", 15, "09:45:00", 16), ("30m", 30, "10:00:00", 8),
     ("60m", 60, "10:30:00", 4), ("1h", 60, "10:30:00", 4)],
)  # fmt: skip
def test_longer_intraday_periods_are_merged_minutes(
    period: str, minutes: int, first: str, count: int
) -> None:
    m, now = market(), ms(DAY, "20:00:00")
    one = m.bars("000001.SZ", "1m", ms(DAY), now, now)
    bars = m.bars("000001.SZ", period, ms(DAY), now, now)
    assert len(bars) == count
    assert bars.time[0] == ms(DAY, first)
    assert bars.time[-1] == ms(DAY, "15:00:00")
    for k in range(count):
        begin = 0 if k == 0 else 1 + k * minutes
        rows = slice(begin, 1 + (k + 1) * minutes)
        assert row(bars, k) == merged(one, rows)
        assert bars.time[k] == one.time[rows][-1]
        assert bars.preClose[k] == one.preClose[rows][0]


@pytest.mark.parametrize(("period", "key"), [("1w", "%G%V"), ("1mon", "%Y%m"), ("1y", "%Y")])
def test_periods_above_a_day_are_merged_days(period: str, key: str) -> None:
    m, now = market(), ms(DAY, "11:00:00")
    days = m.bars("600000.SH", "1d", ms(20240101), now, now)
    bars = m.bars("600000.SH", period, ms(20240101), now, now)
    names = [dt.datetime.fromtimestamp(t / 1000, CHINA).strftime(key) for t in days.time.tolist()]
    groups = sorted(set(names))
    assert len(bars) == len(groups)
    for k, group in enumerate(groups):
        rows = slice(names.index(group), len(names) - names[::-1].index(group))
        assert row(bars, k) == merged(days, rows)
        assert bars.time[k] == days.time[rows][-1]


def test_a_future_has_open_interest_and_settles_once() -> None:
    m, now = market(), ms(DAY, "15:30:00")
    ticks = m.day_ticks("IF2612.IF", DAY, now)
    days = m.bars("IF2612.IF", "1d", ms(20261118), now, now)
    one = m.bars("IF2612.IF", "1m", ms(DAY), now, now)
    assert days.openInterest[-1] == ticks.openInt[-1] == one.openInterest[-1]
    assert days.openInterest[0] == ticks.openInt[0]
    assert ticks.settlementPrice[-1] == days.settelementPrice[-1] > 0
    assert (ticks.settlementPrice[:-1] == 0).all()
    assert (ticks.lastSettlementPrice == days.settelementPrice[-2]).all()
    forming = m.bars("IF2612.IF", "1d", ms(DAY), now, ms(DAY, "14:00:00"))
    assert forming.settelementPrice.tolist() == [0.0]


def test_before_the_first_trade_there_is_no_bar_of_today() -> None:
    m, now = market(), ms(DAY, "09:20:00")
    assert m.bars("600519.SH", "1d", ms(20261118), now, now).time.tolist() == [ms(20261118)]
    assert len(m.bars("600519.SH", "1m", ms(DAY), now, now)) == 0
    ticks = m.day_ticks("600519.SH", DAY, now)
    assert len(ticks) > 90
    assert (ticks.lastPrice == 0).all()
    assert (ticks.openInt == 12).all()
    assert (ticks.bidPrice[:, 0] > 0).all()
    assert (ticks.bidPrice[:, 0] == ticks.askPrice[:, 0]).all()
    assert (ticks.lastClose > 0).all()
