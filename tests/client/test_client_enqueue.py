"""What is refused before it lies on the jobs server."""

from __future__ import annotations

import pytest
import redis

from qmt_protocol.errors import InvalidRequest, NoWorker
from qmt_protocol.jobs import CATALOGUE, MAX_JOB_DATA_BYTES, FullTickParams, SectorStocksParams
from qmt_reading.jobs.queue import enqueue, rq_key
from qmt_reading.redis_transport import RedisTransport

SPEC = CATALOGUE["sector_stocks"]


def test_an_id_that_is_there_keeps_its_parameters(jobs: redis.Redis) -> None:
    enqueue(jobs, SPEC, SectorStocksParams(sector="上证50"), "mine", 60)
    before = jobs.hgetall(rq_key("mine"))
    with pytest.raises(InvalidRequest, match="a job mine already"):
        enqueue(jobs, SPEC, SectorStocksParams(sector="沪深300"), "mine", 60)
    assert jobs.hgetall(rq_key("mine")) == before
    assert jobs.llen("rq:queue:qmt-query") == 1


def test_parameters_that_no_worker_would_read_are_not_sent(jobs: redis.Redis) -> None:
    unchecked = FullTickParams.model_construct(codes=["x" * 200] * 10_000)
    with pytest.raises(InvalidRequest, match="at most") as caught:
        enqueue(jobs, CATALOGUE["full_tick"], unchecked, "large", 60)
    assert caught.value.data["limit_bytes"] == MAX_JOB_DATA_BYTES
    assert jobs.keys() == []


def test_the_longest_codes_that_are_served_can_be_sent(jobs: redis.Redis) -> None:
    codes = [f"{number:024}.ABCDEFGH" for number in range(10_000)]
    enqueue(jobs, CATALOGUE["full_tick"], FullTickParams(codes=codes), "longest", 60)
    assert jobs.llen("rq:queue:qmt-query") == 1


async def test_a_job_of_a_queue_with_a_strange_name_is_looked_at(
    streams: redis.Redis, jobs: redis.Redis, target: dict[str, str]
) -> None:
    jobs.hset(rq_key("strange"), mapping={"origin": b"\xff", "status": "queued"})
    transport = RedisTransport(target["url"], target["jobs_url"])
    with pytest.raises(NoWorker):
        await transport.progress("strange")
    await transport.cancel("strange")
    await transport.close()
