"""Two producers and one market, and a Redis that lost history."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import redis
from publisher_bench import CODE, KEYS, NOON_MS, Bench, entry, fed, stored, wait_for

from qmt_producer.ring import Ring
from qmt_standalone.redis_server import RedisServer


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def push(bench: Bench, *numbers: int) -> None:
    """Give a ring the ticks of these numbers, as its terminal pushed them just now."""
    for number in numbers:
        bench.ring.append([("SH", "tick", now_ms(), [entry(NOON_MS + number, 10 + number / 100)])])
    bench.publisher.more.set()


def numbers(streams: redis.Redis) -> list[int]:
    return [row[0] - NOON_MS for _, row in stored(streams)]


def fed_numbers(streams: redis.Redis) -> list[int]:
    return [row[0] - NOON_MS for _, _, row in fed(streams)]


def epoch(streams: redis.Redis) -> bytes:
    value = streams.get(KEYS.epoch("SH"))
    assert value is not None
    return value


def test_standby_goes_on_from_its_own_ring(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    holder = Bench(tmp_path / "a", streams_server.url)
    push(holder, 0)
    wait_for(lambda: holder.done)
    standby = Bench(tmp_path / "b", streams_server.url)
    try:
        push(standby, 0)
        wait_for(lambda: "SH" in standby.publisher.figures.standby)
        for number in range(1, 20):
            push(holder, number)
            push(standby, number)
        wait_for(lambda: holder.done)
        assert numbers(streams) == list(range(20)), "the standby published nothing"
        # The holder is cut off in the middle: it has 20 and 21 and cannot publish them.
        holder.publisher._stopping.set()
        holder.publisher.more.set()
        holder.publisher.thread.join()
        push(holder, 20, 21)
        push(standby, *range(20, 30))
        wait_for(lambda: numbers(streams) == list(range(30)), within_s=5)
        wait_for(lambda: fed_numbers(streams) == list(range(30)))
        gaps = [event for event in standby.events if event["kind"] == "gap"]
        assert gaps == []
        assert standby.publisher.figures.repeated >= 20, "its own copies were dropped"
    finally:
        standby.close()
        holder.ring.close()


def test_paused_holder_is_fenced_and_adds_nothing_twice(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    holder = Bench(tmp_path / "a", streams_server.url)
    try:
        push(holder, 0, 1)
        wait_for(lambda: holder.done)
        streams.set(KEYS.lease("SH"), "another", px=800)  # as if ours had run out meanwhile
        push(holder, 2, 3)
        wait_for(lambda: holder.publisher.figures.standby == {"SH": "another"})
        assert numbers(streams) == [0, 1]
        wait_for(lambda: numbers(streams) == [0, 1, 2, 3])
    finally:
        holder.close()


def test_what_nobody_heard_is_a_gap_with_its_times(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    first = Bench(tmp_path / "a", streams_server.url)
    push(first, 0)
    wait_for(lambda: first.done)
    first.close()
    entries: Any = streams.xrevrange(KEYS.feed("SH"), count=1)
    accepted_ms = int(entries[0][0].split(b"-")[0])  # Redis time, on this machine ours too
    time.sleep(0.3)
    ring = Ring(tmp_path / "b", 50_000_000)
    ring.append([("SH", "tick", accepted_ms - 60_000, [entry(NOON_MS, 10.0)])])
    ring.close()
    second = Bench(tmp_path / "b", streams_server.url)
    second.ring.add_silence(accepted_ms - 500, accepted_ms + 200)
    try:
        push(second, 5)
        wait_for(lambda: numbers(streams) == [0, 5])
        wait_for(lambda: any(event["kind"] == "gap" for event in second.events))
        (gap,) = [event for event in second.events if event["kind"] == "gap"]
        assert gap["reason"] == "no producer was listening"
        assert accepted_ms - 100 < gap["from_ms"] <= accepted_ms + 100
        assert gap["to_ms"] == accepted_ms + 200
    finally:
        second.close()


def test_a_new_ring_names_the_time_before_it(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    first = Bench(tmp_path / "a", streams_server.url)
    push(first, 0)
    wait_for(lambda: first.done)
    first.close()
    accepted_ms = now_ms()
    time.sleep(0.3)
    second = Bench(tmp_path / "b", streams_server.url)
    try:
        push(second, 5)
        wait_for(lambda: numbers(streams) == [0, 5])
        (gap,) = [event for event in second.events if event["kind"] == "gap"]
        assert accepted_ms - 1000 < gap["from_ms"] <= accepted_ms
        assert accepted_ms <= gap["to_ms"] <= now_ms()
    finally:
        second.close()


def test_redis_restored_from_an_older_copy_is_filled_in_a_new_epoch(
    tmp_path: Path, server_binary: Path
) -> None:
    server = RedisServer(tmp_path / "redis", binary=server_binary)
    server.start()
    bench = Bench(tmp_path / "ring", server.url)
    try:
        push(bench, *range(10))
        wait_for(lambda: bench.done)
        with redis.Redis.from_url(server.url) as streams:
            before = epoch(streams)
        copy = {
            path.name: path.read_bytes() for path in (tmp_path / "redis/appendonlydir").iterdir()
        }
        push(bench, *range(10, 20))
        wait_for(lambda: bench.done)
        server.kill()
        for path in (tmp_path / "redis/appendonlydir").iterdir():
            path.unlink()
        for name, data in copy.items():
            (tmp_path / "redis/appendonlydir" / name).write_bytes(data)
        push(bench, 20)
        server.start()
        with redis.Redis.from_url(server.url) as streams:
            wait_for(lambda: numbers(streams) == list(range(21)), within_s=20)
            wait_for(lambda: fed_numbers(streams) == list(range(21)))
            assert epoch(streams) != before, "readers must see that positions are void"
        assert [event["kind"] for event in bench.events].count("epoch") == 1
        assert [event for event in bench.events if event["kind"] == "gap"] == []
    finally:
        bench.close()
        server.stop()


def test_redis_wiped_is_filled_from_the_ring_and_the_rest_is_named(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    bench = Bench(tmp_path / "ring", streams_server.url)
    try:
        push(bench, *range(5))
        wait_for(lambda: bench.done)
        bench.ring.tidy({"SH": 3}, before_ms=10**15)  # 0 to 2 are no longer in the ring
        before = epoch(streams)
        streams.flushall()
        push(bench, 5)
        wait_for(lambda: streams.exists(KEYS.tick(CODE)) == 1 and numbers(streams) == [3, 4, 5])
        assert epoch(streams) != before
        (gap,) = [event for event in bench.events if event["kind"] == "gap"]
        assert "lost history" in gap["reason"]
    finally:
        bench.close()


def test_an_older_copy_under_a_good_lease_is_noticed(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    bench = Bench(tmp_path / "ring", streams_server.url)
    try:
        push(bench, *range(6))
        wait_for(lambda: bench.done)
        before = epoch(streams)
        # As a copy from before the last three batches would be, the lease still good.
        streams.hset(KEYS.acked("SH"), bench.ring.id, "3")
        for entry_id, _ in streams.xrevrange(KEYS.tick(CODE), count=3):
            streams.xdel(KEYS.tick(CODE), entry_id)
        push(bench, 6)
        wait_for(lambda: epoch(streams) != before)
        wait_for(lambda: bench.done)
        assert numbers(streams)[-1] == 6
        assert [event["kind"] for event in bench.events].count("epoch") == 1
    finally:
        bench.close()
