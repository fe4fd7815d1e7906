"""Jobs over Redis: who answers, how long is waited, what is cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pyarrow as pa
import pytest
import redis
from client_gateway import Gateway
from fake_worker import FakeWorker, beat, table
from waiting import wait_for

from qmt_client import AsyncQMTClient, QMTClient
from qmt_protocol.errors import (
    AccessDenied,
    CodecError,
    ConfigurationError,
    InstrumentNotFound,
    InvalidRequest,
    JobFailed,
    JobNotFound,
    NoWorker,
    RedisUnavailable,
    SectorNotFound,
    TerminalNotConnected,
    TimedOut,
    WrongVersion,
)
from qmt_protocol.jobs import Manifest, SectorStocksParams, parse_params
from qmt_protocol.keys import JobKeys, Keys
from qmt_reading.jobs.queue import MANIFEST_KEY, ResultStream, enqueue, read_chunk
from qmt_reading.redis_transport import RedisTransport
from qmt_standalone.redis_server import RedisServer, free_port

MakeWorker = Callable[..., FakeWorker]
PARAMS = SectorStocksParams(sector="沪深300")


def test_without_a_worker_the_caller_is_told_at_once(client: QMTClient) -> None:
    started = time.monotonic()
    with pytest.raises(NoWorker, match="none was ever seen") as caught:
        client.sector_stocks("沪深300")
    assert time.monotonic() - started < 30
    assert caught.value.last_seen_ms is None


def test_a_dead_worker_is_told_with_the_time_it_was_last_seen(
    client: QMTClient, streams: redis.Redis
) -> None:
    beat(streams, "worker", queues=["qmt-query"])
    member = streams.zrange(Keys().seen, 0, -1)[0]
    last_ms = int(streams.zscore(Keys().seen, member)) - 60_000
    streams.zadd(Keys().seen, {member: last_ms})
    with pytest.raises(NoWorker, match="last seen") as caught:
        client.sector_stocks("沪深300")
    assert caught.value.last_seen_ms == pytest.approx(last_ms, abs=50)


def test_a_worker_of_another_queue_does_not_count(client: QMTClient, streams: redis.Redis) -> None:
    beat(streams, "worker", queues=["qmt-download"])
    with pytest.raises(NoWorker, match="qmt-query"):
        client.sector_stocks("沪深300")


def test_a_worker_without_a_terminal_is_told_with_its_reason(
    client: QMTClient, make_worker: MakeWorker, jobs: redis.Redis
) -> None:
    with make_worker() as worker:
        for state, words, hint in (
            ("not_running", "its terminal does not: QMT was closed", "Start QMT"),
            ("waiting_for_login", "waits for its login: QMT was closed", "Log in to QMT"),
        ):
            worker.terminal = {"state": state, "reason": "QMT was closed"}
            worker.beat()
            with pytest.raises(TerminalNotConnected, match=words) as caught:
                client.sector_stocks("沪深300")
            assert hint in str(caught.value.hint)
            assert caught.value.state == state
    assert jobs.keys("rq:job:*") == []


def test_documents_come_back_as_they_are(client: QMTClient, make_worker: MakeWorker) -> None:
    with make_worker(sector_stocks=lambda params: ["600519.SH", "000001.SZ"]) as worker:
        assert client.sector_stocks("沪深300") == ["600519.SH", "000001.SZ"]
        assert client.get_sector_stocks(sector="沪深300") == ["600519.SH", "000001.SZ"]
    assert worker.seen[0] == ("qmt.sector_stocks", {"sector": "沪深300"})


def test_instrument_detail_names_what_is_unknown(
    client: QMTClient, make_worker: MakeWorker
) -> None:
    known = {"600519.SH": {"InstrumentName": "贵州茅台", "UpStopPrice": None}}

    def details(params: dict[str, Any]) -> dict[str, Any]:
        return {code: known.get(code) for code in params["codes"]}

    with make_worker(instrument_detail=details):
        assert client.get_instrument_detail(stock="600519.SH") == known["600519.SH"]
        with pytest.raises(InstrumentNotFound) as caught:
            client.instrument_detail("600518.SH")
        with pytest.warns(UserWarning, match=r"600518\.SH"):
            assert client.instrument_detail("600519.SH,600518.SH") == known
    assert caught.value.codes == ["600518.SH"]


def test_the_workers_error_is_raised(client: QMTClient, make_worker: MakeWorker) -> None:
    error = SectorNotFound("No sector 沪深301.", hint="See the list.").to_dict()
    with (
        make_worker(sector_stocks=lambda params: error),
        pytest.raises(SectorNotFound, match="沪深301"),
    ):
        client.sector_stocks("沪深301")


def test_a_late_answer_is_timed_out_and_cancelled(
    streams: redis.Redis,
    jobs: redis.Redis,
    target: dict[str, str],
    make_worker: MakeWorker,
) -> None:
    with make_worker(sector_stocks=lambda params: []) as worker:
        worker.hold()
        with QMTClient(**target, timeout_s=0.5) as client, pytest.raises(TimedOut):
            client.sector_stocks("沪深300")
        assert jobs.llen("rq:queue:qmt-query") == 0, "the job left the queue"
        assert worker.seen == []


def test_a_worker_that_dies_while_a_job_waits_is_noticed(
    streams: redis.Redis, jobs: redis.Redis, target: dict[str, str]
) -> None:
    beat(streams, "worker", queues=["qmt-query"])
    with QMTClient(**target, timeout_s=60) as client:
        started = time.monotonic()
        with pytest.raises(NoWorker):
            client.sector_stocks("沪深300")
    assert 3 < time.monotonic() - started < 55


async def test_cancelling_the_caller_cancels_a_running_job(
    make_async: Callable[..., AsyncQMTClient], make_worker: MakeWorker, jobs: redis.Redis
) -> None:
    def slow(params: dict[str, Any]) -> Any:
        wait_for(lambda: jobs.keys("qmt:job:*:cancel"), "the job is cancelled")
        return JobFailed("cancelled").to_dict()

    with make_worker(sector_stocks=slow) as worker:
        async with make_async() as client:
            task = asyncio.create_task(client.sector_stocks("沪深300"))
            while not worker.seen:  # noqa: ASYNC110 - it is another thread's list
                await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(jobs.keys("qmt:job:*:cancel")) == 1


def test_ctrl_c_cancels_the_running_job(
    streams: redis.Redis, jobs: redis.Redis, target: dict[str, str], make_worker: MakeWorker
) -> None:
    script = textwrap.dedent(
        f"""
        from qmt_client import QMTClient
        client = QMTClient({target["url"]!r}, jobs_url={target["jobs_url"]!r}, timeout_s=180)
        print("asking", flush=True)
        try:
            client.sector_stocks("沪深300")
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )

    def slow(params: dict[str, Any]) -> Any:
        wait_for(lambda: jobs.keys("qmt:job:*:cancel"), "the job is cancelled")
        return []

    with make_worker(sector_stocks=slow) as worker:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUTF8": "1"},
        )
        try:
            while not worker.seen and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait(60)
        assert len(jobs.keys("qmt:job:*:cancel")) == 1
    assert out.split() == ["asking", "interrupted"]
    assert err == ""
    assert process.returncode == 0


@pytest.mark.parametrize("way", ["redis", "gateway"])
async def test_cancelled_while_it_is_submitted_a_job_is_withdrawn(
    jobs: redis.Redis,
    target: dict[str, str],
    gateway: Gateway,
    make_worker: MakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """The job has arrived; the answer with its id has not."""
    arrived, answer = threading.Event(), threading.Event()
    send = httpx.AsyncClient.send

    def enqueue_slowly(*args: Any) -> None:
        enqueue(*args)
        arrived.set()
        answer.wait(60)

    async def ask_slowly(
        self: httpx.AsyncClient, request: httpx.Request, **options: Any
    ) -> httpx.Response:
        response = await send(self, request, **options)
        if request.method == "POST":
            arrived.set()
            await asyncio.to_thread(answer.wait, 60)
        return response

    monkeypatch.setattr("qmt_reading.redis_transport.enqueue", enqueue_slowly)
    monkeypatch.setattr(httpx.AsyncClient, "send", ask_slowly)
    with make_worker(sector_stocks=lambda params: []) as worker:
        worker.hold()
        by = target if way == "redis" else {"url": gateway.url}
        async with AsyncQMTClient(**by, timeout_s=60) as client:
            task = asyncio.create_task(client.sector_stocks("沪深300"))
            assert await asyncio.to_thread(arrived.wait, 60)
            assert jobs.llen("rq:queue:qmt-query") == 1
            task.cancel()
            answer.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert jobs.llen("rq:queue:qmt-query") == 0
        assert len(jobs.keys("qmt:job:*:cancel")) == 1


async def test_the_pieces_that_a_gateway_uses(
    streams: redis.Redis, jobs: redis.Redis, target: dict[str, str], make_worker: MakeWorker
) -> None:
    transport = RedisTransport(target["url"], target["jobs_url"])
    with make_worker(sector_stocks=lambda params: ["600519.SH"]) as worker:
        worker.hold()
        job_id = await transport.submit("sector_stocks", PARAMS)
        assert await transport.progress(job_id, wait_s=0.1) is None
        with pytest.raises(JobNotFound):
            await transport.manifest(job_id)
        worker.go_on()
        entry = await transport.progress(job_id, wait_s=5)
        assert entry is not None
        while entry[1].state != "done":
            entry = await transport.progress(job_id, entry[0], wait_s=5) or entry
        manifest = await transport.manifest(job_id)
        assert manifest.document == ["600519.SH"]
        assert [table async for table in transport.tables(job_id, manifest)] == []

        worker.hold()
        given_up = await transport.submit("sector_stocks", PARAMS)
        await transport.cancel(given_up)
        told = await transport.progress(given_up)
        assert told is not None
        assert told[1].state == "failed"
        assert jobs.get(JobKeys().cancel(given_up)) == b"1"

        with pytest.raises(JobNotFound):
            await transport.progress("0" * 32)
        with pytest.raises(InvalidRequest):
            await transport.progress(job_id, after="now")
    await transport.close()


async def test_a_job_that_rq_gave_up_is_not_waited_for(
    streams: redis.Redis, jobs: redis.Redis, target: dict[str, str], make_worker: MakeWorker
) -> None:
    transport = RedisTransport(target["url"], target["jobs_url"])
    with make_worker() as worker:
        worker.hold()
        job_id = await transport.submit("sector_stocks", PARAMS)
        jobs.hset(f"rq:job:{job_id}", "status", "failed")
        with pytest.raises(JobFailed):
            await transport.progress(job_id, wait_s=5)
    await transport.close()


def test_results_expire(client: QMTClient, make_worker: MakeWorker, jobs: redis.Redis) -> None:
    with make_worker(sector_stocks=lambda params: []):
        client.sector_stocks("沪深300")
    (key,) = jobs.keys("rq:job:*")
    assert jobs.hget(key, "result_ttl") == b"600"
    assert jobs.hget(key, "failure_ttl") == b"600"
    assert jobs.hget(key, "timeout") == b"90"


def test_an_unreachable_redis_is_named_without_its_password() -> None:
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}/0"
    with QMTClient(url) as client, pytest.raises(RedisUnavailable) as caught:
        client.full_tick("600519.SH")
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_wrong_password_is_access_denied(streams_server: RedisServer) -> None:
    url = f"redis://:wrong@127.0.0.1:{streams_server.port}/0"
    with QMTClient(url) as client, pytest.raises(AccessDenied) as caught:
        client.status()
    assert "wrong@" not in str(caught.value)


def test_without_a_jobs_server_history_says_so(
    streams: redis.Redis, target: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QMT_JOBS_URL", raising=False)
    with QMTClient(target["url"]) as client, pytest.raises(ConfigurationError, match="jobs"):
        client.history("600519.SH")


def test_a_result_travels_as_one_stream_with_its_manifest() -> None:
    rows = table("1d", {"600519.SH": [0, 86_400_000]})
    manifest = Manifest(job="history", kind="table", chunks=1, rows=2, meta={"simulated": True})
    sink = pa.BufferOutputStream()
    metadata = {MANIFEST_KEY: manifest.model_dump_json().encode()}
    with pa.ipc.new_stream(sink, rows.schema.with_metadata(metadata)) as writer:
        writer.write_table(rows)
    sent = sink.getvalue().to_pybytes()
    params = parse_params("history", {"codes": ["600519.SH"], "period": "1d"})

    def passed(data: bytes) -> tuple[Manifest, pa.Table]:
        result = ResultStream("history", params, "x", "gateway:8000")
        for at in range(0, len(data), 100):
            result.feed(data[at : at + 100])
        return result.end()

    told, again = passed(sent)
    assert told == manifest
    assert again.equals(rows)
    other = {MANIFEST_KEY: manifest.model_copy(update={"version": 1}).model_dump_json().encode()}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema.with_metadata(other)) as writer:
        writer.write_table(rows)
    with pytest.raises(WrongVersion, match="job x from gateway:8000 is of version 1 of the wire"):
        passed(sink.getvalue().to_pybytes())
    for broken in (b"not arrow", sent[:-8], sent[:50], sent + b"\0"):
        with pytest.raises(CodecError, match=r"job x from gateway:8000"):
            passed(broken)
    with pytest.raises(CodecError, match="job x"):
        read_chunk(sent[:50], params, "x")
