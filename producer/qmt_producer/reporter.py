"""Tells the world: the schema, heartbeats and events."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import redis
import structlog

from qmt_protocol.errors import RedisUnavailable
from qmt_protocol.events import stream_of
from qmt_protocol.keys import Keys
from qmt_protocol.schema import schema_documents
from qmt_protocol.status import HEARTBEAT_EVERY_S, Heartbeat, forgotten
from qmt_runtime.heartbeats import write_heartbeat

from .figures import Allowance
from .redis_link import (
    KeyRefused,
    ask_redis,
    connect,
    end_soon,
    refuse_other_version,
)
from .ring import Ring

__all__ = ["Reporter"]

log: Final = structlog.get_logger(__name__)

_TIDY_EVERY_S: Final = 3600.0
_PAIRS: Final = ("producer", "gateway")
"""Roles whose heartbeats lie apart: the gateways', and all others'."""
_LOOKED_AT: Final = 10_000
_REMOVED_AT_ONCE: Final = 500
_GAPS_AT_ONCE_BYTES: Final = 4_000_000
_GAPS_BYTES_PER_S: Final = 1_000
_GAP_COSTS_BYTES: Final = 10_000
"""So in any day at most 400 small gaps and 8,640 more; one that names a whole market's codes counts
as some twenty."""


class Reporter:
    """A thread that writes the schema once, a heartbeat each second and events as they come.

    Gaps that come faster than readers and the archive can keep them wait in the ring, where those
    of a kind become one.

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
        self._room = Allowance(_GAPS_AT_ONCE_BYTES, _GAPS_BYTES_PER_S)
        self._failures: dict[str, str] = {}
        self.thread = threading.Thread(
            target=ring.ends_with(self._run), name="reporter", daemon=True
        )

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
            self._report(whole=last)
            self._ring.merge_gaps()
            if last:
                return
            self._stopping.wait(HEARTBEAT_EVERY_S)

    def _report(self, *, whole: bool) -> None:
        """Tell all there is to tell; a key of another type keeps nothing from the others."""
        parts: dict[str, Callable[[], None]] = {
            "schema": self._write_schema,
            "heartbeat": self._beat,
            "events": self._report_events,
            "gaps": partial(self._report_gaps, whole=whole),
        }
        for name, report in parts.items():
            try:
                ask_redis(report)
            except RedisUnavailable as error:
                if self._failures.get(name) != error.message:  # the same each second is no news
                    log.warning("Redis is not told", what=name, error=error.message)
                self._failures[name] = error.message
                if not isinstance(error, KeyRefused):
                    return
            else:
                self._failures.pop(name, None)

    def _write_schema(self) -> None:
        if not self._schema_written:
            refuse_other_version(self._redis, self._keys)
            for name, document in schema_documents().items():
                self._redis.hset(self._keys.schema, name, document)
            self._schema_written = True

    def _beat(self) -> None:
        if self._measure is not None:
            self._measure(self._redis)
        beat = self._heartbeat()
        now_ms = write_heartbeat(self._redis, self._keys, beat)
        if time.monotonic() >= self._next_tidy:
            self._next_tidy = time.monotonic() + _TIDY_EVERY_S
            self._forget(now_ms)

    def _forget(self, now_ms: int) -> None:
        """Remove heartbeats that nobody needs to hear of any more, and those without a time."""
        count = sum(self._forget_in(*self._keys.heartbeats_of(role), now_ms) for role in _PAIRS)
        if count:
            log.info("heartbeats were removed", count=count)

    def _forget_in(self, status: str, seen_key: str, now_ms: int) -> int:
        with self._redis.pipeline(transaction=False) as pipe:
            # In this order: what is in `status` was in `seen` before, see `encode_heartbeat`.
            pipe.hkeys(status)
            pipe.zrange(seen_key, 0, _LOOKED_AT - 1, withscores=True)
            fields, scored = pipe.execute()
        seen: dict[bytes, float] = dict(scored)
        named = {member.decode("utf-8", "backslashreplace"): member for member in seen}
        of_name = {name: seen[member] for name, member in named.items()}
        gone = [named[name] for name in forgotten(of_name, now_ms)]
        if len(seen) < _LOOKED_AT:
            gone += [field for field in fields if field not in seen]
        for begin in range(0, len(gone), _REMOVED_AT_ONCE):
            some = gone[begin : begin + _REMOVED_AT_ONCE]
            with self._redis.pipeline(transaction=False) as pipe:  # what is left goes the next time
                pipe.hdel(status, *some)
                pipe.zrem(seen_key, *some)
                pipe.execute()
        return len(gone)

    def _report_events(self) -> None:
        while events := self._ring.events():
            for _, body in events:
                self._add(body)
            self._ring.forget_events(events[-1][0])

    def _report_gaps(self, *, whole: bool) -> None:
        """Tell the gaps that there is room for; at the end, all of them."""
        while gaps := self._ring.gaps():
            for number, body in gaps:
                cost_bytes = max(len(body), _GAP_COSTS_BYTES)
                if not (self._room.take(cost_bytes) or whole):
                    return  # they wait in the ring, and become few
                self._add(body)
                self._ring.forget_gaps(number)

    def _add(self, body: str) -> None:
        stream = stream_of(self._keys, json.loads(body)["kind"])
        self._redis.xadd(stream.key, {"e": body}, maxlen=stream.kept, approximate=False)
