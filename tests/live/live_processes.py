"""Real processes of the bridge, for tests that start, kill and question them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import redis

from qmt_standalone.redis_server import RedisServer


@contextmanager
def process(
    module: str, *flags: str, stderr: int | None = None, **env: str
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    child = subprocess.Popen(
        [sys.executable, "-m", module, "--exit-with-stdin", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "TZ": "CST-8", **env},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        try:
            yield child, child.stdout
        finally:
            child.stdin.close()
            try:
                child.wait(60)
            finally:
                child.kill()


def producer_status(streams: redis.Redis) -> dict[str, Any]:
    """Return the last heartbeat of the producer that was heard of last."""
    for member, _ in streams.zrevrange("qmt:seen", 0, -1, withscores=True):
        status = json.loads(streams.hget("qmt:status", member) or b"{}")
        if status.get("role") == "producer":
            return dict(status)
    return {}


def producer_env(server: RedisServer, port: int, ring: Path) -> dict[str, str]:
    return {
        "QMT_STREAMS_URL": server.url,
        "QMT_TERMINAL_PORT": str(port),
        "QMT_NATIVE_MODULE": "qmt_simulator.native",
        "QMT_RING": str(ring),
        "QMT_LOG_LEVEL": "error",
    }
