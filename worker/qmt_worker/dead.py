"""Tells what was found on the jobs server and could not be run: a list, the log, the heartbeat."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
import redis
import structlog

from qmt_protocol.keys import JobKeys

__all__ = ["DeadList"]

_MOST: Final = 1000
"""Entries kept; none is longer than two kilobytes."""
_MOST_REASON: Final = 300
_LOG_EVERY_S: Final = 1.0

_log: Final = structlog.get_logger(__name__)


class DeadList:
    """The stream `JobKeys.dead`.

    Parameters
    ----------
    connection, keys
        The jobs server.
    queue
        Whose worker this is.
    """

    def __init__(self, connection: redis.Redis, keys: JobKeys, queue: str) -> None:
        self._redis = connection
        self._key = keys.dead
        self._queue = queue
        self._logged_s = -_LOG_EVERY_S
        self._unlogged = 0
        self.count = 0
        """Jobs and keys told since the start."""
        self.last: dict[str, Any] = {}
        """The newest entry."""

    def add_job(self, reason: str, *ids: str, count: int = 1) -> None:
        """Tell of a job, or of `count` of them, of which some are named."""
        entry: dict[str, Any] = {"id": ids[0], "reason": reason[:_MOST_REASON]}
        if count > 1:
            entry |= {"count": count, "more": list(ids[1:])}
        self._add(entry, count)

    def add_key(self, reason: str, key: str) -> None:
        """Tell of a key of RQ's."""
        self._add({"key": key, "reason": reason[:_MOST_REASON]}, 1)

    def _add(self, facts: dict[str, Any], count: int) -> None:
        entry = {"at_ms": time.time_ns() // 1_000_000, "queue": self._queue, **facts}
        self.count += count
        self.last = entry
        self._write_log(facts)
        try:
            self._redis.xadd(
                self._key, {"e": msgspec.json.encode(entry)}, maxlen=_MOST, approximate=True
            )
        except redis.ResponseError as error:
            # A server that is full, or a key that is no stream: the job shall not come back for it.
            _log.warning("the list of dead jobs is not written", error=str(error))

    def _write_log(self, facts: dict[str, Any]) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s < _LOG_EVERY_S:
            self._unlogged += 1
            return
        _log.warning(
            "found what cannot be run", queue=self._queue, **facts, unlogged=self._unlogged
        )
        self._logged_s, self._unlogged = now_s, 0
