"""A process says that it lives: once each second, in the same way whoever it is."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio

from qmt_protocol.keys import Keys
from qmt_protocol.status import Heartbeat, encode_heartbeat
from qmt_protocol.times import redis_ms

__all__ = ["write_heartbeat", "write_heartbeat_async"]


def write_heartbeat(connection: redis.Redis, keys: Keys, beat: Heartbeat) -> int:
    """Write a heartbeat (blocking), and return Redis' time in ms.

    Raises
    ------
    redis.RedisError
        When Redis does not answer, or refuses.
    """
    now_ms = redis_ms(connection.time())
    with connection.pipeline(transaction=False) as pipe:
        _put(pipe, keys, beat, now_ms)
        _raise_first(pipe.execute(raise_on_error=False))
    return now_ms


async def write_heartbeat_async(
    connection: redis.asyncio.Redis, keys: Keys, beat: Heartbeat
) -> int:
    """Do as `write_heartbeat` does."""
    now_ms = redis_ms(await connection.time())
    async with connection.pipeline(transaction=False) as pipe:
        _put(pipe, keys, beat, now_ms)
        _raise_first(await pipe.execute(raise_on_error=False))
    return now_ms


def _put(pipe: Any, keys: Keys, beat: Heartbeat, now_ms: int) -> None:
    status, seen = keys.heartbeats_of(beat.role)
    pipe.zadd(seen, {beat.member: now_ms})
    pipe.hset(status, beat.member, encode_heartbeat(beat))


def _raise_first(answers: list[Any]) -> None:
    # By itself redis-py would name the command, whose time makes each refusal news.
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
