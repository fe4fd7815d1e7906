"""Daily series: limits, ex-dates, suspensions, the calendar, and the same numbers every time."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest

from qmt_simulator.market import Bars, Market, Ticks

CHINA = dt.timezone(dt.timedelta(hours=8))
NOW_DAY = 20261119
SUSPENDED = "600145.SH"


@lru_cache
def market() -> Market:
    return Market()


def ms(day: int, clock: str = "00:00:00") -> int:
    at = dt.datetime.strptime(f"{day} {clock}", "%Y%m%d %H:%M:%S").replace(tzinfo=CHINA)
    return int(at.timestamp() * 1000)


def day_of(time_ms: int) -> int:
    return int(dt.datetime.fromtimestamp(time_ms / 1000, CHINA).strftime("%Y%m%d"))


NOW = ms(NOW_DAY, "16:00:00")


def ten_years(code: str) -> Bars:
    return market().bars(code, "1d", ms(20161119), NOW, NOW)


def limit_of(code: str) -> float:
    name = market().detail(code, NOW)["InstrumentName"]  # type: ignore[index]
    if "ST" in name:
        return 0.05
    if code.endswith(".BJ"):
        return 0.30
    if code.startswith(("688", "300", "301", "11", "12")):
        return 0.20
    return 0.10


def test_no_daily_price_leaves_its_limits() -> None:
    sectors = market().sectors(NOW)
    codes = [*sectors["沪深京A股"][::40], *sectors["沪深ETF"][::40], *sectors["沪深转债"][::40]]
    special = [c for c in sectors["沪深A股"] if limit_of(c) == 0.05]
    assert len(special) > 20
    reached = 0
    for code in [*codes, *special[:20]]:
        bars, limit = ten_years(code), limit_of(code)
        assert len(bars) > 0
        scale = 1000 if code.startswith(("5", "15", "11", "12")) else 100
        before = np.round(bars.preClose * scale)
        up = np.floor(before * (1 + limit) + 0.5 + 1e-6)
        down = np.floor(before * (1 - limit) + 0.5 + 1e-6)
        for column in (bars.open, bars.high, bars.low, bars.close):
            assert (np.round(column * scale) <= up).all(), code
            assert (np.round(column * scale) >= down).all(), code
            assert np.array_equal(np.round(column * scale) / scale, column)
        assert (bars.high >= np.maximum(bars.open, bars.close)).all()
        assert (bars.low <= np.minimum(bars.open, bars.close)).all()
        reached += int((np.round(bars.close * scale) == up).sum())
    assert reached > 50


def test_previous_close_follows_the_close_except_on_ex_dates() -> None:
    m = market()
    seen = 0
    for code in ["600519.SH", "000001.SZ", "300750.SZ", *m.sectors(NOW)["上证A股"][::100]]:
        bars = ten_years(code)
        ex = {item.ex_date: item for item in m.dividends(code, NOW)}
        for k in range(1, len(bars)):
            item = ex.get(day_of(int(bars.time[k])))
            if item is None:
                assert bars.preClose[k] == bars.close[k - 1]
                continue
            seen += 1
            close = float(bars.close[k - 1])
            shares = 1 + item.stockBonus + item.stockGift + item.allotNum
            ex_right = (close - item.interest + item.allotNum * item.allotPrice) / shares
            assert abs(ex_right - bars.preClose[k]) <= 0.005 + 1e-9
            assert item.dr == pytest.approx(close / ex_right, rel=1e-12)
    assert seen > 60


def test_a_suspended_day_has_a_row_and_nothing_else() -> None:
    m = market()
    found = 0
    for code in m.sectors(NOW)["深证A股"][::60]:
        bars = ten_years(code)
        for k in np.flatnonzero(bars.suspendFlag == 1).tolist():
            day = day_of(int(bars.time[k]))
            assert bars.volume[k] == bars.amount[k] == 0
            prices = {float(c[k]) for c in (bars.open, bars.high, bars.low, bars.close)}
            assert prices == {float(bars.preClose[k])}
            assert prices == {float(bars.close[k - 1])}
            assert len(m.day_ticks(code, day, NOW)) == 0
            assert len(m.bars(code, "1m", ms(day), ms(day, "23:00:00"), NOW)) == 0
            found += 1
        after = np.flatnonzero(bars.suspendFlag == -1)
        assert (bars.suspendFlag[after - 1] == 1).all()
    assert found > 20


def test_two_codes_are_suspended_on_every_day() -> None:
    m = market()
    for code in (SUSPENDED, "002260.SZ"):
        for day in (20221103, NOW_DAY):
            now = ms(day, "10:00:00")
            assert m.bars(code, "1d", ms(day), now, now).suspendFlag.tolist() == [1]
            snap = m.snapshot(now)
            at = snap.idx.tolist().index(m.index[code])
            assert snap.openInt[at] == 17
            assert snap.lastPrice[at] == snap.volume[at] == 0
            assert snap.lastClose[at] > 0
            assert m.index[code] not in m.due(now - 3000, now)[0]
            document = m.detail(code, now)
            assert document is not None
            assert document["InstrumentStatus"] == 1


def test_every_past_day_of_minutes_has_241_of_them() -> None:
    bars = market().bars("000001.SZ", "1m", ms(20251119), NOW, NOW)
    days, counts = np.unique([day_of(t) for t in bars.time.tolist()], return_counts=True)
    assert set(counts.tolist()) == {241}
    daily = market().bars("000001.SZ", "1d", ms(20251119), NOW, NOW)
    traded = daily.take(daily.suspendFlag != 1)
    assert days.tolist() == [day_of(t) for t in traded.time.tolist()]
    assert np.array_equal(bars.volume.reshape(-1, 241).sum(axis=1), traded.volume)
    assert np.array_equal(bars.amount.reshape(-1, 241).sum(axis=1), traded.amount)
    assert np.array_equal(bars.high.reshape(-1, 241).max(axis=1), traded.high)
    assert np.array_equal(bars.low.reshape(-1, 241).min(axis=1), traded.low)
    assert np.array_equal(bars.close[240::241], traded.close)
    assert np.array_equal(bars.open[::241], traded.open)
    labels = [dt.datetime.fromtimestamp(t / 1000, CHINA).strftime("%H%M") for t in bars.time[:241]]
    assert labels[0] == "0930"
    assert labels[120:122] == ["1130", "1301"]
    assert labels[-1] == "1500"


def test_trading_days_are_those_of_the_exchange() -> None:
    m = market()
    days = m.trading_days(20260101, 20261231, ms(20261231, "12:00:00"))
    assert days[0] == 20260105
    assert 20261001 not in days
    assert 20261009 in days
    assert days[-1] == 20261231
    assert m.trading_days(20261116, 20261130, NOW) == [20261116, 20261117, 20261118, 20261119]
    assert 20261001 in m.holidays()
    weekend = Market(around_the_clock=True).trading_days(20261119, 20261130, ms(20261121))
    assert weekend == [20261119, 20261120, 20261121]
    later = m.trading_days(20270601, 20270610, ms(20270610))
    assert later == [20270601, 20270602, 20270603, 20270604, *range(20270607, 20270611)]


def test_ranges_are_closed_and_nothing_is_later_than_now() -> None:
    m, now = market(), ms(NOW_DAY, "10:00:00")
    for period in ("1m", "5m", "30m", "1d", "1w", "1mon"):
        whole = m.bars("600000.SH", period, ms(20260901), now, now)
        start, end = int(whole.time[1]), int(whole.time[-2])
        part = m.bars("600000.SH", period, start, end, now)
        assert part.time.tolist() == whole.time[1:-1].tolist()
        assert np.array_equal(part.close, whole.close[1:-1])
        assert len(m.bars("600000.SH", period, now + 90_000_000, 2**53, now)) == 0
        assert len(m.bars("600000.SH", period, end, start, now)) == 0 or start == end
    assert len(m.bars("600000.SH", "1d", 0, 2**53, now)) == len(
        m.trading_days(20150105, NOW_DAY, now)
    )
    with pytest.raises(ValueError, match="unknown period"):
        m.bars("600000.SH", "2m", 0, now, now)
    with pytest.raises(KeyError):
        m.bars("600000.XX", "1d", 0, now, now)


def test_a_new_listing_begins_on_its_first_day() -> None:
    m = market()
    new = [c for c in m.sectors(NOW)["科创板"] if m.detail(c, NOW)["OpenDate"] > 20240101]  # type: ignore[index]
    assert len(new) > 10
    opened = m.detail(new[0], NOW)["OpenDate"]  # type: ignore[index]
    bars = m.bars(new[0], "1d", 0, NOW, NOW)
    assert opened <= day_of(int(bars.time[0])) <= opened + 100
    assert m.detail(new[0], ms(20230102)) is None
    assert m.index[new[0]] not in m.snapshot(ms(20230103, "12:00:00")).idx


def fingerprint(m: Market) -> list[float]:
    out: list[float] = []
    snap = m.snapshot(ms(NOW_DAY, "14:14:14"))
    out.extend(float(getattr(snap, f).astype(float).sum()) for f in Ticks.__dataclass_fields__)
    bars = m.bars("300750.SZ", "1m", ms(20260901), NOW, NOW)
    out.extend(float(c.sum()) for c in (bars.open, bars.high, bars.low, bars.volume, bars.amount))
    return out


def test_another_process_tells_the_same_and_another_seed_does_not() -> None:
    warm = market()
    warm.snapshot(ms(NOW_DAY, "11:00:00"))
    mine = fingerprint(warm)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_market_series as t; "
        "print(repr(t.fingerprint(t.Market())))"
    )
    here = __file__.rpartition("test_market_series")[0]
    result = subprocess.run(
        [sys.executable, "-c", code, here], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == repr(mine)
    assert fingerprint(Market(seed=7)) != mine
