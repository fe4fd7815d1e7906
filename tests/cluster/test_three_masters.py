"""Three markets on three masters: the producer's code appends and files them, each is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from redis.cluster import RedisCluster
from three_masters import three_masters, url_of
from waiting import wait_for

from qmt_producer.figures import Figures
from qmt_producer.functions import Functions
from qmt_producer.market_line import MarketLine
from qmt_producer.reporter import Reporter
from qmt_producer.ring import Ring
from qmt_protocol.keys import Keys
from qmt_protocol.status import new_heartbeat
from qmt_protocol.ticks import encode_tick
from qmt_reading.live.feed import FeedReader
from qmt_runtime.connections import connect_async

KEYS = Keys()
CODES = {"SH": "600519.SH", "SZ": "000001.SZ", "BJ": "920001.BJ"}
NOON_MS = 1_763_697_600_000
CONSUMER = Path(__file__).resolve().parents[2] / "examples" / "consumers" / "python" / "consumer.py"


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters that have the functions."""
    with three_masters(tmp_path_factory.mktemp("cluster")) as client:
        code = files("qmt_producer").joinpath("functions.lua").read_text("utf-8")
        client.function_load(code)
        yield client


@pytest.fixture
def cluster(masters: RedisCluster) -> RedisCluster:
    """The same, without any keys."""
    masters.flushall()
    return masters


class Producer:
    """A ring, and a line for each market that publishes from it."""

    def __init__(self, folder: Path, cluster: RedisCluster) -> None:
        self.ring = Ring(folder, 10_000_000)
        self.figures = Figures()
        # It calls nothing that a client of one server has alone.
        functions = Functions(cluster)
        self.lines = [
            MarketLine(
                market,
                self.ring,
                KEYS,
                functions,
                self.figures,
                holder=folder.name,
                lease_ms=60_000,
                feed_keep_ms=60_000,
                future_ms=10_000,
                ring_keep_ms=600_000,
                listening=lambda: True,
                on_event=lambda event: None,
            )
            for market in CODES
        ]

    def publish(self, received_ms: int, *ticks: tuple[int, float]) -> None:
        """Publish ticks of each market, each at so many ms behind noon and at a price."""
        entries = {
            market: [(code, NOON_MS + at_ms, tick(at_ms, price)) for at_ms, price in ticks]
            for market, code in CODES.items()
        }
        self.ring.append([(market, "tick", received_ms, some) for market, some in entries.items()])
        for line in self.lines:
            wait_for(lambda line=line: not line.step() and line.cursor, "it is appended")
            while line.unfiled:
                line.file()

    def close(self) -> None:
        """Give the leases back."""
        for line in self.lines:
            line.release()
        self.ring.close()


def tick(at_ms: int, price: float) -> bytes:
    return encode_tick({"time": NOON_MS + at_ms, "lastPrice": price, "volume": 100 + at_ms})


def now_ms(cluster: RedisCluster) -> int:
    seconds, micros = cluster.time(target_nodes=RedisCluster.RANDOM)
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.fixture
def published(cluster: RedisCluster, tmp_path: Path) -> RedisCluster:
    """Two batches of each market, by two producers; the second repeats a tick of the first."""
    first = Producer(tmp_path / "first", cluster)
    first.publish(now_ms(cluster), (0, 10.0), (500, 10.1))
    first.close()
    second = Producer(tmp_path / "second", cluster)
    second.publish(now_ms(cluster), (500, 10.1), (900, 10.2))
    assert second.figures.repeated == len(CODES)
    second.close()
    return cluster


def test_each_market_lies_on_a_master_of_its_own_and_whole(published: RedisCluster) -> None:
    homes = {published.get_node_from_key(KEYS.feed(market)).port for market in CODES}
    assert len(homes) == 3
    for market, code in CODES.items():
        feed: Any = published.xrange(KEYS.feed(market))
        ids = [[one[1] for one in msgpack.unpackb(fields[b"b1"])] for _, fields in feed]
        assert ids == [[f"{NOON_MS}-0", f"{NOON_MS + 500}-0"], [f"{NOON_MS + 900}-0"]]
        stored: Any = published.xrange(KEYS.tick(code))
        assert [fields[b"t1"] for _, fields in stored] == [
            tick(0, 10.0),
            tick(500, 10.1),
            tick(900, 10.2),
        ]
        assert published.get(KEYS.filed(market)) == feed[-1][0]
        (newest,) = published.hvals(KEYS.latest(market))
        assert msgpack.unpackb(newest)[0] == f"{NOON_MS + 900}-0"
        home = published.get_node_from_key(KEYS.feed(market)).redis_connection
        assert home is not None
        ours = {KEYS.feed(market), KEYS.filed(market), KEYS.latest(market), KEYS.tick(code)}
        ours |= {KEYS.epoch(market), KEYS.acked(market)}
        assert set(home.keys()) == {one.encode() for one in ours}


async def test_a_reader_follows_a_market_where_it_lies(published: RedisCluster) -> None:
    for market, code in CODES.items():
        async with connect_async(url_of(published, KEYS.feed(market))) as connection:
            reader = FeedReader(connection, KEYS, [market], offsets={market: ("", "0-0")})
            snapshot = await reader.snapshot({market: None})
            assert list(snapshot.latest) == [code]
            found = await reader.read()  # a look, in a transaction
            assert not found.breaks
            assert [entry.market for entry in found.entries] == [market] * 2
            assert snapshot.offsets[market][1] == found.entries[-1].id
            added = published.xadd(KEYS.feed(market), {"b1": b"\x90"})
            (entry,) = (await reader.read()).entries  # XREAD
            assert entry.id == added.decode()


def test_a_consumer_of_one_market_reads_it_where_it_lies(published: RedisCluster) -> None:
    for market, code in CODES.items():
        url = url_of(published, KEYS.feed(market))
        flags = ("--url", url, "--market", market, "--until-idle", "0.1")
        told = subprocess.run([sys.executable, CONSUMER, *flags], capture_output=True, check=True)
        ticks = [json.loads(line) for line in told.stdout.splitlines()]
        assert [(one["code"], one["time"] - NOON_MS) for one in ticks] == [
            (code, 0),
            (code, 500),
            (code, 900),
        ]


def test_one_read_of_two_markets_is_refused(published: RedisCluster) -> None:
    home = published.get_node_from_key(KEYS.feed("SH")).redis_connection
    assert home is not None
    with pytest.raises(redis.ResponseError, match="same slot"):
        home.xread({KEYS.feed("SH"): "0-0", KEYS.feed("SZ"): "0-0"})


def test_a_producer_reports_and_tidies(
    cluster: RedisCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.hset(KEYS.status, "producer:gone:1", "{}")
    cluster.zadd(KEYS.seen, {"producer:old:2": 1})
    homes = {cluster.get_node_from_key(key).port for key in (KEYS.status, KEYS.seen)}
    assert len(homes) == 2, "or nothing is shown here"
    monkeypatch.setattr("qmt_producer.reporter.connect", lambda url: cluster)
    ring = Ring(tmp_path / "ring", 10_000_000)
    beat = new_heartbeat("producer", 1, markets=list(CODES))
    reporter = Reporter(ring, keys=KEYS, url="", heartbeat=lambda: beat)
    reporter.event({"kind": "connected"})
    reporter._report(whole=True)
    ring.close()
    assert reporter._failures == {}
    assert cluster.hkeys(KEYS.status) == cluster.zrange(KEYS.seen, 0, -1) == [beat.member.encode()]
    assert cluster.xlen(KEYS.producer_events) == 1
    assert cluster.hexists(KEYS.schema, "t1")
