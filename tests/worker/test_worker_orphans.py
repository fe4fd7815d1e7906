"""What dead workers leave behind, looked at without one: which jobs fail, which are put back."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import psutil
import pytest
import redis
from rq.exceptions import DequeueTimeout, StopRequested
from worker_rig import Caller

from qmt_protocol.errors import JobFailed
from qmt_protocol.jobs import QUERY_QUEUE
from qmt_protocol.keys import JobKeys
from qmt_worker.dead import DeadList
from qmt_worker.intake import JobQueue
from qmt_worker.orphans import Orphans
from qmt_worker.service import _QueueWorker

KEYS = JobKeys()
QUEUE = f"rq:queue:{QUERY_QUEUE}"
INTERMEDIATE = f"{QUEUE}:intermediate"
WIP = f"rq:wip:{QUERY_QUEUE}"


@pytest.fixture
def queue(caller: Caller) -> JobQueue:
    caller.jobs.flushall()
    dead = DeadList(caller.jobs, KEYS, QUERY_QUEUE)
    return JobQueue(QUERY_QUEUE, caller.jobs, KEYS, lambda job: None, dead)


@pytest.fixture
def orphans(queue: JobQueue) -> Orphans:
    return Orphans(queue)


def begun(jobs: redis.Redis, job_id: str, claim: Any, until_s: float = 0.0) -> None:
    """Leave a job as a worker does that begins it."""
    jobs.hset(f"rq:job:{job_id}", "status", "started")
    if claim is not None:
        told = claim if isinstance(claim, bytes) else json.dumps(claim).encode()
        jobs.set(KEYS.claim(job_id), told)
    seconds, _ = jobs.time()
    jobs.zadd(WIP, {f"{job_id}:execution": until_s or seconds + 100})


def claim_of(pid: int, **other: Any) -> dict[str, Any]:
    started_s = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0.0
    return {"host": socket.gethostname(), "pid": pid, "started_s": started_s, **other}


def no_process() -> int:
    return next(pid for pid in range(4_000_000, 1, -1) if not psutil.pid_exists(pid))


def ended_as(jobs: redis.Redis, job_id: str) -> str:
    entries = jobs.xrange(KEYS.progress(job_id))
    return str(json.loads(entries[-1][1][b"p"])["error"]["data"]["reason"]) if entries else ""


def test_jobs_of_processes_that_are_gone_fail(orphans: Orphans, caller: Caller) -> None:
    jobs = caller.jobs
    begun(jobs, "of-a-dead-one", claim_of(no_process()))
    begun(jobs, "of-a-reused-pid", claim_of(os.getppid(), started_s=1.0))
    begun(jobs, "of-this-one", claim_of(os.getpid()))
    begun(jobs, "over", claim_of(1, host="another"), until_s=1.0)
    begun(jobs, "never-over", claim_of(1, host="another"), until_s=1e15)
    left = set(jobs.zrange(WIP, 0, -1))
    orphans.fail_begun()
    for entry in left:
        job_id = entry.decode().partition(":")[0]
        assert ended_as(jobs, job_id) == "worker died", job_id
        assert jobs.hget(f"rq:job:{job_id}", "status") == b"failed"
        assert jobs.get(KEYS.claim(job_id)) == b"ended"
        assert 0 < jobs.ttl(f"rq:job:{job_id}") <= 600
    assert jobs.zcard(WIP) == 0


def test_jobs_of_processes_that_may_live_are_left_alone(orphans: Orphans, caller: Caller) -> None:
    jobs = caller.jobs
    begun(jobs, "of-a-living-one", claim_of(os.getppid()))
    begun(jobs, "of-another-machine", claim_of(1, host="another"))
    begun(jobs, "not-claimed-yet", None)
    begun(jobs, "claim-no-json", b"\xff")
    begun(jobs, "claim-of-no-number", {**claim_of(1), "pid": "abc"})
    orphans.fail_begun()
    assert jobs.zcard(WIP) == 5
    assert jobs.keys("qmt:job:*") == []
    assert jobs.xlen(KEYS.dead) == 0


def test_a_job_that_ended_is_not_told_again(orphans: Orphans, caller: Caller) -> None:
    begun(caller.jobs, "ended", b"ended", until_s=1.0)
    orphans.fail_begun()
    assert caller.jobs.zcard(WIP) == 0
    assert caller.jobs.keys("qmt:job:*") == []


def test_what_another_worker_has_just_taken_is_put_back_when_it_stays(
    orphans: Orphans, caller: Caller
) -> None:
    orphans.put_back_taken()
    caller.jobs.rpush(INTERMEDIATE, "a", "b")
    orphans.put_back_taken()
    assert caller.jobs.lrange(QUEUE, 0, -1) == []
    caller.jobs.lrem(INTERMEDIATE, 1, "a")
    caller.jobs.rpush(INTERMEDIATE, "c")
    orphans.put_back_taken()
    assert caller.jobs.lrange(QUEUE, 0, -1) == [b"b"]
    assert caller.jobs.lrange(INTERMEDIATE, 0, -1) == [b"c"]


def taken(queue: JobQueue) -> str:
    """Take the next job, as RQ does: again when bad ones took some time."""
    while True:
        try:
            return str(queue.take(1).id)
        except DequeueTimeout:
            assert queue.connection.llen(QUEUE)


def test_of_two_that_claim_an_id_one_has_it(queue: JobQueue) -> None:
    first, second = queue.record("x"), queue.record("x")
    assert first.claim()
    assert not second.claim()
    first.failed(JobFailed("x"))
    assert not second.claim()


def test_a_taken_job_is_read_to_its_end_and_no_farther(queue: JobQueue) -> None:
    """A run of ids without jobs is skipped, and the first that has one is left where it is."""
    jobs = queue.connection
    jobs.rpush(QUEUE, *(f"missing{number}" for number in range(2500)), "good", "missing", "last")
    data = b'["qmt.sector_stocks", null, [], {"params": {"sector": "x"}, "version": 2}]'
    for job_id in ("good", "last"):
        jobs.hset(f"rq:job:{job_id}", "data", data)
    assert taken(queue) == "good"
    assert jobs.lrange(QUEUE, 0, -1) == [b"missing", b"last"]
    assert jobs.lrange(INTERMEDIATE, 0, -1) == [b"good"]
    told = [json.loads(fields[b"e"]) for _, fields in jobs.xrange(KEYS.dead)]
    assert sum(one.get("count", 1) for one in told) == queue.dead.count == 2500
    assert len(told) < 10
    assert taken(queue) == "last"


@pytest.mark.parametrize("error", [StopRequested, redis.ConnectionError, OSError])
def test_a_job_is_not_given_up_for_what_is_no_fault_of_it(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A worker that is told to stop while it reads a job leaves it to be put back."""

    def interrupted(data: bytes, name: str) -> None:
        raise error

    monkeypatch.setattr("qmt_worker.intake.read_call", interrupted)
    queue.connection.hset("rq:job:good", "data", "x")
    queue.connection.rpush(QUEUE, "good")
    with pytest.raises(error):
        queue.take(1)
    assert queue.connection.lrange(INTERMEDIATE, 0, -1) == [b"good"]
    assert queue.dead.count == 0


def test_a_job_that_cannot_be_read_for_an_unknown_reason_is_given_up(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data: bytes, name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("qmt_worker.intake.read_call", broken)
    queue.connection.hset("rq:job:bad", "data", "x")
    queue.connection.rpush(QUEUE, "bad")
    with pytest.raises(DequeueTimeout):
        queue.take(1)
    assert queue.connection.keys("rq:queue:*") == []
    assert "ZeroDivisionError" in queue.dead.last["reason"]


def test_a_worker_names_itself_again_when_the_server_came_back_empty(queue: JobQueue) -> None:
    worker = _QueueWorker(queue, "")
    worker.register_birth()
    queue.connection.flushall()
    worker.heartbeat()
    worker.run_maintenance_tasks()
    for key in ("rq:workers", f"rq:workers:{QUERY_QUEUE}"):
        assert queue.connection.smembers(key) == {worker.key.encode()}


def test_the_list_of_dead_jobs_is_bounded(queue: JobQueue) -> None:
    for number in range(1500):
        queue.dead.add_job("x" * 10_000, str(number))
    assert queue.connection.xlen(KEYS.dead) < 1200
    assert queue.connection.memory_usage(KEYS.dead) < 2_000_000
    assert queue.dead.last["id"] == "1499"


def test_a_list_of_dead_jobs_of_another_type_stops_nothing(queue: JobQueue) -> None:
    queue.connection.set(KEYS.dead, "x")
    queue.dead.add_job("why", "x")
    assert queue.dead.count == 1
