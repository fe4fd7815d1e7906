"""The image's Redis servers, started from its own files on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis
from redis_servers import redis_cli

from qmt_standalone.redis_server import find_server, free_port

DOCKER = Path(__file__).resolve().parents[2] / "docker"
ROLES = ("producer", "worker", "gateway", "archive", "client", "reader")

Connect = Callable[[str], redis.Redis]


def settings(folder: Path) -> dict[str, str]:
    """Return the environment of the image's scripts for a server that lives in a folder."""
    return {
        **os.environ,
        **{f"QMT_{role.upper()}_PASSWORD": f"secret-of-{role}" for role in ROLES},
        "QMT_REDIS_BINARY": str(find_server()),
        "QMT_REDIS_CLI": str(redis_cli()),
        "QMT_TEST_PYTHON": sys.executable,
        "QMT_RUN_DIR": str(folder / "run"),
        "QMT_REDIS_DIR": str(folder),
        "QMT_REDIS_MEMORY": "128mb",
    }


def launch(
    kind: str,
    folder: Path,
    port: int,
    *flags: str,
    scripts: Path = DOCKER / "redis",
    **env: str,
) -> subprocess.Popen[bytes]:
    """Start a server by the image's own start script; what it says is in ``log``."""
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [scripts / "start.sh", kind, "--bind", "127.0.0.1", "--port", str(port), *flags],
            env={**settings(folder), **env},
            stdout=log,
            stderr=log,
        )


def health(folder: Path) -> subprocess.CompletedProcess[str]:
    """Ask as the image's health check does."""
    return subprocess.run(
        [DOCKER / "redis" / "health.sh"],
        env=settings(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start_server(
    kind: str, folder: Path, *flags: str, **env: str
) -> tuple[subprocess.Popen[bytes], Connect]:
    """Start a server and wait until it is as the health check wants it."""
    port = free_port()
    process = launch(kind, folder, port, *flags, **env)

    def connect(role: str) -> redis.Redis:
        return redis.Redis(port=port, username=role, password=f"secret-of-{role}", socket_timeout=5)

    deadline = time.monotonic() + 60
    while not (folder / "run" / "ready").exists() or health(folder).returncode:
        if time.monotonic() > deadline or process.poll() is not None:
            process.kill()
            raise RuntimeError((folder / "log").read_text("utf-8", "replace")[-2000:])
        time.sleep(0.05)
    return process, connect
