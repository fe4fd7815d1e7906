"""A URL that cannot be used ends every program at once: status 2, its setting, no password."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest
import redis
from away_rig import PROGRAMS, Program, Run, start
from waiting import wait_for

from qmt_client import QMTClient
from qmt_standalone.redis_server import RedisServer

PASSWORD: Final = "p#w@x/y%z:q w"
WRONG: Final = f"redis://user:{PASSWORD}@127.0.0.1:1/0"
RIGHT: Final = "redis://127.0.0.1:1/0"
CASES: Final = {
    **{f"{name}, streams": ("QMT_STREAMS_URL", name) for name in PROGRAMS},
    **{
        f"{name}, jobs": ("QMT_JOBS_URL", name)
        for name in ("archive run", "gateway", "worker of a queue", "qmt history")
    },
    "worker, jobs": ("QMT_JOBS_URL", "worker"),
}


def program_of(name: str) -> Program:
    return PROGRAMS.get(name) or Program(("qmt_worker",))


def test_every_program_names_the_setting(tmp_path: Path) -> None:
    runs: dict[str, Run] = {}
    archive = tmp_path / "archive"
    archive.mkdir()
    with ExitStack() as stack:
        for case, (setting, name) in CASES.items():
            wrong = "streams" if setting == "QMT_STREAMS_URL" else "jobs"
            urls = {"streams": RIGHT, "jobs": RIGHT, wrong: WRONG}
            folder = tmp_path / case
            run = runs[case] = start(program_of(name), signal.SIGTERM, folder, urls, archive)
            stack.callback(run.process.wait)
            stack.callback(run.process.kill)
        wait_for(lambda: all(run.ended for run in runs.values()), "all ended")
    for case, run in runs.items():
        assert run.process.returncode == 2, (case, run.told)
        assert CASES[case][0] in run.told, (case, run.told)
        assert "%23" in run.told, (case, run.told)
        assert len(run.told.strip().splitlines()) == 1, (case, run.told)
        assert not any(part in run.told for part in ("p#w", "@x", "y%z", "q w")), (case, run.told)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[RedisServer, str]]:
    """A server whose user has a nasty password, and its URL."""
    one = RedisServer(tmp_path / "server")
    one.start()
    with redis.Redis.from_url(one.url) as connection:
        connection.acl_setuser("user", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"])
        connection.acl_setuser("user", enabled=True, categories=["+@all"])
    yield one, f"redis://user:{quote(PASSWORD, safe='')}@127.0.0.1:{one.port}/0"
    one.stop()


def test_an_encoded_password_opens_every_door(
    server: tuple[RedisServer, str], tmp_path: Path
) -> None:
    one, url = server
    urls = {"streams": url, "jobs": url}
    services = ("archive run", "gateway", "producer", "worker of a queue")
    with ExitStack() as stack:
        runs = [start(PROGRAMS[name], signal.SIGTERM, tmp_path / name, urls) for name in services]
        for run in runs:
            stack.callback(run.process.wait)
            stack.callback(run.process.kill)
        with redis.Redis.from_url(one.url) as admin:
            beats = {b"archive", b"producer", b"worker"}
            wait_for(
                lambda: beats <= {name.split(b":")[0] for name in admin.zrange("qmt:seen", 0, -1)},
                "heartbeats",
            )
            wait_for(lambda: admin.scard("rq:workers:qmt-query"), "a worker")
        with QMTClient(url) as client:
            roles = {one.beat.role for one in client.status().processes}
            assert roles >= {"producer", "worker", "archive"}
        assert not any(PASSWORD in run.told or url in run.told for run in runs)
