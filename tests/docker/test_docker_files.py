"""The container files: linted, and the users' rights tried on a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from docker_servers import DOCKER, ROLES, Connect, start_server
from heartbeats import write_heartbeat
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from qmt_protocol.keys import JobKeys, Keys
from qmt_protocol.status import new_heartbeat
from qmt_standalone.redis_server import find_server

BIN = Path(sys.executable).parent
KEYS = Keys()
ONCE = Retry(NoBackoff(), 0)
TICKS = KEYS.tick("600519.SH")


def test_the_compose_file_follows_the_schema() -> None:
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
        cwd=DOCKER,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Dockerfile.gateway", "Dockerfile.redis"])
def test_the_dockerfiles_are_clean(name: str) -> None:
    done = subprocess.run(
        [BIN / "hadolint", name],
        cwd=DOCKER,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_builds_each_image_once_under_a_name_of_its_own() -> None:
    """Two builds of one image race, and each `up` takes the other's for a change."""
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    assert compose["name"] == "qmt-bridge"
    built = [one["image"] for one in compose["services"].values() if "build" in one]
    assert sorted(built) == ["qmt-bridge-gateway", "qmt-bridge-redis"]
    for service in compose["services"].values():
        assert service["image"] in built
        assert ("build" in service) != (service.get("pull_policy") == "never")


def test_every_container_is_bounded_and_its_health_is_known() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["logging"]["options"]["max-size"], name
        assert service["restart"] == "unless-stopped", name
        assert service["environment"]["TZ"] == "CST-8", name
    for name in ("redis", "gateway"):
        assert "\nHEALTHCHECK " in (DOCKER / f"Dockerfile.{name}").read_text("utf-8")
    assert compose["services"]["archive"]["healthcheck"]["test"]


@pytest.mark.parametrize("server", ["streams", "jobs"])
def test_a_server_has_room_to_rewrite_its_file(server: str) -> None:
    example = dict(
        line.split("=", 1)
        for line in (DOCKER / ".env.example").read_text("utf-8").splitlines()
        if line[:4] == "QMT_"
    )
    held = int(example[f"QMT_{server.upper()}_MEMORY"].removesuffix("gb"))
    limit = int(example[f"QMT_{server.upper()}_MEMORY_LIMIT"].removesuffix("gb"))
    assert limit >= 1.5 * held


def test_compose_listens_on_loopback_and_keeps_data_by_default() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    for name, service in compose["services"].items():
        for port in service.get("ports", ()):
            assert ":-127.0.0.1}:" in port, (name, port)
    for name in ("streams", "jobs"):
        assert compose["services"][name]["volumes"] == [f"{name}-data:/data"]
    assert compose["services"]["archive"]["volumes"] == ["archive-data:/archive"]
    gateway = compose["services"]["gateway"]
    assert gateway["volumes"] == ["archive-data:/archive:ro", "gateway-keys:/keys"]
    # The root is read-only: what `qmt-gateway keys` writes must lie in a volume of its user's.
    assert gateway["environment"]["QMT_BRIDGE_KEYS_FILE"].startswith("/keys/")
    dockerfile = (DOCKER / "Dockerfile.gateway").read_text("utf-8")
    assert "install -d -o 10001 -m 700 /keys" in dockerfile
    assert "USER 10001" in dockerfile
    assert set(compose["volumes"]) == {"streams-data", "jobs-data", "archive-data", "gateway-keys"}


def test_every_setting_of_compose_is_in_the_example() -> None:
    example = {
        line.partition("=")[0]
        for line in (DOCKER / ".env.example").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    }
    text = (DOCKER / "compose.yaml").read_text("utf-8")
    used = {part.split("}")[0].split(":")[0].split("-")[0] for part in text.split("${")[1:]}
    assert used == example


def test_the_image_holds_no_part_of_the_windows_side() -> None:
    lock = (DOCKER.parent / "requirements-gateway.lock").read_text("utf-8")
    assert "xtquant" not in lock
    copied = {
        name.rstrip("/")
        for line in (DOCKER / "Dockerfile.gateway").read_text("utf-8").splitlines()
        if line.startswith("COPY")
        for name in line.split()[1:-1]
    }
    folders = {name for name in copied if (DOCKER.parent / name).is_dir()}
    assert folders == {"protocol", "runtime", "reading", "gateway", "archive"}
    ignored = (DOCKER.parent / ".dockerignore").read_text("utf-8").splitlines()
    assert {f"!{name}" for name in copied} <= set(ignored)


def _server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connect]:
    process, connect = start_server(kind, tmp_path_factory.mktemp("acl") / kind)
    yield connect
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="module")
def streams_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connect]:
    yield from _server("streams", tmp_path_factory)


@pytest.fixture(scope="module")
def jobs_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connect]:
    yield from _server("jobs", tmp_path_factory)


def _beat(connection: redis.Redis, role: str) -> Any:
    return write_heartbeat(connection, KEYS, new_heartbeat(role, 1))


READS: dict[str, Callable[[redis.Redis], Any]] = {
    "range of a stream": lambda r: r.xrevrange(TICKS, count=1),
    "follow a stream": lambda r: r.xread({TICKS: "0"}, count=1),
    "latest": lambda r: r.hmget(KEYS.latest("SH"), ["600519.SH"]),
    "schema": lambda r: r.hgetall(KEYS.schema),
    "who is alive": lambda r: r.zrange(KEYS.seen, 0, -1, withscores=True),
    "epoch": lambda r: r.get(KEYS.epoch("SH")),
    "redis time": lambda r: r.time(),
    "stream facts": lambda r: r.exists(TICKS) and r.xinfo_stream(TICKS),
}
WRITES: dict[str, Callable[[redis.Redis], Any]] = {
    "a tick": lambda r: r.xadd(TICKS, {"t1": b"x"}),
    "latest's entry": lambda r: r.hset(KEYS.latest("SH"), "600519.SH", b"x"),
    "the lease": lambda r: r.set(KEYS.lease("SH"), "me", px=1000),
    "the schema": lambda r: r.hset(KEYS.schema, "t1", "{}"),
    "an event": lambda r: r.xadd(KEYS.events, {"e": b"{}"}),
}
DANGERS: dict[str, Callable[[redis.Redis], Any]] = {
    "FLUSHALL": lambda r: r.flushall(),
    "FLUSHDB": lambda r: r.flushdb(),
    "SWAPDB": lambda r: r.swapdb(0, 1),
    "CONFIG SET": lambda r: r.config_set("maxmemory", 1),
    "SHUTDOWN": lambda r: r.execute_command("SHUTDOWN"),
    "KEYS": lambda r: r.keys("*"),
    "ACL SETUSER": lambda r: r.acl_setuser("evil", enabled=True),
    "REPLICAOF": lambda r: r.execute_command("REPLICAOF", "127.0.0.1", "1"),
    "MONITOR": lambda r: r.execute_command("MONITOR"),
    "another key": lambda r: r.get("somebody:else"),
}


def test_who_has_no_password_gets_nothing(streams_users: Connect, jobs_users: Connect) -> None:
    for connect in (streams_users, jobs_users):
        port = connect("worker").connection_pool.connection_kwargs["port"]
        with redis.Redis(port=port, retry=ONCE) as nobody, pytest.raises(redis.AuthenticationError):
            nobody.ping()
        liar = redis.Redis(port=port, username="worker", password="wrong", retry=ONCE)
        with liar, pytest.raises(redis.AuthenticationError):
            liar.ping()


@pytest.mark.parametrize("what", WRITES)
def test_only_the_producer_writes_market_data(streams_users: Connect, what: str) -> None:
    WRITES[what](streams_users("producer"))
    for role in ("worker", "gateway", "archive", "client", "reader"):
        with pytest.raises(NoPermissionError):
            WRITES[what](streams_users(role))


@pytest.mark.parametrize("what", READS)
def test_readers_read_everything(streams_users: Connect, what: str) -> None:
    streams_users("producer").xadd(TICKS, {"t1": b"x"})
    for role in ("gateway", "client", "reader"):
        READS[what](streams_users(role))
    if what not in {"redis time"}:
        with pytest.raises(NoPermissionError):
            READS[what](streams_users("worker"))


def test_the_archive_says_how_far_it_has_stored(streams_users: Connect) -> None:
    archive = streams_users("archive")
    assert archive.set(KEYS.archived("SH"), "1-0")
    assert archive.set(KEYS.archive, "me", nx=True, px=1000)
    assert archive.xadd(KEYS.archive_events, {"e": b"{}"})
    assert archive.xrange(TICKS) is not None
    for key in (KEYS.epoch("SH"), KEYS.acked("SH"), KEYS.lease("SH"), "qmt:other"):
        with pytest.raises(NoPermissionError):
            archive.set(key, "1-0")
    for role in ("worker", "gateway", "client", "reader"):
        with pytest.raises(NoPermissionError):
            streams_users(role).set(KEYS.archived("SH"), "1-0")


@pytest.mark.parametrize("role", ["producer", "worker", "archive"])
def test_who_beats_may_say_so(streams_users: Connect, role: str) -> None:
    assert _beat(streams_users(role), role) > 0
    assert role in {
        member.decode().partition(":")[0]
        for member in streams_users("reader").zrange(KEYS.seen, 0, -1)
    }


@pytest.mark.parametrize("role", ["gateway", "client", "reader"])
def test_who_reads_cannot_claim_to_be_alive(streams_users: Connect, role: str) -> None:
    with pytest.raises(NoPermissionError):
        _beat(streams_users(role), "worker")


@pytest.mark.parametrize("role", ["gateway", "client"])
def test_wants_are_said_to_the_producer_and_stored_nowhere(
    streams_users: Connect, role: str
) -> None:
    with closing(streams_users("producer").pubsub()) as line:
        line.subscribe(KEYS.demand_channel)
        assert line.get_message(timeout=10) is not None
        assert streams_users(role).publish(KEYS.demand_channel, "1m|600519.SH") == 1
        said = line.get_message(timeout=10)
        assert said is not None
        assert said["data"] == b"1m|600519.SH"
    with pytest.raises(NoPermissionError):
        streams_users(role).zadd("qmt:wanted", {"1m|600519.SH": 1.0})


def test_a_reader_says_nothing(streams_users: Connect) -> None:
    with pytest.raises(NoPermissionError):
        streams_users("reader").publish(KEYS.demand_channel, "1m|600519.SH")


@pytest.mark.parametrize("danger", DANGERS)
@pytest.mark.parametrize("role", ROLES)
def test_nobody_can_do_harm_on_streams(streams_users: Connect, role: str, danger: str) -> None:
    with pytest.raises(NoPermissionError):
        DANGERS[danger](streams_users(role))


@pytest.mark.parametrize("danger", DANGERS)
@pytest.mark.parametrize("role", ["worker", "gateway", "archive", "client"])
def test_nobody_can_do_harm_on_jobs(jobs_users: Connect, role: str, danger: str) -> None:
    with pytest.raises(NoPermissionError):
        DANGERS[danger](jobs_users(role))


def test_streams_keep_everything_and_are_on_disk(streams_users: Connect, tmp_path: Path) -> None:
    """The limits come from the configuration that the image holds."""
    text = (DOCKER / "redis" / "streams.conf").read_text("utf-8")
    lines = {tuple(line.split(None, 1)) for line in text.splitlines() if line[:1] not in ("#", "")}
    assert ("maxmemory-policy", "noeviction") in lines
    assert ("appendonly", "yes") in lines
    assert ("appendfsync", "everysec") in lines


class _Worker(SimpleWorker):
    def subscribe(self) -> None:
        """Take no commands over Redis, as the bridge's worker: its user has no right to."""


@pytest.mark.parametrize("role", ["gateway", "archive", "client"])
def test_a_job_runs_from_one_user_to_the_other(jobs_users: Connect, role: str) -> None:
    """RQ's own commands are allowed to both sides; results go from worker to waiter alone."""
    waiting, working = jobs_users(role), jobs_users("worker")
    keys = JobKeys()
    queue = Queue("qmt-query", connection=waiting, serializer=JSONSerializer)
    job = queue.enqueue("operator.add", 2, 3, job_id=f"job-of-{role}", result_ttl=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        worker = _Worker([queue.name], connection=working, serializer=JSONSerializer)
        worker.work(burst=True, logging_level="WARNING")
    done = Job.fetch(job.id, connection=working, serializer=JSONSerializer)
    assert done.latest_result().return_value == 5

    working.xadd(keys.progress(job.id), {"p": b"{}"})
    working.set(keys.chunk(job.id, 0), b"chunk", ex=60)
    working.set(keys.manifest(job.id), b"{}", ex=60)
    assert waiting.xread({keys.progress(job.id): "0"})
    assert waiting.get(keys.chunk(job.id, 0)) == b"chunk"
    assert waiting.set(keys.cancel(job.id), b"1", ex=60)
    with pytest.raises(NoPermissionError):
        waiting.set(keys.manifest(job.id), b"forged")


def test_a_missing_password_stops_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", DOCKER / "redis" / "start.sh", "streams"],
        env={
            "PATH": os.environ["PATH"],
            "QMT_RUN_DIR": str(tmp_path / "run"),
            "QMT_REDIS_BINARY": str(find_server()),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "QMT_PRODUCER_PASSWORD is not set" in done.stderr


def test_both_pages_on_running_it_give_the_same_commands() -> None:
    pages = [
        (DOCKER.parent / "docs" / f"operations{language}.md").read_text("utf-8")
        for language in ("", ".zh-CN")
    ]
    english, chinese = (re.findall(r"```sh\n(.*?)```", page, re.S) for page in pages)
    assert english == chinese
    assert len(english) >= 4
