"""`qmt-producer replay` and who reads it, with the rights of the shipped roles and no others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from archive_maker import ArchiveMaker
from docker_servers import Connect, start_server

from qmt_client import QMTClient
from qmt_protocol.keys import Keys
from qmt_protocol.ticks import encode_tick
from qmt_protocol.times import day_start_ms

DAY = 20261120
OPEN_MS = day_start_ms(DAY) + (9 * 60 + 30) * 60_000
TICKS = 700
CODES = ["600519.SH", "000001.SZ"]


@pytest.fixture
def archive(streams: redis.Redis, tmp_path: Path) -> ArchiveMaker:
    """A day of two codes."""
    keys = Keys("t")
    maker = ArchiveMaker(tmp_path / "archive", streams, keys)
    for code in CODES:
        for number in range(TICKS):
            at_ms = OPEN_MS + number * 3_000
            data = encode_tick({"time": at_ms, "lastPrice": 10.0, "volume": number})
            streams.xadd(keys.tick(code), {"t1": data}, f"{at_ms}-0")
        maker.ticks([code], DAY)
    return maker


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    server, connect = start_server("streams", tmp_path / "server")
    yield connect
    server.terminate()
    server.wait(20)


def url_of(connect: Connect, role: str) -> str:
    with connect(role) as connection:
        port = connection.connection_pool.connection_kwargs["port"]
    return f"redis://{role}:secret-of-{role}@127.0.0.1:{port}/0"


def replay(connect: Connect, archive: ArchiveMaker, *flags: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name[:4] != "QMT_"}
    done = subprocess.run(
        [sys.executable, "-m", "qmt_producer", "replay", *flags],
        env={
            **inherited,
            "QMT_STREAMS_URL": url_of(connect, "producer"),
            "QMT_ARCHIVE_URL": archive.url,
        },
        cwd=archive.root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "NOPERM" not in done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_a_replay_is_published_read_and_removed_by_the_shipped_roles(
    connect: Connect, archive: ArchiveMaker
) -> None:
    prefix, flags = "replay-20261120", ("--day", "2026-11-20", "--speed", "max")
    assert f"{TICKS * len(CODES)} ticks" in replay(connect, archive, *flags)
    for role in ("client", "gateway"):
        with (
            QMTClient(url_of(connect, role), prefix=prefix, archive_url="") as client,
            client.ticks(CODES, start="2026-11-20", snapshot=False) as ticks,
        ):
            seen = [(tick.code, tick.id) for _, tick in zip(range(1_400), ticks, strict=False)]
        assert len(set(seen)) == TICKS * len(CODES)
    with connect("reader") as reader:
        stream = Keys(prefix).tick(CODES[0])
        assert len(reader.xrange(stream)) == TICKS
        with pytest.raises(redis.exceptions.NoPermissionError):
            reader.xadd(stream, {"t1": b"x"})
    again = replay(connect, archive, *flags)
    assert "An earlier replay" in again
    assert f"{prefix}: " in replay(connect, archive, "--clean")
    with connect("reader") as reader:
        assert not reader.exists(stream, Keys(prefix).replay, Keys(prefix).latest("SH"))
    assert "No prefix holds a replay." in replay(connect, archive, "--clean")
