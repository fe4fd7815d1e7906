"""The routes of QMT Bridge itself: jobs, latest, status, health."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pyarrow as pa
import redis
from gateway_bench import OPEN_MS, Producer, Worker, a_tick, bars
from test_gateway_market import problem_of
from waiting import wait_for

ARROW = "application/vnd.apache.arrow.stream"


def finished(http: httpx.Client, job_id: str) -> dict[str, Any]:
    after = "0-0"
    for _ in range(10):
        state: dict[str, Any] = http.get(
            f"/api/v1/jobs/{job_id}", params={"wait_s": 5, "after": after}
        ).json()
        if state["state"] in ("done", "failed"):
            return state
        after = state["entry"]
    raise AssertionError(state)


def test_a_table_comes_as_one_arrow_stream_with_its_manifest(
    http: httpx.Client, worker: Worker
) -> None:
    worker.answers["history"] = bars
    body = {"codes": ["000001.SZ", "600519.SH"], "count": 3, "fields": ["close"]}
    accepted = http.post("/api/v1/jobs/history", json=body)
    assert accepted.status_code == 202
    job_id = accepted.json()["id"]
    assert accepted.headers["location"] == f"/api/v1/jobs/{job_id}"
    state = finished(http, job_id)
    assert state.keys() == {"id", "entry", "state", "finished", "total", "message", "error"}
    assert (state["state"], state["finished"], state["error"]) == ("done", 2, None)
    response = http.get(f"/api/v1/jobs/{job_id}/result")
    assert response.headers["content-type"] == ARROW
    assert response.headers["x-qmt-source"] == "SIMULATED"
    table = pa.ipc.open_stream(response.content).read_all()
    assert table.num_rows == 6
    assert table.column("code").to_pylist() == ["000001.SZ"] * 3 + ["600519.SH"] * 3
    manifest = json.loads(table.schema.metadata[b"qmt.manifest"])
    assert (manifest["job"], manifest["rows"]) == ("history", 6)


def test_a_document_comes_as_json(http: httpx.Client, worker: Worker) -> None:
    worker.answers["sector_stocks"] = lambda params: ["000001.SZ"]
    job_id = http.post("/api/v1/jobs/sector_stocks", json={"sector": "沪深A股"}).json()["id"]
    assert finished(http, job_id)["state"] == "done"
    manifest = http.get(f"/api/v1/jobs/{job_id}/result").json()
    assert manifest["document"] == ["000001.SZ"]
    assert manifest["meta"]["simulated"] is True


def test_an_unfinished_job_tells_its_state_and_can_be_cancelled(
    http: httpx.Client, worker: Worker
) -> None:
    def never(params: dict[str, Any]) -> None:
        raise TimeoutError

    worker.answers["download"] = never
    job_id = http.post("/api/v1/jobs/download", json={"codes": ["000001.SZ"]}).json()["id"]
    first = http.get(f"/api/v1/jobs/{job_id}?wait_s=30").json()
    assert (first["state"], first["total"]) == ("running", 2)
    again = http.get(f"/api/v1/jobs/{job_id}?wait_s=0.2&after={first['entry']}").json()
    assert again == first
    problem_of(http.get(f"/api/v1/jobs/{job_id}/result"), 404, "job-not-found")
    assert http.delete(f"/api/v1/jobs/{job_id}").status_code == 204
    wait_for(lambda: worker.cancelled == [job_id], "the worker is told")


def test_a_job_nobody_has_taken_is_queued_and_leaves_its_queue_when_cancelled(
    http: httpx.Client, streams: redis.Redis, jobs: redis.Redis
) -> None:
    Worker(streams, jobs).beat()
    job_id = http.post("/api/v1/jobs/history", json={"codes": ["000001.SZ"]}).json()["id"]
    assert http.get(f"/api/v1/jobs/{job_id}").json()["state"] == "queued"
    assert jobs.lrange("rq:queue:qmt-query", 0, -1) == [job_id.encode()]
    http.delete(f"/api/v1/jobs/{job_id}")
    assert jobs.lrange("rq:queue:qmt-query", 0, -1) == []
    assert http.get(f"/api/v1/jobs/{job_id}").json()["state"] == "failed"


def test_bad_jobs(http: httpx.Client, worker: Worker) -> None:
    problem_of(http.post("/api/v1/jobs/order_stock", json={}), 422, "invalid-request")
    problem_of(http.post("/api/v1/jobs/history", json={"codes": []}), 422, "invalid-request")
    problem_of(http.post("/api/v1/jobs/history", json={"codes": ["1"]}), 422, "invalid-code")
    problem_of(http.post("/api/v1/jobs/history", json=[1]), 422, "invalid-request")
    problem_of(http.get("/api/v1/jobs/00ff"), 404, "job-not-found")
    problem_of(http.get("/api/v1/jobs/00ff/result"), 404, "job-not-found")
    problem_of(http.get("/api/v1/jobs/a%20b"), 422, "invalid-request")
    problem_of(http.get("/api/v1/jobs/00ff?after=x"), 422, "invalid-request")
    problem_of(http.get("/api/v1/jobs/00ff?wait_s=9999"), 422, "invalid-request")
    assert worker.asked == []


def test_a_body_without_end_is_not_taken(http: httpx.Client, worker: Worker) -> None:
    path = "/api/v1/jobs/history"
    headers = {"content-type": "application/json"}
    problem_of(http.post(path, content=b" " * 1_100_000, headers=headers), 413, "too-large")
    endless = (b" " * 100_000 for _ in range(20))
    problem_of(http.post(path, content=endless, headers=headers), 413, "too-large")
    assert worker.asked == []


def test_latest_has_ids_and_flags(http: httpx.Client, producer: Producer) -> None:
    sent = a_tick(10.5, 7, OPEN_MS)
    (entry_id,) = producer.publish(("000001.SZ", sent))
    producer.publish(("000001.SZ", a_tick(10.4, 6, OPEN_MS + 1)), flags=1)
    answer = http.get("/api/v1/latest?codes=000001.SZ,600519.SH").json()
    assert answer["ticks"] == {"000001.SZ": {"id": entry_id, "flags": 0, "tick": sent}}
    assert answer["simulated"] is True
    assert http.get("/api/v1/latest?codes=600519.SH").json()["ticks"] == {}


def test_status_lists_the_dead_too(http: httpx.Client, producer: Producer) -> None:
    Worker(producer.streams, producer.streams).beat(age_ms=90_000)
    answer = http.get("/api/v1/status").json()
    by_role = {one["role"]: one for one in answer["processes"]}
    assert by_role["producer"]["alive"] is True
    assert by_role["worker"]["alive"] is False
    assert by_role["worker"]["age_ms"] >= 90_000
    assert answer["simulated"] is True


def test_health(http: httpx.Client) -> None:
    answer = http.get("/healthz").json()
    assert (answer["status"], answer["streams"]) == ("ok", True)
