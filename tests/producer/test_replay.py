"""A stored day under a prefix of its own: nothing tells it from the streams that it was made of."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from archive_maker import ArchiveMaker
from publisher_bench import CLAMPED, KEYS, LATE, Bench, entry
from told_events import told_events
from waiting import wait_for

from qmt_client import NOW_LIVE, AsyncQMTClient
from qmt_producer.__main__ import main
from qmt_protocol.archive import Missing
from qmt_protocol.bars import encode_bar
from qmt_protocol.keys import Keys, series_of
from qmt_protocol.schema import schema_documents
from qmt_protocol.times import day_start_ms, to_datetime
from qmt_standalone.redis_server import RedisServer

DAY = 20261120
OPEN_MS = day_start_ms(DAY) + (9 * 60 + 30) * 60_000
SH = [f"{600_000 + n}.SH" for n in range(20)]
SZ = [f"{1 + n:06}.SZ" for n in range(20)]
MINUTE_MS = 60_000
FUTURE = "600999.SH"
TICKS = 1_500
TO = Keys("again")
WITHOUT_XTQUANT = """
import sys
sys.modules["xtquant"] = sys.modules["qmt_terminal"] = None
from qmt_producer.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def original(tmp_path: Path, streams: redis.Redis, streams_server: RedisServer) -> Iterator[Bench]:
    """Streams as a live day leaves them: with late ticks, several of one ms, and clamped ones."""
    bench = Bench(tmp_path / "ring.sqlite", streams_server.url)
    some = random.Random(5)
    for market, codes in (("SH", SH), ("SZ", SZ)):
        volume = dict.fromkeys(codes, 0)
        made = []
        for number in range(TICKS):
            code = some.choice(codes)
            volume[code] += some.randint(0, 5)
            at_ms = OPEN_MS + number // 7 * 100 - some.choice([0] * 8 + [400, 30_000])
            more: dict[str, Any] = {"amount": some.random() * 1e6, "custom": some.random()}
            made.append(entry(at_ms, some.randint(1, 9) + 0.25, code, volume=volume[code], **more))
        for start in range(0, TICKS, 500):
            bench.publish(*made[start : start + 500], market=market)
    future_ms = time.time_ns() // 1_000_000 + 3_600_000
    bench.publish(entry(future_ms, 1.0, FUTURE))
    flags = [msgpack.unpackb(one)[-1] for code in SH for one in t1s(streams, KEYS, code)]
    assert flags.count(LATE) > 20
    yield bench
    bench.close()


@pytest.fixture
def maker(original: Bench, streams: redis.Redis, tmp_path: Path) -> ArchiveMaker:
    """That day's archive."""
    made = ArchiveMaker(tmp_path / "archive", streams, KEYS)
    made.ticks([*SH, FUTURE], DAY)
    made.ticks(SZ, DAY, files=1)
    return made


def t1s(streams: redis.Redis, keys: Keys, code: str) -> list[bytes]:
    return [fields[b"t1"] for _, fields in streams.xrange(keys.tick(code))]


def told(streams: redis.Redis, keys: Keys = TO) -> list[dict[str, Any]]:
    return told_events(streams, keys.prefix)


def command(server: RedisServer, maker: ArchiveMaker, *flags: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("QMT_")}
    env |= {"QMT_STREAMS_URL": server.url, "QMT_ARCHIVE_URL": maker.url, "QMT_PREFIX": "t"}
    env |= {"PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_XTQUANT, "replay", *flags],
        env=env,
        cwd=maker.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(server: RedisServer, maker: ArchiveMaker, *flags: str) -> str:
    with command(server, maker, *flags) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


Says = Callable[..., str]


@pytest.fixture
def says(
    streams_server: RedisServer,
    maker: ArchiveMaker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Says:
    """What the command says when it has nothing to publish, within this process."""
    monkeypatch.setenv("QMT_STREAMS_URL", streams_server.url)
    monkeypatch.setenv("QMT_ARCHIVE_URL", maker.url)
    monkeypatch.setenv("QMT_PREFIX", "t")

    def say(*flags: str, code: int = 2) -> str:
        assert main(["replay", *flags]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return say


def the_day(*flags: str) -> list[str]:
    return ["--day", "2026-11-20", "--speed", "max", "--to-prefix", "again", *flags]


def assert_the_same(streams: redis.Redis, codes: list[str]) -> None:
    for code in codes:
        assert streams.xrange(TO.tick(code)) == streams.xrange(KEYS.tick(code)), code
    for market in {code.rpartition(".")[2] for code in codes}:
        of_market = [code for code in codes if code.endswith(market)]
        latest = streams.hmget(KEYS.latest(market), of_market)
        assert streams.hmget(TO.latest(market), of_market) == latest


def test_a_replayed_day_is_the_day(
    original: Bench, maker: ArchiveMaker, streams: redis.Redis, streams_server: RedisServer
) -> None:
    codes = [*SH, *SZ, FUTURE]
    before = {key: streams.dump(key) for key in streams.keys("*t:*")}
    out = run(streams_server, maker, *the_day())
    assert f"{2 * TICKS + 1 - original.publisher.figures.repeated} ticks" in out
    assert_the_same(streams, codes)
    assert msgpack.unpackb(t1s(streams, TO, FUTURE)[0])[-1] == CLAMPED

    for market in ("SH", "SZ"):
        fed = [
            row
            for _, fields in streams.xrange(TO.feed(market))
            for row in msgpack.unpackb(fields[b"b1"], strict_map_key=False)
        ]
        by_code = {code: [row[1] for row in fed if row[0] == code] for code in codes}
        for code in codes:
            if code.endswith(market):
                ids = [one.decode() for one, _ in streams.xrange(KEYS.tick(code))]
                assert by_code[code] == ids
        assert sorted(int(row[1].partition("-")[0]) for row in fed) == [
            int(row[1].partition("-")[0]) for row in fed
        ]
        assert streams.get(TO.epoch(market)) not in (None, streams.get(KEYS.epoch(market)))
        assert streams.get(TO.lease(market)) is None, "given back"

    schema = {name.decode(): text.decode() for name, text in streams.hgetall(TO.schema).items()}
    assert schema == schema_documents()
    (beat,) = [json.loads(one) for one in streams.hvals(TO.status)]
    assert (beat["role"], sorted(beat["markets"])) == ("producer", ["SH", "SZ"])
    assert {event["kind"] for event in told(streams)} == {"lease taken", "late"}
    after = {key: streams.dump(key) for key in streams.keys("*t:*")}
    changed = {key for key in before if before[key] != after.get(key)}
    assert changed <= {b"{t:SH}:lease", b"{t:SZ}:lease", b"{t:SH}:acked", b"{t:SZ}:acked"}


def test_bars_and_gaps_come_in_their_time(
    original: Bench, streams: redis.Redis, streams_server: RedisServer, tmp_path: Path
) -> None:
    maker = ArchiveMaker(tmp_path / "archive", streams, KEYS)
    maker.ticks(SH[:5], DAY)
    label_ms = OPEN_MS - OPEN_MS % MINUTE_MS
    for number in range(1, 3):
        for closed in (False, True):
            bar = {"time": label_ms + number * MINUTE_MS // 6, "close": 10.5, "volume": number}
            k1 = encode_bar({**bar, "closed": closed})
            original.publish((series_of("1m", SH[0]), int(bar["time"]), k1), kind="bar")
    assert maker.bars(SH[:1], "1m") == 2
    lost = {"from_ms": OPEN_MS + 2_000, "to_ms": OPEN_MS + 3_000, "reason": "ring full"}
    maker.missing = [
        Missing(market="SH", codes=[SH[1]], **lost),
        Missing(market="SH", **{**lost, "reason": "nobody listened"}),
        Missing(market="SH", state="filled", **lost),
        Missing(market="SZ", **lost),
    ]
    maker.commit()
    run(streams_server, maker, *the_day())
    assert_the_same(streams, SH[:5])
    held = streams.xrange(KEYS.bar("1m", SH[0]))
    closed_bars = [one for one in held if msgpack.unpackb(one[1][b"k1"])[11]]
    assert streams.xrange(TO.bar("1m", SH[0])) == closed_bars
    seen_ms, bars = 0, []
    for _, fields in streams.xrange(TO.feed("SH")):
        for row in msgpack.unpackb(fields.get(b"b1", b"\x90"), strict_map_key=False):
            seen_ms = int(row[1].partition("-")[0])
        for row in msgpack.unpackb(fields.get(b"c1", b"\x90")):
            bars.append((row[3][0], seen_ms))
    assert len(bars) == 2
    assert all(label - 1_000 <= seen < label for label, seen in bars), "behind what was before it"
    gaps = [event for event in told(streams) if event["kind"] == "gap"]
    facts = {"kind": "gap", "market": "SH", "from_ms": lost["from_ms"], "to_ms": lost["to_ms"]}
    whole, one = sorted(gaps, key=len)
    assert whole == {**facts, "reason": "nobody listened", "at_ms": whole["at_ms"]}
    codes = {SH[1]: [lost["from_ms"], lost["to_ms"], 0]}
    assert one == {**facts, "reason": "ring full", "codes": codes, "at_ms": one["at_ms"]}


def test_two_replays_one_after_the_other(
    maker: ArchiveMaker, says: Says, streams: redis.Redis, streams_server: RedisServer
) -> None:
    run(streams_server, maker, *the_day("--codes", f"{SH[0]},{SZ[0]}"))
    assert len(streams.keys("{again:*tick*")) == 2
    epoch = streams.get(TO.epoch("SH"))
    out = run(streams_server, maker, *the_day("--codes", ",".join(SH[:3])))
    assert "An earlier replay under again was removed" in out
    assert_the_same(streams, SH[:3])
    assert len(streams.keys("{again:*tick*")) == 3
    assert streams.get(TO.epoch("SH")) != epoch, "readers learn that it is another history"
    live = {key for key in streams.keys("*") if b"again" not in key}
    assert "again: " in says("--clean", code=0)
    assert set(streams.keys("*")) == live


def test_what_is_no_replay_is_left_alone(says: Says, streams: redis.Redis) -> None:
    before = set(streams.keys("*"))
    assert "prefix of the live data" in says(*the_day("--to-prefix", "t"))
    streams.set("other:status", "x")
    assert "no replay's" in says(*the_day("--to-prefix", "other"))
    assert "holds no replay" in says("--clean", "--to-prefix", "other")
    assert says("--clean", code=0) == "No prefix holds a replay.\n"
    assert set(streams.keys("*")) == {*before, b"other:status"}


def test_clear_errors(says: Says, streams: redis.Redis, tmp_path: Path) -> None:
    for flags, words in (
        (["--speed", "max"], "No day is named"),
        (["--day", "2026-11-19"], f"It holds 1 days from {DAY} to {DAY}"),
        (["--day", "soon"], "is not a time"),
        (["--day", "2026-11-20", "--speed", "-1"], "is not a speed"),
        (["--day", "2026-11-20", "--codes", "600519"], "600519"),
        (["--day", "2026-11-20", "--archive-url", str(tmp_path / "none")], "no archive"),
    ):
        assert words in says(*flags)
    assert not streams.keys("*replay*")


def test_it_keeps_the_pace_and_ends_when_told(
    maker: ArchiveMaker, says: Says, streams: redis.Redis, streams_server: RedisServer
) -> None:
    code = SH[0]
    with command(
        streams_server, maker, "--day", "20261120", "--speed", "5", "--codes", ",".join(SH)
    ) as process:
        keys = Keys("replay-20261120")
        wait_for(lambda: bool(streams.exists(keys.latest("SH"))))
        assert "being published" in says("--day", "20261120")
        assert "being published" in says("--clean")
        wait_for(lambda: len(streams.xrange(keys.feed("SH"))) > 5)
        feed = streams.xrange(keys.feed("SH"))
        wall = [int(entry_id.partition(b"-")[0]) for entry_id, _ in feed]
        market = [
            int(msgpack.unpackb(fields[b"b1"], strict_map_key=False)[-1][1].partition("-")[0])
            for _, fields in feed
        ]
        assert (market[-1] - market[0]) / (wall[-1] - wall[0]) < 8, "5 times, not at once"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopped" in out
    assert "Traceback" not in err
    assert streams.get(keys.lease("SH")) is None
    ids = [one for one, _ in streams.xrange(keys.tick(code))]
    assert ids == [one for one, _ in streams.xrange(KEYS.tick(code))][: len(ids)]
    assert "replay-20261120: " in says("--clean", "--day", "20261120", code=0)
    assert not streams.keys("*replay-20261120*")


async def test_the_client_reads_it_as_a_live_day(
    maker: ArchiveMaker, streams: redis.Redis, streams_server: RedisServer
) -> None:
    truth = {code: [one.decode() for one, _ in streams.xrange(KEYS.tick(code))] for code in SH}
    with command(
        streams_server, maker, *the_day("--codes", ",".join(SH), "--speed", "10")
    ) as process:
        wait_for(lambda: bool(streams.exists(TO.latest("SH"))))
        async with AsyncQMTClient(streams_server.url, prefix="again") as client:
            assert (await client.status()).processes[0].beat.role == "producer"
            seen: dict[str, list[str]] = {code: [] for code in SH}
            left = sum(map(len, truth.values()))
            live = 0
            async for tick in client.ticks(markets=["SH"], start=to_datetime(OPEN_MS - 60_000)):
                if tick is NOW_LIVE:
                    live = left
                    continue
                seen[tick.code].append(tick.id)
                left -= 1
                if not left:
                    break
        assert process.wait(60) == 0
        process.communicate()
    assert seen == truth
    assert live > 50, "a good part came live"
