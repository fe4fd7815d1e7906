"""When ticks are due: each once, in order, however the time is cut into windows."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmt_simulator.market import Market

CHINA = dt.timezone(dt.timedelta(hours=8))
DAY = 20261119


@lru_cache
def market(interval_ms: int = 3000, around_the_clock: bool = False) -> Market:
    return Market(interval_ms=interval_ms, around_the_clock=around_the_clock)


def ms(day: int, clock: str = "00:00:00") -> int:
    at = dt.datetime.strptime(f"{day} {clock}", "%Y%m%d %H:%M:%S").replace(tzinfo=CHINA)
    return int(at.timestamp() * 1000)


def clock_of(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, CHINA).strftime("%H:%M:%S")


STARTS = [
    (False, DAY, clock)
    for clock in ("09:14:55", "09:24:55", "09:29:55", "11:29:55", "12:59:55", "14:59:55")
] + [(True, DAY, "23:59:55"), (True, 20261121, "12:00:00")]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(STARTS),
    st.lists(st.integers(1, 9999), max_size=12),
    st.sampled_from([3000, 250]),
)
def test_windows_cover_each_tick_once(
    start: tuple[bool, int, str], cuts: list[int], interval_ms: int
) -> None:
    m = market(interval_ms, start[0])
    begin = ms(start[1], start[2])
    whole = m.due(begin, begin + 10_000)
    edges = [begin, *sorted(begin + cut for cut in set(cuts)), begin + 10_000]
    parts = [m.due(a, b) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate([p[0] for p in parts]), whole[0])
    assert np.array_equal(np.concatenate([p[1] for p in parts]), whole[1])
    assert (np.diff(whole[1]) >= 0).all()
    assert ((whole[1] > begin) & (whole[1] <= begin + 10_000)).all()
    pairs = set(zip(whole[0].tolist(), whole[1].tolist(), strict=True))
    assert len(pairs) == len(whole[0])
    same = np.diff(whole[1]) == 0
    assert (np.diff(whole[0])[same] > 0).all()


@pytest.mark.parametrize("interval_ms", [3000, 250, 15000])
def test_every_instrument_ticks_once_in_an_interval(interval_ms: int) -> None:
    m = market(interval_ms)
    begin = ms(DAY, "10:00:00")
    idx, time = m.due(begin - 1, begin + interval_ms - 1)
    assert len(idx) == len(set(idx.tolist())) > 6000
    again, later = m.due(begin - 1 + interval_ms, begin + 2 * interval_ms - 1)
    assert np.array_equal(again, idx)
    assert np.array_equal(later, time + interval_ms)
    snapshot = m.snapshot(begin)
    trading = snapshot.idx[snapshot.openInt != 17]
    assert set(idx.tolist()) == set(trading.tolist())


def test_one_code_over_a_day() -> None:
    m = market()
    idx, time = m.due(ms(DAY), ms(DAY, "23:59:59"))
    mine = time[idx == m.index["600519.SH"]]
    day = m.day_ticks("600519.SH", DAY, ms(DAY, "23:59:59"))
    assert mine.tolist() == day.time.tolist()
    # 10 minutes of auction, its print, 4 hours, the closing print.
    assert len(mine) == 200 + 1 + 4800 + 1
    clocks = [clock_of(t) for t in mine.tolist()]
    assert clocks[0] < "09:15:03"
    assert clocks[200].startswith("09:25:0")
    assert clocks[201].startswith("09:30:0")
    assert clocks[-1].startswith("15:00:0")
    assert not any("11:30:00" <= c < "13:00:00" for c in clocks)
    phases = day.openInt
    assert phases[:201].tolist() == [12] * 201
    assert set(phases[201:4941].tolist()) == {13}
    assert set(phases[4941:-1].tolist()) == {18}
    assert phases[-1] == 15
    assert (np.diff(day.volume) >= 0).all()
    assert (np.diff(day.amount) >= 0).all()
    traded = day.lastPrice > 0
    assert (np.diff(day.high[traded]) >= 0).all()
    assert (np.diff(day.low[traded]) <= 0).all()
    # No trade in the closing auction until its print.
    assert np.unique(day.volume[4940:-1]).size == 1


def test_nothing_is_due_when_the_market_is_closed() -> None:
    m = market()
    for day, start, end in (
        (DAY, "11:30:03", "12:59:59"),
        (DAY, "15:00:04", "23:59:59"),
        (20261121, "00:00:00", "23:59:59"),
        (20261001, "09:00:00", "15:10:00"),
    ):
        assert len(m.due(ms(day, start), ms(day, end))[0]) == 0
    assert len(m.due(ms(DAY, "10:00:00"), ms(DAY, "10:00:00"))[0]) == 0


def test_rows_answer_to_their_requests_in_any_order() -> None:
    m = market(3000, True)
    idx, time = m.due(ms(DAY, "09:59:59"), ms(DAY, "10:00:01"))
    rng = np.random.default_rng(1)
    order = rng.permutation(len(idx))
    straight, shuffled = m.ticks(idx, time), m.ticks(idx[order], time[order])
    assert np.array_equal(shuffled.idx, idx[order])
    assert np.array_equal(shuffled.time, time[order])
    for name in ("lastPrice", "high", "volume", "amount", "askPrice", "bidVol", "openInt"):
        assert np.array_equal(getattr(shuffled, name), getattr(straight, name)[order]), name
    assert len(m.ticks(idx[:0], time[:0])) == 0


def test_the_book_stands_around_the_price_within_the_limits() -> None:
    m = market()
    idx, time = m.due(ms(DAY, "10:00:00"), ms(DAY, "10:00:03"))
    ticks = m.ticks(idx, time)
    noisy = 0
    for k in range(0, len(ticks), 7):
        document = m.detail(m.codes[int(idx[k])], ms(DAY, "10:00:00"))
        assert document is not None
        asks = [p for p in ticks.askPrice[k].tolist() if p]
        bids = [p for p in ticks.bidPrice[k].tolist() if p]
        if m.types(m.codes[int(idx[k])])["index"]:
            assert not asks
            assert not bids
            assert not ticks.askVol[k].any()
            continue
        step = document["PriceTick"]
        last = float(ticks.lastPrice[k])
        for price in (last, *asks, *bids):
            assert document["DownStopPrice"] - 1e-9 <= price <= document["UpStopPrice"] + 1e-9
            assert abs(price / step - round(price / step)) < 1e-6
            noisy += price != round(price, 4)
        assert asks == sorted(asks)
        assert bids == sorted(bids, reverse=True)
        assert min(abs(p - last) for p in (*asks[:1], *bids[:1])) < 1e-9
        if asks and bids:
            assert asks[0] - bids[0] == pytest.approx(step)
        assert len(asks) == np.count_nonzero(ticks.askVol[k])
    assert noisy > 100
