"""Fixtures of the gateway's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from gateway_bench import GatewayProcess, Producer, Worker, gateway

from qmt_standalone.redis_server import RedisServer


@pytest.fixture(scope="session")
def gateway_process(
    streams_server: RedisServer,
    jobs_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    """One gateway on loopback without keys, that gives up on nobody."""
    with gateway(
        streams_server.url,
        jobs_server.url,
        tmp_path_factory.mktemp("gateway"),
        ws_queue_bytes="20000",
        ws_stall_s="180",
    ) as process:
        yield process


@pytest.fixture(scope="session")
def hasty_gateway(
    streams_server: RedisServer,
    jobs_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    """One that gives up soon: on a job, and on a reader that reads nothing."""
    with gateway(
        streams_server.url,
        jobs_server.url,
        tmp_path_factory.mktemp("hasty"),
        query_timeout_s="3",
        ws_queue_bytes="20000",
        ws_stall_s="2",
    ) as process:
        yield process


@pytest.fixture
def http(gateway_process: GatewayProcess) -> Iterator[httpx.Client]:
    """A client of that gateway."""
    with httpx.Client(base_url=gateway_process.url, timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def producer(streams: redis.Redis) -> Producer:
    """A producer that was heard of just now."""
    made = Producer(streams)
    made.beat()
    return made


@pytest.fixture
def worker(streams: redis.Redis, jobs: redis.Redis) -> Iterator[Worker]:
    """A living worker."""
    with Worker(streams, jobs) as made:
        yield made


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A folder without a qmt.toml."""
    return tmp_path
