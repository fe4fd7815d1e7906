"""What has its entry id already is filed under it again, by the judge of what is live."""

from __future__ import annotations

import msgpack
import redis
from publisher_bench import CODE, KEYS, LATE, NOON_MS, Bench, fed, latest, stored, tick

from qmt_producer.candidates import Entry
from qmt_protocol.bars import encode_bar
from qmt_protocol.keys import series_of
from qmt_protocol.ticks import encode_tick


def filed(entry_id: str, price: float, volume: int, flags: int = 0, code: str = CODE) -> Entry:
    at_ms = int(entry_id.partition("-")[0])
    return code, entry_id, encode_tick(tick(at_ms, price, volume=volume), flags)


def test_ids_and_flags_stay(bench: Bench, streams: redis.Redis) -> None:
    ids = [f"{NOON_MS}-0", f"{NOON_MS}-3", f"{NOON_MS + 500}-1", f"{NOON_MS + 500}-7"]
    entries = [
        filed(ids[0], 10.0, 100),
        filed(ids[1], 10.0, 100),  # alike, and yet no repeat: it was told apart before
        filed(ids[2], 10.1, 200),
        filed(ids[3], 10.2, 300, LATE),  # of more volume, and late all the same
    ]
    bench.publish(*entries)
    assert [one for one, _ in stored(streams)] == ids
    raw = [fields[b"t1"] for _, fields in streams.xrange(KEYS.tick(CODE))]
    assert raw == [t1 for _, _, t1 in entries]
    assert latest(streams)[0] == ids[2]
    assert [one[1] for one in fed(streams)] == ids
    assert bench.publisher.figures.late == 1
    assert bench.publisher.figures.repeated == 0
    assert {event["kind"] for event in bench.events} == {"lease taken", "late"}


def test_the_first_of_a_stream_may_be_late(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(filed(f"{NOON_MS}-0", 10.0, 100, LATE), filed(f"{NOON_MS}-1", 10.0, 50))
    assert [one for one, _ in stored(streams)] == [f"{NOON_MS}-0", f"{NOON_MS}-1"]
    assert latest(streams)[0] == f"{NOON_MS}-1"


def test_the_same_id_twice_is_a_repeat(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(filed(f"{NOON_MS}-0", 10.0, 100), filed(f"{NOON_MS}-1", 10.0, 110))
    bench.publish(filed(f"{NOON_MS}-0", 10.0, 100), filed(f"{NOON_MS}-2", 10.0, 120))
    assert [one for one, _ in stored(streams)] == [f"{NOON_MS}-{n}" for n in range(3)]
    assert bench.publisher.figures.repeated == 1
    assert len(fed(streams)) == 3


def test_an_id_behind_the_stream_is_rejected_and_told(bench: Bench, streams: redis.Redis) -> None:
    bench.publish(filed(f"{NOON_MS}-5", 10.0, 100), filed(f"{NOON_MS}-2", 10.0, 90))
    assert [one for one, _ in stored(streams)] == [f"{NOON_MS}-5"]
    assert bench.publisher.figures.rejected == 1
    assert "gap" in [event["kind"] for event in bench.events]


def test_bars_keep_their_ids(bench: Bench, streams: redis.Redis) -> None:
    minute = 60_000
    ids = [f"{NOON_MS}-57", f"{NOON_MS + minute}-61"]
    k1s = [
        encode_bar({"time": int(one.partition("-")[0]), "close": 10.0, "closed": True})
        for one in ids
    ]
    entries = [(series_of("1m", CODE), one, k1) for one, k1 in zip(ids, k1s, strict=True)]
    bench.publish(*entries, kind="bar")
    bench.publish(*entries, kind="bar")
    held = streams.xrange(KEYS.bar("1m", CODE))
    assert [entry_id.decode() for entry_id, _ in held] == ids
    assert [fields[b"k1"] for _, fields in held] == k1s
    assert bench.publisher.figures.bars_repeated == 2
    told = [msgpack.unpackb(fields[b"c1"]) for _, fields in streams.xrange(KEYS.feed("SH"))]
    assert [one[2] for one in told[0]] == ids
