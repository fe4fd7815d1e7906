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
from qmt_runtime.connections import connect
from qmt_runtime.heartbeats import write_heartbeat

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
        self._redis = connect(streams_url, timeout_s=_TIMEOUT_S)
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
                write_heartbeat(self._redis, self._keys, beat)
                failing = False
            except redis.RedisError as error:
                if not failing:
                    _log.warning("heartbeat not written", error=str(error))
                failing = True
            self._wake.wait(status.HEARTBEAT_EVERY_S)
            self._wake.clear()
