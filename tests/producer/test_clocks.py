"""Differences between this clock, Redis' and the exchange's: measured, told once, well again."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from qmt_producer import clocks
from qmt_producer.clocks import Clocks, ExchangeClock, redis_offset

HOUR_MS = 3_600_000


class Rig:
    """Clocks whose time of measuring, session and Redis are in the test's hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.session_ms = 10 * 60_000
        self.off_ms, self.round_trip_ms = 0.0, 0.4
        self.events: list[dict[str, Any]] = []
        self.exchange = ExchangeClock()
        self.clocks = Clocks(
            self.exchange,
            in_session_ms=lambda: self.session_ms,
            warn_ms=2000,
            on_event=self.events.append,
        )
        monkeypatch.setattr(clocks.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(clocks, "redis_offset", lambda _: (self.off_ms, self.round_trip_ms))

    def push(self, *late_ms: int, times: int = 1) -> None:
        """Push ticks that were received so long after their exchange time."""
        for _ in range(times):
            self.now_s += 1
            self.exchange.note(1_000_000, [1_000_000 - one for one in late_ms])

    def measure(self) -> dict[str, Any]:
        self.now_s += 10
        self.clocks.measure(None)  # type: ignore[arg-type]
        return self.clocks.figures

    @property
    def told(self) -> list[tuple[str, int, bool]]:
        assert all(event["kind"] == "clock" for event in self.events)
        return [(event["which"], event["off_ms"], event["well"]) for event in self.events]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_an_offset_is_told_once_and_once_more_when_well(rig: Rig) -> None:
    for off_ms in (1900, 2500, 9000, -9000, 1500, 900, 0, -3000):
        rig.off_ms = off_ms
        assert rig.measure()["redis_ms"] == off_ms
    assert rig.told == [("redis", 2500, False), ("redis", 900, True), ("redis", -3000, False)]
    assert rig.clocks.ahead_ms == -3000


def test_only_a_clock_that_is_plainly_wrong_is_corrected(rig: Rig) -> None:
    corrected = []
    for off_ms in (1900, 2500, 1500, 900):
        rig.off_ms = off_ms
        rig.measure()
        corrected.append(rig.clocks.ahead_ms)
    assert corrected == [0, 2500, 1500, 0]


def test_what_lies_within_the_error_of_measuring_is_not_told(rig: Rig) -> None:
    rig.off_ms, rig.round_trip_ms = 2500, 1200
    rig.measure()
    assert rig.told == []


def test_it_is_measured_every_ten_seconds(rig: Rig) -> None:
    rig.measure()
    rig.off_ms = 5000
    rig.now_s += 9
    rig.clocks.measure(None)  # type: ignore[arg-type]
    assert rig.clocks.figures["redis_ms"] == 0
    rig.now_s += 1
    rig.clocks.measure(None)  # type: ignore[arg-type]
    assert rig.clocks.figures["redis_ms"] == 5000


def test_the_exchange_is_the_least_delay_of_a_minute(rig: Rig) -> None:
    rig.push(200_000, 300_000, 400_000)  # a snapshot: nothing in it is new
    rig.push(700, 800, 900, 5000)
    rig.push(650, 660, 3100)
    assert rig.measure()["exchange_ms"] == 900
    rig.now_s += 61
    assert rig.measure()["exchange_ms"] is None, "too long ago"
    rig.push(HOUR_MS, HOUR_MS, HOUR_MS, times=5)
    assert rig.measure()["exchange_ms"] == HOUR_MS
    assert rig.told == [("exchange", HOUR_MS, False)]


def test_single_ticks_from_the_future_are_no_clock(rig: Rig) -> None:
    rig.push(-HOUR_MS, -HOUR_MS, 500, 600, 700, times=4)
    rig.push(-HOUR_MS, times=4)
    assert rig.measure()["exchange_ms"] == 500
    assert rig.told == []


def test_outside_continuous_trading_nothing_is_said_of_the_exchange(rig: Rig) -> None:
    rig.session_ms = 59_000  # what came before the session began is still in the window
    rig.push(HOUR_MS, HOUR_MS, HOUR_MS, times=5)
    assert rig.measure()["exchange_ms"] is None
    rig.session_ms = 60_000
    assert rig.measure()["exchange_ms"] == HOUR_MS


def test_a_busy_feed_is_looked_at_a_few_times_a_second() -> None:
    exchange = ExchangeClock()
    for _ in range(1000):
        exchange.note(5000, [4000, 4000, 4000])
    assert exchange.least_ms() is None, "one look is too few"


def test_redis_time_is_met_within_half_a_round_trip(streams: redis.Redis) -> None:
    """Server and test share one clock, so what is seen is the error of the measurement."""
    streams.ping()
    for _ in range(10):
        off_ms, round_trip_ms = redis_offset(streams)
        assert abs(off_ms) <= round_trip_ms / 2 + 0.05
    ahead = time.time_ns
    try:
        time.time_ns = lambda: ahead() + HOUR_MS * 1_000_000
        off_ms, round_trip_ms = redis_offset(streams)
    finally:
        time.time_ns = ahead
    assert off_ms == pytest.approx(HOUR_MS, abs=round_trip_ms / 2 + 0.05)
