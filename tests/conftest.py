"""Fixtures that all tests share: real Redis servers, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from qmt_standalone.redis_server import RedisServer


@pytest.fixture(scope="session")
def streams_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis server for streams, for the whole session."""
    server = RedisServer(tmp_path_factory.mktemp("streams"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def jobs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis server for jobs, for the whole session."""
    server = RedisServer(tmp_path_factory.mktemp("jobs"), aof=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def streams(streams_server: RedisServer) -> Iterator[redis.Redis]:
    """An empty streams database."""
    with redis.Redis.from_url(streams_server.url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def jobs(jobs_server: RedisServer) -> Iterator[redis.Redis]:
    """An empty jobs database."""
    with redis.Redis.from_url(jobs_server.url) as connection:
        connection.flushall()
        yield connection
