"""Connections to Redis: timeouts above every wait, no silent retries, clear errors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from qmt_protocol.errors import AccessDenied, ConfigurationError, RedisUnavailable

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["BLOCK_S", "address_of", "connect", "connect_async", "redis_call", "redis_errors"]

BLOCK_S: Final = 1.0
"""Longest single blocking read; longer waits are made of such slices."""
_MAX_CONNECTIONS: Final = 200
_ANSWER_WITHIN_S: Final = 10.0
_CONNECT_TIMEOUT_S: Final = 5.0


def _options() -> dict[str, Any]:
    return {
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "protocol": 2,  # RQ's blocking reads and XREAD's shape depend on it
    }


def connect_async(url: str) -> redis.asyncio.Redis:
    """Return an asyncio connection pool, to be used inside `redis_call`."""
    try:
        # No silent retry: a repeated command could run twice.
        # No socket_timeout: redis-py would write under asyncio.wait_for, which before Python 3.12
        # can swallow a cancellation, so that a cancelled reader reads on for ever.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            # A crowd waits its turn instead of being refused.
            max_connections=_MAX_CONNECTIONS,
            timeout=_ANSWER_WITHIN_S,
            retry=AsyncRetry(NoBackoff(), 0),
            socket_timeout=None,
            **_options(),
        )
        return redis.asyncio.Redis.from_pool(pool)
    except ValueError as error:
        raise _bad_url(url) from error


def connect(url: str) -> redis.Redis:
    """Return a blocking connection pool, for RQ."""
    try:
        return redis.Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=_ANSWER_WITHIN_S, **_options()
        )
    except ValueError as error:
        raise _bad_url(url) from error


def address_of(url: str) -> str:
    """Return ``host:port`` (or the socket's path) of a URL, without user and password."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return parts.path
        default = {"http": 80, "https": 443}.get(parts.scheme, 6379)
        return f"{parts.hostname or '127.0.0.1'}:{parts.port or default}"
    except ValueError:
        raise _bad_url(url) from None


def _bad_url(url: str) -> ConfigurationError:
    shown = url.rpartition("@")[2]
    return ConfigurationError(
        f"{shown!r} is not a Redis URL.", hint="For example redis://192.168.1.10:6379/0."
    )


@contextmanager
def redis_errors(address: str) -> Iterator[None]:
    """Turn what redis-py raises into the project's errors, which name the address.

    Raises
    ------
    AccessDenied
        When the user or password is wrong, or the user lacks the command or key.
    RedisUnavailable
        When the server does not answer or refuses to serve.
    """
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise AccessDenied(
            f"Redis at {address} refused access: {error}.",
            hint="Check user and password in the URL.",
            address=address,
        ) from error
    except (redis.RedisError, OSError, asyncio.TimeoutError) as error:
        text = str(error).rstrip(".") or type(error).__name__
        raise RedisUnavailable(
            f"Redis at {address} does not serve: {text}.",
            hint="Check that the server runs and that the address is right.",
            address=address,
        ) from error


@asynccontextmanager
async def redis_call(address: str) -> AsyncIterator[None]:
    """Do as `redis_errors` does, and allow one asyncio exchange ten seconds."""
    with redis_errors(address):
        async with timeout(_ANSWER_WITHIN_S):
            yield
