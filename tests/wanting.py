"""Readers of the tests who want something: they say so on the channel, or listen to who does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

__all__ = ["Readers", "heard_on"]

_EVERY_S = 0.5
_IN_ONE = 1_000


class Readers:
    """A thread that says what is in `wants` again and again."""

    def __init__(self, streams: redis.Redis, prefix: str = "qmt") -> None:
        self._streams = streams
        self._channel = f"{prefix}:demand"
        self.wants: tuple[str, ...] = ()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            wants = self.wants
            for start in range(0, len(wants), _IN_ONE):
                self._streams.publish(self._channel, " ".join(wants[start : start + _IN_ONE]))


@contextmanager
def heard_on(streams: redis.Redis, channel: str) -> Iterator[Callable[[], list[str]]]:
    """Give a function that returns all wants said so far."""
    found: list[str] = []
    line = streams.pubsub()
    line.subscribe(channel)
    assert line.get_message(timeout=10) is not None

    def heard() -> list[str]:
        while message := line.get_message(ignore_subscribe_messages=True, timeout=0.01):
            found.extend(message["data"].decode().split())
        return found

    try:
        yield heard
    finally:
        line.close()
