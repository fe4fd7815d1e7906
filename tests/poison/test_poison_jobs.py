"""One worker process beside every content of the jobs server, each written by its own role."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from content import Content
from docker_servers import Connect, start_server
from jobs_contents import (
    ANSWERED,
    AT_START,
    BOOKS,
    KEYS,
    SHOWN,
    SHOWN_AT_START,
    SILENT,
    TOLD,
)
from waiting import wait_for
from worker_rig import WorkerProcess

from qmt_protocol.jobs import CATALOGUE, QUERY_QUEUE, SectorStocksParams
from qmt_protocol.keys import JobKeys, Keys
from qmt_reading.jobs.queue import enqueue
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

BATCH: Final = 10  # of ids that follow one another no more are named
MAY_GROW_KB: Final = 64_000
"""A worker's peak beyond what it takes when it starts; one bomb alone would take 256 MB."""


class Rig:
    """A worker with a user's rights on the jobs server, and who looks at what it leaves there."""

    def __init__(self, connect: Connect, streams: RedisServer, port: int, stack: ExitStack) -> None:
        self.connect = connect
        self.keys = JobKeys()
        self._stack = stack
        self._roles: dict[str, redis.Redis] = {}
        self.admin = self.by("admin")
        self.streams = stack.enter_context(redis.Redis.from_url(streams.url))
        jobs_port = self.admin.connection_pool.connection_kwargs["port"]
        self.worker = WorkerProcess(
            port,
            streams.url,
            f"redis://worker:secret-of-worker@127.0.0.1:{jobs_port}/0",
            *("--queue", QUERY_QUEUE),
        )
        stack.callback(self.worker.stop)
        self.peak_at_start_kb = 0

    def by(self, role: str) -> redis.Redis:
        """Return a connection of a role."""
        if role not in self._roles:
            self._roles[role] = self._stack.enter_context(self.connect(role))
        return self._roles[role]

    def write(self, contents: Sequence[Content]) -> None:
        for one in contents:
            one.write(self.by(one.role))

    def last_progress(self, job_id: str) -> dict[str, Any]:
        key = self.keys.progress(job_id)
        if self.admin.type(key) != b"stream":
            return {}
        ((_, fields),) = self.admin.xrevrange(key, count=1)
        return json.loads(fields.get(b"p", b"{}"))

    def has_answered(self) -> bool:
        """Whether the next good request is answered, by the process that was there before."""
        job_id = uuid.uuid4().hex
        spec = CATALOGUE["sector_stocks"]
        enqueue(self.by("client"), spec, SectorStocksParams(sector="上证50"), job_id, 600)
        wait_for(lambda: self.last_progress(job_id).get("state") in ("done", "failed"), "an answer")
        assert self.worker.process.poll() is None
        return bool(self.last_progress(job_id)["state"] == "done")

    def dead(self) -> set[str]:
        """Return ids and keys that the list of dead jobs names."""
        entries = [json.loads(one[b"e"]) for _, one in self.admin.xrange(self.keys.dead)]
        assert all(one["reason"] and one["at_ms"] > 0 for one in entries)
        named = ([one.get("id", one.get("key")), *one.get("more", [])] for one in entries)
        return {name for names in named for name in names}

    def unreported(self, told_as: dict[str, str]) -> list[str]:
        """Return contents that neither the list of dead jobs names nor a failed progress."""
        dead = self.dead()
        return [
            name
            for name, shown in told_as.items()
            if shown not in dead and self.last_progress(name).get("state") != "failed"
        ]

    def peak_kb(self) -> int:
        """Return the most memory that the worker ever had, as the kernel says."""
        status = Path(f"/proc/{self.worker.process.pid}/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with ExitStack() as stack:
        process, connect = start_server(
            "jobs",
            tmp_path_factory.mktemp("poison") / "jobs",
            QMT_ADMIN_PASSWORD="secret-of-admin",
            QMT_REDIS_MEMORY="512mb",
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        streams = RedisServer(tmp_path_factory.mktemp("poison-streams"), aof=False)
        streams.start()
        stack.callback(streams.stop)
        for one in AT_START:
            with connect(one.role) as connection:
                one.write(connection)
        simulated = stack.enter_context(TerminalProcess("--real-hours"))
        running = Rig(connect, streams, simulated.port, stack)
        wait_for(lambda: running.streams.zcard(Keys().seen), "the worker's heartbeat")
        assert running.has_answered()
        running.peak_at_start_kb = running.peak_kb()
        yield running


def batches(contents: Sequence[Content]) -> list[tuple[Content, ...]]:
    return [tuple(contents[at : at + BATCH]) for at in range(0, len(contents), BATCH)]


def first_and_last(batch: tuple[Content, ...]) -> str:
    return f"{batch[0].name}..{batch[-1].name}" if batch[1:] else batch[0].name


def test_a_worker_starts_among_them(rig: Rig) -> None:
    wait_for(lambda: not rig.unreported(SHOWN_AT_START), "all that it found at its start is told")
    assert rig.has_answered()
    assert rig.admin.keys("rq:queue:*") == []
    # RQ takes a job off this list behind its answer.
    wait_for(lambda: rig.admin.zcard(f"rq:wip:{QUERY_QUEUE}") == 0, "nothing runs")


@pytest.mark.parametrize("batch", batches(TOLD), ids=first_and_last)
def test_what_cannot_be_run_is_named_and_the_next_is_answered(
    rig: Rig, batch: tuple[Content, ...]
) -> None:
    rig.write(batch)
    assert rig.has_answered()
    assert rig.unreported({one.name: SHOWN.get(one.name, one.name) for one in batch}) == []


@pytest.mark.parametrize("batch", batches(ANSWERED), ids=first_and_last)
def test_what_a_worker_does_not_look_at_does_no_harm(rig: Rig, batch: tuple[Content, ...]) -> None:
    rig.write(batch)
    assert rig.has_answered()
    assert [one.name for one in batch if rig.last_progress(one.name)["state"] != "done"] == []


@pytest.mark.parametrize("batch", KEYS, ids=first_and_last)
def test_rqs_keys_of_another_type_are_put_aside(rig: Rig, batch: tuple[Content, ...]) -> None:
    rig.admin.delete(rig.keys.dead)
    rig.write(batch)
    keys = {BOOKS[one.name] for one in batch}
    wait_for(lambda: keys <= rig.dead(), f"{keys} are told")
    assert all(rig.admin.exists(f"rq:aside:{key}") for key in keys)
    assert rig.has_answered()


def test_what_nobody_reads_stops_nothing(rig: Rig) -> None:
    rig.write(SILENT)
    assert rig.has_answered()


def test_the_heartbeat_tells_how_many_and_the_last(rig: Rig) -> None:
    rig.by("client").rpush(f"rq:queue:{QUERY_QUEUE}", "told-of-in-the-heartbeat")

    def figures() -> dict[str, Any]:
        (beat,) = rig.streams.hvals(Keys().status)
        told: dict[str, Any] = json.loads(beat)["figures"]
        return told if told["last_dead"].get("id") == "told-of-in-the-heartbeat" else {}

    assert wait_for(figures, "the heartbeat tells of it")["dead"] > 0


def test_the_server_takes_no_longer_id_than_a_worker_can_hold(rig: Rig) -> None:
    told = rig.by("client").connection_pool.connection_kwargs
    with socket.create_connection(("localhost", told["port"])) as connection:
        login = f"AUTH client {told['password']}\r\n"
        connection.sendall(f"{login}*3\r\n$5\r\nRPUSH\r\n$1\r\nx\r\n${(64 << 20) + 1}\r\n".encode())
        said = b"".join(iter(lambda: connection.recv(1000), b""))
    assert b"invalid bulk length" in said


def test_its_memory_stays_bounded(rig: Rig) -> None:
    assert rig.peak_kb() - rig.peak_at_start_kb < MAY_GROW_KB


def test_no_role_but_the_worker_may_write_of_dead_jobs_and_claims(rig: Rig) -> None:
    attempts: list[Callable[[redis.Redis], Any]] = [
        lambda connection: connection.xadd(rig.keys.dead, {"e": "{}"}),
        lambda connection: connection.delete(rig.keys.dead),
        lambda connection: connection.set(rig.keys.claim("x"), "x"),
    ]
    for attempt in attempts:
        with pytest.raises(redis.exceptions.NoPermissionError):
            attempt(rig.by("client"))
