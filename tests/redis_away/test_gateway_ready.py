"""`/readyz`: 200 while both Redis servers serve the gateway, else which one does not, and why."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from away_rig import Servers, running_gateway
from ill_servers import (
    change_password,
    empty_disk,
    fill,
    fill_disk,
    start_loading,
    wait_for,
)

from qmt_standalone.redis_server import RedisServer


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    both = Servers(tmp_path)
    both.start("gone", "both")
    yield both
    both.kill()


class Gateway:
    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str = "/readyz") -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=10)

    def says(self, server: str) -> str:
        """Return why a server is not ready; the other one is."""
        answer = self.ask()
        told: dict[str, Any] = answer.json()
        assert answer.status_code == (200 if told["ready"] else 503)
        others = {"streams", "jobs"} - {server}
        assert all(told[name] == {"ready": True, "reason": ""} for name in others)
        assert told[server]["ready"] == (not told[server]["reason"]) == told["ready"]
        for secret in ("127.0.0.1", "default", "secret-of", "Traceback"):
            assert secret not in answer.text
        return str(told[server]["reason"])


@pytest.fixture
def gateway(servers: Servers, tmp_path: Path) -> Iterator[Gateway]:
    with running_gateway(servers, tmp_path) as url:
        yield Gateway(url)


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    process = server.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("name", ["streams", "jobs"])
def test_each_way_of_not_serving_has_its_reason(
    gateway: Gateway, servers: Servers, name: str, tmp_path: Path
) -> None:
    server: RedisServer = getattr(servers, name)
    wait_for(lambda: gateway.says(name) == "")
    with stopped(server):
        wait_for(lambda: gateway.says(name) == "no answer within 2 s")
        began = time.monotonic()
        assert gateway.ask("/healthz").status_code == 200
        assert time.monotonic() - began < 8  # not the ten seconds of other questions
    wait_for(lambda: gateway.says(name) == "")
    with redis.Redis.from_url(server.url) as admin:
        fill_disk(admin, tmp_path / "full")
        # A server with a full disk is read from, and takes no jobs.
        full = {"streams": "", "jobs": "it refuses: MISCONF"}[name]
        wait_for(lambda: gateway.says(name) == full)
        empty_disk(admin, server.directory)
        wait_for(lambda: gateway.says(name) == "")
        change_password(admin, "another")
    wait_for(
        lambda: gateway.says(name) == "it refuses the user, the password or a command",
    )
    assert gateway.ask("/healthz").status_code == 200
    server.kill()
    wait_for(lambda: gateway.says(name) == "it cannot be reached")
    server.start()
    wait_for(lambda: gateway.says(name) == "")


def test_a_server_that_still_loads(gateway: Gateway, servers: Servers) -> None:
    fill(servers.streams)
    servers.streams.kill()
    loading: subprocess.Popen[bytes] = start_loading(servers.streams)
    try:
        wait_for(lambda: gateway.says("streams") == "it loads its data")
    finally:
        loading.kill()
        loading.wait()
    servers.streams.start()
    wait_for(lambda: gateway.says("streams") == "")
