"""The same client through a real gateway: the same answers, the same errors."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pandas as pd
import pytest
import redis
from client_gateway import Gateway, running_gateway
from fake_worker import FakeWorker, make_tick, publish, table

from qmt_client import AsyncQMTClient, QMTClient, QMTWarning, Tick
from qmt_protocol.errors import (
    AccessDenied,
    Gap,
    GatewayUnavailable,
    HistoryMissing,
    NoProducer,
    NoWorker,
    TerminalNotConnected,
    TimedOut,
)
from qmt_standalone.redis_server import free_port

MakeWorker = Callable[..., FakeWorker]
CODE = "600519.SH"
# The gateway of the session reads a market on for some seconds, and what an earlier test's ticks
# were it knows, by code: these are of the tests that publish earlier ones.
LIVE, OTHER = "600601.SH", "600602.SH"
T0 = 1_767_576_600_000
LABELS = [1_767_542_400_000, 1_767_628_800_000]


def bars(params: dict[str, Any]) -> Any:
    return table(params["period"], dict.fromkeys(params["codes"], LABELS), params["fields"])


def test_history_is_the_same_frame_by_both_ways(
    client: QMTClient, http_client: QMTClient, make_worker: MakeWorker
) -> None:
    with make_worker(history=bars):
        for period in ("1d", "tick"):
            by_redis = client.history(CODE, period)
            by_http = http_client.history(CODE, period)
            pd.testing.assert_frame_equal(by_redis, by_http)
            assert by_http.attrs == by_redis.attrs
        many = http_client.get_batch_history([CODE, "000001.SZ"], fields="close")
    assert [list(frame.columns) for frame in many.values()] == [["close"], ["close"]]
    assert many.simulated


def test_documents_and_progress(http_client: QMTClient, make_worker: MakeWorker) -> None:
    told: list[str] = []
    answers = {
        "sector_stocks": lambda params: [CODE],
        "download": lambda params: {CODE: {"rows": 2}},
    }
    with make_worker(**answers):
        assert http_client.sector_stocks("沪深300") == [CODE]
        assert http_client.download(CODE, progress=lambda one: told.append(one.state)) == {
            CODE: {"rows": 2}
        }
    assert told[-1] == "done"


def test_errors_keep_their_kind_and_facts(
    http_client: QMTClient, make_worker: MakeWorker, streams: redis.Redis
) -> None:
    with pytest.raises(NoWorker) as nobody:
        http_client.history(CODE)
    assert nobody.value.last_seen_ms is None
    error = HistoryMissing("Not downloaded.", hint="qmt download", codes=[CODE])
    with make_worker(history=lambda params: error.to_dict()) as worker:
        with pytest.raises(HistoryMissing) as caught:
            http_client.history(CODE)
        assert caught.value.to_dict() == error.to_dict()
        worker.terminal = {"state": "waiting_for_login", "reason": "QMT was closed"}
        worker.beat()
        with pytest.raises(TerminalNotConnected, match="QMT was closed"):
            http_client.history(CODE)


def test_a_late_answer_is_cancelled_through_the_gateway(
    gateway: Gateway, make_worker: MakeWorker, jobs: redis.Redis
) -> None:
    with make_worker(history=bars) as worker:
        worker.hold()
        with QMTClient(gateway.url, timeout_s=0.5) as client, pytest.raises(TimedOut):
            client.history(CODE)
        assert jobs.llen("rq:queue:qmt-query") == 0
        assert worker.seen == []


def test_full_tick_and_status(
    client: QMTClient,
    http_client: QMTClient,
    streams: redis.Redis,
    producer: Callable[[], None],
) -> None:
    publish(streams, "SH", [(CODE, make_tick(T0))])
    assert http_client.full_tick(CODE) == client.full_tick(CODE)
    assert http_client.full_tick(CODE)[CODE].id == client.full_tick(CODE)[CODE].id
    with pytest.warns(QMTWarning, match=r"600000\.SH"):
        assert http_client.full_tick([CODE, "600000.SH"]).absent == ["600000.SH"]
    status = http_client.status()
    assert [one.beat.role for one in status.processes if one.beat.role == "producer"]
    assert status.simulated
    assert list(http_client.latest(markets=["SH"])) == [CODE]


def test_nobody_publishes(http_client: QMTClient) -> None:
    with pytest.raises(NoProducer):
        http_client.full_tick(CODE)


def test_live_ticks_come_once_in_order(
    http_client: QMTClient, streams: redis.Redis, producer: Callable[[], None]
) -> None:
    publish(streams, "SH", [(LIVE, make_tick(T0, 10, 0))])
    done = threading.Event()

    def go_on() -> None:
        for at in itertools.count(1):  # however long the client takes to connect
            publish(streams, "SH", [(LIVE, make_tick(T0 + 1000 * at, 10, at))])
            if done.wait(0.1):
                return

    thread = threading.Thread(target=go_on)
    thread.start()
    found: list[Tick] = []
    try:
        for tick in http_client.ticks(LIVE):
            found.append(tick)
            if len(found) == 8:
                break
    finally:
        done.set()
        thread.join()
    last = found[-1]["volume"]
    # The first may be the latest at the time of subscribing; from there on none is missing.
    assert [tick["volume"] for tick in found[1:]] == list(range(last - 6, last + 1))
    assert found[0]["volume"] < found[1]["volume"]
    assert found[-1] == make_tick(T0 + 1000 * last, 10, last)
    assert {tick.code for tick in found} == {LIVE}


async def publish_on(streams: redis.Redis) -> None:
    """Publish a tick every 0.1 s: nobody tells when the gateway has a subscription."""
    for at in range(1, 200):
        publish(streams, "SH", [(OTHER, make_tick(T0 + 1000 * at, 10, at))])
        await asyncio.sleep(0.1)


async def test_subscribe_realtime_begins_with_the_latest(
    gateway: Gateway, streams: redis.Redis, producer: Callable[[], None]
) -> None:
    publish(streams, "SH", [(OTHER, make_tick(T0, 10, 0))])
    volumes: list[int] = []
    going: list[asyncio.Task[None]] = []

    class Enough(Exception):
        pass

    def on_tick(data: dict[str, list[Tick]]) -> None:
        if not volumes:
            going.append(asyncio.create_task(publish_on(streams)))
        volumes.extend(row["volume"] for row in data[OTHER])
        if len(volumes) >= 3:
            raise Enough

    async with AsyncQMTClient(gateway.url) as client:
        with pytest.raises(Enough):
            await client.subscribe_realtime(stocks=[OTHER], callback=on_tick)
        going[0].cancel()
    assert volumes == [0, 1, 2], "the latest comes first, then each that follows"


async def test_a_gateway_that_comes_back_is_followed_without_a_gap(
    streams: redis.Redis,
    jobs: redis.Redis,
    target: dict[str, str],
    producer: Callable[[], None],
) -> None:
    publish(streams, "SH", [(CODE, make_tick(T0))])
    port = free_port()
    gaps: list[Gap] = []
    found: list[int] = []

    async def take(client: AsyncQMTClient, until: int) -> None:
        async with aclosing(client.ticks(CODE, on_gap=gaps.append)) as ticks:
            async for tick in ticks:
                found.append(tick["volume"])
                if tick["volume"] == until:
                    return

    async def beat() -> None:
        while True:
            producer()
            await asyncio.sleep(1)

    beating = asyncio.create_task(beat())
    async with AsyncQMTClient(f"http://127.0.0.1:{port}") as client:
        with running_gateway(target, port):
            taking = asyncio.create_task(take(client, 5))
            await asyncio.sleep(3.0)
            publish(streams, "SH", [(CODE, make_tick(T0 + 1000, 10, 2))])
            await asyncio.sleep(1.5)
        publish(streams, "SH", [(CODE, make_tick(T0 + 1000 * at, 10, at)) for at in (3, 4)])
        with running_gateway(target, port):
            await asyncio.sleep(4.0)
            publish(streams, "SH", [(CODE, make_tick(T0 + 5000, 10, 5))])
            await asyncio.wait_for(taking, 120)
    beating.cancel()
    assert found == [2, 3, 4, 5]
    assert gaps == []


def test_keys(streams: redis.Redis, jobs: redis.Redis, target: dict[str, str]) -> None:
    with running_gateway(target, QMT_BRIDGE_API_KEYS="right") as gateway:
        with QMTClient(gateway.url, api_key="right") as client:
            assert client.status().processes is not None
        with QMTClient(gateway.url, api_key="wrong") as client:
            with pytest.raises(AccessDenied, match="api_key"):
                client.status()
            with pytest.raises(AccessDenied):
                next(client.ticks(CODE))


def test_a_gateway_that_is_away_is_named() -> None:
    port = free_port()
    with QMTClient(host="127.0.0.1", port=port) as client:
        with pytest.raises(GatewayUnavailable, match=f"127.0.0.1:{port}"):
            client.history(CODE)
        with pytest.raises(GatewayUnavailable):
            next(client.ticks(CODE))
