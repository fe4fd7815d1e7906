"""A gateway without keys, asked as a browser asks: a page of another site gets nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from access_rig import add_key, address_of, ask, live
from gateway_bench import OPEN_MS, GatewayProcess, Producer, Worker, a_tick, gateway
from starlette.datastructures import Headers
from test_gateway_market import problem_of
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from qmt_gateway.browsers import Browsers
from qmt_gateway.settings import GatewaySettings
from qmt_protocol.errors import ConfigurationError, OriginRefused
from qmt_standalone.redis_server import RedisServer

EVIL = "http://evil.example"
DESK = "https://desk.example"
TICK = "/api/v1/latest?codes=600519.SH"
SOCKETS = ("/ws/v1", "/ws/realtime", "/ws/whole_quote")


@pytest.fixture(scope="module")
def at_desk(
    streams_server: RedisServer, jobs_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """One without keys that a name and a page are set for."""
    folder = tmp_path_factory.mktemp("desk")
    urls = (streams_server.url, jobs_server.url)
    with gateway(*urls, folder, hosts="nas.local, other", origins=DESK) as process:
        yield process


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""]
)
@pytest.mark.parametrize("path", [TICK, "/docs", "/healthz", "/api/history?stock=600519.SH"])
def test_a_name_that_leads_here_by_dns_gets_nothing(
    gateway_process: GatewayProcess, worker: Worker, host: str, path: str
) -> None:
    told = problem_of(ask(gateway_process, path, headers={"Host": host}), 421, "host-refused")
    assert "QMT_BRIDGE_HOSTS" in told["hint"]
    assert "127.0.0.1" in told["hint"]
    assert worker.asked == []


@pytest.mark.parametrize("path", SOCKETS)
def test_a_websocket_by_a_foreign_name_is_not_opened(
    gateway_process: GatewayProcess, path: str
) -> None:
    here = socket.create_connection(address_of(gateway_process))
    with here, pytest.raises(InvalidStatus) as refused:
        connect(f"ws://evil.example{path}", sock=here, proxy=None)
    assert refused.value.response.status_code == 421


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:80", "[::1]:8000"]
)
def test_names_of_this_machine_are_its_own(gateway_process: GatewayProcess, host: str) -> None:
    assert ask(gateway_process, TICK, headers={"Host": host}).status_code == 200


def test_names_that_are_set_are_its_own(at_desk: GatewayProcess) -> None:
    for host in ("nas.local", "NAS.local:8000", "other", "localhost"):
        assert ask(at_desk, TICK, headers={"Host": host}).status_code == 200
    problem_of(ask(at_desk, TICK, headers={"Host": "nas.local.evil"}), 421, "host-refused")


@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:1", "file://"])
def test_a_page_of_another_site_opens_no_websocket(
    gateway_process: GatewayProcess, path: str, origin: str
) -> None:
    with pytest.raises(InvalidStatus) as refused, live(gateway_process, path=path, Origin=origin):
        pass
    assert refused.value.response.status_code == 403
    assert b"urn:qmt:origin-refused" in refused.value.response.body


def test_a_program_and_the_gateways_own_page_are_served(
    gateway_process: GatewayProcess, worker: Worker, producer: Producer
) -> None:
    worker.answers["download"] = lambda params: {"000001.SZ": {"rows": 1}}
    producer.publish(("600519.SH", a_tick(10.0, 1, OPEN_MS)))
    own = gateway_process.url
    for headers in ({}, {"Origin": own}, {"Origin": own, "Sec-Fetch-Site": "same-origin"}):
        with live(gateway_process, **headers) as client:
            assert "welcome" in client.recv(timeout=60)
        for method, path, body in (
            ("GET", TICK, None),
            ("POST", "/api/download", {"stock": "000001.SZ"}),
        ):
            answer = ask(gateway_process, path, "", method, json=body, headers=headers)
            assert answer.status_code == 200, (headers, answer.text)
            assert "access-control-allow-origin" not in answer.headers
    # The address bar.
    assert ask(gateway_process, TICK, headers={"Sec-Fetch-Site": "none"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},  # a picture or a link
        {"Sec-Fetch-Site": "same-site"},  # another port of this machine
    ],
)
def test_a_page_of_another_site_has_no_job_done(
    gateway_process: GatewayProcess, worker: Worker, headers: dict[str, str]
) -> None:
    for method, path in (
        ("POST", "/api/download"),
        ("POST", "/api/v1/jobs/download"),
        ("DELETE", "/api/v1/jobs/00ff"),
        ("GET", "/api/history?stock=000001.SZ&download=auto"),
        ("GET", TICK),
    ):
        answer = ask(gateway_process, path, "", method, headers=headers)
        told = problem_of(answer, 403, "origin-refused")
        assert "QMT_BRIDGE_ORIGINS" in told["hint"]
        assert "access-control-allow-origin" not in answer.headers
    assert worker.asked == []
    # A link to its pages does no harm.
    assert ask(gateway_process, "/docs", headers={"Sec-Fetch-Site": "cross-site"}).is_success


def preflight(process: GatewayProcess, origin: str) -> dict[str, str]:
    asks = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    asks["Access-Control-Request-Headers"] = "x-api-key"
    answer = ask(process, TICK, "", "OPTIONS", headers=asks)
    return {name: value for name, value in answer.headers.items() if name.startswith("access-")}


def test_a_page_that_is_named_may_ask_and_read(
    at_desk: GatewayProcess, gateway_process: GatewayProcess, worker: Worker
) -> None:
    headers = {"Origin": DESK, "Sec-Fetch-Site": "cross-site"}
    answer = ask(at_desk, TICK, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == DESK
    assert "ratelimit" in answer.headers["access-control-expose-headers"].lower()
    with live(at_desk, Origin=DESK) as client:
        assert "welcome" in client.recv(timeout=60)
    allowed = preflight(at_desk, DESK)
    assert allowed["access-control-allow-origin"] == DESK
    assert "x-api-key" in allowed["access-control-allow-headers"].lower()
    for process, origin in ((at_desk, EVIL), (gateway_process, DESK)):
        assert "access-control-allow-origin" not in preflight(process, origin)
    problem_of(ask(at_desk, TICK, headers={"Origin": EVIL}), 403, "origin-refused")


def test_a_key_is_proof_enough(
    streams_server: RedisServer, jobs_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("keyed")
    key = add_key(folder, "page")
    with gateway(streams_server.url, jobs_server.url, folder) as process:
        headers = {"Host": "nas.local:8000", "Origin": EVIL, "Sec-Fetch-Site": "cross-site"}
        assert ask(process, TICK, key, headers=headers).status_code == 200
        assert ask(process, TICK, headers=headers).status_code == 401
        with live(process, path=f"/ws/v1?api_key={key}", Origin=EVIL) as client:
            assert "welcome" in client.recv(timeout=60)


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://127.0.0.1", "127.0.0.1:80", True),
        ("https://nas.local", "nas.local", True),  # TLS ends before the gateway
        ("HTTP://LocalHost:8000", "localhost:8000", True),
        ("http://127.0.0.1:8001", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000@evil.example", "127.0.0.1:8000", False),
        ("http://127.0.0.1:x", "127.0.0.1:8000", False),
        ("ftp://127.0.0.1:8000", "127.0.0.1:8000", False),
        ("", "127.0.0.1:8000", False),
    ],
)
def test_which_origin_is_its_own(origin: str, host: str, own: bool) -> None:
    browsers = Browsers("127.0.0.1", [], [])
    headers = Headers({"origin": origin, "host": host})
    if own:
        browsers.check_origin(headers)
    else:
        with pytest.raises(OriginRefused):
            browsers.check_origin(headers)


@pytest.mark.parametrize("origin", ["*", "null", "desk.example", "https://desk.example/", "ws://x"])
def test_what_is_no_origin_does_not_start(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="QMT_BRIDGE_ORIGINS"):
        _ = GatewaySettings(bridge_origins=[origin]).browsers


def test_an_address_is_what_it_says_where_others_may_call() -> None:
    open_to_all = Browsers("0.0.0.0", [], [])
    open_to_all.check_host(Headers({"host": "192.168.1.100:8000"}))
    here = Browsers("127.0.0.1", [], [])
    for browsers, host in ((open_to_all, "evil.example"), (here, "192.168.1.100:8000")):
        with pytest.raises(Exception, match="does not go by"):
            browsers.check_host(Headers({"host": host}))
    Browsers("127.0.0.1", ["*"], []).check_host(Headers({"host": "evil.example"}))
