"""A few of the kills of `scripts/crash-archive`."""

from __future__ import annotations

from pathlib import Path

from archive_crash import crash

from qmt_standalone.redis_server import RedisServer


def test_killed_five_times_nothing_is_lost_or_there_twice(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        found = crash(server.url, tmp_path / "archive", kills=5, seed=4)
    finally:
        server.stop()
    assert found["ticks"] > 1000
    assert sum(found["moments"].values()) == 5
