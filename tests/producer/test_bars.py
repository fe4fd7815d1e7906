"""Forming and closed bars, from the terminal's rows to the streams of a real server."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import msgpack
import numpy as np
import pandas as pd
import pytest
import redis
from publisher_bench import KEYS, Bench
from waiting import wait_for

from qmt_producer.bar_maker import BarMaker, MadeBar, bar_end_ms
from qmt_producer.candidates import Entry
from qmt_protocol.bars import decode_bar, encode_bar
from qmt_protocol.errors import EncodeError
from qmt_protocol.keys import series_of
from qmt_simulator import bson
from qmt_worker.tables import arrow_table

CHINA = dt.timezone(dt.timedelta(hours=8))
CODE = "600519.SH"
MINUTE_MS = 60_000
GRACE_MS = 5_000


def at(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=CHINA).timestamp() * 1000)


FIRST_MS = at("2026-01-05 09:31:00")


def row(label_ms: int, close: float, volume: int = 100) -> dict[str, Any]:
    volume = bson.Int64(volume)
    return {"time": bson.Int64(label_ms), "open": 10.0, "close": close, "volume": volume}


class Clock:
    """A market clock that stands until moved."""

    def __init__(self) -> None:
        self.now_ms = FIRST_MS - 30_000
        self.stamp: int | None = 1

    def maker(self, period: str = "1m", code: str = CODE, close_s: int = 15 * 3600) -> BarMaker:
        maker = BarMaker(lambda: self.now_ms, GRACE_MS, lambda: self.stamp)
        assert maker.expect(period, code, close_s) == 0
        maker.resume(period, code, 1, [])
        return maker


def told(made: list[MadeBar]) -> list[tuple[int, int, bool]]:
    """Return label, scaled close and closed of each."""
    rows = []
    for label_ms, k1 in made:
        assert isinstance(k1, bytes)
        bar = msgpack.unpackb(k1)
        assert bar[0] == label_ms
        assert type(label_ms) is int, "BSON's Int64 cannot go on to the ring"
        rows.append((label_ms, bar[4], bar[11]))
    return rows


def test_the_clock_closes_a_bar_and_not_the_next_tick() -> None:
    clock = Clock()
    maker = clock.maker()
    assert told(maker.take("1m", CODE, [row(FIRST_MS, 10.1)])) == [(FIRST_MS, 101_000, False)]
    assert maker.take("1m", CODE, [row(FIRST_MS, 10.1)]) == [], "unchanged: not repeated"
    assert told(maker.take("1m", CODE, [row(FIRST_MS, 10.2)])) == [(FIRST_MS, 102_000, False)]
    clock.now_ms = FIRST_MS + GRACE_MS - 1
    assert maker.due() == []
    clock.now_ms += 1
    ((period, code, bar),) = maker.due()
    assert (period, code, told([bar])) == ("1m", CODE, [(FIRST_MS, 102_000, True)])
    assert maker.due() == []
    assert maker.take("1m", CODE, [row(FIRST_MS, 10.2)]) == []
    correction = maker.take("1m", CODE, [row(FIRST_MS, 10.3)])
    assert told(correction) == [(FIRST_MS, 103_000, True)], "a change after it is a correction"


def test_a_bar_that_ends_without_a_subscription_is_closed_by_what_the_terminal_has() -> None:
    clock = Clock()
    maker = clock.maker()
    maker.take("1m", CODE, [row(FIRST_MS, 10.1)])
    clock.stamp = None
    clock.now_ms = FIRST_MS + GRACE_MS
    assert maker.due() == [], "its last ticks may not have come"
    clock.stamp = 2
    assert maker.due() == [], "nor is it known what the terminal has"
    assert maker.expect("1m", CODE) == FIRST_MS
    next_ms, then_ms = FIRST_MS + MINUTE_MS, FIRST_MS + 2 * MINUTE_MS
    clock.now_ms = next_ms + 10_000
    assert maker.take("1m", CODE, [row(then_ms, 10.5)]) == [], "a push waits"
    missed = [row(FIRST_MS, 10.3), row(next_ms, 10.4), row(then_ms, 10.45)]
    maker.resume("1m", CODE, 2, missed)
    assert told([bar for _, _, bar in maker.due()]) == [
        (FIRST_MS, 103_000, True),
        (next_ms, 104_000, True),
        (then_ms, 105_000, False),
    ]
    clock.now_ms = then_ms + GRACE_MS
    assert told([bar for _, _, bar in maker.due()]) == [(then_ms, 105_000, True)]


def test_pushes_that_wait_are_bounded() -> None:
    clock = Clock()
    maker = BarMaker(lambda: clock.now_ms, GRACE_MS, lambda: clock.stamp)
    maker.expect("1m", CODE)
    for at_s in range(1_000):
        assert maker.take("1m", CODE, [row(FIRST_MS, 10.0 + at_s / 100)]) == []
    maker.resume("1m", CODE, 1, [])
    assert told(maker.take("1m", CODE, [])) == [(FIRST_MS, 199_900, False)]


def test_the_next_label_closes_the_one_before_at_once() -> None:
    maker = Clock().maker()
    maker.take("1m", CODE, [row(FIRST_MS, 10.1)])
    next_ms = FIRST_MS + MINUTE_MS
    made = maker.take("1m", CODE, [row(FIRST_MS, 10.2), row(next_ms, 10.3)])
    assert told(made) == [(FIRST_MS, 102_000, True), (next_ms, 103_000, False)]
    again = maker.take("1m", CODE, [row(FIRST_MS, 10.2), row(next_ms, 10.3)])
    assert again == [], "the bar before is sent along by some terminals"
    late = maker.take("1m", CODE, [row(FIRST_MS, 10.25)])
    assert told(late) == [(FIRST_MS, 102_500, True)]


def test_an_old_bar_is_closed_from_the_start() -> None:
    clock = Clock()
    made = clock.maker("1d").take("1d", CODE, [row(at("2026-01-02"), 10.1)])
    assert [closed for _, _, closed in told(made)] == [True]
    made = clock.maker("1d").take("1d", CODE, [row(at("2026-01-05"), 10.1)])
    assert [closed for _, _, closed in told(made)] == [False]


def test_a_week_closes_when_it_is_over_whatever_its_label() -> None:
    clock = Clock()
    maker = clock.maker("1w")
    monday, tuesday, next_monday = at("2026-01-05"), at("2026-01-06"), at("2026-01-12")
    made = maker.take("1w", CODE, [row(monday, 10.1)]) + maker.take("1w", CODE, [row(tuesday, 1.0)])
    assert [closed for _, _, closed in told(made)] == [False, False]
    made = maker.take("1w", CODE, [row(next_monday, 10.3)])
    assert told(made) == [(tuesday, 10_000, True), (next_monday, 103_000, False)]


@pytest.mark.parametrize(
    ("period", "label", "end"),
    [
        ("1m", "2026-01-05 11:30:00", "2026-01-05 11:30:00"),
        ("60m", "2026-01-05 10:30:00", "2026-01-05 10:30:00"),
        ("1d", "2026-01-05", "2026-01-05 15:00:00"),
        ("1w", "2026-01-09", "2026-01-12"),
        ("1w", "2026-01-11", "2026-01-12"),
        ("1mon", "2026-12-31", "2027-01-01"),
        ("1q", "2026-02-27", "2026-04-01"),
        ("1hy", "2026-07-01", "2027-01-01"),
        ("1y", "2026-01-05", "2027-01-01"),
    ],
)
def test_when_a_bar_is_over(period: str, label: str, end: str) -> None:
    assert bar_end_ms(period, at(label), 15 * 3600) == at(end)


@pytest.mark.parametrize(
    ("code", "settlement", "interest"),
    [("600519.SH", None, 0), ("000001.SH", None, 0), ("IF2612.IF", 40_123_400, 777)],
)
def test_live_bars_have_the_nulls_of_history(
    code: str, settlement: int | None, interest: int
) -> None:
    sent = {**row(FIRST_MS, 10.1), "settelementPrice": 4012.34, "openInterest": bson.Int64(777)}
    ((_, k1),) = Clock().maker(code=code).take("1m", code, [sent])
    assert isinstance(k1, bytes)
    bar = msgpack.unpackb(k1)
    assert bar[8] == interest
    assert math.isnan(bar[7]) if settlement is None else bar[7] == settlement
    history = arrow_table(code, pd.DataFrame([sent]), "1m", None, np.array([False])).to_pylist()[0]
    live = decode_bar(k1)
    for name in ("settelementPrice", "openInterest"):
        np.testing.assert_equal(live[name], history[name])


def test_what_cannot_be_a_bar_is_named() -> None:
    maker = Clock().maker()
    wrong = [{"close": 1.0}, row(0, 1.0), row(10**14, 1.0), {"time": FIRST_MS, "open": "ten"}]
    made = maker.take("1m", CODE, wrong)
    assert len(made) == 4
    assert all(isinstance(k1, EncodeError) for _, k1 in made)
    maker.forget("1m", CODE)
    assert maker.take("1m", CODE, [row(FIRST_MS, 1.0)]) == []
    assert not maker.busy


def entry(
    label_ms: int, close: float, *, closed: bool = False, volume: int = 100, code: str = CODE
) -> Entry:
    k1 = encode_bar({**row(label_ms, close, volume), "closed": closed})
    return series_of("1m", code), label_ms, k1


def stored(streams: redis.Redis) -> list[tuple[str, int, bool]]:
    return [
        (entry_id.decode(), bar[4], bar[11])
        for entry_id, fields in streams.xrange(KEYS.bar("1m", CODE))
        for bar in [msgpack.unpackb(fields[b"k1"])]
    ]


def test_bars_lie_under_their_label_in_stream_and_feed(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(FIRST_MS, 10.1), entry(FIRST_MS, 10.2, volume=200), kind="bar")
    bench.publish(entry(FIRST_MS, 10.2, volume=200, closed=True), kind="bar")
    assert stored(streams) == [
        (f"{FIRST_MS}-0", 101_000, False),
        (f"{FIRST_MS}-1", 102_000, False),
        (f"{FIRST_MS}-2", 102_000, True),
    ]
    fed = [
        one
        for _, fields in streams.xrange(KEYS.feed("SH"))
        for one in msgpack.unpackb(fields[b"c1"])
    ]
    assert [(code, period, entry_id) for code, period, entry_id, _ in fed] == [
        (CODE, "1m", entry_id) for entry_id, _, _ in stored(streams)
    ]
    assert (bench.publisher.figures.bars, bench.publisher.figures.published) == (3, 0)


def test_older_states_are_dropped_and_corrections_kept(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(FIRST_MS, 10.1), entry(FIRST_MS, 10.2, volume=200), kind="bar")
    bench.publish(entry(FIRST_MS, 10.1), entry(FIRST_MS, 10.15, volume=150), kind="bar")
    assert len(stored(streams)) == 2, "seen already, and less volume than is known"
    bench.publish(entry(FIRST_MS, 10.2, volume=200, closed=True), kind="bar")
    bench.publish(entry(FIRST_MS, 10.3, volume=300), kind="bar")
    bench.publish(entry(FIRST_MS, 10.2, volume=200, closed=True), kind="bar")
    assert len(stored(streams)) == 3, "a forming bar cannot follow a closed one"
    bench.publish(entry(FIRST_MS, 10.4, volume=190, closed=True), kind="bar")
    assert stored(streams)[-1] == (f"{FIRST_MS}-3", 104_000, True)
    assert bench.publisher.figures.bars_repeated == 4
    assert {event["kind"] for event in bench.events} == {"lease taken"}


def test_a_bar_behind_the_last_label_is_late_and_named(bench: Bench, streams: redis.Redis) -> None:
    done, new_ms = entry(FIRST_MS, 10.1, closed=True), FIRST_MS + MINUTE_MS
    bench.publish(done, entry(new_ms, 10.2), kind="bar")
    bench.publish(done, entry(FIRST_MS, 10.0), kind="bar")
    assert bench.publisher.figures.bars_late == 0, "a takeover brings what is there already"
    bench.publish(entry(FIRST_MS, 10.3, closed=True), entry(new_ms, 10.4), kind="bar")
    assert [close for _, close, _ in stored(streams)] == [101_000, 102_000, 104_000]
    (event,) = [event for event in bench.events if event["kind"] == "late bar"]
    assert (event["market"], event["bars"]) == ("SH", 1)
    assert event["which"] == f"1m|{CODE} {FIRST_MS}"


def test_a_bar_batch_sent_again_adds_nothing(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(FIRST_MS, 10.1), kind="bar")
    before = stored(streams), streams.xlen(KEYS.feed("SH"))
    bench.publisher._lines["SH"].cursor = 0
    bench.publisher.more.set()
    wait_for(lambda: bench.done)
    assert (stored(streams), streams.xlen(KEYS.feed("SH"))) == before


def test_one_bad_key_rejects_its_bar_alone(bench: Bench, streams: redis.Redis) -> None:
    streams.set(KEYS.bar("1m", "600001.SH"), "not a stream")
    bench.publish(entry(FIRST_MS, 1.0, code="600001.SH"), entry(FIRST_MS, 10.0), kind="bar")
    assert len(stored(streams)) == 1
    (gap,) = [event for event in bench.events if event["kind"] == "gap"]
    assert gap["bars"] == 1
    assert "1m|600001.SH" in gap["reason"]
