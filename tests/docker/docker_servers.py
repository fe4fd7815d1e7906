"""The image's Redis servers, started from its own files on loopback."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis

from qmt_standalone.redis_server import find_server, free_port

DOCKER = Path(__file__).resolve().parents[2] / "docker"
ROLES = ("producer", "worker", "gateway", "archive", "client", "reader")

Connect = Callable[[str], redis.Redis]


def start_server(kind: str, folder: Path) -> tuple[subprocess.Popen[bytes], Connect]:
    """Start a server by the image's own start script."""
    port = free_port()
    folder.mkdir()
    passwords = {f"QMT_{role.upper()}_PASSWORD": f"secret-of-{role}" for role in ROLES}
    process = subprocess.Popen(
        [
            "/bin/sh",
            DOCKER / "redis" / "start.sh",
            kind,
            "--bind",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        env={
            **os.environ,
            **passwords,
            "QMT_REDIS_BINARY": str(find_server()),
            "QMT_ACL_FILE": str(folder / "users.acl"),
            "QMT_REDIS_DIR": str(folder),
            "QMT_REDIS_MEMORY": "128mb",
        },
        stdout=subprocess.DEVNULL,
    )

    def connect(role: str) -> redis.Redis:
        return redis.Redis(port=port, username=role, password=f"secret-of-{role}", socket_timeout=5)

    deadline = time.monotonic() + 10
    while True:
        try:
            with connect("worker") as probe:
                probe.ping()
            return process, connect
        except redis.ConnectionError:
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                raise
            time.sleep(0.05)
