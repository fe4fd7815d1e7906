"""Whether the archive of this very container is well: the image's health check for it.

Its heartbeat in Redis must be fresh, and the heartbeat must say that files can be written: that
is what it does, and Redis away, a full disk and a process that hangs all show there.
"""

from __future__ import annotations

import json
import os
import socket
import sys

import redis

PREFIX = os.environ.get("QMT_PREFIX", "qmt")
FRESH_MS = 10_000


def trouble() -> str:
    """Return what is wrong, or nothing."""
    with redis.Redis.from_url(os.environ["QMT_STREAMS_URL"], socket_timeout=3) as streams:
        seconds, micros = streams.time()
        since_ms = seconds * 1000 + micros // 1000 - FRESH_MS
        alive = streams.zrange(f"{PREFIX}:seen", since_ms, "+inf", byscore=True)
        mine = [one for one in alive if one.startswith(f"archive:{socket.gethostname()}:".encode())]
        if not mine:
            return f"no heartbeat within {FRESH_MS // 1000} s"
        figures = json.loads(streams.hmget(f"{PREFIX}:status", mine)[0] or b"{}").get("figures", {})
        return "" if figures.get("writable") else f"not writable: {figures.get('error')}"


if __name__ == "__main__":
    try:
        found = trouble()
    except redis.RedisError as error:
        found = f"Redis: {error}"
    sys.exit(found or 0)  # a message is printed and makes it 1
