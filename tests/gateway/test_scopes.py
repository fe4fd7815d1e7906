"""What a key may do: the table of scopes, held against what is served and what happens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from access_rig import add_key, answer_to, ask, live, next_of
from fastapi import APIRouter
from gateway_bench import GatewayProcess, Worker, bars, gateway
from test_gateway_market import problem_of
from waiting import wait_for
from websockets.exceptions import InvalidStatus

from qmt_client import QMTClient
from qmt_gateway import app as gateway_app
from qmt_gateway.app import create_app
from qmt_gateway.limits import Limits
from qmt_gateway.scopes import ROUTES, WEBSOCKET, rule_of
from qmt_gateway.settings import GatewaySettings
from qmt_protocol.errors import HistoryMissing, ScopeMissing
from qmt_standalone.redis_server import RedisServer

PUBLIC = {"/healthz", "/readyz"}
DOWNLOADS = {("POST", "/api/download"), ("POST", "/api/v1/jobs/download")}
MISSING = HistoryMissing("The cache lacks 7 rows.", hint="qmt download", codes=["000001.SZ"])


class Keys:
    """A gateway that asks for keys, and a key of each scope."""

    process: GatewayProcess

    def __init__(self, folder: Path) -> None:
        self.read = add_key(folder, "reader", "--scope", "read")
        self.download = add_key(folder, "downloader", "--scope", "download")
        self.admin = add_key(folder, "admin", "--scope", "admin")


@pytest.fixture(scope="module")
def keys(
    streams_server: RedisServer,
    jobs_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Keys]:
    folder = tmp_path_factory.mktemp("scopes")
    made = Keys(folder)
    urls = (streams_server.url, jobs_server.url)
    with gateway(*urls, folder, auto_download_rows="500") as made.process:
        yield made


def test_every_route_and_websocket_has_its_scope(keys: Keys) -> None:
    document = ask(keys.process, "/openapi.json").json()
    told = {
        (method.upper(), path): operation.get("x-scope")
        for path, of_path in document["paths"].items()
        for method, operation in of_path.items()
    }
    assert len(told) >= 17
    for (method, path), scope in told.items():
        assert ROUTES[method, path].scope == scope
        assert (scope is None) == (path in PUBLIC), path
    for method, path in DOWNLOADS:
        assert rule_of(method, path).scope == "download"
    sockets = {path for kind, path in ROUTES if kind == WEBSOCKET}
    assert sockets == {"/ws/v1", "/ws/realtime", "/ws/whole_quote"}
    for path in sockets:
        with live(keys.process, keys.read, path):
            pass


@pytest.mark.parametrize("kind", ["get", "websocket"])
def test_a_route_without_a_scope_does_not_start(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    router = APIRouter()

    @getattr(router, kind)("/api/v1/forgotten")
    async def forgotten() -> None: ...

    monkeypatch.setattr(gateway_app, "_ROUTERS", (*gateway_app._ROUTERS, router))
    with pytest.raises(RuntimeError, match="/api/v1/forgotten"):
        create_app(GatewaySettings())


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/download"), ("POST", "/api/v1/jobs/download")]
)
def test_a_download_takes_its_scope_and_the_body_is_not_read(
    keys: Keys, worker: Worker, method: str, path: str
) -> None:
    worker.answers["download"] = lambda params: {"000001.SZ": {"rows": 1}}
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
    # Nothing of the body is sent: an answer comes only from who does not wait for it.
    status, told = answer_to(keys.process, f"{head}X-API-Key: {keys.read}\r\n\r\n".encode())
    assert (status, told["error"]) == (403, "scope-missing")
    assert told["data"]["scope"] == "download"
    assert "reader lacks the scope download" in told["message"]
    assert "--scope download" in told["hint"]
    status, told = answer_to(keys.process, f"{head}X-API-Key: wrong\r\n\r\n".encode())
    assert (status, told["error"]) == (401, "access-denied")
    status, told = answer_to(keys.process, f"{head}\r\n".encode())
    assert (status, told["error"]) == (401, "access-denied")
    for key in (keys.download, keys.admin):
        body = {"stock": "000001.SZ"} if path == "/api/download" else {"codes": ["000001.SZ"]}
        assert ask(keys.process, path, key, method, json=body).is_success
    wait_for(lambda: len(worker.asked) == 2, "both jobs are taken")


def test_who_may_read_has_history_from_the_cache_alone(keys: Keys, worker: Worker) -> None:
    worker.answers["history"] = bars
    path = "/api/history?stock=000001.SZ&count=3&download=auto"
    assert len(ask(keys.process, path, keys.read).json()["data"]) == 3
    assert ask(keys.process, path, keys.download).status_code == 200
    body = {"codes": ["000001.SZ"], "download": "auto"}
    assert ask(keys.process, "/api/v1/jobs/history", keys.read, "POST", json=body).is_success
    asked = [params["download"] for _, params in worker.asked]
    assert asked[:2] == ["never", "auto"]

    def lacks(params: dict[str, Any]) -> None:
        raise MISSING

    worker.answers["history"] = lacks
    told = problem_of(ask(keys.process, path, keys.read), 403, "scope-missing")
    assert told["data"]["scope"] == "download"
    assert told["data"]["codes"] == ["000001.SZ"]
    problem_of(ask(keys.process, path, keys.download), 409, "history-missing")
    with (
        QMTClient(keys.process.url, api_key=keys.read) as client,
        pytest.raises(ScopeMissing, match="download"),
    ):
        client.history("000001.SZ")


@pytest.mark.parametrize("asked", [501, 10**9])
def test_nobody_has_more_fetched_than_the_operator_allows(
    keys: Keys, worker: Worker, asked: int
) -> None:
    worker.answers["history"] = bars
    path = "/api/v1/jobs/history"
    body = {"codes": ["000001.SZ"], "auto_download_rows": asked}
    told = problem_of(
        ask(keys.process, path, keys.admin, "POST", json=body), 422, "invalid-request"
    )
    assert told["data"] == {"field": "auto_download_rows", "limit": 500}
    assert "500" in told["message"]
    assert "QMT_BRIDGE_AUTO_DOWNLOAD_ROWS" in told["hint"]
    assert worker.asked == []
    with QMTClient(keys.process.url, api_key=keys.admin) as client:
        assert len(client.history("000001.SZ", count=3)) == 3
    assert ask(keys.process, "/api/history?stock=000001.SZ", keys.admin).status_code == 200
    assert [params["auto_download_rows"] for _, params in worker.asked] == [500, 500]


def test_a_websocket_and_a_page_go_by_the_same_keys(keys: Keys) -> None:
    for path in ("/ws/realtime", "/ws/whole_quote"):
        with pytest.raises(InvalidStatus) as refused, live(keys.process, "wrong", path):
            pass
        assert refused.value.response.status_code == 401
    with live(keys.process, keys.read) as client:
        assert next_of(client, "welcome")["version"] == 1
    for path in ("/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
        assert ask(keys.process, path).status_code == 200, path
    # What there is not is told to who has a key.
    assert ask(keys.process, "/api/v1/nothing").status_code == 401
    assert ask(keys.process, "/api/v1/nothing", keys.read).status_code == 404


DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_pages_say_so() -> None:
    """What docs/gateway.md and docs/security.md tell of scopes and limits is how it is."""
    chapter = (DOCS / "gateway.md").read_text("utf-8").split("## Routes")[1].split("\n## ")[0]
    row = re.compile(r"^\| `(GET|POST|DELETE) ([^?` ]+)[^|]*\|[^|]*\|[^|]*\| ?`?(\w*).*\|$", re.M)
    told = {(method, path): scope or None for method, path, scope in row.findall(chapter)}
    assert len(told) >= 17
    assert told == {
        name: rule.scope
        for name, rule in ROUTES.items()
        if name in told or (rule.scope and name[0] != WEBSOCKET and name not in DOWNLOADS)
    }
    chapter = (DOCS / "security.md").read_text("utf-8").split("## Limits")[1].split("\n## ")[0]
    figures = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", chapter, re.M))
    assert figures == {name: f"{getattr(Limits(), name):.0f}" for name in Limits.__struct_fields__}
