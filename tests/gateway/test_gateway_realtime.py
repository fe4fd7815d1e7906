"""``/ws/realtime``: snapshot, exactly what follows, slow readers, and bad messages."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest
import redis
from gateway_bench import OPEN_MS, GatewayProcess, Producer, a_tick
from waiting import wait_for
from wanting import heard_on
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from qmt_protocol.bars import encode_bar
from qmt_protocol.codes import market_of

CLOSE_STALLED = 4408
_markets = itertools.count()


@pytest.fixture
def code() -> str:
    """A code of a market of its own: the gateway reads a market on for a while."""
    return f"600519.T{next(_markets)}"


@pytest.fixture
def other(code: str) -> str:
    """Another code of that market."""
    return code.replace("600519", "601318")


@contextmanager
def subscribed(process: GatewayProcess, *codes: str, **more: Any) -> Iterator[ClientConnection]:
    with connect(process.ws_url, proxy=None, max_size=None, close_timeout=1) as client:
        client.send(json.dumps({"stocks": codes, "period": "tick", **more}))
        yield client


def frame(client: ClientConnection) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(client.recv(timeout=120))
    return decoded


def test_snapshot_first_then_what_follows(
    gateway_process: GatewayProcess, producer: Producer, code: str, other: str
) -> None:
    old, new = a_tick(10.5, 1, OPEN_MS), a_tick(10.6, 2, OPEN_MS + 3_000, pe=float("nan"))
    far, elsewhere = a_tick(11.0, 1, OPEN_MS), code + "Z"
    producer.publish((code, old))
    producer.publish((elsewhere, far))
    with subscribed(gateway_process, code, other, elsewhere) as client:
        assert frame(client) == {code: [old], elsewhere: [far]}
        producer.publish((code, new), (other, old), (code.replace("600519", "600000"), old))
        assert frame(client) == {code: [{**new, "pe": None}], other: [old]}
        late = a_tick(10.4, 1, OPEN_MS + 3_001)
        producer.publish((code, late), flags=1)
        assert frame(client) == {code: [late]}


def test_a_subscriber_misses_and_repeats_nothing(
    gateway_process: GatewayProcess, producer: Producer, code: str, other: str
) -> None:
    """Clients come and go in the middle of a running feed; each must see every volume once."""
    end = threading.Event()
    published = [0]

    def run() -> None:
        while not end.is_set():
            published[0] += 1
            at_ms = OPEN_MS + published[0]
            producer.publish(
                (code, a_tick(10.0, published[0], at_ms)), (other, a_tick(1, 1, at_ms))
            )

    runner = threading.Thread(target=run)
    runner.start()
    try:
        for _ in range(15):
            with subscribed(gateway_process, code) as client:
                seen: list[int] = []
                while len(seen) < 200:
                    seen += [row["volume"] for row in frame(client)[code]]
            assert seen == list(range(seen[0], seen[0] + len(seen)))
    finally:
        end.set()
        runner.join(60)


def test_a_further_message_replaces_or_adds(
    gateway_process: GatewayProcess, producer: Producer, code: str, other: str
) -> None:
    first, second = a_tick(10.5, 1, OPEN_MS), a_tick(20.5, 1, OPEN_MS)
    producer.publish((code, first), (other, second))
    with subscribed(gateway_process, code) as client:
        assert frame(client) == {code: [first]}
        client.send(json.dumps({"stocks": [other]}))
        assert frame(client) == {other: [second]}
        client.send(json.dumps({"stocks": [code], "add": True}))
        assert frame(client) == {code: [first]}
        later = a_tick(10.6, 2, OPEN_MS + 1)
        producer.publish((code, later), (other, later))
        assert frame(client) == {code: [later], other: [later]}


def test_clients_with_the_same_codes_get_the_same_frames(
    gateway_process: GatewayProcess, producer: Producer, code: str
) -> None:
    with (
        subscribed(gateway_process, code, notices=True) as one,
        subscribed(gateway_process, code, notices=True) as two,
    ):
        for client in (one, two):
            assert frame(client) == {"notice": "absent", "codes": [code]}
        tick = a_tick(10.5, 1, OPEN_MS)
        producer.publish((code, tick))
        assert frame(one) == frame(two) == {code: [tick]}


def test_whole_quote_gives_the_latest_of_markets_or_codes(
    gateway_process: GatewayProcess, producer: Producer, code: str, other: str
) -> None:
    first, second = a_tick(10.5, 1, OPEN_MS), a_tick(20.5, 1, OPEN_MS)
    producer.publish((code, first), (other, second))
    url = gateway_process.ws_url.replace("realtime", "whole_quote")
    for codes in ([market_of(code)], [code, other]):
        with connect(url, proxy=None) as client:
            client.send(json.dumps({"codes": codes}))
            assert frame(client) == {code: first, other: second}
            first = a_tick(10.25, 3, first["time"] + 2)
            producer.publish((code, a_tick(10.6, 2, first["time"] - 1)), (code, first))
            assert frame(client) == {code: first}
            client.send(json.dumps({"codes": ["S H"]}))
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=120)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4400


def test_bars_in_the_incumbents_shape(
    gateway_process: GatewayProcess, producer: Producer, streams: redis.Redis, code: str
) -> None:
    stored = {"time": OPEN_MS, "close": 10.5, "closed": True}
    streams.xadd(producer.keys.bar("1m", code), {"k1": encode_bar(stored)}, id=f"{OPEN_MS}-0")
    with (
        heard_on(streams, producer.keys.demand_channel) as heard,
        connect(gateway_process.ws_url, proxy=None) as client,
    ):
        client.send(json.dumps({"stocks": [code], "period": "1m"}))
        assert frame(client) == {code: [stored]}
        formed = {"time": OPEN_MS + 60_000, "close": 10.6, "closed": False}
        rows = [
            [code, "1m", f"{bar['time']}-0", msgpack.unpackb(encode_bar(bar))]
            for bar in (stored, formed)
        ]
        streams.xadd(producer.keys.feed(market_of(code)), {"c1": msgpack.packb(rows)})
        assert frame(client) == {code: [formed]}, "the stored one was told already"
        assert f"1m|{code}" in heard()


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("hello", "expected"),
        ("[]", "expected"),
        ("{}", "stocks"),
        ('{"stocks": "600519.SH"}', "expected"),
        ('{"stocks": []}', "No code"),
        ('{"stocks": ["600519"]}', "600519.SH"),
        ('{"stocks": ["600519.SH"], "period": "7m"}', "7m"),
        (b"\xff\xfe", "expected"),
        (json.dumps({"stocks": [f"1.M{n}" for n in range(40)]}), "markets"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_message_closes_with_4400_and_a_reason(
    gateway_process: GatewayProcess,
    producer: Producer,
    message: str | bytes,
    told: str,
    first: bool,
    code: str,
) -> None:
    producer.publish((code, a_tick(10.5, 1, OPEN_MS)))
    with connect(gateway_process.ws_url, proxy=None) as client:
        if not first:
            client.send(json.dumps({"stocks": [code]}))
            frame(client)
        client.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=120)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4400
    assert told in closed.value.rcvd.reason


def test_a_new_history_is_told_as_a_gap(
    gateway_process: GatewayProcess, producer: Producer, streams: redis.Redis, code: str
) -> None:
    streams.set(producer.keys.epoch(market_of(code)), "first")
    producer.publish((code, a_tick(10.5, 1, OPEN_MS)))
    with subscribed(gateway_process, code, notices=True) as client:
        assert frame(client)[code][0]["volume"] == 1
        # All in one: the gateway reconnects to another history.
        pipe = streams.pipeline(transaction=True)
        pipe.set(producer.keys.epoch(market_of(code)), "second")
        pipe.delete(producer.keys.feed(market_of(code)))
        pipe.client_kill_filter(_type="normal")
        pipe.execute()
        producer.publish((code, a_tick(10.6, 2, OPEN_MS + 1)))
        assert frame(client) == {"notice": "gap", "markets": [market_of(code)]}
        assert frame(client)[code][-1]["volume"] == 2


@contextmanager
def slow_reader(process: GatewayProcess, codes: list[str]) -> Iterator[ClientConnection]:
    host, port = process.url.removeprefix("http://").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    raw.connect((host, int(port)))
    with connect(
        process.ws_url, sock=raw, proxy=None, max_size=None, max_queue=1, close_timeout=1
    ) as client:
        client.send(json.dumps({"stocks": codes, "notices": True}))
        yield client


@pytest.fixture
def crowd(code: str) -> list[str]:
    """The codes of a watchlist that makes big frames."""
    return [f"{600_000 + number}.{market_of(code)}" for number in range(400)]


def read_up_to(time_ms: int, client: ClientConnection) -> None:
    """Read until the gateway has come so far."""
    while max(rows[-1]["time"] for rows in frame(client).values()) < time_ms:
        pass


def test_a_slow_reader_is_conflated_to_the_latest_and_told(
    gateway_process: GatewayProcess, producer: Producer, crowd: list[str]
) -> None:
    last_ms = OPEN_MS + 249
    with (
        subscribed(gateway_process, crowd[0]) as quick,
        slow_reader(gateway_process, crowd) as client,
    ):
        assert frame(client)["notice"] == "absent"
        producer.flood(crowd, 250, OPEN_MS)
        read_up_to(last_ms, quick)
        rows = skipped = 0
        newest: dict[str, int] = {}
        while len(newest) < len(crowd) or min(newest.values()) < last_ms:
            told = frame(client)
            if told.get("notice") == "conflated":
                skipped += sum(told["skipped"].values())
                continue
            for of in told:
                rows += len(told[of])
                newest[of] = told[of][-1]["time"]
    assert skipped > 0
    assert rows + skipped == 400 * 250


def test_a_stalled_reader_is_closed_and_others_are_not(
    hasty_gateway: GatewayProcess, producer: Producer, crowd: list[str]
) -> None:
    end = threading.Event()
    before = hasty_gateway.log().count("client stalled")

    def run() -> None:
        part = 0
        while not end.is_set():
            producer.flood(crowd, 10, OPEN_MS + part * 10)
            part += 1
            time.sleep(0.1 if part < 20 else 0.5)  # by then nothing more goes into its socket

    with (
        subscribed(hasty_gateway, crowd[0]) as quick,
        slow_reader(hasty_gateway, crowd) as client,
    ):
        runner = threading.Thread(target=run)
        runner.start()
        try:
            wait_for(lambda: hasty_gateway.log().count("client stalled") > before, "it is told")
            for _ in client:
                pass
        except ConnectionClosed as error:
            closed = error.rcvd
        finally:
            end.set()
            runner.join(60)
        assert closed is not None
        assert closed.code == CLOSE_STALLED
        volumes = [row["volume"] for row in frame(quick)[crowd[0]]]
        assert volumes == list(range(len(volumes)))


def test_who_never_subscribes_is_let_go(gateway_process: GatewayProcess) -> None:
    with (
        connect(gateway_process.ws_url, proxy=None) as client,
        pytest.raises(ConnectionClosed) as closed,
    ):
        client.recv(timeout=120)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CLOSE_STALLED
