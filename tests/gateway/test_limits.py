"""What one caller may have: told with what remains, and no matter of anybody else's."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from access_rig import add_key, ask, closed_with, live, next_of
from gateway_bench import OPEN_MS, GatewayProcess, Producer, Worker, a_tick, bars, gateway
from test_gateway_market import problem_of
from test_live_protocol import small_window
from waiting import WITHIN_S, wait_for
from websockets.exceptions import InvalidStatus

from qmt_client import AsyncQMTClient, QMTClient
from qmt_gateway.limits import Bucket, Limits, limits_with, parse_limits
from qmt_gateway.settings import GatewaySettings
from qmt_protocol.errors import ConfigurationError, LimitExceeded
from qmt_protocol.live import CloseCode
from qmt_standalone.redis_server import RedisServer

STATUS = "/api/v1/status"
HISTORY = "/api/history?stock=000001.SZ&count=3"


class Keys:
    """A gateway, and keys that each have little of one thing."""

    process: GatewayProcess

    def __init__(self, folder: Path) -> None:
        self.plain = add_key(folder, "plain", "--scope", "download")
        self.slow = add_key(folder, "slow", "--limit", "requests_per_s=0.001")
        self.few_jobs = add_key(folder, "few-jobs", "--limit", "jobs_per_s=0.001")
        self.one_job = add_key(folder, "one-job", "--limit", "jobs_at_once=1")
        self.two = add_key(folder, "two", "--limit", "connections=2")
        self.codes = add_key(
            folder, "codes", "--limit", "codes_per_connection=3", "--limit", "codes=5"
        )
        self.rows = add_key(folder, "rows", "--limit", "rows=2")
        self.unread = add_key(folder, "unread", "--limit", "unread_bytes=100000")


@pytest.fixture(scope="module")
def keys(
    streams_server: RedisServer, jobs_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Keys]:
    folder = tmp_path_factory.mktemp("limits")
    made = Keys(folder)
    urls = (streams_server.url, jobs_server.url)
    with gateway(*urls, folder, ws_stall_s="180") as made.process:
        yield made


def remaining(answer: httpx.Response) -> dict[str, tuple[int, int]]:
    """Return of each policy what remains, and its quota."""
    told = {}
    for name, left in re.findall(r'"(\w+)";r=(\d+);t=\d+', answer.headers["ratelimit"]):
        quota = re.search(rf'"{name}";q=(\d+);w=\d+', answer.headers["ratelimit-policy"])
        assert quota is not None
        told[name] = (int(left), int(quota[1]))
    return told


def test_requests_beyond_the_rate_are_told_when_to_come_again(
    keys: Keys, producer: Producer
) -> None:
    first = ask(keys.process, STATUS, keys.slow)
    assert first.status_code == 200
    assert remaining(first) == {"requests": (0, 1)}
    second = ask(keys.process, STATUS, keys.slow)
    told = problem_of(second, 429, "limit-exceeded")
    assert told["data"]["limit"] == "requests_per_s"
    assert told["data"]["allowed"] == 0.001
    assert 0 < told["data"]["retry_after_s"] <= int(second.headers["retry-after"]) <= 1000
    assert remaining(second)["requests"][0] == 0
    plain = ask(keys.process, STATUS, keys.plain)
    assert plain.status_code == 200
    left, quota = remaining(plain)["requests"]
    assert quota == 400
    assert 0 < left <= quota


def test_a_snapshot_of_the_whole_market_each_second_is_nothing(
    keys: Keys, producer: Producer
) -> None:
    codes = [f"{600_000 + number}.SH" for number in range(5_500)]
    producer.publish(*((code, a_tick(10.0, 1, OPEN_MS)) for code in codes[::500]))
    asked = [",".join(codes[at : at + 500]) for at in range(0, 5_500, 500)]
    options: Any = {"base_url": keys.process.url, "headers": {"X-API-Key": keys.plain}}
    with httpx.Client(trust_env=False, timeout=WITHIN_S, **options) as client:
        for some in asked * 3:
            answer = client.get("/api/full_tick", params={"stocks": some})
            assert answer.status_code == 200
            left, quota = remaining(answer)["requests"]
            assert left > quota / 2


def test_jobs_have_a_rate_of_their_own(keys: Keys, worker: Worker) -> None:
    worker.answers["history"] = bars
    first = ask(keys.process, HISTORY, keys.few_jobs)
    assert first.status_code == 200
    assert remaining(first)["jobs"] == (0, 1)
    for method, path in (
        ("GET", HISTORY),
        ("POST", "/api/v1/jobs/history"),
        ("DELETE", "/api/v1/jobs/00ff"),
    ):
        answer = ask(keys.process, path, keys.few_jobs, method)
        assert problem_of(answer, 429, "limit-exceeded")["data"]["limit"] == "jobs_per_s"
        assert int(answer.headers["retry-after"]) > 0
    assert ask(keys.process, STATUS, keys.few_jobs).status_code == 200
    assert ask(keys.process, HISTORY, keys.plain).status_code == 200
    assert len(worker.asked) == 2


async def test_who_waits_for_a_job_may_not_wait_for_another(keys: Keys, worker: Worker) -> None:
    def never(params: dict[str, Any]) -> None:
        raise TimeoutError

    worker.answers["history"] = never
    headers = {"X-API-Key": keys.one_job}
    options: Any = {"timeout": WITHIN_S, "trust_env": False, "base_url": keys.process.url}
    async with httpx.AsyncClient(headers=headers, **options) as client:
        waiting = asyncio.ensure_future(client.get(HISTORY))
        await asyncio.to_thread(wait_for, lambda: worker.asked, "the job is there")
        told = problem_of(await client.get(HISTORY), 429, "limit-exceeded")
        assert told["data"]["limit"] == "jobs_at_once"
        waiting.cancel()
        await asyncio.to_thread(wait_for, lambda: worker.cancelled, "the job is given up")
        worker.answers["history"] = bars

    wait_for(lambda: ask(keys.process, HISTORY, keys.one_job).is_success, "it may ask again")


def test_connections_are_counted_whatever_they_are(keys: Keys, producer: Producer) -> None:
    with live(keys.process, keys.two) as one, live(keys.process, keys.two, "/ws/realtime") as two:
        next_of(one, "welcome")
        two.send('{"stocks": ["600519.SH"]}')
        with live(keys.process, keys.two) as third:
            code, reason = closed_with(third)
        assert code == CloseCode.LIMIT_EXCEEDED
        assert "two has 2 connections" in reason
        with (
            pytest.raises(InvalidStatus) as refused,
            live(keys.process, keys.two, "/ws/whole_quote"),
        ):
            pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["retry-after"] == "1"
        answer = ask(keys.process, STATUS, keys.two)
        assert problem_of(answer, 429, "limit-exceeded")["data"]["limit"] == "connections"
        assert ask(keys.process, STATUS, keys.plain).status_code == 200
    wait_for(lambda: ask(keys.process, STATUS, keys.two).is_success, "there is room again")


def test_the_client_is_told_that_it_has_too_many(keys: Keys, producer: Producer) -> None:
    producer.publish(("600519.SH", a_tick(10.0, 1, OPEN_MS)))
    with QMTClient(keys.process.url, api_key=keys.two) as client, ExitStack() as stack:

        def follow() -> None:
            next(stack.enter_context(closing(client.ticks("600519.SH", snapshot=True))))

        follow()  # with its HTTP connection that is two
        with pytest.raises(LimitExceeded, match="two has 2 connections"):
            follow()


def test_codes_are_counted_by_connection_and_by_key(keys: Keys, producer: Producer) -> None:
    with live(keys.process, keys.codes) as one, live(keys.process, keys.codes) as other:

        def subscribe(client: Any, *codes: str, **more: Any) -> None:
            client.send(json.dumps({"op": "subscribe", "id": "a", "codes": codes, **more}))

        subscribe(one, "600000.SH", "600001.SH", "600002.SH", "600003.SH")
        error = next_of(one, "error")
        assert error["id"] == "a"
        assert error["error"]["error"] == "limit-exceeded"
        assert error["error"]["data"] == {"limit": "codes_per_connection", "allowed": 3}
        subscribe(one, "600000.SH", "600001.SH", "600002.SH")
        assert next_of(one, "subscribed")["codes"] == 3
        subscribe(one, "600000.SH")  # it has that already
        assert next_of(one, "subscribed")["codes"] == 3
        subscribe(other, "600000.SH", "600001.SH", "600002.SH")
        assert next_of(other, "error")["error"]["data"] == {"limit": "codes", "allowed": 5}
        subscribe(other, markets=["SH", "SZ"])  # each counts as one
        next_of(other, "subscribed")
        one.send(json.dumps({"op": "unsubscribe", "codes": ["600000.SH"]}))
        next_of(one, "unsubscribed")
        subscribe(other, "000001.BJ")
        next_of(other, "subscribed")
    with live(keys.process, keys.codes, "/ws/realtime") as old:
        old.send(json.dumps({"stocks": ["600000.SH", "600001.SH", "600002.SH", "600003.SH"]}))
        code, reason = closed_with(old)
    assert code == CloseCode.LIMIT_EXCEEDED
    assert "codes_per_connection" in reason


def test_messages_beyond_the_rate_are_read_later_and_none_is_lost(
    keys: Keys, tmp_path: Path, streams_server: RedisServer, jobs_server: RedisServer
) -> None:
    key = add_key(tmp_path, "paced", "--limit", "requests_per_s=20")
    with (
        gateway(streams_server.url, jobs_server.url, tmp_path) as process,
        live(process, key) as client,
    ):
        for number in range(45):  # 40 at once, the others 0.25 s later
            client.send(json.dumps({"op": "unsubscribe", "id": f"{number}", "codes": ["1.SH"]}))
        answered = [next_of(client, "unsubscribed")["id"] for _ in range(45)]
    assert answered == [f"{number}" for number in range(45)]


def test_an_answer_has_no_more_rows_than_it_may(keys: Keys, worker: Worker) -> None:
    worker.answers["history"] = bars  # three rows of each code
    for path in (HISTORY, "/api/batch_history?stocks=000001.SZ,600519.SH"):
        told = problem_of(ask(keys.process, path, keys.rows), 429, "limit-exceeded")
        assert told["data"] == {"limit": "rows", "allowed": 2}
    assert ask(keys.process, HISTORY, keys.plain).status_code == 200
    with (
        QMTClient(keys.process.url, api_key=keys.rows) as client,
        pytest.raises(LimitExceeded, match="rows"),
    ):
        client.history("000001.SZ", count=3)


def test_stored_rows_are_counted_as_they_are_sent(keys: Keys, producer: Producer) -> None:
    producer.publish(*(("600519.SH", a_tick(10.0, n, OPEN_MS + n)) for n in range(5)))
    path = "/api/v1/stored/ticks?codes=600519.SH"
    assert len(ask(keys.process, path, keys.plain).json()["data"]) == 5
    problem_of(ask(keys.process, path, keys.rows), 429, "limit-exceeded")


def test_who_leaves_too_much_unread_is_ended(keys: Keys, producer: Producer) -> None:
    codes = [f"{600_000 + number}.SH" for number in range(500)]
    producer.publish(*((code, a_tick(10.0, 1, OPEN_MS)) for code in codes))
    producer.flood(codes, 200, OPEN_MS + 1)
    asked = msgspec.msgpack.encode({"op": "subscribe", "markets": ["SH"]})
    with live(keys.process, keys.plain) as other:
        next_of(other, "welcome")
        with small_window(keys.process.url, asked, keys.unread):
            producer.flood(codes, 200, OPEN_MS + 1_000)
            wait_for(lambda: "clients ended: too much unread" in keys.process.log(), "it is ended")
        other.ping().wait(WITHIN_S)


async def test_the_client_waits_where_it_asks_too_fast(
    tmp_path: Path, streams_server: RedisServer, jobs_server: RedisServer, producer: Producer
) -> None:
    key = add_key(tmp_path, "quick", "--limit", "requests_per_s=10")
    with gateway(streams_server.url, jobs_server.url, tmp_path) as process:
        async with AsyncQMTClient(process.url, api_key=key) as client:
            told = await asyncio.gather(*(client.status() for _ in range(30)))
    assert len(told) == 30


def test_what_an_address_has_is_set_for_all(
    tmp_path: Path, streams_server: RedisServer, jobs_server: RedisServer
) -> None:
    urls = (streams_server.url, jobs_server.url)
    with gateway(*urls, tmp_path, limits="requests_per_s=0.001, rows=5") as process:
        assert ask(process, STATUS).status_code == 200
        problem_of(ask(process, STATUS), 429, "limit-exceeded")
        problem_of(ask(process, "/openapi.json"), 429, "limit-exceeded")
        assert ask(process, "/healthz").status_code == 200  # who watches is not kept out
        # No other address is meant, whoever says so.
        forwarded = {"X-Forwarded-For": "10.0.0.1"}
        problem_of(ask(process, STATUS, headers=forwarded), 429, "limit-exceeded")


def test_who_tries_keys_is_slowed(
    tmp_path: Path, streams_server: RedisServer, jobs_server: RedisServer
) -> None:
    key = add_key(tmp_path, "right")
    urls = (streams_server.url, jobs_server.url)
    with gateway(*urls, tmp_path, limits="requests_per_s=1") as process:
        for _ in range(2):
            problem_of(ask(process, STATUS, "wrong"), 401, "access-denied")
        problem_of(ask(process, STATUS, "wrong"), 429, "limit-exceeded")
        assert ask(process, STATUS, key).status_code == 200


def test_a_bucket_gives_what_comes_back() -> None:
    bucket = Bucket(10.0, now=0.0)
    assert [bucket.take(0.0) for _ in range(20)] == [0.0] * 20
    assert bucket.take(0.0) == pytest.approx(0.1)
    assert bucket.left(0.0) == 0
    assert bucket.take(0.1) == 0.0
    assert bucket.take(0.1) > 0
    assert bucket.left(1.1) == 10
    assert bucket.full_in_s(1.1) == pytest.approx(1.0)
    assert bucket.left(1_000.0) == 20
    assert [bucket.owe(1_000.0) for _ in range(22)][19:] == pytest.approx([0.0, 0.1, 0.2])
    assert bucket.left(999.0) == 0  # a clock that goes back gives nothing
    free = Bucket(0.0, now=0.0)
    assert [free.take(0.0), free.owe(0.0)] == [0.0, 0.0]


@pytest.mark.parametrize("text", ["rows", "rows=", "rows=x", "rows=-1", "rows=inf", "row=1"])
def test_what_is_no_limit_does_not_start(text: str) -> None:
    with pytest.raises(ConfigurationError, match="row"):
        _ = GatewaySettings(bridge_limits=[text]).limits


def test_figures_of_a_key_stand_for_those_of_the_settings() -> None:
    settings = GatewaySettings(bridge_limits=["rows=5", "requests_per_s=2.5"]).limits
    assert (settings.rows, settings.requests_per_s, settings.connections) == (5, 2.5, 500)
    own = limits_with(parse_limits(["rows=0"]), settings)
    assert (own.rows, own.requests_per_s) == (0, 2.5)
    assert Limits().codes_per_connection >= 3 * 5_500  # the whole market, ticks and two periods
