"""A gateway and a client beside every document that may lie in Redis, each written by its role."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import redis
from content import Content
from docker_servers import Connect, start_server
from documents_contents import CODE, CONTENTS, GOOD, JOB, KEYS, WANT
from gateway_bench import GatewayProcess, gateway
from live_rig import Market
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from qmt_protocol.errors import CodecError, QMTError
from qmt_protocol.live import JSON_SUBPROTOCOL
from qmt_reading.redis_transport import RedisTransport

MAY_GROW_KB: Final = 160_000
"""A gateway's peak beyond what it takes when it serves; one content alone has 40 MB."""
LEFT_OUT: Final = {"heartbeat-from-tomorrow", "heartbeat-from-the-end-of-time", "heartbeat-empty"}
"""No process of the future is told of, nor one that says nothing: there is nothing to be named."""
LIVE: Final = ("feed-", "event-", "refusal-")


class Rig:
    """The image's two servers, a gateway with its user's rights, and who asks both ways."""

    def __init__(self, servers: dict[str, Connect], stack: ExitStack, folder: Any) -> None:
        self._connect = servers
        self._stack = stack
        self._roles: dict[tuple[str, str], redis.Redis] = {}
        self.urls = {name: self._url(name, "client") for name in servers}
        self.gateway: GatewayProcess = stack.enter_context(
            gateway(self._url("streams", "gateway"), self._url("jobs", "gateway"), folder)
        )
        self.http = stack.enter_context(
            httpx.Client(base_url=self.gateway.url, timeout=60, trust_env=False)
        )
        self.begin()
        self.ask("/api/v1/status")
        self.peak_at_start_kb = self.peak_kb()

    def _url(self, server: str, role: str) -> str:
        port = self.by(server, "admin").connection_pool.connection_kwargs["port"]
        return f"redis://{role}:secret-of-{role}@127.0.0.1:{port}/0"

    def by(self, server: str, role: str) -> redis.Redis:
        """Return a connection of a role."""
        if (server, role) not in self._roles:
            made = self._connect[server](role)
            self._roles[server, role] = self._stack.enter_context(made)
        return self._roles[server, role]

    def begin(self) -> Market:
        """Empty both servers and publish what is good."""
        for server in self._connect:
            self.by(server, "admin").flushall()
        market = Market(self.by("streams", "admin"), "SH")
        market.beat()
        market.publish(CODE, GOOD)
        return market

    def peak_kb(self) -> int:
        """Return the most memory that the gateway ever had, as the kernel says."""
        status = Path(f"/proc/{self.gateway.process.pid}/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0])

    def write(self, content: Content) -> None:
        content.write(self.by(content.server, content.role))

    def ask(self, path: str) -> httpx.Response:
        response = self.http.get(path)
        assert response.status_code != 500, (path, response.text[:500], self.gateway.log()[-2000:])
        return response

    def by_redis(self, call: Callable[[RedisTransport], Awaitable[Any]]) -> Any:
        """Return what the client has over Redis, or its error."""

        async def called() -> Any:
            transport = RedisTransport(self.urls["streams"], jobs_url=self.urls["jobs"])
            try:
                return await call(transport)
            except QMTError as error:
                return error
            finally:
                await transport.close()

        return asyncio.run(called())


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with ExitStack() as stack:
        servers = {}
        for name in ("streams", "jobs"):
            process, servers[name] = start_server(
                name,
                tmp_path_factory.mktemp("poison") / name,
                QMT_ADMIN_PASSWORD="secret-of-admin",
                QMT_REDIS_MEMORY="256mb",
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield Rig(servers, stack, tmp_path_factory.mktemp("gateway"))


def of(*kinds: str) -> list[Content]:
    return [one for one in CONTENTS if one.name.startswith(kinds)]


def name_of(content: Content) -> str:
    return content.name


def test_there_are_many_of_each_kind() -> None:
    assert len({one.name for one in CONTENTS}) == len(CONTENTS) >= 100


@pytest.mark.parametrize("content", of("heartbeat-"), ids=name_of)
def test_a_heartbeat_that_cannot_be_read_hides_no_other(rig: Rig, content: Content) -> None:
    rig.begin()
    rig.write(content)
    assert rig.ask("/healthz").status_code == 200
    told = rig.ask("/api/v1/status").json()
    others = [one for one in told["processes"] if one["role"] != "gateway"]
    assert [one["host"] for one in others] == ["SH"]
    by_redis = rig.by_redis(lambda transport: transport.status())
    beats = [one.beat for one in by_redis.processes if one.beat.role != "gateway"]
    assert [one.host for one in beats] == ["SH"]
    assert rig.ask(f"/api/full_tick?stocks={GOOD}").status_code == 200
    if content.name not in LEFT_OUT:
        assert told["unreadable"][0]["reason"]
        assert told["unreadable"] == [
            {"member": one.member, "reason": one.reason} for one in by_redis.unreadable
        ]
        assert len(told["unreadable"]) <= 52  # and how many more, and that there are too many


@pytest.mark.parametrize("content", of("latest-"), ids=name_of)
def test_a_tick_that_cannot_be_read_is_left_out_and_named(rig: Rig, content: Content) -> None:
    rig.begin()
    rig.write(content)
    told = rig.ask("/api/v1/latest?markets=SH").json()
    assert GOOD in told["ticks"]
    assert rig.ask(f"/api/full_tick?stocks={GOOD}").json()["data"].keys() == {GOOD}
    by_redis = rig.by_redis(lambda transport: transport.latest(None, ["SH"]))
    assert GOOD in by_redis
    assert by_redis.keys() == told["ticks"].keys()
    assert by_redis.unreadable == told["unreadable"] != {}
    if CODE not in told["ticks"]:
        assert CODE in told["unreadable"]
        answer = rig.ask(f"/api/full_tick?stocks={CODE}")
        assert answer.status_code == 502
        assert CODE in answer.json()["detail"]
        both = rig.ask(f"/api/full_tick?stocks={CODE},{GOOD}").json()
        assert both["meta"]["unreadable"].keys() == {CODE}


@pytest.mark.parametrize("content", of("stream-"), ids=name_of)
def test_a_stored_tick_that_cannot_be_read_concerns_its_code(rig: Rig, content: Content) -> None:
    rig.begin()
    rig.by("streams", "admin").delete(KEYS.tick(CODE))
    rig.write(content)
    span = "start=2025-11-21&end=2026-01-05"
    answer = rig.ask(f"/api/v1/stored/ticks?codes={CODE}&{span}")
    assert answer.status_code in (200, 502)
    if answer.status_code != 200:
        assert CODE in answer.json()["detail"]
    good = rig.ask(f"/api/v1/stored/ticks?codes={GOOD}&{span}")
    assert [one["code"] for one in good.json()["data"]] == [GOOD]


@pytest.mark.parametrize("content", of("market-", "beside-"), ids=name_of)
def test_what_stands_beside_a_market_concerns_that_market(rig: Rig, content: Content) -> None:
    rig.begin()
    Market(rig.by("streams", "admin"), "SZ").publish("600000.SZ")
    rig.write(content)
    assert rig.ask("/healthz").status_code == 200
    assert rig.ask("/api/v1/status").status_code == 200
    assert rig.ask("/api/full_tick?stocks=600000.SZ").status_code == 200
    tick = rig.ask(f"/api/full_tick?stocks={GOOD}")
    assert tick.status_code == 200 or "SH" in tick.json()["detail"]
    with connect(
        f"ws{rig.gateway.url[4:]}/ws/v1", proxy=None, subprotocols=[Subprotocol(JSON_SUBPROTOCOL)]
    ) as client:
        client.send(json.dumps({"op": "subscribe", "codes": ["600000.SZ", GOOD]}))
        answer = _answer(client)
    assert answer == "live" or "SH" in answer, answer


@pytest.mark.parametrize("content", of("progress-", "failure-", "manifest-", "chunk-"), ids=name_of)
def test_what_a_worker_leaves_concerns_its_job(rig: Rig, content: Content) -> None:
    rig.begin()
    rig.write(content)
    paths = {f"/api/v1/jobs/{JOB}?wait_s=0": "progress", f"/api/v1/jobs/{JOB}/result": "result"}
    answers = {name: rig.ask(path) for path, name in paths.items()}
    assert rig.ask(f"/api/full_tick?stocks={GOOD}").status_code == 200
    kind = "progress" if content.name.startswith(("progress-", "failure-")) else "result"
    by_redis = rig.by_redis(_progress if kind == "progress" else _result)
    if content.name.startswith("failure-"):
        assert answers[kind].json()["state"] == "failed"
        assert answers[kind].json()["error"]["error"]
    else:
        assert answers[kind].status_code == 502, answers[kind].text[:300]
        assert JOB in answers[kind].json()["detail"]
        assert isinstance(by_redis, CodecError)
        assert JOB in str(by_redis)


async def _progress(transport: RedisTransport) -> Any:
    return await transport.progress(JOB)


async def _result(transport: RedisTransport) -> Any:
    manifest = await transport.manifest(JOB)
    return [table async for table in transport.tables(JOB, manifest)]


def test_a_live_connection_goes_on_past_all_of_them(rig: Rig) -> None:
    market = rig.begin()
    url = f"ws{rig.gateway.url[4:]}/ws/v1"
    with connect(url, proxy=None, subprotocols=[Subprotocol(JSON_SUBPROTOCOL)]) as client:
        period, _, code = WANT.partition("|")
        for wanted in ({"codes": [code], "period": period}, {"codes": [GOOD, CODE]}):
            client.send(json.dumps({"op": "subscribe", **wanted}))
            _until(client, lambda told: told["type"] == "subscribed")
        for content in of(*LIVE):
            rig.write(content)
            market.publish(GOOD)
            seen = _until(client, lambda told: _has(told, GOOD))
            gaps = [one for one in seen if one["type"] == "gap"]
            assert not content.name.startswith("feed-") or gaps, (content.name, seen)
            assert all(one["reason"] for one in gaps)
    assert rig.ask("/healthz").status_code == 200


def _answer(client: Any) -> str:
    """Return "live", or why a subscription is refused."""
    try:
        told = _until(client, lambda told: told["type"] in ("subscribed", "error"))[-1]
    except ConnectionClosed as error:
        if error.rcvd is None or error.rcvd.code != 4503:
            raise
        return error.rcvd.reason
    return "live" if told["type"] == "subscribed" else str(told["error"]["message"])


def _has(told: dict[str, Any], code: str) -> bool:
    return told.get("kind") == "live" and any(one[0] == code for one in told.get("ticks", ()))


def _until(client: Any, found: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    seen = []
    while True:
        seen.append(json.loads(client.recv(timeout=120)))
        if found(seen[-1]):
            return seen


def test_the_gateway_is_the_same_and_took_no_room(rig: Rig) -> None:
    assert rig.gateway.process.poll() is None
    assert "Traceback" not in rig.gateway.log()
    assert rig.peak_kb() - rig.peak_at_start_kb < MAY_GROW_KB
