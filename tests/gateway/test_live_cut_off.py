"""A reader that is cut off again and again gets exactly what was published, by both ways."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from gateway_bench import OPEN_MS, GatewayProcess, gateway
from live_rig import Market, between, of_market, running, seen_of
from wanting import heard_on

from qmt_client import NOW_LIVE, AsyncQMTClient, Bar, Gap, NowLive, Tick
from qmt_protocol.bars import encode_bar
from qmt_protocol.errors import Unavailable
from qmt_protocol.times import to_datetime
from qmt_standalone.redis_server import RedisServer, free_port

CUTS = int(os.environ.get("QMT_TEST_CUTS", "30"))
_names = itertools.count()


@pytest.fixture
def markets(streams: redis.Redis) -> list[Market]:
    """Two markets of their own: the session's gateway reads a market on for a while."""
    made = [Market(streams, f"C{next(_names)}") for _ in range(2)]
    for market in made:
        market.beat()
        market.publish(*market.codes)
    return made


@pytest.fixture(params=["redis", "gateway"])
def url(
    request: pytest.FixtureRequest, streams_server: RedisServer, gateway_process: GatewayProcess
) -> str:
    """Where the client reads."""
    return streams_server.url if request.param == "redis" else gateway_process.url


@asynccontextmanager
async def ticks(url: str, **options: Any) -> AsyncIterator[Any]:
    async with AsyncQMTClient(url) as client, aclosing(client.ticks(**options)) as opened:
        yield opened


async def take(source: Any, count: int, into: list[Any]) -> None:
    """Take so many ticks."""
    while count > 0:
        into.append(await asyncio.wait_for(anext(source), 120))
        count -= 1


async def take_until(source: Any, last: tuple[str, str], into: list[Tick]) -> None:
    """Take ticks until a certain one."""
    while not into or (into[-1].code, into[-1].id) != last:
        into.append(await asyncio.wait_for(anext(source), 120))


@pytest.mark.parametrize("scope", ["markets", "codes"])
@pytest.mark.timeout(600 + 2 * CUTS)
async def test_cut_off_at_random_moments(url: str, markets: list[Market], scope: str) -> None:
    gaps: list[Gap] = []
    wanted: dict[str, Any] = {"markets": [market.name for market in markets]}
    codes = {code for market in markets for code in market.codes[:3]}
    if scope == "codes":
        wanted = {"codes": sorted(codes)}
    found: list[Tick] = []
    position: dict[str, Any] | None = None
    with running(markets):
        for _ in range(CUTS):
            async with ticks(url, **wanted, position=position, on_gap=gaps.append) as source:
                await take(source, random.choice([0, 1, 3, 10, 40, 90]), found)
                if position is None and not found:
                    continue
                position = json.loads(json.dumps(source.position))
            await asyncio.sleep(random.random() * 0.05)
        async with ticks(url, **wanted, position=position, on_gap=gaps.append) as source:
            await take(source, 50, found)
    assert gaps == []
    for market in markets:
        truth = [one for one in market.published() if scope == "markets" or one[0] in codes]
        seen = of_market(seen_of(found), market.name)
        assert len(seen) > CUTS
        assert seen == between(truth, seen)


async def test_beyond_the_feed_by_the_codes_last_ids(url: str, markets: list[Market]) -> None:
    gaps: list[Gap] = []
    names = [market.name for market in markets]
    found: list[Tick] = []
    async with ticks(url, markets=names, on_gap=gaps.append) as source:
        task = asyncio.create_task(take(source, 20, found))
        while not task.done():
            for market in markets:
                market.publish(*market.codes)
            await asyncio.sleep(0.05)
        await task
        position = json.loads(json.dumps(source.full_position))
    for market in markets:
        for _ in range(50):
            market.publish_some()
        market.trim_feed()
    with running(markets):
        async with ticks(url, markets=names, position=position, on_gap=gaps.append) as source:
            await take(source, 900, found)
    assert gaps == []
    for market in markets:
        truth = market.stored()
        seen = of_market(seen_of(found), market.name)
        for code in market.codes:
            of_code = [one[1] for one in seen if one[0] == code]
            assert len(of_code) > 20
            first = truth[code].index(of_code[0])
            assert of_code == truth[code][first : first + len(of_code)]


async def test_beyond_the_feed_without_them_is_a_gap_that_names_the_range(
    url: str, markets: list[Market]
) -> None:
    market = markets[0]
    gaps: list[Gap] = []
    found: list[Tick] = []
    async with ticks(url, markets=[market.name], snapshot=True) as source:
        await take(source, len(market.codes), found)
        market.publish(*market.codes)
        await take(source, len(market.codes), found)
        position = source.position
    at = position[market.name]
    async with ticks(url, markets=[market.name], snapshot=True) as other:
        await take(other, len(market.codes), [])
        for _ in range(40):  # more than the gateway has in memory
            market.publish_some()
        await take_until(other, market.published()[-1], [])  # the gateway has read them
    market.trim_feed()
    market.publish(market.codes[0])
    async with ticks(url, markets=[market.name], position=position, on_gap=gaps.append) as source:
        await take(source, 1, found)
        market.publish(market.codes[1])
        await take(source, 1, found)
    assert seen_of(found[-2:]) == market.published()
    (gap,) = gaps
    assert gap.data["market"] == market.name
    assert gap.data["reason"] == "trimmed"
    assert list(gap.data["after"]) == at
    first = market.streams.xrange(market.keys.feed(market.name))[0][0].decode()
    assert gap.data["from_ms"] == int(at[1].split("-")[0])
    assert gap.data["to_ms"] == int(first.split("-")[0])


async def test_another_epoch_is_a_gap_and_what_was_told_is_not_told_again(
    url: str, markets: list[Market]
) -> None:
    market = markets[0]
    gaps: list[Gap] = []
    found: list[Tick] = []
    async with ticks(url, markets=[market.name], snapshot=True) as source:
        await take(source, len(market.codes), found)
        market.publish(*market.codes)
        await take(source, len(market.codes), found)
        position = json.loads(json.dumps(source.full_position))
    # Redis lost the last batch; its publisher tells it again, and then news.
    streams, keys = market.streams, market.keys
    assert streams.xdel(keys.feed(market.name), position[market.name][1]) == 1
    for code in market.codes:
        streams.delete(keys.tick(code))
    streams.set(keys.epoch(market.name), "second")
    market.count -= len(market.codes)
    market.publish(*market.codes)
    market.publish(*market.codes)
    async with ticks(url, markets=[market.name], position=position, on_gap=gaps.append) as source:
        await take(source, len(market.codes), found)
    assert seen_of(found) == market.published()
    assert [gap.data["reason"] for gap in gaps] == ["epoch"]
    assert gaps[0].data["after"][0] == "first"


async def test_stored_ticks_then_now_live_then_live_without_a_seam(
    url: str, markets: list[Market]
) -> None:
    for market in markets:
        for _ in range(30):
            market.publish_some()
    market = markets[0]
    start_ms = int(market.stored()[market.codes[0]][3].split("-")[0])
    start = to_datetime(start_ms).replace(microsecond=0)
    found: list[Tick] = []
    with running(markets):
        async with ticks(
            url, codes=market.codes, start=start.strftime("%H:%M:%S"), on_gap=pytest.fail
        ) as source:
            async for tick in source:
                found.append(tick)
                if isinstance(tick, NowLive):
                    assert tick is NOW_LIVE
                    break
            await take(source, 100, found)
    offsets = [tick for tick in found if tick is NOW_LIVE]
    assert len(offsets) == 1
    stored = found[: found.index(NOW_LIVE)]
    assert [tick["time"] for tick in stored] == sorted(tick["time"] for tick in stored)
    seen = seen_of([tick for tick in found if tick is not NOW_LIVE])
    truth = market.stored()
    for code in market.codes:
        ids = [one for one in truth[code] if int(one.split("-")[0]) >= start.timestamp() * 1000]
        of_code = [one[1] for one in seen if one[0] == code]
        assert of_code == ids[: len(of_code)]


async def test_a_gap_that_the_producer_names_is_told(url: str, markets: list[Market]) -> None:
    market = markets[0]
    gaps: list[Gap] = []
    event = {"kind": "gap", "reason": "the queue was full", "from_ms": 5, "to_ms": 9, "ticks": 7}
    event["codes"] = {market.codes[0]: [5, 9, 4], f"1.{market.name}X": [6, 6, 3]}
    document = {"e": json.dumps(event)}
    found: list[Tick] = []
    async with ticks(url, codes=market.codes[:1], snapshot=True, on_gap=gaps.append) as source:
        await take(source, 1, found)
        market.streams.xadd(market.keys.events, document)
        for _ in range(50):
            market.publish(market.codes[0])
            await take(source, 1, found)
            await asyncio.sleep(0.02)
        position = json.loads(json.dumps(source.position))
    market.streams.xadd(market.keys.events, document)
    market.publish(market.codes[0])
    async with ticks(url, codes=market.codes[:1], position=position, on_gap=gaps.append) as source:
        await take(source, 1, found)
    assert len(gaps) == 2
    for gap in gaps:
        assert gap.data["reason"] == "the queue was full"
        assert gap.data["ticks"] == 4
        assert gap.data["codes"] == {market.codes[0]: [5, 9, 4]}


async def test_conflation_on_request_gives_the_latest(url: str, markets: list[Market]) -> None:
    market = markets[0]
    found: list[Tick] = []
    async with ticks(
        url, markets=[market.name], snapshot=True, conflate=True, on_gap=pytest.fail
    ) as source:
        await take(source, len(market.codes), found)
        for _ in range(300):
            market.publish_some()
        for code in market.codes:
            market.publish(code)
        last = market.published()[-1]
        rest: list[Tick] = []
        await take_until(source, last, rest)
    assert len(rest) < 600
    newest = {tick.code: tick.id for tick in rest}
    assert newest == {code: ids[-1] for code, ids in market.stored().items()}


async def test_bars_by_both_ways(url: str, markets: list[Market]) -> None:
    market = markets[0]
    code, other = market.codes[:2]
    bars = [
        {"time": OPEN_MS + 60_000 * at, "close": 10.0 + at, "closed": bool(at % 2)}
        for at in range(6)
    ]

    def publish(at: int) -> None:
        row = [f"{bars[at]['time']}-0", msgpack.unpackb(encode_bar(bars[at]))]
        key = market.keys.bar("1m", code)
        market.streams.xadd(key, {"k1": encode_bar(bars[at])}, id=row[0])
        batch = [[code, "1m", *row], [code, "5m", *row], [other, "1m", *row]]
        market.streams.xadd(market.keys.feed(market.name), {"c1": msgpack.packb(batch)})

    publish(0)
    found: list[Bar] = []
    with heard_on(market.streams, market.keys.demand_channel) as heard:
        async with (
            AsyncQMTClient(url) as client,
            aclosing(client.bars(code, snapshot=True)) as source,
        ):
            await take(source, 1, found)
            for at in range(1, 4):
                publish(at)
                await take(source, 1, found)
            assert f"1m|{code}" in heard()
            position = json.loads(json.dumps(source.position))
    publish(4)
    async with (
        AsyncQMTClient(url) as client,
        aclosing(client.bars(code, position=position)) as source,
    ):
        publish(5)
        await take(source, 2, found)
    assert [dict(bar) for bar in found] == bars
    assert {(bar.code, bar.period) for bar in found} == {(code, "1m")}
    assert [bar.id for bar in found] == [f"{bar['time']}-0" for bar in bars]


async def test_bars_that_nobody_can_serve_raise_the_reason(url: str, markets: list[Market]) -> None:
    market = markets[0]
    reason = {"reason": "All 50 single subscriptions are in use.", "at_ms": 1}
    market.streams.hset(market.keys.refused, f"1m|{market.codes[0]}", json.dumps(reason))
    async with AsyncQMTClient(url) as client:
        with pytest.raises(Unavailable, match="All 50 single subscriptions") as caught:
            async with aclosing(client.bars(market.codes[0])) as source:
                await take(source, 1, [])
    assert caught.value.data["code"] == market.codes[0]


async def test_subscribe_realtime_of_bars(url: str, markets: list[Market]) -> None:
    market = markets[0]
    code = market.codes[0]
    bar = {"time": OPEN_MS, "close": 10.0, "closed": True}
    market.streams.xadd(market.keys.bar("1m", code), {"k1": encode_bar(bar)}, id=f"{OPEN_MS}-0")
    called: list[dict[str, list[Bar]]] = []

    class Enough(Exception):
        pass

    def on_bar(data: dict[str, list[Bar]]) -> None:
        called.append(data)
        raise Enough

    async with AsyncQMTClient(url) as client:
        with pytest.raises(Enough):
            await asyncio.wait_for(client.subscribe_realtime(code, on_bar, "1m"), 120)
    assert called == [{code: [bar]}]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
async def test_a_gateway_that_is_killed_is_followed_by_all_its_clients(
    streams_server: RedisServer, jobs_server: RedisServer, markets: list[Market], tmp_path: Path
) -> None:
    port = str(free_port())
    urls = (streams_server.url, jobs_server.url)
    names = [market.name for market in markets]
    codes = [code for market in markets for code in market.codes[:2]]
    found: list[list[Tick]] = [[] for _ in range(12)]
    gaps: list[Gap] = []
    done = asyncio.Event()

    async def follow(number: int) -> None:
        wanted = {"markets": names} if number % 2 else {"codes": codes}
        async with ticks(f"http://127.0.0.1:{port}", **wanted, on_gap=gaps.append) as source:
            async for tick in source:
                found[number].append(tick)
                if done.is_set():
                    return

    async def all_read_on() -> None:
        wanted = [len(of_one) + 150 for of_one in found]
        while any(map(int.__lt__, map(len, found), wanted)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def start() -> Callable[[], None]:
        context = gateway(*urls, tmp_path, "--port", port)
        process = context.__enter__()

        def kill() -> None:
            process.process.send_signal(signal.SIGKILL)
            process.process.wait(60)
            context.__exit__(None, None, None)

        return kill

    with running(markets, 0.01):
        kill = await asyncio.to_thread(start)
        tasks = [asyncio.create_task(follow(number)) for number in range(len(found))]
        for _ in range(3):
            await all_read_on()
            await asyncio.to_thread(kill)
            kill = await asyncio.to_thread(start)
        await all_read_on()
        done.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 120)
        await asyncio.to_thread(kill)
    assert gaps == []
    for number, of_one in enumerate(found):
        for market in markets:
            truth = [one for one in market.published() if number % 2 or one[0] in codes]
            seen = of_market(seen_of(of_one), market.name)
            assert len(seen) > 100
            assert seen == between(truth, seen)
