"""Real servers that refuse: still loading, with a full disk, out of memory, another password."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis

from qmt_standalone.redis_server import RedisServer

KEYS = 400
LOADING_US = 50_000
"""How long each key takes to load: the server is loading for twenty seconds, or until killed."""


def fill(server: RedisServer) -> None:
    """Put keys into its append-only file, in the form that is loaded key by key."""
    with redis.Redis.from_url(server.url) as connection:
        # As long as what is read between two looks at its clients.
        connection.mset({f"key:{number}": os.urandom(1024) for number in range(KEYS)})
        connection.bgrewriteaof()
        wait_for(lambda: not connection.info("persistence")["aof_rewrite_in_progress"])
        wait_for(lambda: not connection.info("persistence")["aof_rewrite_scheduled"])


def start_loading(server: RedisServer) -> subprocess.Popen[bytes]:
    """Start a filled server so that it loads for long."""
    slow = [
        *("--key-load-delay", str(LOADING_US)),
        *("--loading-process-events-interval-bytes", "1024"),
    ]
    with open(server.directory / "redis.log", "ab") as log:
        process = subprocess.Popen(
            [*server.prepare(), *slow], stdout=log, stderr=log, cwd=server.directory
        )
    wait_for(lambda: "loading" in refusal(server).lower())
    return process


def refusal(server: RedisServer) -> str:
    """Return how the server refuses to read a key; ``""``: it does not."""
    try:
        with redis.Redis.from_url(server.url, socket_timeout=2) as connection:
            connection.get("key:1")
    except redis.RedisError as error:
        return str(error)
    return ""


def fill_disk(connection: redis.Redis, folder: Path) -> None:
    """Make its next save fail as a full disk does: it takes no more writes, and no PING."""
    folder.mkdir()
    connection.config_set("dir", str(folder))
    folder.rmdir()
    connection.config_set("save", "3600 1")
    connection.config_set("stop-writes-on-bgsave-error", "yes")
    connection.bgsave()
    wait_for(lambda: connection.info("persistence")["rdb_last_bgsave_status"] == "err")


def empty_disk(connection: redis.Redis, folder: Path) -> None:
    connection.config_set("dir", str(folder))
    connection.config_set("stop-writes-on-bgsave-error", "no")


def change_password(connection: redis.Redis, password: str) -> None:
    """Give the user another password, and let nobody stay who knows the old one."""
    connection.execute_command("ACL", "SETUSER", "default", "resetpass", f">{password}")
    connection.execute_command("CLIENT", "KILL", "TYPE", "normal")


def wait_for(condition: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
