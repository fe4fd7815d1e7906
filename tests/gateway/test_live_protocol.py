"""Protocol v1 as docs/asyncapi.yaml describes it, by a plain WebSocket client."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args

import msgpack
import pytest
import redis
import yaml
from gateway_bench import OPEN_MS, GatewayProcess, Worker, gateway
from jsonschema import Draft7Validator
from live_rig import Market
from waiting import wait_for
from wanting import heard_on
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from qmt_protocol import live
from qmt_protocol.bars import encode_bar
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.keys import series_of
from qmt_standalone.redis_server import RedisServer

DESCRIPTION = Path(__file__).resolve().parents[2] / "docs" / "asyncapi.yaml"
_names = itertools.count()


@pytest.fixture
def market(streams: redis.Redis) -> Market:
    """A market of its own, with one tick of each code."""
    made = Market(streams, f"P{next(_names)}")
    made.beat()
    made.publish(*made.codes)
    return made


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    """The AsyncAPI document."""
    document: dict[str, Any] = yaml.safe_load(DESCRIPTION.read_text("utf-8"))
    return document


class Talk:
    """A connection by JSON; every message is held against the description."""

    def __init__(self, client: ClientConnection, document: dict[str, Any]) -> None:
        self.client = client
        self.kinds: set[str] = set()
        self._schemas = {
            schema["properties"]["type"]["enum"][0]: {
                "$ref": f"#/components/schemas/{name}",
                "components": document["components"],
            }
            for name, schema in document["components"]["schemas"].items()
            if "type" in schema.get("properties", {})
        }

    def ask(self, **message: Any) -> None:
        self.client.send(json.dumps(message))

    def next(self, kind: str | None = None, timeout_s: float = 120) -> dict[str, Any]:
        """Return the next message, of a kind if one is named; heartbeats are passed over."""
        while True:
            told: dict[str, Any] = json.loads(self.client.recv(timeout=timeout_s))
            Draft7Validator(self._schemas[told["type"]]).validate(told)
            self.kinds.add(told["type"])
            if told["type"] == kind or (kind is None and told["type"] != "heartbeat"):
                return told


@contextmanager
def talking(process: GatewayProcess, document: dict[str, Any], query: str = "") -> Iterator[Talk]:
    url = f"ws{process.url[4:]}/ws/v1{query}"
    offered = [Subprotocol(live.JSON_SUBPROTOCOL)]
    with connect(url, proxy=None, subprotocols=offered, close_timeout=1) as client:
        yield Talk(client, document)


@pytest.fixture
def talk(gateway_process: GatewayProcess, description: dict[str, Any]) -> Iterator[Talk]:
    """A connection that has been welcomed."""
    with talking(gateway_process, description) as made:
        assert made.next()["type"] == "welcome"
        yield made


def refs_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            yield from refs_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from refs_of(inner)


def test_the_description_is_the_protocol(description: dict[str, Any]) -> None:
    assert description["asyncapi"] == "3.0.0"
    for ref in refs_of(description):
        found: Any = description
        for part in ref.removeprefix("#/").split("/"):
            found = found[part]
        assert found
    channel = description["channels"]["live"]
    assert channel["address"] == "/ws/v1"
    assert channel["x-subprotocols"] == list(live.SUBPROTOCOLS)
    assert channel["x-close-codes"].keys() == {int(code) for code in live.CloseCode}
    kinds = [*get_args(live.ToGateway), *get_args(live.FromGateway)]
    schemas = description["components"]["schemas"]
    for kind in kinds:
        Draft7Validator.check_schema(schemas[kind.__name__])
        told = schemas[kind.__name__]["properties"].keys()
        assert told - {"type", "op"} == set(kind.__struct_fields__), kind
    for kind in get_args(live.ToGateway):  # unions of unions are flat
        assert schemas[kind.__name__]["additionalProperties"] is False
        assert kind.__struct_config__.forbid_unknown_fields
    payloads = {one["payload"]["$ref"] for one in description["components"]["messages"].values()}
    assert payloads == {f"#/components/schemas/{kind.__name__}" for kind in kinds}
    directions = {one["action"]: one["messages"] for one in description["operations"].values()}
    assert len(directions["receive"]) == len(get_args(live.ToGateway))
    assert len(directions["send"]) == len(get_args(live.FromGateway))


def test_the_bounds_described_are_those_checked(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    checked = 0
    for kind in get_args(live.ToGateway):
        required = {"id": "a", "start_ms": 1, "at_ms": 1, "speed": 1.0, "paused": False}
        fields = {key: required[key] for key in required if key in kind.__struct_fields__}
        for name, schema in schemas[kind.__name__]["properties"].items():
            bounds = {**schema, **schema.get("anyOf", [{}])[0]}
            for value, is_right in edges_of(bounds):
                message = kind(**{**fields, name: value})
                if is_right:
                    live.check_bounds(message)
                else:
                    with pytest.raises(InvalidRequest) as caught:
                        live.check_bounds(message)
                    assert caught.value.data["field"] == name
                checked += 1
    assert checked > 40


def edges_of(bounds: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
    """Yield values at the bounds that a schema names, and beyond them."""
    if "maximum" in bounds:
        low, high = bounds["minimum"], bounds["maximum"]
        yield from ((low, True), (high, True), (low - 1, False), (high * 2, False))
    if "maxLength" in bounds:
        yield from (("x" * bounds["maxLength"], True), ("x" * (bounds["maxLength"] + 1), False))
    if "maxLength" in bounds.get("items", {}):  # codes and markets: where they are looked up
        most = bounds["maxItems"]
        yield from ((["x"] * most, True), (["x"] * (most + 1), False))


def test_a_conversation(talk: Talk, market: Market) -> None:
    codes = market.codes[:2]
    talk.ask(op="subscribe", id="a", codes=[*codes, f"1.{market.name}"])
    told = talk.next()
    assert (told["type"], told["id"], told["codes"]) == ("subscribed", "a", 3)
    assert told["absent"] == [f"1.{market.name}"]
    position = told["position"][market.name]
    snapshot = talk.next("live")
    assert snapshot["kind"] == "snapshot"
    assert snapshot["position"][market.name] == position
    assert sorted(row[0] for row in snapshot["ticks"]) == codes
    market.publish(*market.codes)
    first = talk.next("live")
    assert [(row[0], row[3]["volume"]) for row in first["ticks"]] == [(codes[0], 9), (codes[1], 10)]
    tail = market.streams.xrevrange(market.keys.feed(market.name), count=1)[0][0].decode()
    assert first["position"] == {market.name: ["first", tail]}

    talk.ask(op="unsubscribe", id="b", codes=codes[:1])
    assert talk.next("unsubscribed")["codes"] == 2
    market.publish(*market.codes)
    assert [row[0] for row in talk.next("live")["ticks"]] == codes[1:]

    talk.ask(op="subscribe", id="c", markets=[market.name])
    assert talk.next("subscribed")["codes"] >= len(market.codes)
    talk.next("live")
    market.publish(*market.codes)
    rows = talk.next("live")["ticks"]
    assert [row[0] for row in rows] == market.codes, "each once, though it was named twice"


def test_coming_back_with_a_position(
    talk: Talk, gateway_process: GatewayProcess, description: dict[str, Any], market: Market
) -> None:
    talk.ask(op="subscribe", id="a", codes=market.codes[:1], snapshot=False)
    position = talk.next("subscribed")["position"]
    for _ in range(3):
        market.publish(market.codes[0])
    with talking(gateway_process, description) as again:
        again.ask(op="subscribe", id="b", codes=market.codes[:1], position=position)
        assert again.next("subscribed")["position"] == position
        volumes = []
        while (told := again.next())["type"] != "now":
            assert told["kind"] == "missed"
            volumes += [row[3]["volume"] for row in told["ticks"]]
        market.publish(market.codes[0])
        while len(volumes) < 4:  # what the gateway had not read by then comes live
            told = again.next("live")
            assert told["kind"] == "live"
            volumes += [row[3]["volume"] for row in told["ticks"]]
        assert volumes == [9, 10, 11, 12]
        wrong = {market.name: ["another", position[market.name][1]]}
        again.ask(op="unsubscribe", id="c", codes=market.codes[:1])
        again.ask(op="subscribe", id="d", codes=market.codes[:1], position=wrong)
        gap = again.next("gap")
        assert gap["reason"] == "epoch"
        assert gap["after"] == wrong[market.name]


def test_everything_and_sectors(
    talk: Talk, market: Market, worker: Worker, streams: redis.Redis
) -> None:
    worker.answers["sector_stocks"] = lambda params: market.codes[:3]
    sector = f"板块{market.name}"
    for number in "ab":
        talk.ask(op="subscribe", id=number, sectors=[sector])
        assert talk.next("subscribed")["codes"] == 3
    assert [name for name, _ in worker.asked] == ["sector_stocks"]
    worker.answers["sector_stocks"] = lambda params: []
    talk.ask(op="subscribe", id="c", codes=["*"])
    talk.next("subscribed")
    other = Market(streams, f"{market.name}N")
    other.publish(*other.codes)
    other.beat()
    seen: set[str] = set()
    while not seen.issuperset([*market.codes, *other.codes]):
        seen |= {row[0] for row in talk.next("live")["ticks"]}


def test_bars_are_wanted_while_somebody_gets_them(
    talk: Talk, market: Market, streams: redis.Redis
) -> None:
    code, other = market.codes[:2]
    with heard_on(streams, market.keys.demand_channel) as heard:
        talk.ask(op="subscribe", id="a", codes=[code, other], period="1m")
        assert talk.next("subscribed")["codes"] == 2
        wait_for(
            lambda: heard().count(series_of("1m", code)) == 2, "the bar is wanted, again and again"
        )
    bar = {"time": 1_767_576_660_000, "close": 10.5, "closed": True}
    row = [code, "1m", "1767576660000-0", msgpack.unpackb(encode_bar(bar))]
    streams.xadd(market.keys.feed(market.name), {"c1": msgpack.packb([row])})
    while not (told := talk.next("live"))["bars"]:
        pass
    assert told["bars"] == [[code, "1m", "1767576660000-0", bar]]
    refusal = json.dumps({"reason": "All 50 single subscriptions are in use.", "at_ms": 1})
    streams.hset(market.keys.refused, series_of("1m", other), refusal)
    error = talk.next("error")["error"]
    assert error["error"] == "unavailable"
    assert "All 50" in error["message"]
    streams.delete(market.keys.refused)


def test_what_cannot_be_followed_is_told_and_the_rest_goes_on(talk: Talk, market: Market) -> None:
    for message, told in (
        ({"codes": ["600519"]}, "600519.SH"),
        ({}, "Nothing is named"),
        ({"codes": market.codes, "period": "7m"}, "7m"),
        ({"markets": [market.name], "period": "1m"}, "whole markets"),
        ({"markets": ["a b"]}, "a b"),
        ({"codes": market.codes, "position": {"SH": ["e", "x"]}}, "position"),
        ({"codes": market.codes, "position": {}, "start_ms": 5}, "start_ms"),
    ):
        talk.ask(op="subscribe", id="x", **message)
        failure = talk.next()
        assert failure["type"] == "error"
        assert failure["id"] == "x"
        assert told in str(failure["error"])
    talk.ask(op="subscribe", id="y", codes=market.codes)
    assert talk.next("subscribed")["id"] == "y"
    assert talk.next("heartbeat")["position"].keys() >= {market.name}


@pytest.mark.parametrize(
    "message", ["hello", "[]", '{"op": "buy"}', '{"op": "subscribe", "codes": 5}', b"\xc1"]
)
def test_what_is_none_of_the_protocol_closes_with_4400(talk: Talk, message: str | bytes) -> None:
    talk.client.send(message)
    with pytest.raises(ConnectionClosed) as closed:
        talk.next()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == live.CloseCode.BAD_MESSAGE


def test_msgpack_says_the_same(gateway_process: GatewayProcess, talk: Talk, market: Market) -> None:
    url = f"ws{gateway_process.url[4:]}/ws/v1"
    offered = [Subprotocol(one) for one in reversed(live.SUBPROTOCOLS)]
    with connect(url, proxy=None, subprotocols=offered) as client:
        assert client.subprotocol == live.MSGPACK_SUBPROTOCOL
        client.send(msgpack.packb({"op": "subscribe", "id": "a", "markets": [market.name]}))
        talk.ask(op="subscribe", id="a", markets=[market.name])
        by_json = [talk.next(), talk.next()]
        by_msgpack = [msgpack.unpackb(client.recv(timeout=120)) for _ in range(3)][1:]
        market.publish(*market.codes)
        by_json.append(talk.next("live"))
        by_msgpack.append(msgpack.unpackb(client.recv(timeout=120)))
    feed = market.streams.xrevrange(market.keys.feed(market.name), count=1)[0][1][b"b1"]
    assert by_msgpack[2]["ticks"] == msgpack.unpackb(feed)
    for json_told, told in zip(by_json, by_msgpack, strict=True):
        assert json_told.keys() == told.keys()
        assert json_told["position"] == told["position"]
        of_ticks = [[row[0], row[1]] for row in json_told.get("ticks", ())]
        assert of_ticks == [row[:2] for row in told.get("ticks", ())]


def test_key_and_shutdown(
    streams_server: RedisServer,
    jobs_server: RedisServer,
    tmp_path: Path,
    description: dict[str, Any],
    market: Market,
) -> None:
    urls = (streams_server.url, jobs_server.url)
    with ExitStack() as stack:
        process = stack.enter_context(gateway(*urls, tmp_path, api_keys="right"))
        wrong = stack.enter_context(talking(process, description, "?api_key=wrong"))
        with pytest.raises(ConnectionClosed) as closed:
            wrong.next()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == live.CloseCode.ACCESS_DENIED
        right = stack.enter_context(talking(process, description, "?api_key=right"))
        right.ask(op="subscribe", markets=[market.name])
        right.next("live")
        process.process.terminate()
        assert right.next("shutdown")["position"].keys() >= {market.name}
        with pytest.raises(ConnectionClosed) as ended:
            right.next()
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == live.CloseCode.GOING_AWAY


@contextmanager
def small_window(url: str, asked: bytes, key: str = "") -> Iterator[ClientConnection]:
    """Connect with a small receive buffer: what is not read soon waits in the gateway."""
    host, port = url.removeprefix("http://").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    raw.connect((host, int(port)))
    offered = [Subprotocol(live.MSGPACK_SUBPROTOCOL)]
    with connect(
        f"ws{url[4:]}/ws/v1",
        sock=raw,
        proxy=None,
        subprotocols=offered,
        additional_headers={"X-API-Key": key} if key else {},
        max_queue=1,
        close_timeout=1,
        ping_interval=None,  # what waits is before the pong
    ) as client:
        client.send(asked)
        yield client


def drain(client: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """Read to the end; return the messages and the close code."""
    told: list[dict[str, Any]] = []
    try:
        while True:
            told.append(msgpack.unpackb(client.recv(timeout=120)))
    except ConnectionClosed as closed:
        return told, closed.rcvd.code if closed.rcvd else 0


@pytest.mark.long
def test_one_who_does_not_read_is_told_and_closed_and_fifty_others_are_not(
    streams_server: RedisServer, jobs_server: RedisServer, tmp_path: Path, streams: redis.Redis
) -> None:
    market = Market(streams, f"P{next(_names)}", codes=150)
    market.beat()
    market.publish(*market.codes)
    offered = [Subprotocol(live.MSGPACK_SUBPROTOCOL)]
    asked = msgpack.packb({"op": "subscribe", "codes": market.codes, "snapshot": False})
    urls = (streams_server.url, jobs_server.url)
    with ExitStack() as stack:
        process = stack.enter_context(
            gateway(*urls, tmp_path, ws_queue_bytes="500000", ws_stall_s="4")
        )
        url = f"ws{process.url[4:]}/ws/v1"
        slow = stack.enter_context(small_window(process.url, asked))
        others = [
            stack.enter_context(connect(url, proxy=None, subprotocols=offered, max_queue=None))
            for _ in range(50)
        ]
        for client in others:
            client.send(asked)
        for client in others:
            while msgpack.unpackb(client.recv(timeout=120))["type"] != "subscribed":
                pass
        before = len(market.published())

        def is_cut_off() -> bool:
            for _ in range(5):
                market.publish(*market.codes)
            return "client stalled" in process.log()

        wait_for(is_cut_off, "who does not read is cut off")
        messages, code = drain(slow)
        truth = market.published()[before:]
        for client in others:
            seen: list[tuple[str, str]] = []
            while not seen or seen[-1] != truth[-1]:
                told = msgpack.unpackb(client.recv(timeout=120))
                assert told["type"] in ("live", "heartbeat")
                seen += [(row[0], row[1]) for row in told.get("ticks", ())]
            assert seen == truth
    assert code == live.CloseCode.STALLED
    assert sum(len(told.get("ticks", ())) for told in messages) < len(truth)


def test_who_reads_on_is_told_what_was_left_out(
    streams_server: RedisServer, jobs_server: RedisServer, tmp_path: Path, streams: redis.Redis
) -> None:
    market = Market(streams, f"P{next(_names)}", codes=150)
    market.beat()
    asked = msgpack.packb({"op": "subscribe", "codes": market.codes, "snapshot": False})
    urls = (streams_server.url, jobs_server.url)
    with (
        gateway(*urls, tmp_path, ws_queue_bytes="100000", ws_stall_s="180") as process,
        small_window(process.url, asked) as slow,
    ):
        while msgpack.unpackb(slow.recv(timeout=120))["type"] != "subscribed":
            pass
        for _ in range(400):
            market.publish(*market.codes)
        end = market.published()[-1]
        rows: list[Any] = []
        skipped: dict[str, Any] = {"ticks": 0}
        came: set[tuple[str, str]] = set()
        while end not in came:  # a conflated frame need not end with the newest
            told = msgpack.unpackb(slow.recv(timeout=120))
            rows += told.get("ticks", ()) if told["type"] == "live" else ()
            came = {(row[0], row[1]) for row in rows[-1000:]}
            if told["type"] == "skipped":
                assert told["ticks"] == sum(told["codes"].values())
                skipped["ticks"] += told["ticks"]
                assert OPEN_MS < told["from_ms"] <= told["to_ms"]
    assert skipped["ticks"] > 0
    assert len(rows) + skipped["ticks"] == 400 * len(market.codes)
