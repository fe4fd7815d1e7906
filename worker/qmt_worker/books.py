"""The keys in which RQ keeps its books: put aside when another type is there, and kept short."""

from __future__ import annotations

import time
from typing import Any, Final

import redis
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY

from .dead import DeadList

__all__ = ["Books"]

_ASIDE: Final = "rq:aside:"
_KEPT_ASIDE_S: Final = 86_400
_MOST_WORKERS: Final = 10_000


class Books:
    """RQ's keys of one queue.

    Parameters
    ----------
    connection, name
        The jobs server and the queue's name.
    lists
        Keys of the queue and of what was taken from it and not begun.
    """

    def __init__(
        self, connection: redis.Redis, name: str, lists: tuple[str, ...], dead: DeadList
    ) -> None:
        self._redis = connection
        self._dead = dead
        self._ended = [
            kind(name, connection).key for kind in (FinishedJobRegistry, FailedJobRegistry)
        ]
        self._workers = [REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY % name]
        self.started = StartedJobRegistry(name, connection).key
        """Sorted set of jobs that were begun, ``<job>:<execution>``, by when they must be over."""
        self._kinds: dict[str, bytes] = {
            **dict.fromkeys(lists, b"list"),
            **dict.fromkeys((*self._ended, self.started), b"zset"),
            **dict.fromkeys(("rq:queues", *self._workers), b"set"),
        }

    def put_aside(self) -> None:
        """Rename what is of another type than RQ's, for a day, and tell: jobs go on without it."""
        with self._redis.pipeline(transaction=False) as pipe:
            for key in self._kinds:
                pipe.type(key)
            found: list[Any] = pipe.execute()
        for (key, kind), is_kind in zip(self._kinds.items(), found, strict=True):
            if is_kind not in (kind, b"none"):
                self._rename(key, f"It holds a {_word(is_kind)} where RQ keeps a {_word(kind)}.")

    def trim(self) -> None:
        """Drop what has expired: ended jobs, and workers that are not heard of."""
        now_s = time.time()
        for key in self._ended:
            self._redis.zremrangebyscore(key, 0, now_s)
        for key in self._workers:
            if self._redis.scard(key) > _MOST_WORKERS:
                self._rename(key, f"It holds more than {_MOST_WORKERS:,} workers.")
                continue
            members: list[Any] = list(self._redis.smembers(key))
            with self._redis.pipeline(transaction=False) as pipe:
                for member in members:
                    pipe.exists(member)
                there = pipe.execute(raise_on_error=False)
            gone = [one for one, is_there in zip(members, there, strict=True) if is_there != 1]
            if gone:
                self._redis.srem(key, *gone)

    def _rename(self, key: str, why: str) -> None:
        aside = f"{_ASIDE}{key}"
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.rename(key, aside)
                pipe.expire(aside, _KEPT_ASIDE_S)
                pipe.execute()
        except redis.ResponseError as error:
            why = f"{why} It could not be put aside: {error}."
        else:
            why = f"{why} It was renamed to {aside} and is kept for a day."
        self._dead.add_key(why, key)


def _word(kind: bytes) -> str:
    return {b"zset": "sorted set"}.get(kind, kind.decode("ascii", "replace"))
