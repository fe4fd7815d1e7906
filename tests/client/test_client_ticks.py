"""Latest and live ticks over Redis: each once, in order, across lost connections, gaps told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from fake_worker import beat, make_tick, publish
from waiting import wait_for

import qmt_reading.live.recovery
from qmt_client import AsyncQMTClient, QMTClient, QMTWarning, Tick
from qmt_client.live import tick_of
from qmt_protocol.cursor.scope import Scope
from qmt_protocol.errors import (
    Gap,
    InstrumentNotFound,
    InvalidRequest,
    NoProducer,
    RedisUnavailable,
    WrongVersion,
)
from qmt_protocol.keys import Keys
from qmt_reading.live.follower import Follower
from qmt_runtime.connections import connect_async
from qmt_standalone.redis_server import RedisServer

T0 = 1_767_576_600_000  # 2026-01-05 09:30 China time
CODE = "600519.SH"
Producer = Callable[[], None]
MakeAsync = Callable[..., AsyncQMTClient]


def seeds(count: int, start: int = 0, code: str = CODE) -> list[tuple[str, dict[str, Any]]]:
    return [
        (code, make_tick(T0 + 1000 * at, 10 + at / 100, at)) for at in range(start, start + count)
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A streams server that the test may kill."""
    own = RedisServer(tmp_path / "own")
    own.start()
    yield own
    own.stop()


# Latest


def test_full_tick_has_xtquants_keys_and_the_order_asked_for(
    client: QMTClient, streams: redis.Redis, producer: Producer
) -> None:
    publish(streams, "SH", [*seeds(2), *seeds(1, code="600000.SH")])
    ids = publish(streams, "SZ", seeds(1, code="000001.SZ"))
    ticks = client.full_tick(["000001.SZ", "600000.SH", CODE])
    assert list(ticks) == ["000001.SZ", "600000.SH", CODE]
    assert ticks[CODE] == {
        "time": T0 + 1000,
        "lastPrice": 10.01,
        "volume": 1,
        "askPrice": [10.02, 0.0, 0.0, 0.0, 0.0],
        "openInt": 13,
    }
    assert ticks["000001.SZ"].id == ids[0][1]
    assert ticks[CODE].phase == "continuous"
    assert ticks.simulated
    assert ticks.absent == []
    assert client.get_full_tick(stocks=[CODE]) == {CODE: ticks[CODE]}


def test_absent_codes_of_full_tick(
    client: QMTClient, streams: redis.Redis, producer: Producer
) -> None:
    publish(streams, "SH", seeds(1))
    with pytest.raises(InstrumentNotFound) as caught:
        client.full_tick("600518.SH")
    assert caught.value.codes == ["600518.SH"]
    with pytest.warns(QMTWarning, match=r"600518\.SH"):
        ticks = client.full_tick([CODE, "600518.SH"])
    assert list(ticks) == [CODE]
    assert ticks.absent == ["600518.SH"]


def test_stored_ticks_stay_readable_when_the_producer_is_away(
    client: QMTClient, streams: redis.Redis
) -> None:
    publish(streams, "SH", seeds(1))
    with pytest.warns(QMTWarning, match="No producer publishes SH"):
        assert list(client.full_tick(CODE)) == [CODE]
    with pytest.raises(NoProducer, match="none was ever seen"):
        client.full_tick("000001.SZ")
    beat(streams, "producer", markets=["SZ"])
    with pytest.raises(NoProducer, match="Published are SZ") as caught:
        client.full_tick("600518.SH")
    assert caught.value.last_seen_ms is None


def test_latest_of_whole_markets(client: QMTClient, streams: redis.Redis) -> None:
    publish(streams, "SH", seeds(1))
    publish(streams, "SZ", [*seeds(1, code="000001.SZ"), *seeds(1, code="000002.SZ")])
    assert sorted(client.latest(markets=["SH", "SZ"])) == ["000001.SZ", "000002.SZ", CODE]
    assert client.latest(["600518.SH"]) == {}
    with pytest.raises(InvalidRequest):
        client.latest()
    with pytest.raises(InvalidRequest):
        client.latest(CODE, markets=["SH"])


def test_status_tells_ages_and_that_it_is_simulated(
    client: QMTClient, streams: redis.Redis, producer: Producer
) -> None:
    status = client.status()
    (one,) = status.processes
    assert one.beat.role == "producer"
    assert one.beat.markets == ["SH", "SZ"]
    assert one.alive
    assert status.simulated
    told = status.to_dict()
    assert told["processes"][0]["age_ms"] == one.age_ms


# Live


def wait_for_reader(streams: redis.Redis) -> None:
    """Wait until a reader of this process waits for entries; a gateway beside it always does."""

    def is_blocked() -> bool:
        ours = {one.laddr.port for one in psutil.Process().net_connections("tcp")}
        return any(
            "b" in told["flags"] and int(told["addr"].rpartition(":")[2]) in ours
            for told in streams.client_list()
        )

    wait_for(is_blocked, "a reader waits for entries")


def publish_to_a_reader(streams: redis.Redis, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Publish when a reader waits for entries."""
    wait_for_reader(streams)
    publish(streams, "SH", rows)


async def collect(ticks: Any, count: int, ready: Callable[[], None] | None = None) -> list[Tick]:
    """Take the next ticks; ``ready`` is called beside, on a thread of its own."""
    found: list[Tick] = []
    beside = None if ready is None else asyncio.create_task(asyncio.to_thread(ready))
    async with aclosing(ticks) as source:
        async for tick in source:
            found.append(tick)
            if len(found) == count:
                break
    if beside is not None:
        await beside
    return found


async def test_ticks_come_from_now_on_each_once_in_order(
    make_async: MakeAsync, streams: redis.Redis, producer: Producer
) -> None:
    publish(streams, "SH", seeds(3))

    def go() -> None:
        wait_for_reader(streams)
        for at in range(3, 13, 2):
            publish(streams, "SH", [*seeds(2, at), *seeds(1, at, "600000.SH")])

    async with make_async() as client:
        found = await asyncio.wait_for(collect(client.ticks([CODE]), 10, go), 120)
    assert [tick["volume"] for tick in found] == list(range(3, 13))
    assert {tick.code for tick in found} == {CODE}
    stored = [entry[0].decode() for entry in streams.xrange(Keys().tick(CODE))]
    assert [tick.id for tick in found] == stored[3:]


async def test_whole_markets(
    make_async: MakeAsync, streams: redis.Redis, producer: Producer
) -> None:
    def go() -> None:
        wait_for_reader(streams)
        publish(streams, "SH", seeds(2))
        publish(streams, "SZ", seeds(2, code="000001.SZ"))

    async with make_async() as client:
        found = await asyncio.wait_for(collect(client.ticks(markets=["SH", "SZ"]), 4, go), 120)
    assert sorted((tick.code, tick["volume"]) for tick in found) == [
        ("000001.SZ", 0),
        ("000001.SZ", 1),
        (CODE, 0),
        (CODE, 1),
    ]


def test_the_same_iterator_without_await(
    client: QMTClient, streams: redis.Redis, producer: Producer
) -> None:
    publish(streams, "SH", seeds(1))
    timer = threading.Timer(0.5, lambda: publish(streams, "SH", seeds(3, 1)))
    timer.start()
    found = []
    for tick in client.ticks(CODE):
        found.append(tick["volume"])
        if len(found) == 3:
            break
    timer.join()
    assert found == [1, 2, 3]
    assert client.status().processes, "the client still answers after the loop was left"


def test_nobody_publishes(client: QMTClient) -> None:
    with pytest.raises(NoProducer, match="No producer publishes SH"):
        next(client.ticks(CODE))


def test_a_market_that_nobody_publishes_is_told_with_what_to_do(
    client: QMTClient, streams: redis.Redis
) -> None:
    beat(streams, "producer", markets=["SZ", "BJ"])
    with pytest.raises(NoProducer) as caught:
        next(client.ticks([CODE, "000001.SZ"]))
    error = caught.value
    assert (error.market, error.served, error.last_seen_ms) == ("SH", ["BJ", "SZ"], None)
    assert "Published are BJ, SZ" in error.hint
    assert "add SH to QMT_MARKETS of qmt-producer" in error.hint
    beat(streams, "producer", markets=["SH"])
    (member,) = streams.zrange(Keys().seen, 0, -1)
    streams.zincrby(Keys().seen, -60_000, member)
    with pytest.raises(NoProducer, match="Start qmt-producer") as caught:
        next(client.bars(CODE))
    assert caught.value.last_seen_ms is not None


async def test_a_code_without_ticks_is_named(
    make_async: MakeAsync, streams: redis.Redis, producer: Producer
) -> None:
    async with make_async() as client:
        with pytest.warns(QMTWarning, match=r"600519\.SZ"):
            await asyncio.wait_for(
                collect(
                    client.ticks("600519.SZ,600519.SH"),
                    1,
                    lambda: publish_to_a_reader(streams, seeds(1)),
                ),
                120,
            )


async def test_a_producer_that_goes_away_is_told(
    make_async: MakeAsync, streams: redis.Redis, producer: Producer
) -> None:
    publish(streams, "SH", seeds(1))

    async def listen(client: AsyncQMTClient) -> None:
        async for _ in client.ticks(CODE):
            pass

    async def listen_until(told: pytest.WarningsRecorder, client: AsyncQMTClient) -> None:
        task = asyncio.create_task(listen(client))
        while not len(told):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async with make_async() as client:
        with pytest.warns(QMTWarning, match="No ticks come until it returns") as told:
            await listen_until(told, client)


@pytest.mark.parametrize("stored", [True, False])
async def test_a_slow_loop_goes_on_from_the_streams_or_is_told_what_it_missed(
    make_async: MakeAsync, streams: redis.Redis, producer: Producer, stored: bool
) -> None:
    publish(streams, "SH", seeds(1))
    gaps: list[Gap] = []
    found: list[int] = []

    def flood() -> None:
        for at in range(2, 60):
            publish(streams, "SH", seeds(1, at))
        streams.xtrim(Keys().feed("SH"), maxlen=10, approximate=False)
        if not stored:
            streams.xtrim(Keys().tick(CODE), maxlen=10, approximate=False)
        time.sleep(0.2)

    async with make_async() as client:
        first = asyncio.to_thread(publish_to_a_reader, streams, seeds(1, 1))
        publishing = asyncio.create_task(first)
        async with aclosing(client.ticks(CODE, on_gap=gaps.append)) as source:
            async for tick in source:
                found.append(tick["volume"])
                if len(found) == 1:
                    await asyncio.to_thread(flood)
                if tick["volume"] == 59:
                    break
        await publishing
    if stored:
        assert found == list(range(1, 60))
        assert gaps == []
    else:
        assert found == [1, *range(50, 60)]
        assert [gap.data["codes"][CODE] for gap in gaps] == [[f"{T0 + 1000}-0", f"{T0 + 50_000}-0"]]


async def ticks_of(reader: Follower) -> AsyncGenerator[Tick, None]:
    """Yield a reader's ticks, each by itself."""
    async with aclosing(reader.batches()) as batches:
        async for batch in batches:
            for row in batch.rows:
                yield tick_of(row)


def follow_sh(server: RedisServer, gaps: list[Gap], **options: Any) -> Follower:
    connection = connect_async(server.url)
    scope = Scope.of(options.pop("codes", None), ["SH"])
    return Follower(connection, Keys(), scope, on_gap=gaps.append, **options)


async def volumes(reader: Follower, last: int, found: list[int] | None = None) -> list[int]:
    """Return the volumes read until a certain one; they are told as they come."""
    found = [] if found is None else found
    async with aclosing(ticks_of(reader)) as ticks:
        async for tick in ticks:
            found.append(tick["volume"])
            if tick["volume"] == last:
                break
    await reader.reader._connection.aclose()
    return found


async def test_an_idle_feed_that_was_trimmed_is_no_gap(
    streams_server: RedisServer, streams: redis.Redis
) -> None:
    gaps: list[Gap] = []
    publish(streams, "SH", seeds(1))
    reader = follow_sh(streams_server, gaps)
    await reader.begin()
    streams.xtrim(Keys().feed("SH"), maxlen=0, approximate=False)
    taking = asyncio.create_task(volumes(reader, 2))
    await asyncio.sleep(1.5)
    publish(streams, "SH", seeds(2, 1))
    assert await asyncio.wait_for(taking, 120) == [1, 2]
    assert gaps == []


async def test_a_restart_of_redis_loses_and_repeats_nothing(server: RedisServer) -> None:
    gaps: list[Gap] = []
    reader = follow_sh(server, gaps, codes=[CODE])
    with redis.Redis.from_url(server.url) as writer:
        await reader.begin()
        taking = asyncio.create_task(volumes(reader, 29))
        for at in range(10):
            publish(writer, "SH", seeds(1, at))
        await asyncio.to_thread(server.kill)
        while reader.connected:  # noqa: ASYNC110 - it tells of nothing
            await asyncio.sleep(0.02)
        await asyncio.to_thread(server.start)
    with redis.Redis.from_url(server.url) as writer:
        for at in range(10, 30):
            publish(writer, "SH", seeds(1, at))
        assert await asyncio.wait_for(taking, 120) == list(range(30))
    assert gaps == []


async def test_a_lost_history_is_a_gap_and_nothing_is_told_twice(
    streams_server: RedisServer, streams: redis.Redis
) -> None:
    streams.set(Keys().epoch("SH"), "one")
    gaps: list[Gap] = []
    reader = follow_sh(streams_server, gaps)
    await reader.begin()
    found: list[int] = []
    taking = asyncio.create_task(volumes(reader, 7, found))
    for at in range(5):
        publish(streams, "SH", seeds(1, at))
    while len(found) < 5:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    # Redis comes back empty; the publisher tells the last ones again from its ring.
    with streams.pipeline(transaction=True) as pipe:
        pipe.flushall()
        pipe.set(Keys().epoch("SH"), "two")
        pipe.execute()
    for at in range(2, 8):
        publish(streams, "SH", seeds(1, at))
    assert await asyncio.wait_for(taking, 120) == list(range(8))
    assert [(gap.data["reason"], gap.data["epoch"]) for gap in gaps] == [("epoch", "two")]


async def test_a_new_epoch_is_told_also_when_its_first_entry_ends_a_wait(
    streams_server: RedisServer, streams: redis.Redis
) -> None:
    streams.set(Keys().epoch("SH"), "one")
    publish(streams, "SH", seeds(1))
    gaps: list[Gap] = []
    reader = follow_sh(streams_server, gaps)
    taking = asyncio.create_task(volumes(reader, 1))
    await asyncio.to_thread(wait_for_reader, streams)
    streams.set(Keys().epoch("SH"), "two")
    publish(streams, "SH", seeds(1, 1))
    assert await asyncio.wait_for(taking, 120) == [1]
    assert [gap.data["reason"] for gap in gaps] == ["epoch"]
    assert gaps[0].data["after"][0] == "one"


async def test_an_unreadable_entry_is_a_gap_and_the_next_one_is_read(
    streams_server: RedisServer, streams: redis.Redis
) -> None:
    gaps: list[Gap] = []
    for codes in (None, [CODE]):
        reader = follow_sh(streams_server, gaps, codes=codes)
        await reader.begin()
        volume = 1 if codes else 0
        streams.xadd(Keys().feed("SH"), {"b1": b"\xc1 not msgpack"})
        publish(streams, "SH", seeds(1, volume))
        assert await asyncio.wait_for(volumes(reader, volume), 120) == [volume]
    assert len(gaps) == 2
    assert [gap.data["reason"] for gap in gaps] == ["unreadable"] * 2


async def test_a_reader_may_give_up(server: RedisServer) -> None:
    reader = follow_sh(server, [], give_up_after_s=0.5)
    await reader.begin()
    server.kill()
    with pytest.raises(RedisUnavailable):
        await asyncio.wait_for(volumes(reader, 0), 120)
    await reader.reader._connection.aclose()


# Callbacks


async def test_subscribe_realtime_begins_with_the_latest_and_repeats_nothing(
    make_async: MakeAsync, streams: redis.Redis, producer: Producer
) -> None:
    publish(streams, "SH", seeds(2))
    calls: list[dict[str, list[Tick]]] = []
    done = asyncio.Event()

    async def on_tick(data: dict[str, list[Tick]]) -> None:
        calls.append(data)
        if data[CODE][-1]["volume"] == 5:
            done.set()

    async with make_async() as client:
        task = asyncio.create_task(client.subscribe_realtime([CODE], on_tick))
        await asyncio.to_thread(
            publish_to_a_reader, streams, [*seeds(4, 2), *seeds(1, 2, "600000.SH")]
        )
        await asyncio.wait_for(done.wait(), 120)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [[row["volume"] for row in call[CODE]] for call in calls] == [[1], [2, 3, 4, 5]]
    assert all(list(call) == [CODE] for call in calls)


def test_the_seeds_example(client: QMTClient, streams: redis.Redis, producer: Producer) -> None:
    class Enough(Exception):
        pass

    publish(streams, "SH", seeds(1))
    rows: list[Any] = []

    def on_tick(data: dict[str, list[Tick]]) -> None:
        rows.extend(data[CODE])
        if len(rows) == 3:
            raise Enough

    timer = threading.Thread(target=publish_to_a_reader, args=(streams, seeds(2, 1)))
    timer.start()
    with pytest.raises(Enough):
        asyncio.run(client.subscribe_realtime(stocks=[CODE], callback=on_tick))
    timer.join()
    assert [row["volume"] for row in rows] == [0, 1, 2]


def test_memory_is_bounded_by_the_reader_not_by_the_feed(
    client: QMTClient, streams: redis.Redis, producer: Producer
) -> None:
    publish(streams, "SH", seeds(1))
    ticks = client.ticks(CODE)
    timer = threading.Thread(target=publish_to_a_reader, args=(streams, seeds(1, 1)))
    timer.start()
    next(ticks)
    for at in range(2, 300):
        publish(streams, "SH", seeds(1, at))
    time.sleep(0.3)
    sizes = []
    for _ in range(100):
        next(ticks)
        sizes.append(len(ticks._live._rows))
    ticks.close()
    assert max(sizes) <= 16, "what was not asked for was left in Redis"


def test_another_version_of_the_wire_is_refused_by_name(
    client: QMTClient, streams: redis.Redis
) -> None:
    beat(streams, "producer", markets=["SH"])
    publish(streams, "SH", seeds(1))
    streams.hset(Keys().schema, "b1", '{"version": 1, "what": "one batch"}')
    with pytest.raises(WrongVersion, match="version 1 of the wire"):
        next(client.ticks(CODE))
    for no_version in ("[]", "x", '{"version": "two"}', '{"version": 2}'):
        streams.hset(Keys().schema, "b1", no_version)
        assert next(client.ticks(CODE, snapshot=True)).code == CODE


async def test_what_is_filed_while_the_streams_are_read_is_told_once(
    streams_server: RedisServer, streams: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the streams, and in the feed behind the place from which it is read then."""
    publish(streams, "SH", seeds(3))
    read_stored = qmt_reading.live.recovery.read_stored

    def read_later(*what: Any, **how: Any) -> Any:
        publish(streams, "SH", seeds(3, 3))
        return read_stored(*what, **how)

    monkeypatch.setattr(qmt_reading.live.recovery, "read_stored", read_later)
    gaps: list[Gap] = []
    reader = follow_sh(streams_server, gaps, start_ms=T0)
    later = threading.Timer(1.0, lambda: publish(streams, "SH", seeds(2, 6)))
    later.start()
    assert await volumes(reader, 7) == list(range(8))
    later.join()  # it may still wait for an answer over the test's connection
    assert gaps == []
