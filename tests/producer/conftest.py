"""The tests of this folder run against the usual server, or each of QMT_TEST_REDIS_SERVERS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from publisher_bench import Bench
from redis_servers import chosen_servers, default_server

from qmt_standalone.redis_server import RedisServer

SERVERS = (
    {one.name: one.path for one in chosen_servers()}
    if os.environ.get("QMT_TEST_REDIS_SERVERS")
    else {"usual": default_server()}
)


@pytest.fixture(scope="session", params=SERVERS.values(), ids=SERVERS)
def server_binary(request: pytest.FixtureRequest) -> Path:
    """Each server in turn."""
    binary: Path = request.param
    return binary


@pytest.fixture(scope="session")
def streams_server(
    server_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A real server for streams, of each kind in turn."""
    server = RedisServer(tmp_path_factory.mktemp("streams"), binary=server_binary)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bench(tmp_path: Path, streams: redis.Redis, streams_server: RedisServer) -> Iterator[Bench]:
    """A ring with a publisher."""
    made = Bench(tmp_path / "ring.sqlite", streams_server.url)
    yield made
    made.close()
