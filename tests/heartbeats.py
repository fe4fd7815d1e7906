"""Writes heartbeats as the bridge's processes do."""

from __future__ import annotations

from typing import Final

import redis

from qmt_protocol.keys import Keys
from qmt_protocol.status import Heartbeat, encode_heartbeat
from qmt_protocol.times import redis_ms

BEATS_ON_MS: Final = 59_000
"""For a process that lives as long as its test: nobody has to beat while the machine is busy. More
than a minute ahead is refused."""


def write_heartbeat(streams: redis.Redis, keys: Keys, beat: Heartbeat, *, ahead_ms: int = 0) -> int:
    """Write one, as it will be written so much later; return the Redis time in ms that it bears."""
    now_ms = redis_ms(streams.time()) + ahead_ms
    streams.hset(keys.status, beat.member, encode_heartbeat(beat))
    streams.zadd(keys.seen, {beat.member: now_ms})
    return now_ms
