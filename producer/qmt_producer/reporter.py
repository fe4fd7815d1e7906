"""Tells the world: the schema, heartbeats and events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import redis
import structlog

from qmt_protocol.errors import RedisUnavailable
from qmt_protocol.keys import Keys
from qmt_protocol.schema import schema_documents
from qmt_protocol.status import HEARTBEAT_EVERY_S, Heartbeat, encode_heartbeat, forgotten
from qmt_protocol.times import redis_ms

from .redis_link import connect, end_soon, reach
from .ring import Ring

__all__ = ["Reporter"]

log: Final = structlog.get_logger(__name__)

_EVENTS_KEPT: Final = 10_000
_TIDY_EVERY_S: Final = 3600.0
_LOOKED_AT: Final = 10_000
_REMOVED_AT_ONCE: Final = 500


class Reporter:
    """A thread that writes the schema once, a heartbeat each second and events as they come.

    Parameters
    ----------
    measure
        Called with the connection before each heartbeat: what is to be measured on it.
    """

    def __init__(
        self,
        ring: Ring,
        *,
        keys: Keys,
        url: str,
        heartbeat: Callable[[], Heartbeat],
        measure: Callable[[redis.Redis], None] | None = None,
    ) -> None:
        self._ring = ring
        self._keys = keys
        self._heartbeat = heartbeat
        self._measure = measure
        self._redis = connect(url)
        self._stopping = threading.Event()
        self._schema_written = False
        self._next_tidy = 0.0
        self.thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def event(self, event: dict[str, Any]) -> None:
        """Keep an event; it is told as soon as Redis takes it."""
        self._ring.add_event({"at_ms": time.time_ns() // 1_000_000, **event})

    def stop(self) -> None:
        """Report a last time and end the thread."""
        self._stopping.set()
        end_soon(self.thread, self._redis)

    def _run(self) -> None:
        while True:
            last = self._stopping.is_set()
            try:
                reach(self._report)
            except RedisUnavailable as error:
                log.debug("no heartbeat: Redis is away", error=error.message)
                last = self._stopping.is_set()
            if last:
                return
            self._stopping.wait(HEARTBEAT_EVERY_S)

    def _report(self) -> None:
        if not self._schema_written:
            for name, document in schema_documents().items():
                self._redis.hset(self._keys.schema, name, document)
            self._schema_written = True
        if self._measure is not None:
            self._measure(self._redis)
        beat = self._heartbeat()
        now_ms = redis_ms(self._redis.time())
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.status, beat.member, encode_heartbeat(beat))
            pipe.zadd(self._keys.seen, {beat.member: now_ms})
            pipe.execute()
        if time.monotonic() >= self._next_tidy:
            self._next_tidy = time.monotonic() + _TIDY_EVERY_S
            self._forget(now_ms)
        while events := self._ring.events():
            for _, body in events:
                self._redis.xadd(
                    self._keys.events, {"e": body}, maxlen=_EVENTS_KEPT, approximate=True
                )
            self._ring.told(events[-1][0])

    def _forget(self, now_ms: int) -> None:
        """Remove heartbeats that nobody needs to hear of any more, and those without a time."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrange(self._keys.seen, 0, _LOOKED_AT - 1, withscores=True)
            pipe.hkeys(self._keys.status)
            scored, fields = pipe.execute()
        seen: dict[bytes, float] = dict(scored)
        named = {member.decode("utf-8", "backslashreplace"): member for member in seen}
        of_name = {name: seen[member] for name, member in named.items()}
        gone = [named[name] for name in forgotten(of_name, now_ms)]
        if len(seen) < _LOOKED_AT:
            gone += [field for field in fields if field not in seen]
        for begin in range(0, len(gone), _REMOVED_AT_ONCE):
            some = gone[begin : begin + _REMOVED_AT_ONCE]
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.hdel(self._keys.status, *some)
                pipe.zrem(self._keys.seen, *some)
                pipe.execute()
        if gone:
            log.info("heartbeats were removed", count=len(gone))
