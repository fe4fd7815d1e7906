"""Connections to Redis: timeouts above every wait, no silent retries, clear errors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from qmt_protocol.errors import AccessDenied, CodecError, RedisUnavailable
from qmt_protocol.urls import check_redis_url

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = [
    "BLOCK_S",
    "connect",
    "connect_async",
    "redis_call",
    "redis_errors",
    "timeout",
    "to_its_end",
]

_T = TypeVar("_T")
BLOCK_S: Final = 1.0
"""Longest single blocking read; longer waits are made of such slices."""
_MAX_CONNECTIONS: Final = 200
_ANSWER_WITHIN_S: Final = 10.0
_CONNECT_TIMEOUT_S: Final = 5.0


def _options(connect_timeout_s: float = _CONNECT_TIMEOUT_S) -> dict[str, Any]:
    return {
        "socket_connect_timeout": connect_timeout_s,
        "protocol": 2,  # RQ's blocking reads and XREAD's shape depend on it
    }


def connect_async(url: str) -> redis.asyncio.Redis:
    """Return an asyncio connection pool, to be used inside `redis_call`."""
    # No silent retry: a repeated command could run twice.
    # No socket_timeout: redis-py would write under asyncio.wait_for, which before Python 3.12
    # can swallow a cancellation, so that a cancelled reader reads on for ever.
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        check_redis_url(url, "The Redis URL"),
        # A crowd waits its turn instead of being refused.
        max_connections=_MAX_CONNECTIONS,
        timeout=_ANSWER_WITHIN_S,
        retry=AsyncRetry(NoBackoff(), 0),
        socket_timeout=None,
        **_options(),
    )
    return redis.asyncio.Redis.from_pool(pool)


async def to_its_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Await what must not be broken off; a caller that is cancelled is so behind its end.

    A pool that is cancelled while it closes leaves connections open, and a call in a thread cannot
    be interrupted.
    """
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise


def connect(url: str, *, timeout_s: float = _ANSWER_WITHIN_S) -> redis.Redis:
    """Return a blocking connection pool whose calls are sent once: a retry is the caller's.

    Parameters
    ----------
    timeout_s
        How long to wait for a connection, and for an answer.
    """
    return redis.Redis.from_url(
        check_redis_url(url, "The Redis URL"),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout_s,
        **_options(min(timeout_s, _CONNECT_TIMEOUT_S)),
    )


@contextmanager
def redis_errors(address: str, key: str = "A key") -> Iterator[None]:
    """Turn what redis-py raises into the project's errors, which name the address.

    Parameters
    ----------
    key
        What is read, where only one can be of a wrong type.

    Raises
    ------
    AccessDenied
        When the user or password is wrong, or the user lacks the command or key.
    CodecError
        When a key is of another type.
    RedisUnavailable
        When the server does not answer or refuses to serve.
    """
    try:
        yield
    except redis.AuthenticationError as error:
        raise AccessDenied(
            f"Redis at {address} refused access: {error}.",
            hint="Check user and password in the URL; a character such as # or @ in them must be "
            "percent-encoded.",
            address=address,
        ) from error
    except redis.exceptions.NoPermissionError as error:
        raise AccessDenied(
            f"Redis at {address} refused access: {error}.",
            hint="Check which user the URL names, and that the server's users are those of this "
            "version (docker/redis/*.acl).",
            address=address,
        ) from error
    except redis.ResponseError as error:
        if "WRONGTYPE" in str(error):  # nothing is wrong with the server
            raise CodecError(
                f"{key} in Redis at {address} is not of the type that it should be: {error}.",
                hint="Something else writes under this prefix; see docs/wire.md for its keys.",
                address=address,
            ) from error
        raise _refused(address, error) from error
    except (redis.RedisError, OSError, asyncio.TimeoutError) as error:
        raise _refused(address, error) from error


def _refused(address: str, error: Exception) -> RedisUnavailable:
    text = str(error).rstrip(".") or type(error).__name__
    return RedisUnavailable(
        f"Redis at {address} does not serve: {text}.",
        hint="Check that the server runs and that the address is right.",
        address=address,
    )


@asynccontextmanager
async def redis_call(address: str, within_s: float = _ANSWER_WITHIN_S) -> AsyncIterator[None]:
    """Do as `redis_errors` does, and allow one asyncio exchange ten seconds, or as many."""
    with redis_errors(address):
        async with timeout(within_s):
            yield
