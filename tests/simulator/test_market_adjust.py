"""Adjusted prices, by numbers worked out on paper."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import numpy as np
import pytest

from qmt_simulator.market import Bars, Dividend, Market
from qmt_simulator.market.dividends import adjust

CHINA = dt.timezone(dt.timedelta(hours=8))


@lru_cache
def market() -> Market:
    return Market()


def ms(day: int, clock: str = "00:00:00") -> int:
    at = dt.datetime.strptime(f"{day} {clock}", "%Y%m%d %H:%M:%S").replace(tzinfo=CHINA)
    return int(at.timestamp() * 1000)


NOW = ms(20261119, "16:00:00")

# Closes 20.00 | ex: 0.50 cash and 10 for 10 -> 9.75 | 10.00 | ex: 3 for 10 at 7.00 -> 9.307692
# The second: (10.00 + 0.3 * 7.00) / 1.3 = 12.10 / 1.3 = 9.3076923...
FIRST = Dividend(20250610, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 20.0 / 9.75)
SECOND = Dividend(20260610, 0.0, 0.0, 0.0, 0.3, 7.0, 0.0, 10.0 * 1.3 / 12.1)
DAYS = np.array([20250609, 20250610, 20260609, 20260610])
PRICES = np.array([20.0, 9.8, 10.0, 9.4])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # 20.00 -> 9.75 -> (9.75 + 2.1) / 1.3; 9.80 -> 11.9 / 1.3; 10.00 -> 12.1 / 1.3; 9.40 stays
        ("front", [9.115384615384615, 9.153846153846153, 9.307692307692307, 9.4]),
        # 9.80 * 2 + 0.5; 10.00 * 2 + 0.5; (9.40 * 1.3 - 2.1) = 10.12 -> 10.12 * 2 + 0.5
        ("back", [20.0, 20.1, 20.5, 20.74]),
        # 1/dr: 0.4875 and 12.1 / 13 = 0.930769230769...
        ("front_ratio", [9.075, 9.121538461538462, 9.307692307692307, 9.4]),
        # dr: 2.051282051... and 1.074380165...; their product 2.203856749...
        ("back_ratio", [20.0, 20.102564102564102, 20.512820512820515, 20.716253443526172]),
        ("none", [20.0, 9.8, 10.0, 9.4]),
    ],
)
def test_four_kinds_by_hand(kind: str, expected: list[float]) -> None:
    got = adjust(PRICES, DAYS, [FIRST, SECOND], kind)
    assert got.tolist() == pytest.approx(expected, rel=1e-12)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown adjustment"):
        adjust(PRICES, DAYS, [], "forward")


def days(code: str, start: int, end: int = 20261119, now: int = NOW) -> Bars:
    return market().bars(code, "1d", ms(start), ms(end), now)


def test_the_newest_front_and_the_oldest_back_prices_are_the_traded_ones() -> None:
    m = market()
    for code in ("600519.SH", "000001.SZ", "600036.SH"):
        bars = days(code, 20150105)
        for kind in ("front", "front_ratio"):
            out = m.adjusted(code, bars, kind)
            assert out.close[-1] == bars.close[-1]
            assert out.close[0] != bars.close[0]
        for kind in ("back", "back_ratio"):
            out = m.adjusted(code, bars, kind)
            assert out.close[0] == bars.close[0]
            assert out.close[-1] != bars.close[-1]
            assert np.array_equal(out.volume, bars.volume)
            assert np.array_equal(out.amount, bars.amount)
            assert np.array_equal(out.time, bars.time)


def test_maotai_pays_cash_only_every_year() -> None:
    items = market().dividends("600519.SH", NOW)
    assert [item.ex_date // 10000 for item in items] == list(range(2015, 2027))
    assert all(item.interest > 0 for item in items)
    assert all(i.stockBonus == i.stockGift == i.allotNum == 0 for i in items)
    last = items[-1]
    bars = days("600519.SH", 20260501)
    front = market().adjusted("600519.SH", bars, "front")
    before = [k for k, t in enumerate(bars.time.tolist()) if t < ms(last.ex_date)]
    k = before[-1]
    assert front.close[k] == pytest.approx(bars.close[k] - last.interest, abs=1e-9)
    assert abs(front.close[k] - bars.preClose[k + 1]) <= 0.005 + 1e-9
    ratio = market().adjusted("600519.SH", bars, "front_ratio")
    assert ratio.close[k] == pytest.approx(front.close[k], rel=1e-12)
    assert ratio.close[0] != front.close[0]


def test_pingan_gives_five_for_ten() -> None:
    item = next(i for i in market().dividends("000001.SZ", NOW) if i.ex_date // 10000 == 2023)
    assert (item.stockBonus, item.stockGift, item.allotNum) == (0.0, 0.5, 0.0)
    bars = days("000001.SZ", 20230501, item.ex_date, ms(item.ex_date, "16:00:00"))
    close = float(bars.close[-2])
    assert abs((close - item.interest) / 1.5 - bars.preClose[-1]) <= 0.005 + 1e-9
    back = market().adjusted("000001.SZ", bars, "back")
    earlier = [i for i in market().dividends("000001.SZ", NOW) if i.ex_date < item.ex_date]
    expected = float(bars.close[-1]) * 1.5 + item.interest
    for old in reversed(earlier):
        expected = expected * (1 + old.stockBonus + old.stockGift) + old.interest
    assert back.close[-1] == pytest.approx(expected, rel=1e-12)


def test_an_ex_date_that_is_still_to_come_adjusts_nothing() -> None:
    m = market()
    item = m.dividends("600519.SH", NOW)[-1]
    eve = ms(item.ex_date) - 3_600_000
    assert item not in m.dividends("600519.SH", eve)
    bars = days("600519.SH", 20260105, item.ex_date, eve)
    assert np.array_equal(m.adjusted("600519.SH", bars, "front").close, bars.close)


@pytest.mark.parametrize("kind", ["front", "back", "front_ratio", "back_ratio"])
def test_weeks_are_merged_from_adjusted_days_and_minutes_from_their_day(kind: str) -> None:
    m = market()
    item = next(i for i in m.dividends("000001.SZ", NOW) if i.ex_date // 10000 == 2023)
    start, end = ms(item.ex_date) - 14 * 86_400_000, ms(item.ex_date) + 14 * 86_400_000
    adjusted = m.adjusted("000001.SZ", m.bars("000001.SZ", "1d", start, end, NOW), kind)
    weeks = m.adjusted("000001.SZ", m.bars("000001.SZ", "1w", start, end, NOW), kind)
    checked = 0
    for k in range(1, len(weeks)):
        rows = (adjusted.time > weeks.time[k - 1]) & (adjusted.time <= weeks.time[k])
        assert weeks.high[k] == adjusted.high[rows].max()
        assert weeks.low[k] == adjusted.low[rows].min()
        assert weeks.close[k] == adjusted.close[rows][-1]
        checked += 1
    assert checked >= 3
    ones = m.adjusted("000001.SZ", m.bars("000001.SZ", "1m", start, end, NOW), kind)
    closes = ones.close[np.append(np.diff(ones.time) > 12 * 3_600_000, True)]
    assert np.array_equal(closes, adjusted.close)
