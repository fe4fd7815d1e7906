"""Several transactions in one round trip: answered as one by one, refused in part or as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from qmt_reading.live.transactions import Transactions
from qmt_runtime.connections import connect_async
from qmt_standalone.redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that nobody else asks."""
    own = RedisServer(tmp_path / "own", aof=False)
    own.start()
    yield own
    own.stop()


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, protocol=2) as connection:
        connection.set("a", "1")
        connection.hset("h", mapping={"x": "1", "y": "2"})
        connection.xadd("s", {"f": "v"}, id="5-1")
        yield connection


@pytest.fixture
async def connection(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with connect_async(server.url) as opened:
        yield opened


def ask(connection: redis.asyncio.Redis) -> Transactions:
    asked = Transactions(connection)
    first, second = asked.begin(), asked.begin()
    first.get("a")
    first.xrange("s", "-", "+", count=3)
    first.xinfo_stream("s")
    second.hgetall("h")
    return asked


async def test_each_answer_is_what_the_command_alone_is_answered(
    connection: redis.asyncio.Redis, admin: redis.Redis
) -> None:
    alone: list[Any] = [admin.get("a"), admin.xrange("s"), admin.xinfo_stream("s")]
    assert await ask(connection).execute() == [alone, [admin.hgetall("h")]]
    assert await Transactions(connection).execute() == []


async def test_each_is_a_transaction_and_all_are_one_round_trip(
    connection: redis.asyncio.Redis, admin: redis.Redis
) -> None:
    await connection.ping()
    before = admin.info("stats")["total_reads_processed"]
    await ask(connection).execute()
    after = admin.info("stats")["total_reads_processed"]
    assert after - before == 1 + 1, "one of ours, and the question itself"
    stats = admin.info("commandstats")
    assert stats["cmdstat_multi"]["calls"] == stats["cmdstat_exec"]["calls"] == 2


async def test_one_refused_command_leaves_the_others(
    connection: redis.asyncio.Redis, admin: redis.Redis
) -> None:
    admin.delete("s")
    admin.set("s", "no stream")
    (value, entries, told), (latest,) = await ask(connection).execute()
    assert value == b"1"
    assert isinstance(entries, redis.ResponseError)
    assert isinstance(told, redis.ResponseError)
    assert "WRONGTYPE" in str(entries)
    assert latest == {b"x": b"1", b"y": b"2"}
    assert await connection.get("a") == b"1", "nothing is left to be read"


@pytest.mark.parametrize("without", ["-xrange", "-multi"])
async def test_one_that_is_refused_as_a_whole_says_why(
    server: RedisServer, admin: redis.Redis, without: str
) -> None:
    rule = ("ACL SETUSER", "limited", "on", ">secret", "~*", "+@all", without)
    admin.execute_command(*rule)
    async with connect_async(f"redis://limited:secret@127.0.0.1:{server.port}/0") as limited:
        with pytest.raises(redis.exceptions.NoPermissionError, match=without[1:]):
            await ask(limited).execute()
        assert await limited.get("a") == b"1"
