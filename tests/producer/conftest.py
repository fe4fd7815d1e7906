"""The tests of this folder run against every Redis and Valkey that this machine has.

The usual server always; others when they stand on PATH or are named by QMT_TEST_REDIS_SERVERS,
paths separated as PATH is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmt_standalone.redis_server import RedisServer, find_server


def _binaries() -> list[Path]:
    found = [find_server()]
    on_path = [shutil.which(name) for name in ("redis-server", "valkey-server")]
    named = os.environ.get("QMT_TEST_REDIS_SERVERS", "").split(os.pathsep)
    found += [Path(path) for path in [*on_path, *named] if path]
    return list({binary.resolve(): binary for binary in found}.values())


def _version(binary: Path) -> str:
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    words = shown.stdout.split()  # Valkey server v=9.1.2 sha=...
    return f"{words[0]}-{words[2].removeprefix('v=')}".lower()


@pytest.fixture(scope="session", params=_binaries(), ids=_version)
def server_binary(request: pytest.FixtureRequest) -> Path:
    """Each server in turn."""
    binary: Path = request.param
    return binary


@pytest.fixture(scope="session")
def streams_server(
    server_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A real server for streams, of each kind in turn."""
    server = RedisServer(tmp_path_factory.mktemp("streams"), binary=server_binary)
    server.start()
    yield server
    server.stop()
