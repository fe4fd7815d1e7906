"""The feed is the log: what is appended is filed once, whoever died or lied between."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from publisher_bench import CODE, KEYS, NOON_MS, Bench, entry, fed, latest, now_ms, stored, tick
from waiting import wait_for

from qmt_producer.functions import Functions
from qmt_producer.market_line import MarketLine
from qmt_producer.publisher import Publisher
from qmt_protocol.ticks import encode_tick
from qmt_standalone.redis_server import RedisServer

FEED, FILED, LATEST = KEYS.feed("SH"), KEYS.filed("SH"), KEYS.latest("SH")
NAMES = [FILED, FEED, LATEST]
T1S = [encode_tick(tick(NOON_MS + n, 10 + n / 100, volume=n)) for n in range(40)]


@pytest.fixture
def functions(streams: redis.Redis) -> Functions:
    found = Functions(streams)
    found.ensure()
    return found


@pytest.fixture
def unfiled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A publisher that dies between appending and filing: it never comes to file."""
    bench.publish(entry(NOON_MS, 10.0))
    monkeypatch.setattr("qmt_producer.market_line._MOST_UNFILED", 10**6)
    monkeypatch.setattr("qmt_producer.market_line.MarketLine.file", lambda _: False)
    monkeypatch.setattr(Publisher, "unfiled", property(lambda _: 0))
    return bench


def body_of(rows: list[tuple[str, str, bytes]]) -> tuple[bytes, bytes]:
    """Return ``b1`` and its sizes, by the msgpack package."""
    body = msgpack.packb([[code, entry_id, msgpack.unpackb(t1)] for code, entry_id, t1 in rows])
    return body, struct.pack(f">{len(rows)}I", *(len(t1) for _, _, t1 in rows))


def append(streams: redis.Redis, rows: list[tuple[str, str, bytes]]) -> str:
    body, sizes = body_of(rows)
    entry_id = streams.xadd(FEED, {"b1": body, "sizes": sizes})
    assert isinstance(entry_id, bytes)
    return entry_id.decode()


def times(streams: redis.Redis) -> list[int]:
    return [row[0] for _, row in stored(streams)]


def gaps(bench: Bench) -> list[dict[str, Any]]:
    return [event for event in bench.events if event["kind"] == "gap"]


# What one call does


def test_an_entry_is_cut_into_its_streams_byte_for_byte(
    streams: redis.Redis, functions: Functions
) -> None:
    long = "A" * 24 + ".SH"
    rows = [(CODE, f"{NOON_MS}-0", T1S[0]), (long, f"{NOON_MS}-7", T1S[1])]
    rows.append((CODE, f"{NOON_MS}-1", T1S[2]))
    entry_id = append(streams, rows)
    keys = [*NAMES, *(KEYS.tick(code) for code, _, _ in rows)]
    assert functions.call("file", keys, [entry_id])[:3] == [b"filed", entry_id.encode(), 0]
    for code, at, t1 in rows:
        assert streams.xrange(KEYS.tick(code), at, at) == [(at.encode(), {b"t1": t1})]
    assert streams.hget(LATEST, CODE) == b"\x92" + msgpack.packb(rows[2][1]) + T1S[2]
    assert streams.hget(LATEST, long) == b"\x92" + msgpack.packb(rows[1][1]) + T1S[1]
    assert streams.get(FILED) == entry_id.encode()
    assert functions.call("file", keys, [entry_id])[0] == b"other", "it is filed once"


def test_what_is_there_already_stays_and_what_cannot_go_is_named(
    streams: redis.Redis, functions: Functions
) -> None:
    other, wrong, alike = "600000.SH", "600001.SH", "600002.SH"
    codes = (CODE, other, wrong, alike)
    rows = [(code, f"{NOON_MS}-0", t1) for code, t1 in zip(codes, T1S, strict=False)]
    streams.xadd(KEYS.tick(alike), {"t1": T1S[9]}, id=f"{NOON_MS}-0")
    streams.xadd(KEYS.tick(CODE), {"t1": T1S[0]}, id=f"{NOON_MS}-0")
    streams.xadd(KEYS.tick(other), {"t1": T1S[9]}, id=f"{NOON_MS + 5}-0")
    streams.set(KEYS.tick(wrong), "no stream")
    streams.hset(LATEST, CODE, b"\x92" + msgpack.packb(f"{NOON_MS + 1}-0") + T1S[1])
    entry_id = append(streams, rows)
    keys = [*NAMES, *(KEYS.tick(code) for code, _, _ in rows)]
    state, _, refused, words, places = functions.call("file", keys, [entry_id])
    assert (state, refused, places) == (b"filed", 3, [2, 3, 4])
    assert other.encode() in words
    assert b"WRONGTYPE" in words
    assert streams.xlen(KEYS.tick(CODE)) == 1
    held = streams.hget(LATEST, CODE)
    assert held is not None
    assert msgpack.unpackb(held)[0] == f"{NOON_MS + 1}-0", "the latest never goes back"
    assert not streams.hexists(LATEST, other)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20), st.data())
def test_a_damaged_entry_is_passed_and_nothing_of_it_is_invented(
    server_of_examples: redis.Redis, count: int, data: st.DataObject
) -> None:
    streams = server_of_examples
    streams.delete(FILED, FEED, LATEST, KEYS.tick(CODE))
    rows = [(CODE, f"{NOON_MS + n}-0", T1S[n]) for n in range(count)]
    body, sizes = body_of(rows)
    field = data.draw(st.sampled_from(("body", "sizes")))
    whole = bytearray(body if field == "body" else sizes)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole))) or None]
    body, sizes = (bytes(whole), sizes) if field == "body" else (body, bytes(whole))
    entry_id = streams.xadd(FEED, {"b1": body, "sizes": sizes})
    keys = [*NAMES, *[KEYS.tick(CODE)] * count]
    state, filed, *_ = Functions(streams).call("file", keys, [entry_id])
    assert (state in (b"filed", b"damaged"), filed) == (True, entry_id)
    pieces = [fields[b"t1"] for _, fields in streams.xrange(KEYS.tick(CODE))]
    if state == b"damaged":
        assert pieces == []
    else:
        assert all(piece in body for piece in pieces)


@pytest.fixture(scope="session")
def server_of_examples(streams_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(streams_server.url) as streams:
        Functions(streams).ensure()
        yield streams
        streams.flushall()


# What a holder does


def test_killed_between_append_and_filing(
    unfiled: Bench, tmp_path: Path, streams: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes the lease files to the end before its first batch."""
    for n in range(1, 20):
        unfiled.publish(entry(NOON_MS + n, 10.0, volume=100 + n))
    assert times(streams) == [NOON_MS], "the streams follow the feed"
    assert len(fed(streams)) == 20
    unfiled.publisher._stopping.set()
    unfiled.publisher.more.set()
    unfiled.publisher.thread.join()
    monkeypatch.undo()
    taker = Bench(tmp_path / "other.sqlite", unfiled.url)
    try:
        taker.publish(entry(NOON_MS + 20, 10.0, volume=120), entry(NOON_MS + 7, 10.0, volume=107))
        assert times(streams) == [NOON_MS + n for n in range(21)]
        assert taker.publisher.figures.repeated == 1, "what was not filed is known all the same"
        assert latest(streams)[0] == f"{NOON_MS + 20}-0"
        assert gaps(taker) == []
    finally:
        taker.close()


def test_out_of_memory_between_append_and_filing(
    unfiled: Bench, streams: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1, 4):
        unfiled.publish(entry(NOON_MS + n, 10.0, volume=100 + n))
    streams.config_set("maxmemory", 1)
    try:
        monkeypatch.undo()
        unfiled.publisher.more.set()
        wait_for(lambda: "OutOfMemory" in unfiled.publisher.figures.redis_away)
        assert times(streams) == [NOON_MS]
    finally:
        streams.config_set("maxmemory", 0)
    wait_for(lambda: unfiled.done)
    assert times(streams) == [NOON_MS + n for n in range(4)]
    assert len(fed(streams)) == 4
    assert gaps(unfiled) == []


def test_a_stream_is_read_when_all_is_filed(
    bench: Bench, streams: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick that the window has left comes again while it stands in the feed alone."""
    bench.publish(entry(NOON_MS - 1, 9.0, volume=1))
    monkeypatch.setattr("qmt_producer.market_line._MOST_UNFILED", 10**6)
    monkeypatch.setattr(Publisher, "_step", lambda publisher: publisher._each(MarketLine.step))
    monkeypatch.setattr(Publisher, "unfiled", property(lambda _: 0))
    for at_ms in (NOON_MS, NOON_MS + 20_000, NOON_MS + 40_000):
        bench.publish(entry(at_ms, 10.0))
    assert times(streams) == [NOON_MS - 1]
    bench.publish(entry(NOON_MS, 10.0))
    assert bench.publisher.figures.repeated == 1
    assert times(streams) == [NOON_MS - 1, NOON_MS, NOON_MS + 20_000, NOON_MS + 40_000]


def test_bytes_of_another_term_append_nothing(bench: Bench, streams: redis.Redis) -> None:
    """A process is killed with a batch still in its socket; it starts again and takes its lease."""
    bench.publish(entry(NOON_MS, 10.0))
    line = bench.publisher._lines["SH"]
    names = [KEYS.lease("SH"), KEYS.acked("SH"), FEED]
    body, sizes = body_of([(CODE, f"{NOON_MS + 1}-0", T1S[1])])
    rest = [2, 1, 60_000, "0-0", NOON_MS + 1, 10_000, "b1", body, sizes]
    old = [line._term, 1000, bench.ring.id, *rest]
    line.forget_lease()
    wait_for(lambda: line._term not in ("", old[0]), "another term")
    state, *_ = Functions(streams).call("append", names, old)
    assert state == b"fenced"
    assert len(fed(streams)) == 1
    bench.publish(entry(NOON_MS + 1, 10.01, volume=101))
    assert times(streams) == [NOON_MS, NOON_MS + 1]


def test_what_is_known_is_as_of_the_last_batch_applied(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(NOON_MS, 10.0))
    line = bench.publisher._lines["SH"]
    names = [KEYS.lease("SH"), KEYS.acked("SH"), FEED]
    body, sizes = body_of([(CODE, f"{NOON_MS + 1}-0", T1S[1])])
    for before, expected in ((0, b"lost"), (2, b"lost"), (1, b"applied")):
        call = [line._term, 1000, bench.ring.id, 2, before, 60_000, "0-0", NOON_MS + 1, 10_000]
        assert Functions(streams).call("append", names, [*call, "b1", body, sizes])[0] == expected
    assert len(fed(streams)) == 2


def test_a_batch_ahead_of_redis_time_is_refused_and_judged_anew(
    bench: Bench, streams: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis' clock is set back by 15 s: what the holder took for the present is the future."""
    bench.publish(entry(NOON_MS, 10.0))
    line = bench.publisher._lines["SH"]
    line._redis_ms += 3_600_000  # as if Redis had told a later time before
    ahead_ms = now_ms() + 1_800_000
    bench.publish(entry(ahead_ms, 10.1))
    ((_, first), (entry_id, row)) = stored(streams)
    assert first[0] == NOON_MS
    assert (row[0], row[-1]) == (ahead_ms, 2), "clamped, its own time kept"
    assert int(entry_id.partition("-")[0]) < now_ms() + 60_000
    assert gaps(bench) == []


def test_a_feed_that_was_deleted_is_another_history(bench: Bench, streams: redis.Redis) -> None:
    """`filed` lies ahead of the feed: a new epoch, told, and nothing lost of the streams."""
    for n in range(5):
        bench.publish(entry(NOON_MS + n, 10.0, volume=100 + n))
    before = streams.get(KEYS.epoch("SH"))
    streams.delete(FEED)
    bench.publisher._lines["SH"].forget_lease()
    bench.publish(entry(NOON_MS + 5, 10.0, volume=105))
    wait_for(lambda: times(streams) == [NOON_MS + n for n in range(6)])
    assert streams.get(KEYS.epoch("SH")) != before
    assert "epoch" in [event["kind"] for event in bench.events]
    assert [row[2][0] for row in fed(streams)][-1] == NOON_MS + 5


def test_a_feed_deleted_with_what_was_not_filed_is_filled_from_the_ring(
    unfiled: Bench, streams: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1, 5):
        unfiled.publish(entry(NOON_MS + n, 10.0, volume=100 + n))
    streams.delete(FEED)
    unfiled.publish(
        entry(NOON_MS + 5, 10.0, volume=105)
    )  # `filed` lies behind the feed's end again
    assert times(streams) == [NOON_MS]
    monkeypatch.undo()
    unfiled.publisher.more.set()
    wait_for(lambda: "epoch" in [event["kind"] for event in unfiled.events])
    wait_for(lambda: unfiled.done)
    # What was appended behind the loss was filed first: what was lost is late beside it.
    assert sorted(times(streams)) == [NOON_MS + n for n in range(6)]
    assert [event["kind"] for event in unfiled.events].count("epoch") == 1


def test_more_was_left_than_is_looked_at_once(
    unfiled: Bench, tmp_path: Path, streams: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`filed` was lost: the whole feed is filed again, some entries at a time."""
    for n in range(1, 40):
        unfiled.publish(entry(NOON_MS + n, 10.0, volume=100 + n))
    streams.delete(FILED)
    streams.xadd(FEED, {"b1": msgpack.packb([[CODE, f"{NOON_MS + 99}-0", [1]]] * 501)})
    line = unfiled.publisher._lines["SH"]
    monkeypatch.undo()
    most: list[int] = []
    look = line._filing.look
    monkeypatch.setattr(line._filing, "look", lambda: [look(), most.append(len(line._filing))][0])
    line.forget_lease()
    unfiled.publisher.more.set()
    wait_for(lambda: len(times(streams)) == 40)
    wait_for(lambda: unfiled.done)
    assert times(streams) == [NOON_MS + n for n in range(40)]
    assert max(most) <= 8
    assert ["damaged" in gap["reason"] for gap in gaps(unfiled)] == [True]


def test_a_filed_that_is_none_is_told_and_all_is_filed_again(
    bench: Bench, streams: redis.Redis
) -> None:
    for n in range(3):
        bench.publish(entry(NOON_MS + n, 10.0, volume=100 + n))
    streams.set(FILED, "yesterday")
    bench.publish(entry(NOON_MS + 3, 10.0, volume=103))
    wait_for(lambda: times(streams) == [NOON_MS + n for n in range(4)])
    wait_for(lambda: bench.done)
    assert [one["value"] for one in bench.events if one["kind"] == "unreadable"] == ["yesterday"]
    assert gaps(bench) == []
    assert streams.get(FILED) == streams.xrevrange(FEED, count=1)[0][0]


def test_a_bad_entry_in_the_feed_is_named_and_passed(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(entry(NOON_MS, 10.0))
    line = bench.publisher._lines["SH"]
    bad = [
        streams.xadd(FEED, {"b1": b"\xc1"}),
        streams.xadd(FEED, {"x": "y"}),
        streams.xadd(FEED, {"b1": body_of([(CODE, f"{NOON_MS + 9}-0", T1S[9])])[0]}),
    ]
    line.forget_lease()
    bench.publish(entry(NOON_MS + 1, 10.0, volume=101))
    assert times(streams) == [NOON_MS, NOON_MS + 1]
    assert [one.decode() for one in bad] == [
        gap["reason"].split()[2] for gap in gaps(bench) if "damaged" in gap["reason"]
    ]


def test_a_stream_that_somebody_wrote_to_costs_one_tick_and_is_known_then(
    bench: Bench, streams: redis.Redis
) -> None:
    bench.publish(entry(NOON_MS, 10.0))
    streams.xadd(KEYS.tick(CODE), {"t1": T1S[9]}, id=f"{NOON_MS + 5000}-0")
    for n in (1, 2):
        bench.publish(entry(NOON_MS + n, 10.0, volume=100 + n))
    (gap,) = gaps(bench)
    assert gap["ticks"] == 1
    assert f"{NOON_MS + 1}-0" in gap["reason"]
    assert [(at, row[-1]) for at, row in stored(streams)][2:] == [(f"{NOON_MS + 5000}-1", 1)]


def test_what_is_not_filed_yet_is_not_trimmed(
    unfiled: Bench, streams: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfiled.publisher._lines["SH"]._feed_keep_ms = -60_000  # all is old at once
    filed = streams.get(FILED)
    for n in range(1, 300):
        unfiled.ring.append([("SH", "tick", now_ms(), [entry(NOON_MS + n, 10.0, volume=100 + n)])])
    unfiled.publisher.more.set()
    wait_for(lambda: unfiled.publisher.waiting_batches == 0)
    entries = streams.xrange(FEED)
    assert entries[0][0] == filed
    assert len(entries) == 300
    assert times(streams) == [NOON_MS]


def test_another_version_of_the_wire_is_refused_by_name(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    """A producer adds nothing to what another version wrote, and goes on when it is gone."""
    streams.hset(KEYS.schema, "b1", '{"version": 1, "what": "one batch"}')
    bench = Bench(tmp_path / "ring.sqlite", streams_server.url)
    try:
        bench.ring.append([("SH", "tick", now_ms(), [entry(NOON_MS, 10.0)])])
        bench.publisher.more.set()
        wait_for(lambda: "version 1 of the wire" in bench.publisher.figures.redis_away)
        assert streams.keys("{t:SH}:*") == []
        streams.delete(KEYS.schema)
        wait_for(lambda: bench.done)
        assert times(streams) == [NOON_MS]
    finally:
        bench.close()
