"""Writes heartbeats as the bridge's processes do."""

from __future__ import annotations

import redis

from qmt_protocol.keys import Keys
from qmt_protocol.status import Heartbeat, encode_heartbeat
from qmt_protocol.times import redis_ms


def write_heartbeat(streams: redis.Redis, keys: Keys, beat: Heartbeat) -> int:
    """Write one; return the Redis time in ms that it bears."""
    now_ms = redis_ms(streams.time())
    streams.hset(keys.status, beat.member, encode_heartbeat(beat))
    streams.zadd(keys.seen, {beat.member: now_ms})
    return now_ms
