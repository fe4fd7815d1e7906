"""From the ring to streams and `latest`, on a real server; judged by the msgpack package."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import redis
from publisher_bench import (
    CLAMPED,
    CODE,
    KEYS,
    LATE,
    NOON_MS,
    Bench,
    entry,
    fed,
    latest,
    now_ms,
    stored,
)
from waiting import wait_for

from qmt_producer.ring import Batch
from qmt_standalone.redis_server import RedisServer


def test_ids_are_exchange_time_and_all_places_agree(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(NOON_MS, 10.0), entry(NOON_MS, 5.5, code="600000.SH"))
    bench.publish(entry(NOON_MS + 3000, 10.01))
    rows = stored(streams)
    assert [entry_id for entry_id, _ in rows] == [f"{NOON_MS}-0", f"{NOON_MS + 3000}-0"]
    assert [row[1] for _, row in rows] == [100_000, 100_100]
    assert latest(streams) == [f"{NOON_MS + 3000}-0", rows[1][1]]
    assert fed(streams) == [
        [CODE, f"{NOON_MS}-0", rows[0][1]],
        ["600000.SH", f"{NOON_MS}-0", stored(streams, "600000.SH")[0][1]],
        [CODE, f"{NOON_MS + 3000}-0", rows[1][1]],
    ]


def test_a_batch_sent_again_adds_nothing(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(NOON_MS, 10.0), entry(NOON_MS + 1, 10.1))
    before = stored(streams), fed(streams)
    bench.publisher._lines["SH"].cursor = 0  # as if the answer had been lost
    bench.publisher.more.set()
    wait_for(lambda: bench.done)
    assert (stored(streams), fed(streams)) == before


def test_repeats_are_dropped_late_ticks_kept_and_marked(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(NOON_MS, 10.0), entry(NOON_MS + 6000, 10.2))
    bench.publish(entry(NOON_MS, 10.0), entry(NOON_MS + 3000, 10.1), entry(NOON_MS + 6000, 10.2))
    bench.publish(entry(NOON_MS + 3000, 10.1))
    rows = stored(streams)
    assert [(entry_id, row[0], row[1], row[-1]) for entry_id, row in rows] == [
        (f"{NOON_MS}-0", NOON_MS, 100_000, 0),
        (f"{NOON_MS + 6000}-0", NOON_MS + 6000, 102_000, 0),
        (f"{NOON_MS + 6000}-1", NOON_MS + 3000, 101_000, LATE),
    ]
    assert latest(streams)[1][1] == 102_000, "a late tick must not become the latest"
    assert len(fed(streams)) == 3
    assert [event["ticks"] for event in bench.events if event["kind"] == "late"] == [1]


def test_same_moment_other_book_is_news(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(NOON_MS, 10.0, bidVol=[5]), entry(NOON_MS, 10.0, bidVol=[7]))
    assert [row[18] for _, row in stored(streams)] == [[5], [7]]
    assert latest(streams)[0] == f"{NOON_MS}-1"
    bench.publish(entry(NOON_MS, 10.0, bidVol=[7], volume=90))
    assert stored(streams)[-1][1][-1] == LATE, "volume went back: an older state of that moment"
    assert latest(streams)[0] == f"{NOON_MS}-1"


def test_a_tick_from_the_future_is_clamped_to_redis_time(
    bench: Bench, streams: redis.Redis
) -> None:
    seconds, micros = streams.time()
    ahead_ms = seconds * 1000 + micros // 1000 + 3_600_000
    bench.publish(entry(ahead_ms, 10.0))
    ((entry_id, row),) = stored(streams)
    assert row[0] == ahead_ms
    assert row[-1] == CLAMPED
    assert int(entry_id.split("-")[0]) < ahead_ms - 3_500_000


def test_one_bad_key_rejects_its_tick_alone(bench: Bench, streams: redis.Redis) -> None:
    streams.set(KEYS.tick("600001.SH"), "not a stream")
    bench.publish(entry(NOON_MS, 1.0, code="600001.SH"), entry(NOON_MS, 10.0))
    assert len(stored(streams)) == 1
    (gap,) = [event for event in bench.events if event["kind"] == "gap"]
    assert gap["ticks"] == 1
    assert "600001.SH" in gap["reason"]


def test_long_codes_are_readable_everywhere(bench: Bench, streams: redis.Redis) -> None:
    code = "A" * 24 + ".MARKET12"
    bench.ring.append([("MARKET12", "tick", now_ms(), [entry(NOON_MS, 10.0, code=code)])])
    bench.publisher.add("MARKET12")
    wait_for(lambda: bench.done)
    ((fed_code, entry_id, _),) = fed(streams, "MARKET12")
    assert (fed_code, entry_id) == (code, f"{NOON_MS}-0")
    assert stored(streams, code)[0][0] == entry_id


def test_a_trimmed_stream_does_not_take_its_last_tick_again(
    bench: Bench, streams: redis.Redis
) -> None:
    bench.publish(entry(NOON_MS, 10.0))
    streams.delete(KEYS.tick(CODE))  # swept: the code stopped trading
    bench.publish(entry(NOON_MS, 10.0))
    assert streams.exists(KEYS.tick(CODE)) == 0
    assert len(fed(streams)) == 1


def test_latest_lost_does_not_reorder(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(NOON_MS + 3000, 10.0))
    streams.delete(KEYS.latest("SH"))
    bench.publish(entry(NOON_MS, 9.9))
    assert [row[-1] for _, row in stored(streams)] == [0, LATE]


def test_a_stranger_with_the_lease_is_respected(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    streams.set(KEYS.lease("SH"), "stranger", px=700)
    bench = Bench(tmp_path / "ring.sqlite", streams_server.url)
    try:
        bench.ring.append([("SH", "tick", now_ms(), [entry(NOON_MS, 10.0)])])
        wait_for(lambda: bench.publisher.figures.standby == {"SH": "stranger"})
        assert streams.exists(KEYS.tick(CODE)) == 0
        wait_for(lambda: bench.ring.acked("SH") == 1)  # the stranger's lease ran out
        wait_for(lambda: bench.done)
        assert len(stored(streams)) == 1
        kinds = [event["kind"] for event in bench.events if event["market"] == "SH"]
        assert kinds == ["standby", "lease taken"]
    finally:
        bench.close()
    assert streams.exists(KEYS.lease("SH")) == 0, "a clean stop gives the lease back"


def test_redis_killed_and_back_loses_and_repeats_nothing(
    tmp_path: Path, server_binary: Path
) -> None:
    server = RedisServer(tmp_path / "redis", binary=server_binary)
    server.start()
    bench = Bench(tmp_path / "ring.sqlite", server.url)
    try:
        for number in range(30):
            bench.ring.append(
                [("SH", "tick", now_ms(), [entry(NOON_MS + number, 10 + number / 100)])]
            )
            bench.publisher.more.set()
            if number == 10:
                server.kill()
            if number == 20:
                server.start()
        wait_for(lambda: bench.ring.acked("SH") == 30 and bench.done)
        with redis.Redis.from_url(server.url) as streams:
            assert [row[0] for _, row in stored(streams)] == [NOON_MS + n for n in range(30)]
            assert [row[2][0] for row in fed(streams)] == [NOON_MS + n for n in range(30)]
        kinds = [event["kind"] for event in bench.events]
        assert "redis away" in kinds
        assert "redis back" in kinds
    finally:
        bench.close()
        server.stop()


def test_out_of_memory_waits_and_then_publishes(tmp_path: Path, server_binary: Path) -> None:
    server = RedisServer(tmp_path / "redis", binary=server_binary, aof=False)
    server.start()
    bench = Bench(tmp_path / "ring.sqlite", server.url)
    try:
        with redis.Redis.from_url(server.url) as streams:
            bench.publish(entry(NOON_MS - 1, 9.0))
            streams.config_set("maxmemory", "1")  # in the middle of a lease: the batch is refused
            bench.ring.append([("SH", "tick", now_ms(), [entry(NOON_MS, 10.0)])])
            bench.publisher.more.set()
            wait_for(lambda: "OutOfMemory" in bench.publisher.figures.redis_away)
            assert len(stored(streams)) == 1
            streams.config_set("maxmemory", "0")
            wait_for(lambda: bench.ring.acked("SH") == 2 and bench.done)
            assert len(stored(streams)) == len(fed(streams)) == 2
    finally:
        bench.close()
        server.stop()


def many(bench: Bench, count: int, size: int = 1, start: int = 0) -> list[int]:
    """Give a ring batches of one code; returns the times of their ticks."""
    times = [NOON_MS + number for number in range(start * size, (start + count) * size)]
    bench.ring.append(
        [
            ("SH", "tick", now_ms(), [entry(at_ms, 10.0, volume=at_ms - NOON_MS) for at_ms in part])
            for at in range(count)
            for part in [times[at * size : (at + 1) * size]]
        ]
    )
    bench.publisher.more.set()
    return times


def times_of(streams: redis.Redis) -> list[int]:
    rows = stored(streams)
    assert [int(entry_id.split("-")[0]) for entry_id, _ in rows] == [row[0] for _, row in rows]
    return [row[0] for _, row in rows]


def test_batches_travel_together_and_stay_in_order(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(NOON_MS - 1, 9.0))
    before = streams.info("stats")["total_net_input_bytes"], streams.info("commandstats")
    times = many(bench, 100, size=3)
    wait_for(lambda: bench.done)
    assert times_of(streams) == [NOON_MS - 1, *times]
    assert [row[2][0] for row in fed(streams)] == [NOON_MS - 1, *times]
    assert streams.xlen(KEYS.feed("SH")) == 101, "each batch is one entry of the feed"
    calls = [told["cmdstat_fcall"]["calls"] for told in (before[1], streams.info("commandstats"))]
    assert calls[1] - calls[0] < 100 * 2.3, "beside the filing one more call for several batches"


def test_the_functions_are_removed_again_and_again(bench: Bench, streams: redis.Redis) -> None:
    times: list[int] = []
    for number in range(40):
        times += many(bench, 5, start=5 * number)
        streams.function_flush()
    wait_for(lambda: bench.done)
    assert times_of(streams) == times
    assert [row[2][0] for row in fed(streams)] == times
    assert bench.publisher.figures.repeated == 0


def test_out_of_memory_in_the_middle_of_several(tmp_path: Path, server_binary: Path) -> None:
    server = RedisServer(tmp_path / "redis", binary=server_binary, aof=False)
    server.start()
    bench = Bench(tmp_path / "ring.sqlite", server.url)
    try:
        with redis.Redis.from_url(server.url) as streams:
            bench.publish(entry(NOON_MS - 1, 9.0))
            used = streams.info("memory")["used_memory"]
            streams.config_set("maxmemory", used + 1_500_000)
            times = many(bench, 40, size=300)
            wait_for(lambda: "OutOfMemory" in bench.publisher.figures.redis_away)
            held = times_of(streams)
            assert 1 < len(held) < len(times)
            assert held == [NOON_MS - 1, *times][: len(held)]
            streams.config_set("maxmemory", "0")
            wait_for(lambda: bench.done)
            assert times_of(streams) == [NOON_MS - 1, *times]
            assert [row[2][0] for row in fed(streams)] == [NOON_MS - 1, *times]
    finally:
        bench.close()
        server.stop()


def test_history_lost_between_two_of_several(bench: Bench, streams: redis.Redis) -> None:
    """Redis forgets what it had applied under a good lease: nothing behind it goes in."""
    times = many(bench, 4)
    wait_for(lambda: bench.done)
    streams.hdel(KEYS.acked("SH"), bench.ring.id)
    streams.delete(KEYS.tick(CODE), KEYS.latest("SH"))
    times += many(bench, 20, start=4)
    wait_for(lambda: bench.done)
    assert times_of(streams) == times
    assert [event["kind"] for event in bench.events].count("epoch") == 1


def test_what_may_be_in_redis_is_not_given_up_while_it_is_away(
    tmp_path: Path, server_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis takes several batches and dies before it answers; the ring overflows meanwhile."""
    server = RedisServer(tmp_path / "redis", binary=server_binary)
    server.start()
    # A lease that need not be renewed in between: only batches are on their way.
    bench = Bench(tmp_path / "ring.sqlite", server.url, ring_bytes=200_000, lease_ms=600_000)
    assert server.process is not None
    try:
        bench.publish(entry(NOON_MS - 1, 9.0))
        take, server_pid = bench.ring.take, server.process.pid

        def take_and_hang(*what: Any) -> list[Batch]:
            found = take(*what)
            if found:
                os.kill(server_pid, signal.SIGSTOP)
            return found

        monkeypatch.setattr(bench.ring, "take", take_and_hang)
        times = many(bench, 6, size=100)
        wait_for(lambda: bench.ring._sent.get("SH", 0) == 7, "they are on their way")
        monkeypatch.undo()
        times += many(bench, 40, size=100, start=6)
        os.kill(server.process.pid, signal.SIGCONT)
        wait_for(lambda: bench.done)
        gap = bench.ring.take_lost(lambda _: True, hold=False)
        assert gap is not None
        with redis.Redis.from_url(server.url) as streams:
            missing = sorted({*times} - {*times_of(streams)})
        assert gap["codes"] == {CODE: [missing[0], missing[-1], len(missing)]}
    finally:
        bench.close()
        server.stop()
