"""Two producers and one market, and a Redis that lost history."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import redis
from publisher_bench import CODE, KEYS, NOON_MS, Bench, entry, fed, stored
from waiting import wait_for

from qmt_producer import market_line
from qmt_producer.functions import COMPLETE
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
        wait_for(lambda: numbers(streams) == list(range(30)))
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


def gaps(bench: Bench) -> list[dict[str, Any]]:
    return [event for event in bench.events if event["kind"] == "gap" and event["market"] == "SH"]


def receive(ring: Ring, number: int, received_ms: int) -> None:
    """Give a ring a tick that its terminal pushed at another time than now."""
    ring.append([("SH", "tick", received_ms, [entry(NOON_MS + number, 10 + number / 100)])])


def silence(path: Path, from_ms: int, to_ms: int) -> None:
    """Note in a ring that nothing was heard."""
    ring = Ring(path, 50_000_000)
    ring.begin_silence(from_ms, "no producer was listening")
    ring.end_silence(to_ms)
    ring.close()


def test_what_nobody_heard_is_a_gap_with_its_times(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    """Pushes wait between receipt and publishing; a silence is cut by receipt."""
    received_ms = now_ms() - 20_000
    first = Bench(tmp_path / "a", streams_server.url)
    receive(first.ring, 0, received_ms)
    first.publisher.more.set()
    wait_for(lambda: first.done)
    first.close()
    silence(tmp_path / "a", received_ms, received_ms + 15_000)
    again = Bench(tmp_path / "a", streams_server.url)
    try:
        push(again, 5)
        wait_for(lambda: numbers(streams) == [0, 5])
        (gap,) = gaps(again)
        assert (gap["from_ms"], gap["to_ms"]) == (received_ms, received_ms + 15_000)
        assert gap["reason"] == "no producer was listening"
    finally:
        again.close()


def test_a_standby_names_what_neither_heard_and_not_what_the_holder_published(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    received_ms = now_ms() - 20_000
    first = Bench(tmp_path / "a", streams_server.url)
    receive(first.ring, 0, received_ms)
    first.publisher.more.set()
    wait_for(lambda: first.done)
    first.close()
    silence(tmp_path / "b", received_ms - 9000, received_ms - 4000)  # the holder was there
    silence(tmp_path / "b", received_ms - 3500, received_ms + 5000)
    silence(tmp_path / "b", received_ms + 7000, received_ms + 8000)
    second = Bench(tmp_path / "b", streams_server.url)
    try:
        push(second, 5)
        wait_for(lambda: numbers(streams) == [0, 5])
        one, two = gaps(second)
        assert received_ms - 3500 <= one["from_ms"] <= received_ms, "terminals lie apart"
        assert one["to_ms"] == received_ms + 5000
        assert (two["from_ms"], two["to_ms"]) == (received_ms + 7000, received_ms + 8000)
    finally:
        second.close()


def test_a_standby_goes_on_where_a_holder_died_that_was_far_behind(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    """Redis had been away: what the holder published last had waited for two minutes."""
    received_ms = now_ms() - 120_000
    first = Bench(tmp_path / "a", streams_server.url)
    receive(first.ring, 0, received_ms)
    receive(first.ring, 1, received_ms + 1000)
    first.publisher.more.set()
    wait_for(lambda: first.done)
    first.close()
    ring = Ring(tmp_path / "b", 50_000_000)
    for number in range(20):
        receive(ring, number, received_ms + 1000 * number)
    ring.close()
    second = Bench(tmp_path / "b", streams_server.url)
    try:
        push(second, 20)
        wait_for(lambda: numbers(streams)[-1] == 20)
        assert numbers(streams) == list(range(21))
        assert gaps(second) == []
    finally:
        second.close()


def test_a_standby_names_what_it_had_let_go(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    first = Bench(tmp_path / "a", streams_server.url)
    received_ms = now_ms() - 20_000
    receive(first.ring, 0, received_ms)
    first.publisher.more.set()
    wait_for(lambda: first.done)
    first.close()
    ring = Ring(tmp_path / "b", 50_000_000)
    for number in range(1, 6):
        receive(ring, number, received_ms + 1000 * number)
    ring.tidy({"SH": 3}, before_ms=now_ms())
    ring.close()
    second = Bench(tmp_path / "b", streams_server.url)
    try:
        push(second, 6)
        wait_for(lambda: numbers(streams) == [0, 4, 5, 6])
        (gap,) = gaps(second)
        assert gap["from_ms"] <= received_ms
        assert gap["to_ms"] == received_ms + 3000
    finally:
        second.close()


def test_nothing_is_complete_that_lies_behind_a_silence(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    """A producer killed between a new subscription and the end of the silence before it."""
    start_ms = now_ms() - 20_000
    first = Bench(tmp_path / "a", streams_server.url)
    receive(first.ring, 0, start_ms)
    first.publisher.more.set()
    wait_for(lambda: first.done)
    first.ring.begin_silence(start_ms, "the terminal was away")
    receive(first.ring, 1, start_ms + 9000)
    first.publisher.more.set()
    wait_for(lambda: first.done)
    assert gaps(first) == []
    first.close()
    again = Bench(tmp_path / "a", streams_server.url)
    try:
        again.ring.end_silence(start_ms + 12_000)
        push(again, 2)
        wait_for(lambda: numbers(streams) == [0, 1, 2])
        (gap,) = gaps(again)
        assert (gap["from_ms"], gap["to_ms"]) == (start_ms, start_ms + 12_000)
    finally:
        again.close()


STEP_MS = 15_000


def complete(streams: redis.Redis) -> int:
    told = streams.hget(KEYS.acked("SH"), COMPLETE)
    assert told is not None
    return int(told.split()[0])


def set_clock_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market_line, "_now_ms", lambda: now_ms() - STEP_MS)


def test_what_was_received_by_a_clock_now_set_back_is_not_complete_in_the_future(
    tmp_path: Path,
    streams: redis.Redis,
    streams_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(tmp_path / "a", streams_server.url)
    try:
        push(bench, 0)
        wait_for(lambda: bench.done)
        set_clock_back(monkeypatch)
        for number in (1, 2):  # they had waited in the ring
            push(bench, number)
            wait_for(lambda: bench.done)
        assert complete(streams) <= streams.time()[0] * 1000 + 1000
    finally:
        bench.close()


def test_a_silence_that_a_clock_set_back_ends_before_it_begins_is_named_from_what_is_complete(
    tmp_path: Path,
    streams: redis.Redis,
    streams_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Bench(tmp_path / "a", streams_server.url)
    push(first, 0)
    wait_for(lambda: first.done)
    first.close()
    complete_ms, heard_ms = complete(streams), now_ms()
    set_clock_back(monkeypatch)
    to_ms = heard_ms + 5000 - STEP_MS
    silence(tmp_path / "a", heard_ms, to_ms)
    again = Bench(tmp_path / "a", streams_server.url)
    try:
        push(again, 1)
        wait_for(lambda: numbers(streams) == [0, 1])
        (gap,) = gaps(again)
        assert gap["to_ms"] == to_ms
        assert complete_ms - STEP_MS - 1000 <= gap["from_ms"] <= complete_ms - STEP_MS
    finally:
        again.close()


def test_a_new_ring_names_the_time_before_it(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    first = Bench(tmp_path / "a", streams_server.url)
    before_ms = now_ms()
    silence(tmp_path / "b", 0, before_ms + 300)
    first.ring.begin_silence(0, "no producer was listening")
    first.ring.end_silence(before_ms)
    push(first, 0)
    wait_for(lambda: first.done)
    first.close()
    assert gaps(first) == [], "there was no history before it"
    second = Bench(tmp_path / "b", streams_server.url)
    try:
        push(second, 5)
        wait_for(lambda: numbers(streams) == [0, 5])
        (gap,) = gaps(second)
        assert before_ms - 4000 < gap["from_ms"] <= before_ms
        assert gap["to_ms"] == before_ms + 300
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
            wait_for(lambda: numbers(streams) == list(range(21)))
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


def test_a_silence_right_behind_the_first_push_is_named(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    """The lease is taken while the first push is still on its way to the ring."""
    first_ms = now_ms() - 3000
    bench = Bench(tmp_path / "a", streams_server.url)
    try:
        wait_for(lambda: any(event["kind"] == "lease taken" for event in bench.events))
        bench.ring.begin_silence(first_ms, "the terminal was silent")
        bench.ring.end_silence(first_ms + 2000)
        receive(bench.ring, 0, first_ms)
        bench.publisher.more.set()
        wait_for(lambda: bool(gaps(bench)))
        (gap,) = gaps(bench)
        assert (gap["from_ms"], gap["to_ms"]) == (first_ms, first_ms + 2000)
    finally:
        bench.close()
