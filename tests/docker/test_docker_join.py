"""The line that joins the Windows box: what it holds, and that it suffices for all done there."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from docker_servers import DOCKER, ROLES, start_server
from heartbeats import write_heartbeat
from redis.exceptions import NoPermissionError

from qmt_protocol.keys import Keys
from qmt_protocol.status import decode_heartbeat, new_heartbeat

KEYS = Keys()
GOOD = {"QMT_PRODUCER_PASSWORD": "abc123", "QMT_WORKER_PASSWORD": "def456"}


def join(tmp_path: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run docker/join with an environment file that holds these settings."""
    file = tmp_path / "env"
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), "utf-8")
    return subprocess.run(
        ["/bin/sh", DOCKER / "join", *arguments],
        env={"PATH": "/usr/bin:/bin", "QMT_ENV_FILE": str(file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def decoded(line: str) -> dict[str, object]:
    """Read a join line by the standard library alone."""
    head, _, body = line.partition(".")
    assert (head, re.fullmatch(r"[A-Za-z0-9_-]+", body) is not None) == ("qmt1", True)
    document: dict[str, object] = json.loads(
        base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    )
    return document


@pytest.mark.parametrize(
    ("host", "in_url"),
    [("192.168.1.100", "192.168.1.100"), ("nas.lan", "nas.lan"), ("fd00::7", "[fd00::7]")],
)
def test_one_line_holds_where_to_go_and_as_whom(tmp_path: Path, host: str, in_url: str) -> None:
    done = join(tmp_path, host, **GOOD, QMT_REDIS_ADDRESS="192.168.1.100")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert decoded(done.stdout.strip()) == {
        "v": 1,
        "streams": f"redis://producer:abc123@{in_url}:6379/0",
        "worker_streams": f"redis://worker:def456@{in_url}:6379/0",
        "jobs": f"redis://worker:def456@{in_url}:6380/0",
        "prefix": "qmt",
    }


def test_the_environment_file_is_read_as_compose_reads_it(tmp_path: Path) -> None:
    """Quotes are no part of a value, and a file from Windows may end its lines as it likes."""
    settings = {"QMT_PRODUCER_PASSWORD": '"abc123" \r', "QMT_WORKER_PASSWORD": "'def456'"}
    done = join(tmp_path, "nas.lan", **settings)
    assert done.returncode == 0
    assert decoded(done.stdout.strip())["streams"] == "redis://producer:abc123@nas.lan:6379/0"
    assert decoded(done.stdout.strip())["jobs"] == "redis://worker:def456@nas.lan:6380/0"
    assert "opens Redis on this machine only" in done.stderr


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "0.0.0.0", "::1"])
def test_the_windows_box_cannot_use_this_machines_own_name(tmp_path: Path, host: str) -> None:
    done = join(tmp_path, host, **GOOD)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is this machine itself" in done.stderr


def test_redis_in_wsl2_is_reached_on_this_very_machine(tmp_path: Path) -> None:
    done = join(tmp_path, "--wsl2", **GOOD)
    assert (done.returncode, done.stderr) == (0, "")
    assert decoded(done.stdout.strip())["streams"] == "redis://producer:abc123@127.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "told"),
    [
        ([], GOOD, 2, "usage: docker/join HOST"),
        (["a", "b"], GOOD, 2, "usage: docker/join HOST"),
        (["nas;reboot"], GOOD, 1, "is no host name and no address"),
        (["nas"], {**GOOD, "QMT_WORKER_PASSWORD": ""}, 1, "QMT_WORKER_PASSWORD is empty"),
        (["nas"], {"QMT_WORKER_PASSWORD": "x1"}, 1, "QMT_PRODUCER_PASSWORD is empty"),
        (["nas"], {**GOOD, "QMT_PRODUCER_PASSWORD": "a@b"}, 1, "it stands in a URL"),
    ],
)
def test_what_cannot_be_joined_is_said(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], code: int, told: str
) -> None:
    done = join(tmp_path, *arguments, **settings)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert not {"abc123", "def456", "a@b"} & set(re.split(r"[\s'\"]", done.stderr))


def test_without_an_environment_file_it_says_how_to_make_one(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", DOCKER / "join", "nas"],
        env={"PATH": "/usr/bin:/bin", "QMT_ENV_FILE": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "docker/up" in done.stderr


def test_the_lines_users_may_do_what_the_windows_box_does(tmp_path: Path) -> None:
    """The servers run with the image's own users; only their ports are others here."""
    passwords = {f"QMT_{role.upper()}_PASSWORD": f"secret-of-{role}" for role in ROLES}
    done = join(tmp_path, "bridge.lan", **passwords)
    assert done.returncode == 0, done.stderr
    line = decoded(done.stdout.strip())
    streams_process, streams = start_server("streams", tmp_path / "streams")
    jobs_process, jobs = start_server("jobs", tmp_path / "jobs")
    ports = {
        6379: streams("worker").connection_pool.connection_kwargs["port"],
        6380: jobs("worker").connection_pool.connection_kwargs["port"],
    }

    def connect(name: str) -> redis.Redis:
        url = urlsplit(str(line[name]))
        assert url.hostname == "bridge.lan"
        port = ports[url.port or 0]
        return redis.Redis.from_url(f"redis://{url.username}:{url.password}@127.0.0.1:{port}/0")

    try:
        with connect("streams") as producer, connect("worker_streams") as worker:
            beat = new_heartbeat("windows", 1, figures={"alerts": []})
            beaten_ms = write_heartbeat(producer, KEYS, beat)
            alive = producer.zrangebyscore(KEYS.seen, beaten_ms - 5000, "+inf")
            documents = producer.hmget(KEYS.status, alive)
            assert [decode_heartbeat(one).role for one in documents] == ["windows"]
            assert producer.hget(KEYS.status, alive[0]) == documents[0]
            assert producer.xadd(KEYS.events, {"e": b"{}"})

            assert worker.ping()
            assert worker.time()
            assert write_heartbeat(worker, KEYS, new_heartbeat("worker", 1)) >= beaten_ms
            with pytest.raises(NoPermissionError):
                worker.xadd(KEYS.tick("600519.SH"), {"t1": b"x"})
        with connect("jobs") as queue:
            assert queue.ping()
            assert queue.time()
    finally:
        for process in (streams_process, jobs_process):
            process.terminate()
            process.wait(60)
