"""Who may enter: keys, their forms, and what an answer or a log may tell of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import httpx
import pytest
from gateway_bench import GatewayProcess, Producer, gateway
from test_gateway_market import problem_of
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from qmt_standalone.redis_server import RedisServer

FIRST, SECOND, WRONG = "first-key-of-two", "second-key", "a-wrong-key"
GUARDED = ["/api/full_tick?stocks=600519.SH", "/api/v1/status", "/api/v1/latest?codes=600519.SH"]


@pytest.fixture(scope="module")
def locked(
    streams_server: RedisServer,
    jobs_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    """A gateway with two keys, one of them given as its hash, reachable from outside."""
    hashed = hashlib.sha256(SECOND.encode()).hexdigest()
    with gateway(
        streams_server.url,
        jobs_server.url,
        tmp_path_factory.mktemp("locked"),
        "--host",
        "0.0.0.0",
        api_keys=f" {FIRST}, sha256:{hashed} ",
    ) as process:
        process.url = process.url.replace("0.0.0.0", "127.0.0.1")
        yield process


def ask(process: GatewayProcess, path: str, headers: dict[str, str]) -> httpx.Response:
    raw = {name: value.encode() for name, value in headers.items()}
    return httpx.get(process.url + path, headers=raw, trust_env=False)


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": WRONG},
        {"X-API-Key": FIRST + "x"},
        {"Authorization": f"Bearer {WRONG}"},
        {"Authorization": f"Basic {FIRST}"},
        {"X-API-Key": hashlib.sha256(SECOND.encode()).hexdigest()},
    ],
)
def test_without_a_right_key_nothing_is_served(
    locked: GatewayProcess, path: str, headers: dict[str, str]
) -> None:
    response = ask(locked, path, headers)
    problem_of(response, 401, "access-denied")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert WRONG not in response.text
    assert FIRST not in response.text
    # A key in the query of a REST call would land in logs of proxies: it opens nothing.
    joined = f"{path}{'&' if '?' in path else '?'}api_key={FIRST}"
    assert ask(locked, joined, headers).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": FIRST},
        {"Authorization": f"Bearer {FIRST}"},
        {"authorization": f"bearer {FIRST}"},
    ],
)
def test_a_right_key_opens(
    locked: GatewayProcess, producer: Producer, headers: dict[str, str]
) -> None:
    response = ask(locked, "/api/v1/status", headers)
    assert response.status_code == 200
    roles = [one["role"] for one in response.json()["processes"]]
    assert roles.count("producer") == len(set(roles) - {"gateway"}) == 1


def test_a_key_given_as_hash_opens(locked: GatewayProcess) -> None:
    assert ask(locked, "/api/v1/status", {"X-API-Key": SECOND}).status_code == 200


def test_pages_and_health_need_no_key(locked: GatewayProcess) -> None:
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        response = ask(locked, path, {})
        assert response.status_code == 200
        assert FIRST not in response.text


def test_post_is_guarded_before_its_body_is_looked_at(locked: GatewayProcess) -> None:
    response = httpx.post(f"{locked.url}/api/download", content=b"{", trust_env=False)
    problem_of(response, 401, "access-denied")


@pytest.mark.parametrize("wrong", ["", "?api_key=", f"?api_key={WRONG}"])
def test_a_websocket_without_key_is_refused(locked: GatewayProcess, wrong: str) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(locked.ws_url + wrong, proxy=None):
        pass
    assert refused.value.response.status_code == 401
    assert b"urn:qmt:access-denied" in refused.value.response.body


def test_a_websocket_takes_the_key_in_all_three_ways(
    locked: GatewayProcess, producer: Producer
) -> None:
    ways: list[tuple[str, dict[str, str]]] = [
        ("", {"X-API-Key": FIRST}),
        ("", {"Authorization": f"Bearer {FIRST}"}),
        (f"?api_key={FIRST}", {}),
    ]
    for query, headers in ways:
        with connect(locked.ws_url + query, additional_headers=headers, proxy=None) as socket:
            assert socket.response is not None
            assert socket.response.headers["x-qmt-source"] == "SIMULATED"
    assert FIRST not in locked.log()
    assert WRONG not in locked.log()


def test_anonymous_by_name(
    streams_server: RedisServer, jobs_server: RedisServer, workdir: object
) -> None:
    with gateway(
        streams_server.url,
        jobs_server.url,
        workdir,
        "--host",
        "0.0.0.0",
        allow_anonymous="true",
        api_keys=FIRST,
    ) as process:
        process.url = process.url.replace("0.0.0.0", "127.0.0.1")
        assert ask(process, "/api/v1/status", {}).status_code == 200
        assert ask(process, "/api/v1/status", {"X-API-Key": FIRST}).status_code == 200
        # Who sends a key means it.
        assert ask(process, "/api/v1/status", {"X-API-Key": WRONG}).status_code == 401
