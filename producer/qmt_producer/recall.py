"""What a sequencer must know of Redis: `latest`, and parts of streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import redis

from qmt_protocol.decoding import printable

from .redis_link import ask_redis, is_of_a_key, refuse_errors
from .sequencer import LOOK, BarSequencer, Stored, TickSequencer

__all__ = ["learn", "recall_ticks"]


def recall_ticks(connection: redis.Redis, latest: str, future_ms: int) -> TickSequencer:
    """Return the memory of a market of which everything published is filed.

    Raises
    ------
    RedisUnavailable
    """
    held: Any = ask_redis(lambda: connection.hgetall(latest))
    return TickSequencer({printable(code): data for code, data in held.items()}, future_ms)


def learn(
    memory: TickSequencer | BarSequencer,
    connection: redis.Redis,
    stream_of: Callable[[str], str],
    needed: dict[str, int],
) -> None:
    """Read what a memory needs to sequence a batch. Everything that it let through must be filed.

    Raises
    ------
    RedisUnavailable
    """
    pipe = connection.pipeline(transaction=False)
    for name, from_ms in needed.items():
        pipe.xrange(stream_of(name), from_ms, count=LOOK)
        pipe.xrevrange(stream_of(name), count=LOOK)
    answers = iter(ask_redis(lambda: pipe.execute(raise_on_error=False)))
    for name, from_ms in needed.items():
        first, last = (_stored(next(answers)) for _ in range(2))
        memory.learn(name, from_ms, (*first, *last))


def _stored(answer: Any) -> Iterable[Stored]:
    """Return the entries of a stream; none of what is no stream, which Redis will refuse."""
    if isinstance(answer, redis.ResponseError) and is_of_a_key(answer):
        return
    refuse_errors(answer)
    for entry_id, fields in answer:
        yield entry_id.decode(), fields.get(b"t1") or fields.get(b"k1") or b""
