"""The place of a replay: a prefix of its own, marked so, which alone may be emptied."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import redis

from qmt_producer.redis_link import ask_redis
from qmt_protocol.errors import ConfigurationError
from qmt_protocol.keys import Keys

__all__ = ["PrefixInUse", "ReplayTarget", "replays"]

_SCANNED: Final = 1_000
_REMOVED: Final = 200


class PrefixInUse(ConfigurationError):
    """A replay may not use or empty this prefix."""

    slug = "prefix-in-use"


class ReplayTarget:
    """One prefix on a streams server.

    Parameters
    ----------
    connection
        Of the streams server.
    keys
        Of the replay's prefix.
    """

    def __init__(self, connection: redis.Redis, keys: Keys) -> None:
        self._redis = connection
        self._keys = keys

    def take(self, facts: dict[str, Any], on_removed: Callable[[int], None]) -> None:
        """Mark the prefix as a replay's; an earlier replay that it holds is removed.

        Parameters
        ----------
        facts
            What the mark tells.
        on_removed
            Called with the keys removed in each step.

        Raises
        ------
        PrefixInUse
            When it holds anything else, or a replay that runs.
        RedisUnavailable
        """
        if self.marked:
            self.clean(on_removed)
        elif any(name not in self._of_gateways for name in self._names()):
            raise PrefixInUse(
                f"The prefix {self._keys.prefix} holds data that are no replay's.",
                hint="Name another one by --to-prefix.",
                prefix=self._keys.prefix,
            )
        taken = ask_redis(lambda: self._redis.set(self._keys.replay, json.dumps(facts), nx=True))
        if not taken:
            raise self._runs()

    def clean(self, on_removed: Callable[[int], None]) -> None:
        """Remove all keys of the prefix, step by step, the mark last.

        Raises
        ------
        PrefixInUse
            When there is no mark, or the replay runs.
        RedisUnavailable
        """
        if not self.marked:
            raise PrefixInUse(
                f"The prefix {self._keys.prefix} holds no replay.",
                hint="Only what qmt-producer replay has published is removed.",
                prefix=self._keys.prefix,
            )
        if self._is_published():
            raise self._runs()
        names: list[str] = []
        for name in self._names():
            if name != self._keys.replay:
                names.append(name)
            if len(names) == _REMOVED:
                on_removed(self._remove(names))
                names = []
        on_removed(self._remove([*names, self._keys.replay]))

    @property
    def marked(self) -> bool:
        """Whether the prefix is a replay's."""
        return bool(ask_redis(lambda: self._redis.exists(self._keys.replay)))

    @property
    def _of_gateways(self) -> tuple[str, str]:
        """Keys of gateways that serve the prefix already: they may be there before the replay."""
        return self._keys.heartbeats_of("gateway")

    def _runs(self) -> PrefixInUse:
        return PrefixInUse(
            f"A replay is being published under {self._keys.prefix}.",
            hint="Stop it first, or name another prefix by --to-prefix.",
            prefix=self._keys.prefix,
        )

    def _is_published(self) -> bool:
        """Whether somebody holds a lease; one that was killed loses it after some seconds."""
        return any(name.endswith("}:lease") for name in self._names())

    def _names(self) -> Iterator[str]:
        for pattern in self._keys.patterns:
            yield from _scan(self._redis, pattern)

    def _remove(self, names: list[str]) -> int:
        # Each by itself: a user's rights to them stand in several rules, and one command needs one.
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.unlink(name.encode("utf-8", "surrogateescape"))
            return sum(ask_redis(pipe.execute))


def replays(connection: redis.Redis) -> list[Keys]:
    """Return the prefixes on a server that hold replays."""
    found = {}
    for name in _scan(connection, "*:replay"):
        try:
            keys = Keys(name.removesuffix(":replay"))
        except ConfigurationError:
            continue  # somebody else's key
        found[keys.prefix] = keys
    return [found[prefix] for prefix in sorted(found)]


def _scan(connection: redis.Redis, pattern: str) -> Iterator[str]:
    cursor = 0
    while True:
        cursor, names = ask_redis(partial(connection.scan, cursor, match=pattern, count=_SCANNED))
        # One that is no text stays what it is for `unlink`, and is nobody's prefix.
        yield from (
            name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
            for name in names
        )
        if not cursor:
            return
