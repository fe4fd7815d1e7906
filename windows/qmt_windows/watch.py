"""Looks at the streams server each second: who is heard of on this machine; says that we live."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import redis
import structlog

from qmt_protocol.errors import CodecError
from qmt_protocol.keys import Keys
from qmt_protocol.status import (
    HEARTBEAT_EVERY_S,
    LOST_AFTER_S,
    Heartbeat,
    decode_heartbeat,
)
from qmt_protocol.times import redis_ms
from qmt_runtime.connections import connect
from qmt_runtime.heartbeats import write_heartbeat

__all__ = ["TIMEOUT_S", "Heard", "Watch", "read_beats"]

TIMEOUT_S: Final = 2.0
_NOT_ASKED: Final = "not asked yet"

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Heard:
    """What the last look found.

    Attributes
    ----------
    beats : dict of (str, int) to Heartbeat
        Living processes of this machine by role and pid; the last known while Redis is away.
    away_since_s : float or None
        Monotonic time since when Redis has not answered.
    error : str
        Why it does not answer.
    """

    beats: dict[tuple[str, int], Heartbeat]
    away_since_s: float | None = None
    error: str = ""


def read_beats(server: redis.Redis, keys: Keys) -> dict[tuple[str, int], Heartbeat]:
    """Return the living processes of this machine.

    Raises
    ------
    redis.RedisError
        When the server does not answer or refuses.
    """
    now_ms = redis_ms(server.time())
    fresh: Any = server.zrangebyscore(keys.seen, now_ms - LOST_AFTER_S * 1000, "+inf")
    host = f":{socket.gethostname()}:".encode()
    members = [member for member in fresh if host in member]
    if not members:
        return {}
    documents: Any = server.hmget(keys.status, members)
    beats = {}
    for document in documents:
        if document is None:
            continue
        try:
            beat = decode_heartbeat(document)
        except CodecError:
            continue  # a newer version's, which we do not supervise
        beats[beat.role, beat.pid] = beat
    return beats


class Watch:
    """The thread that looks.

    Parameters
    ----------
    url, keys
        The streams server, by the producer's user.
    beat
        Returns our own heartbeat.
    """

    def __init__(self, url: str, keys: Keys, beat: Callable[[], Heartbeat]) -> None:
        self._redis = connect(url, timeout_s=TIMEOUT_S)
        self._keys = keys
        self._beat = beat
        self._heard = Heard({}, time.monotonic(), _NOT_ASKED)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @property
    def heard(self) -> Heard:
        """What the last look found."""
        return self._heard

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self, timeout_s: float = 0.5) -> None:
        """Look a last time, so that the end is seen, and look no more."""
        self._stop.set()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._redis.close()

    def _run(self) -> None:
        while True:
            last = self._stop.is_set()
            self._look()
            if last:
                return
            self._stop.wait(HEARTBEAT_EVERY_S)

    def _look(self) -> None:
        before = self._heard
        try:
            beat = self._beat()
            write_heartbeat(self._redis, self._keys, beat)
            self._heard = Heard(read_beats(self._redis, self._keys))
        except redis.RedisError as error:
            since_s = before.away_since_s
            self._heard = Heard(
                before.beats, time.monotonic() if since_s is None else since_s, str(error)
            )
            if before.error != self._heard.error:
                _log.warning("Redis does not answer", error=str(error))
            return
        if before.away_since_s is not None and before.error != _NOT_ASKED:
            _log.info("Redis answers")
