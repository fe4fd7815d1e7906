"""The archive's health check, beside a real server with the archive's own rights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from docker_servers import DOCKER, start_server
from heartbeats import write_heartbeat

from qmt_protocol.keys import Keys
from qmt_protocol.status import new_heartbeat

KEYS = Keys()


def check(url: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, DOCKER / "archive_health.py"],
        env={**os.environ, "QMT_STREAMS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.strip()


def test_the_archive_is_well_while_its_heartbeat_says_so(tmp_path: Path) -> None:
    process, connect = start_server("streams", tmp_path / "streams")
    port = connect("archive").connection_pool.connection_kwargs["port"]
    url = f"redis://archive:secret%2Dof%2Darchive@127.0.0.1:{port}/0"
    try:
        assert check(url) == (1, "no heartbeat within 10 s")
        with connect("archive") as archive:
            figures = {"writable": False, "error": "No space left on device"}
            write_heartbeat(archive, KEYS, new_heartbeat("archive", 1, figures=figures))
            assert check(url) == (1, "not writable: No space left on device")
            well = new_heartbeat("archive", 1, figures={"writable": True})
            write_heartbeat(archive, KEYS, well)
            assert check(url) == (0, "")
            # Ten seconds and a moment ago.
            seconds, _ = archive.time()
            archive.zadd(KEYS.seen, {well.member: (seconds - 11) * 1000})
            assert check(url) == (1, "no heartbeat within 10 s")
        code, told = check(url.replace("archive:secret", "archive:wrong"))
        assert (code, told.partition(" ")[0]) == (1, "Redis:")
        assert "secret" not in told
    finally:
        process.terminate()
        process.wait(30)
    assert check(url)[0] == 1
