"""An id is run once: what a first caller has is safe from a second."""

from __future__ import annotations

import json
from typing import Any

import redis
from waiting import wait_for
from worker_rig import Caller

from qmt_protocol.jobs import QUERY_QUEUE
from qmt_protocol.keys import JobKeys
from qmt_simulator.process import TerminalProcess

KEYS = JobKeys()
QUEUE = f"rq:queue:{QUERY_QUEUE}"
INTERMEDIATE = f"{QUEUE}:intermediate"


def put(jobs: redis.Redis, job_id: str, sector: str = "上证50", version: int = 2) -> None:
    data = ["qmt.sector_stocks", None, [], {"params": {"sector": sector}, "version": version}]
    jobs.hset(f"rq:job:{job_id}", mapping={"data": json.dumps(data), "origin": QUERY_QUEUE})


def left_of(jobs: redis.Redis, job_id: str) -> list[Any]:
    return [jobs.xrange(KEYS.progress(job_id)), jobs.get(KEYS.manifest(job_id))]


def reasons(jobs: redis.Redis, job_id: str) -> list[str]:
    """Return why the list of dead jobs names a job."""
    entries = [json.loads(fields[b"e"]) for _, fields in jobs.xrange(KEYS.dead)]
    return [str(one["reason"]) for one in entries if one.get("id") == job_id]


def test_a_second_job_of_an_id_does_not_touch_the_first_ones_result(
    midsession: TerminalProcess, caller: Caller
) -> None:
    job_id = caller.enqueue("sector_stocks", sector="上证50")
    first = caller.wait(job_id)
    before = left_of(caller.jobs, job_id)
    put(caller.jobs, job_id, "沪深300")
    caller.jobs.rpush(QUEUE, job_id)
    assert caller.ask("sector_stocks", sector="上证50").state == "done"
    assert left_of(caller.jobs, job_id) == before
    assert len(first.manifest["document"]) == 50
    assert "was run already" in reasons(caller.jobs, job_id)[0]


def test_a_first_one_that_failed_is_not_run_again_either(
    midsession: TerminalProcess, caller: Caller
) -> None:
    job_id = caller.enqueue("sector_stocks", sector="没有")
    assert caller.wait(job_id).state == "failed"
    before = left_of(caller.jobs, job_id)
    put(caller.jobs, job_id)
    caller.jobs.rpush(QUEUE, job_id)
    assert caller.ask("sector_stocks", sector="上证50").state == "done"
    assert left_of(caller.jobs, job_id) == before


def test_the_first_ones_result_is_safe_when_its_progress_is_made_to_expire(
    midsession: TerminalProcess, caller: Caller
) -> None:
    """A client may do so, and may not touch the claim."""
    job_id = caller.enqueue("sector_stocks", sector="上证50")
    caller.wait(job_id)
    caller.jobs.expire(KEYS.progress(job_id), 0)
    before = left_of(caller.jobs, job_id)
    put(caller.jobs, job_id, "沪深300")
    caller.jobs.rpush(QUEUE, job_id)
    assert caller.ask("sector_stocks", sector="上证50").state == "done"
    assert left_of(caller.jobs, job_id) == before


def test_a_claim_lives_as_long_as_the_result(midsession: TerminalProcess, caller: Caller) -> None:
    job_id = caller.enqueue("sector_stocks", sector="上证50")
    caller.wait(job_id)
    assert caller.jobs.get(KEYS.claim(job_id)) == b"ended"
    times = [caller.jobs.pttl(key) for key in (KEYS.claim(job_id), KEYS.manifest(job_id))]
    assert times[0] >= times[1] > 0


def test_a_job_that_was_taken_and_not_begun_is_run_by_the_next_worker(
    start_simulated: Any, start_worker: Any, caller: Caller
) -> None:
    simulated = start_simulated()
    put(caller.jobs, "taken")
    caller.jobs.rpush(INTERMEDIATE, "taken")
    start_worker(simulated.port, "--queue", QUERY_QUEUE)
    assert caller.wait("taken").state == "done"
    assert wait_for(lambda: caller.jobs.llen(INTERMEDIATE) == 0, "nothing is left of it")


def test_a_job_of_another_version_of_the_wire_is_refused_by_name(
    midsession: TerminalProcess, caller: Caller
) -> None:
    put(caller.jobs, "of-version-1", version=1)
    caller.jobs.rpush(QUEUE, "of-version-1")
    assert caller.wait("of-version-1").state == "failed"
    assert "version 1 of the wire" in reasons(caller.jobs, "of-version-1")[0]
    assert caller.ask("sector_stocks", sector="上证50").manifest["version"] == 2
