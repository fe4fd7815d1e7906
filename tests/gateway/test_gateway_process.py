"""The process: its settings, refusals to start, and ends that leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from gateway_bench import gateway
from waiting import wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from qmt_gateway.auth import parse_api_keys
from qmt_gateway.settings import GatewaySettings
from qmt_protocol.errors import ConfigurationError
from qmt_standalone.redis_server import RedisServer, free_port


def start(workdir: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QMT_")}
    return subprocess.run(
        [sys.executable, "-m", "qmt_gateway", *flags],
        env={**clean, **env},
        cwd=workdir,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_other_than_loopback_without_key_does_not_start(workdir: Path) -> None:
    done = start(workdir, "--host", "0.0.0.0")
    assert done.returncode == 2
    for what in ("QMT_BRIDGE_API_KEYS", "QMT_BRIDGE_ALLOW_ANONYMOUS=true", "127.0.0.1", "0.0.0.0"):
        assert what in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["::", "192.168.1.10", "nas.local", ""])
def test_every_other_address_is_exposed(host: str) -> None:
    settings = GatewaySettings(bridge_host=host, bridge_api_keys="")
    with pytest.raises(ConfigurationError):
        settings.check_exposure()
    GatewaySettings(bridge_host=host, bridge_api_keys="a-key").check_exposure()
    GatewaySettings(bridge_host=host, bridge_allow_anonymous=True).check_exposure()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    settings = GatewaySettings(bridge_host=host)
    settings.check_exposure()
    assert not settings.api_keys


@pytest.mark.parametrize("keys", ["good,sha256:abcdef", "good,sha256:" + "x" * 64, "good,clé"])
def test_a_malformed_key_is_told_by_its_place(keys: str) -> None:
    with pytest.raises(ConfigurationError, match="Entry 2") as wrong:
        parse_api_keys(keys)
    assert keys.partition(",")[2] not in str(wrong.value)


def test_wrong_settings_are_named_and_keys_are_not_repeated(workdir: Path) -> None:
    done = start(workdir, QMT_BRIDGE_PORT="99999", QMT_BRIDGE_API_KEYS="a-secret")
    assert done.returncode == 2
    assert "bridge_port" in done.stderr
    assert "secret" not in done.stderr


def test_a_taken_port_is_told(workdir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start(workdir, "--port", str(port))
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "QMT_BRIDGE_PORT" in done.stderr


def test_host_and_port_come_from_environment_and_flags_win(
    streams_server: RedisServer, jobs_server: RedisServer, workdir: Path
) -> None:
    port = free_port()
    urls = (streams_server.url, jobs_server.url)
    with gateway(*urls, workdir, "--port", str(port), port="1", host="::1") as process:
        assert process.url == f"http://[::1]:{port}"
        assert httpx.get(f"{process.url}/healthz", trust_env=False).status_code == 200


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def read_to_the_end(client: ClientConnection) -> None:
    """Read until the connection closes; a snapshot may come before that."""
    while True:
        client.recv(timeout=120)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, "stdin"])
def test_it_stops_in_order_with_clients_connected(
    streams_server: RedisServer, jobs_server: RedisServer, workdir: Path, how: signal.Signals | str
) -> None:
    with (
        gateway(streams_server.url, jobs_server.url, workdir, "--exit-with-stdin") as process,
        connect(process.ws_url, proxy=None) as client,
    ):
        client.send('{"stocks": ["600519.SH"]}')
        client.ping().wait(5)
        if isinstance(how, signal.Signals):
            process.process.send_signal(how)
        else:
            assert process.process.stdin is not None
            process.process.stdin.close()
        with pytest.raises(ConnectionClosed) as closed:
            read_to_the_end(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code in (1012, 1013)
        process.process.wait(60)
        assert process.process.returncode in (0, -signal.SIGTERM, -signal.SIGINT)
        assert "Traceback" not in process.log()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{process.url}/healthz", trust_env=False)


def test_redis_away_is_503_and_health_says_degraded(workdir: Path) -> None:
    nowhere = f"redis://:secret-of-redis@127.0.0.1:{free_port()}/0"
    with gateway(nowhere, nowhere, workdir) as process:
        health = httpx.get(f"{process.url}/healthz", trust_env=False)
        assert health.status_code == 200
        assert health.json()["status"] == "degraded"
        for path in ("/api/full_tick?stocks=600519.SH", "/api/history?stock=600519.SH"):
            response = httpx.get(process.url + path, trust_env=False)
            assert response.status_code == 503
            assert response.json()["error"] == "redis-unavailable"
            assert "secret-of-redis" not in response.text
        with pytest.raises(InvalidStatus) as refused, connect(process.ws_url, proxy=None):
            pass
        assert refused.value.response.status_code == 503
        assert "secret-of-redis" not in process.log()
        assert "Traceback" not in process.log()


def test_it_says_that_it_lives(
    streams: redis.Redis, streams_server: RedisServer, jobs_server: RedisServer, workdir: Path
) -> None:
    def beats() -> list[dict[str, Any]]:
        return [json.loads(one) for one in streams.hvals("qmt:status:gateway")]

    with gateway(streams_server.url, jobs_server.url, workdir) as process:
        pid = process.process.pid
        (beat,) = wait_for(
            lambda: [one for one in beats() if one["pid"] == pid], "the gateway's heartbeat"
        )
        assert (beat["role"], beat["figures"]["websockets"]) == ("gateway", 0)
        told = httpx.get(f"{process.url}/api/v1/status").json()
        assert pid in [one["pid"] for one in told["processes"]]
