"""A real gateway process over the test's servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Gateway:
    """A running gateway."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def running_gateway(target: dict[str, str], port: int = 0, **env: str) -> Iterator[Gateway]:
    """Run ``qmt-gateway`` over the test's servers."""
    child = subprocess.Popen(
        [sys.executable, "-m", "qmt_gateway", "--port", str(port), "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "QMT_STREAMS_URL": target["url"],
            "QMT_JOBS_URL": target["jobs_url"],
            **env,
        },
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        try:
            yield Gateway(json.loads(child.stdout.readline())["url"], child)
        finally:
            child.stdin.close()
            try:
                child.wait(60)
            finally:
                child.kill()
