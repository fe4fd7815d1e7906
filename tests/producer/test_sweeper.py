"""Retention on a real server: by trading day, by memory, and not past the archive."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from publisher_bench import CODE, KEYS, Bench, entry

from qmt_producer.candidates import Entry
from qmt_producer.sweeper import Sweeper
from qmt_protocol.bars import encode_bar
from qmt_protocol.keys import series_of

CHINA = dt.timezone(dt.timedelta(hours=8))
DAY_MS = 86_400_000
# Thursday, Friday, and after a weekend Monday, Tuesday: 09:30.
DAYS = ("2026-01-08", "2026-01-09", "2026-01-12", "2026-01-13")
STOPPED = "600001.SH"
PER_DAY = 250


def opening(day: str) -> int:
    at = dt.datetime.fromisoformat(f"{day} 09:30:00").replace(tzinfo=CHINA)
    return int(at.timestamp() * 1000)


def ticks(day: str, count: int = PER_DAY, code: str = CODE) -> list[Entry]:
    return [entry(opening(day) + 3000 * n, 10 + n / 100, code=code) for n in range(count)]


@pytest.fixture
def sweeper(bench: Bench) -> Iterator[Sweeper]:
    sweeper = Sweeper(
        keys=KEYS,
        url=bench.url,
        markets=lambda: ["SH", "SZ"],
        holder=bench.publisher.holder,
        keep_days=3,
        max_memory_share=0.8,
        on_event=bench.events.append,
    )
    sweeper.thread.start()
    yield sweeper
    sweeper.stop()


def fill(bench: Bench) -> None:
    for day in DAYS:
        bench.publish(*ticks(day))
    bench.publish(*ticks(DAYS[0], 5, STOPPED))


def days_of(streams: redis.Redis, key: str) -> list[int]:
    """Return how many entries of each of DAYS a stream holds."""
    return [
        len(streams.xrange(key, opening(day) - DAY_MS // 4, opening(day) + DAY_MS // 4))
        for day in DAYS
    ]


def test_old_days_go_counted_from_the_newest_there_is(
    bench: Bench, sweeper: Sweeper, streams: redis.Redis
) -> None:
    fill(bench)
    bar = {"time": opening(DAYS[0]), "close": 1.0, "closed": True}
    bench.publish((series_of("1m", CODE), opening(DAYS[0]), encode_bar(bar)), kind="bar")
    sweeper.sweep()
    kept = days_of(streams, KEYS.tick(CODE))
    assert kept[0] < 100, "all but the rest of one node of the stream"
    assert kept[1:] == [PER_DAY] * 3, "the weekend is no trading day, and it is long ago"
    assert streams.exists(KEYS.tick(STOPPED), KEYS.bar("1m", CODE)) == 0
    assert streams.hexists(KEYS.latest("SH"), STOPPED), "the latest tick outlives its stream"
    assert sweeper.figures["newest_day"] == {"SH": 20260113}
    assert sweeper.figures["oldest_day"] == {"SH": 20260109}
    assert sweeper.figures["trimmed"] == PER_DAY - kept[0] + 6
    before = streams.xlen(KEYS.tick(CODE))
    sweeper.sweep()
    assert streams.xlen(KEYS.tick(CODE)) == before == sweeper.figures["ticks"]
    assert 20 < sweeper.figures["bytes_per_tick"] < 300
    assert [event for event in bench.events if event["kind"] == "trimmed"] == []


def test_only_the_holder_trims(bench: Bench, sweeper: Sweeper, streams: redis.Redis) -> None:
    fill(bench)
    bench.publisher.stop(1.0)
    streams.set(KEYS.lease("SH"), "another")
    sweeper.sweep()
    sweeper.sweep(full=True)
    assert days_of(streams, KEYS.tick(CODE)) == [PER_DAY] * 4
    streams.delete(KEYS.lease("SH"))
    sweeper.sweep()
    assert days_of(streams, KEYS.tick(CODE)) == [PER_DAY] * 4


def archive_seen(streams: redis.Redis) -> None:
    streams.zadd(KEYS.seen, {"archive:host:1": streams.time()[0] * 1000})


def feed_ids(streams: redis.Redis) -> list[str]:
    entries: Any = streams.xrange(KEYS.feed("SH"))
    return [entry_id.decode() for entry_id, _ in entries]


def test_what_the_archive_lacks_stays(bench: Bench, sweeper: Sweeper, streams: redis.Redis) -> None:
    fill(bench)
    archive_seen(streams)
    sweeper.sweep()
    assert days_of(streams, KEYS.tick(CODE)) == [PER_DAY] * 4, "it has stored nothing yet"
    # Up to the second of five batches: of the first day only the stopped code's batch is left.
    streams.set(KEYS.archived("SH"), feed_ids(streams)[1])
    sweeper.sweep()
    assert days_of(streams, KEYS.tick(CODE)) == [PER_DAY] * 4
    streams.set(KEYS.archived("SH"), feed_ids(streams)[-1])
    sweeper.sweep()
    kept = days_of(streams, KEYS.tick(CODE))
    assert kept[0] < 100
    assert kept[1:] == [PER_DAY] * 3


def test_an_archive_long_gone_does_not_hold_anything(
    bench: Bench, sweeper: Sweeper, streams: redis.Redis
) -> None:
    fill(bench)
    streams.zadd(KEYS.seen, {"archive:host:1": streams.time()[0] * 1000 - 2 * DAY_MS})
    sweeper.sweep()
    assert days_of(streams, KEYS.tick(CODE))[0] < 100


def test_short_memory_takes_the_oldest_and_says_when_it_passes_the_archive(
    bench: Bench, sweeper: Sweeper, streams: redis.Redis
) -> None:
    day = DAYS[-1]
    bench.publish(*(one for code in range(20) for one in ticks(DAYS[0], 25, f"{600100 + code}.SH")))
    for number in range(8):
        start = 500 * number
        rows = [entry(opening(day) + 3000 * n, 10 + n / 100) for n in range(start, start + 500)]
        bench.publish(*rows)
    archive_seen(streams)
    used: Any = streams.info("memory")
    streams.config_set("maxmemory", int(used["used_memory"]))
    try:
        sweeper.sweep(full=True)
        told = [event for event in bench.events if event["kind"] == "trimmed"]
        assert told, "beyond 0.8 of the limit something must go"
        assert all(event["market"] == "SH" for event in told)
        assert all(event["past_archive"] for event in told), "it has stored nothing yet"
        assert told[0]["up_to_ms"] == opening(day) // DAY_MS * DAY_MS - 8 * 3_600_000
        assert told[0]["entries"] == 500
        cuts = [event["up_to_ms"] for event in told]
        assert cuts == sorted(set(cuts))
        newest = opening(day) + 3000 * 3999
        assert cuts[-1] <= newest - 30 * 60_000, "the last half hour stays"
        assert streams.xlen(KEYS.tick(CODE)) >= 600
        assert streams.xrange(KEYS.tick(CODE), newest, newest)
    finally:
        streams.config_set("maxmemory", 0)
