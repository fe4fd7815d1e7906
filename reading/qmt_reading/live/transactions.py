"""Several transactions in one round trip: a pipeline of redis-py's is one, or none."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

import redis.asyncio
from redis.asyncio.client import Pipeline

__all__ = ["Transactions"]

_FOR_ITS_CACHE: Final = "keys"
"""An option that redis-py's commands have beside those of their callbacks."""


class Transactions:
    """Commands that are sent at once, those of each `begin` as one transaction.

    Parameters
    ----------
    connection
        Asyncio; stays the caller's to close.
    """

    def __init__(self, connection: redis.asyncio.Redis) -> None:
        self._connection = connection
        self._parts: list[Pipeline] = []

    def begin(self) -> Pipeline:
        """Return where to call the commands of the next transaction; it is not to be executed."""
        self._parts.append(self._connection.pipeline())
        return self._parts[-1]

    async def execute(self) -> list[list[Any]]:
        """Return the answers of each transaction; what is refused of single keys is among them.

        Raises
        ------
        redis.RedisError
            When the server does not answer, or refuses a transaction as a whole.
        """
        # Without callbacks: within a transaction a command is answered QUEUED, and by EXEC at last.
        async with Pipeline(self._connection.connection_pool, {}, False, None) as wire:
            for part in self._parts:
                wire.execute_command("MULTI")
                for args, _ in part.command_stack:
                    wire.execute_command(*args)
                wire.execute_command("EXEC")
            answers = iter(await wire.execute(raise_on_error=False))
        return [self._replies(part, list(islice(answers, len(part) + 2))) for part in self._parts]

    def _replies(self, part: Pipeline, answers: list[Any]) -> list[Any]:
        *queued, executed = answers
        if isinstance(executed, Exception):  # it says only that there was an error before
            raise next((one for one in queued if isinstance(one, Exception)), executed)
        callbacks = self._connection.response_callbacks
        replies = []
        for (args, options), reply in zip(part.command_stack, executed, strict=True):
            callback = None if isinstance(reply, Exception) else callbacks.get(args[0])
            given = {name: value for name, value in options.items() if name != _FOR_ITS_CACHE}
            replies.append(callback(reply, **given) if callback else reply)
        return replies
