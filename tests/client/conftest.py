"""A client over real Redis servers, with a worker and a producer that speak the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from client_gateway import Gateway, running_gateway
from fake_worker import FakeWorker, beat

from qmt_client import AsyncQMTClient, QMTClient
from qmt_standalone.redis_server import RedisServer


@pytest.fixture
def target(streams_server: RedisServer, jobs_server: RedisServer) -> dict[str, str]:
    """Arguments that lead a client to the test's servers."""
    return {"url": streams_server.url, "jobs_url": jobs_server.url}


@pytest.fixture
def client(streams: redis.Redis, jobs: redis.Redis, target: dict[str, str]) -> Iterator[QMTClient]:
    """A client over Redis."""
    with QMTClient(**target, timeout_s=60) as opened:
        yield opened


@pytest.fixture
def make_async(
    streams: redis.Redis, jobs: redis.Redis, target: dict[str, str]
) -> Callable[..., AsyncQMTClient]:
    """Make an asyncio client over Redis."""

    def make(**options: Any) -> AsyncQMTClient:
        return AsyncQMTClient(**{**target, "timeout_s": 60, **options})

    return make


@pytest.fixture
def make_worker(streams: redis.Redis, jobs: redis.Redis) -> Callable[..., FakeWorker]:
    """Make a worker with canned answers."""

    def make(**answers: Any) -> FakeWorker:
        return FakeWorker(streams, jobs, **answers)

    return make


@pytest.fixture
def producer(streams: redis.Redis) -> Callable[[], None]:
    """Write a producer's heartbeat, once at first and again when called."""

    def again() -> None:
        beat(streams, "producer", markets=["SH", "SZ"])

    again()
    return again


@pytest.fixture(scope="session")
def gateway(streams_server: RedisServer, jobs_server: RedisServer) -> Iterator[Gateway]:
    """One gateway for the session."""
    target = {"url": streams_server.url, "jobs_url": jobs_server.url}
    with running_gateway(target) as running:
        yield running


@pytest.fixture(params=["redis", "gateway"])
def both_ways(
    request: pytest.FixtureRequest, streams: redis.Redis, target: dict[str, str], gateway: Gateway
) -> dict[str, str]:
    """Arguments of a client over Redis, then of one over the gateway."""
    return target if request.param == "redis" else {"url": gateway.url}


@pytest.fixture
def http_client(streams: redis.Redis, jobs: redis.Redis, gateway: Gateway) -> Iterator[QMTClient]:
    """A client of that gateway."""
    with QMTClient(gateway.url, timeout_s=60) as opened:
        yield opened
