"""The producer's connections to the streams server, and what counts as 'Redis is away'."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import redis

from qmt_protocol.errors import RedisUnavailable, WrongVersion
from qmt_protocol.keys import Keys
from qmt_protocol.schema import FEED, check_version
from qmt_runtime import connections

__all__ = [
    "KeyRefused",
    "ask_redis",
    "connect",
    "end_soon",
    "is_of_a_key",
    "refuse_errors",
    "refuse_other_version",
]

SOCKET_TIMEOUT_S: Final = 5.0
_LAST_CALL_S: Final = 1.0
_T = TypeVar("_T")


class KeyRefused(RedisUnavailable):
    """What one key holds makes Redis refuse a call; calls on others are served."""

    slug = "key-refused"


def connect(url: str) -> redis.Redis:
    """Open a connection pool with the producer's patience."""
    return connections.connect(url, timeout_s=SOCKET_TIMEOUT_S)


def end_soon(thread: threading.Thread, connection: redis.Redis) -> None:
    """Give a thread that was told to end, and each call that it has yet to make, a second.

    One that waits for a server that hangs is left behind: it is a daemon, and the process ends.
    """
    pool = connection.connection_pool
    pool.connection_kwargs |= {
        "socket_timeout": _LAST_CALL_S,
        "socket_connect_timeout": _LAST_CALL_S,
    }
    pool.disconnect(inuse_connections=False)  # the next call makes a connection by these limits
    thread.join(2 * _LAST_CALL_S)
    if not thread.is_alive():
        connection.close()


def ask_redis(call: Callable[[], _T]) -> _T:
    """Run one call against Redis.

    Raises
    ------
    RedisUnavailable
        When Redis does not answer (the call may have been done all the same), or refuses: out of
        memory, read-only, loading, no permission. None of these is a reason to drop a tick.
    KeyRefused
        When it refuses for what one key holds.
    """
    try:
        return call()
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise RedisUnavailable(f"Redis does not answer: {error}.") from error
    except redis.RedisError as error:
        raise (KeyRefused if is_of_a_key(error) else RedisUnavailable)(
            f"Redis refuses: {type(error).__name__}: {error}."
        ) from error


def refuse_errors(answer: object) -> None:
    """Raise, as `reach` does, for one of a pipeline's answers that is an error."""

    def give() -> None:
        if isinstance(answer, Exception):
            raise answer

    ask_redis(give)


def refuse_other_version(connection: redis.Redis, keys: Keys) -> None:
    """Raise where another version of the wire lies under the prefix: nothing is added to it.

    Raises
    ------
    RedisUnavailable
        Also when Redis does not answer.
    """
    try:
        document: Any = ask_redis(lambda: connection.hget(keys.schema, FEED))
    except KeyRefused:
        return  # no hash: it says nothing of versions
    try:
        check_version(document, keys.prefix, "this address")
    except WrongVersion as error:
        raise RedisUnavailable(f"{error.message} {error.hint}") from error


def is_of_a_key(error: redis.RedisError) -> bool:
    """Whether an error tells of one key's content: its type, or that its stream has no more ids."""
    text = str(error)
    return "WRONGTYPE" in text or "exhausted the last possible ID" in text
