"""Real processes of the bridge, for tests that start, kill and question them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import redis


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
                child.wait(20)
            finally:
                child.kill()


def producer_status(streams: redis.Redis) -> dict[str, Any]:
    for beat in streams.hgetall("qmt:status").values():
        status = json.loads(beat)
        if status["role"] == "producer":
            return dict(status)
    return {}
