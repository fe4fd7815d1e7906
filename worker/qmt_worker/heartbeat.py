"""A worker's sign of life on the streams server, also while a job runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import redis
import structlog

import qmt_protocol.status as status
from qmt_protocol.keys import Keys
from qmt_protocol.times import redis_ms

__all__ = ["Beat"]

_TIMEOUT_S: Final = 2.0

_log: Final = structlog.get_logger(__name__)


class Beat:
    """Writes the process's heartbeat each second, and at once when something has changed.

    Parameters
    ----------
    streams_url, keys
        Where it is written.
    facts
        Returns the heartbeat's fields that change, and is called for each.
    """

    def __init__(self, streams_url: str, keys: Keys, facts: Callable[[], dict[str, Any]]) -> None:
        self._redis = redis.Redis.from_url(
            streams_url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=None,
        )
        self._keys = keys
        self._facts = facts
        self._started_ms = time.time_ns() // 1_000_000
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def soon(self) -> None:
        """Beat at once."""
        self._wake.set()

    def stop(self) -> None:
        """Beat no more."""
        self._stop.set()
        self._wake.set()
        self._thread.join(2 * _TIMEOUT_S)
        self._redis.close()

    def _run(self) -> None:
        failing = False
        while not self._stop.is_set():
            beat = status.new_heartbeat("worker", self._started_ms, **self._facts())
            try:
                now_ms = redis_ms(self._redis.time())
                with self._redis.pipeline(transaction=False) as pipe:
                    pipe.zadd(self._keys.seen, {beat.member: now_ms})
                    pipe.hset(self._keys.status, beat.member, status.encode_heartbeat(beat))
                    pipe.execute()
                failing = False
            except redis.RedisError as error:
                if not failing:
                    _log.warning("heartbeat not written", error=str(error))
                failing = True
            self._wake.wait(status.HEARTBEAT_EVERY_S)
            self._wake.clear()
