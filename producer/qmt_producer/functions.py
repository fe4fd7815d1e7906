"""The library of Redis Functions that publishes and holds a market's lease: `functions.lua`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

import redis

from qmt_protocol.errors import RedisUnavailable
from qmt_protocol.redis_users import LIBRARY

from .redis_link import ask_redis

__all__ = ["COMPLETE", "Functions"]

COMPLETE: Final = "complete"
"""Field beside the rings' own in `acked`: the Redis ms before which every tick received by whoever
held the market is published or named, a space, and the ring that said so."""


class Functions:
    """The functions, called over one connection."""

    def __init__(self, connection: redis.Redis) -> None:
        self.connection = connection

    def ensure(self) -> None:
        """Give Redis the library if it has none: it is new, or an admin removed it.

        Raises
        ------
        RedisUnavailable
            When it is missing and this user may not load it, or Redis does not answer.
        """
        if ask_redis(lambda: self.connection.function_list(library=LIBRARY)):
            return
        try:
            ask_redis(lambda: self.connection.function_load(_code(), replace=True))
        except RedisUnavailable as error:
            if not isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                raise
            raise RedisUnavailable(
                f"Redis has no function library {LIBRARY}, and this user may not load it: start "
                "the server by docker/redis/start.sh of this version, or load functions.lua as "
                "its admin."
            ) from error

    def call(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Call one function and return what it answers.

        Raises
        ------
        RedisUnavailable
            When Redis does not answer, or refuses the call as a whole.
        """
        return ask_redis(lambda: self.put(self.connection, name, keys, args))

    @staticmethod
    def put(connection: redis.Redis, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Call one function over a connection, or put the call into a pipeline."""
        return connection.fcall(f"{LIBRARY}_{name}", len(keys), *keys, *args)


def _code() -> str:
    return files(__package__).joinpath("functions.lua").read_text("utf-8")
