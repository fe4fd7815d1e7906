"""The incumbent's routes: shapes key for key, and each status."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest
import redis
from gateway_bench import DAY_MS, OPEN_MS, GatewayProcess, Producer, Worker, a_tick, bars
from waiting import wait_for

from qmt_protocol.errors import (
    DownloadIncomplete,
    HistoryMissing,
    InstrumentNotFound,
    SectorNotFound,
    TerminalUnsupported,
)

PROBLEM_KEYS = {"type", "title", "status", "detail", "error", "message", "hint", "data"}


def problem_of(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document.keys() == PROBLEM_KEYS
    assert document["status"] == status
    assert document["type"] == f"urn:qmt:{slug}"
    assert document["detail"]
    assert document["hint"]
    return document


def test_history_has_the_incumbents_shape(http: httpx.Client, worker: Worker) -> None:
    worker.answers["history"] = bars
    response = http.get("/api/history", params={"stock": "000001.SZ", "period": "1d", "count": 3})
    assert response.status_code == 200
    assert response.headers["x-qmt-source"] == "SIMULATED"
    answer = response.json()
    meta = answer.pop("meta")
    assert meta["source"] == "SIMULATED"
    assert meta["simulated"] is True
    assert meta["terminal"] == {"edition": "test"}
    assert answer == {
        "stock": "000001.SZ",
        "period": "1d",
        "count": 3,
        "data": [
            {
                "date": f"2026010{5 + row}",
                "open": 10.5 + row,
                "high": 10.5 + row,
                "low": 10.5 + row,
                "close": None if row == 1 else 10.5 + row,
                "volume": 100 + row,
            }
            for row in range(3)
        ],
    }


def test_history_asks_the_worker_for_exactly_what_was_asked(
    http: httpx.Client, worker: Worker
) -> None:
    worker.answers["history"] = lambda params: bars(params, step_ms=60_000)
    response = http.get(
        "/api/history",
        params={
            "stock": "600519.SH",
            "period": "1m",
            "fields": "close, time,close,open",
            "start": "20260105",
            "end": "2026-01-05",
            "dividend_type": "qfq",
            "download": "never",
        },
    )
    answer = response.json()
    assert list(answer["data"][0]) == ["date", "close", "time", "open"]
    assert answer["data"][0]["date"] == "20260105093000"
    assert answer["data"][2]["time"] == OPEN_MS + 120_000
    assert answer["count"] == -1
    name, params = worker.asked[0]
    assert name == "history"
    assert params["codes"] == ["600519.SH"]
    assert params["fields"] == ["close", "open"]
    assert params["adjust"] == "front"
    assert params["download"] == "never"
    assert params["count"] is None
    assert params["end_ms"] - params["start_ms"] == DAY_MS - 1


def test_defaults_are_the_incumbents(http: httpx.Client, worker: Worker) -> None:
    worker.answers["history"] = bars
    answer = http.get("/api/history", params={"stock": "000001.SZ"}).json()
    assert (answer["period"], answer["count"]) == ("1d", 100)
    assert list(answer["data"][0]) == ["date", "open", "high", "low", "close", "volume"]
    assert worker.asked[0][1]["count"] == 100


def test_ticks_of_history_have_all_columns(http: httpx.Client, worker: Worker) -> None:
    worker.answers["history"] = lambda params: bars(params, rows=1, step_ms=3_000)
    answer = http.get("/api/history", params={"stock": "000001.SZ", "period": "tick"}).json()
    assert answer["data"][0]["date"] == "20260105093000"
    assert {"lastPrice", "askPrice1", "bidVol5"} <= answer["data"][0].keys()


def test_batch_history_names_absent_codes(http: httpx.Client, worker: Worker) -> None:
    worker.meta["absent"] = {"999999.SH": "no such instrument"}
    worker.answers["history"] = lambda params: bars({**params, "codes": ["000001.SZ"]})
    answer = http.get(
        "/api/batch_history", params={"stocks": "000001.SZ,999999.SH", "count": 3}
    ).json()
    assert answer["stocks"] == ["000001.SZ", "999999.SH"]
    assert answer["count"] == 3
    assert [row["volume"] for row in answer["data"]["000001.SZ"]] == [100, 101, 102]
    assert answer["data"]["999999.SH"] == []
    assert answer["meta"]["absent"] == {"999999.SH": "no such instrument"}
    assert answer.keys() == {"stocks", "period", "count", "data", "meta"}


@pytest.mark.parametrize("path", ["/api/history?stock=", "/api/batch_history?stocks="])
def test_an_unknown_code_is_404(http: httpx.Client, worker: Worker, path: str) -> None:
    def refuse(params: dict[str, Any]) -> None:
        raise InstrumentNotFound("no such instrument", hint="check it", codes=params["codes"])

    worker.answers["history"] = refuse
    problem = problem_of(http.get(f"{path}999999.SH"), 404, "instrument-not-found")
    assert problem["data"]["codes"] == ["999999.SH"]


def test_one_code_without_rows_is_404_with_the_reason(http: httpx.Client, worker: Worker) -> None:
    worker.meta["absent"] = {"600519.SH": "not listed in the range"}
    worker.answers["history"] = lambda params: bars({**params, "codes": []})
    problem = problem_of(http.get("/api/history?stock=600519.SH"), 404, "not-found")
    assert "not listed in the range" in problem["detail"]


@pytest.mark.parametrize(
    ("query", "slug"),
    [
        ("stock=600519", "invalid-code"),
        ("stock=", "invalid-code"),
        ("", "invalid-request"),
        ("stock=600519.SH&period=7m", "invalid-request"),
        ("stock=600519.SH&start=5.1.2026", "invalid-request"),
        ("stock=600519.SH&end=20261301", "invalid-request"),
        ("stock=600519.SH&start=20260106&end=20260105", "invalid-request"),
        ("stock=600519.SH&count=0", "invalid-request"),
        ("stock=600519.SH&count=-5", "invalid-request"),
        ("stock=600519.SH&count=ten", "invalid-request"),
        ("stock=600519.SH&count=99999999999", "invalid-request"),
        ("stock=600519.SH&fields=open,nope", "invalid-request"),
        ("stock=600519.SH&adjust=sideways", "invalid-request"),
        ("stock=600519.SH&adjust=front&dividend_type=back", "invalid-request"),
        ("stock=600519.SH&download=maybe", "invalid-request"),
    ],
)
def test_bad_history_parameters_are_422_and_ask_nobody(
    http: httpx.Client, worker: Worker, query: str, slug: str
) -> None:
    problem_of(http.get(f"/api/history?{query}"), 422, slug)
    assert worker.asked == []


@pytest.mark.parametrize(
    ("path", "wrong", "allowed"),
    [
        ("/api/history?stock=000001.SZ&ajust=qfq", "ajust", {"stock", "adjust", "fields", "count"}),
        ("/api/history?stok=000001.SZ", "stok", {"stock", "start", "end", "dividend_type"}),
        ("/api/batch_history?stocks=000001.SZ&stock=000001.SZ", "stock", {"stocks", "download"}),
        ("/api/full_tick?stocks=000001.SZ&Stocks=", "Stocks", {"stocks"}),
        ("/api/sector_stocks?sector=沪深A股&_=1", "_", {"sector"}),
        ("/api/instrument_detail?stock=000001.SZ&iscomplete=1", "iscomplete", {"stock"}),
        ("/api/v1/latest?code=000001.SZ", "code", {"codes", "markets"}),
        ("/api/v1/jobs/00ff?wait=3", "wait", {"wait_s", "after"}),
        ("/api/v1/status?wait_s=3", "wait_s", set()),
    ],
)
def test_a_parameter_that_a_route_does_not_have_is_named(
    http: httpx.Client, worker: Worker, path: str, wrong: str, allowed: set[str]
) -> None:
    problem = problem_of(http.get(path), 422, "invalid-request")
    assert repr(wrong) in problem["message"]
    assert problem["data"]["field"] == wrong
    assert allowed <= set(problem["data"]["allowed"])
    assert all(name in problem["hint"] for name in allowed)
    assert wrong not in problem["data"]["allowed"]
    assert worker.asked == []


def test_a_body_and_deleting_take_no_parameters(http: httpx.Client, worker: Worker) -> None:
    for response in (
        http.post("/api/download?start=20260101", json={"stock": "000001.SZ"}),
        http.post("/api/v1/jobs/history?timeout=3", json={"codes": ["000001.SZ"]}),
        http.delete("/api/v1/jobs/00ff?now=1"),
    ):
        assert problem_of(response, 422, "invalid-request")["data"]["allowed"] == []
    assert worker.asked == []


def test_a_bare_code_gets_the_likely_spelling(http: httpx.Client) -> None:
    problem = problem_of(http.get("/api/history?stock=SH600519"), 422, "invalid-code")
    assert "600519.SH" in problem["hint"]


@pytest.mark.parametrize(
    "path", ["/api/history?stock=000001.SZ", "/api/sector_stocks?sector=沪深A股"]
)
def test_no_worker_is_503_at_once_with_last_seen(
    http: httpx.Client, streams: redis.Redis, jobs: redis.Redis, path: str
) -> None:
    problem = problem_of(http.get(path), 503, "no-worker")
    assert problem["data"]["last_seen_ms"] is None
    Worker(streams, jobs).beat(age_ms=3_600_000)
    seconds, micros = streams.time()
    response = http.get(path)
    problem = problem_of(response, 503, "no-worker")
    last_seen_ms = problem["data"]["last_seen_ms"]
    assert abs(last_seen_ms - (seconds * 1000 + micros // 1000 - 3_600_000)) < 2_000
    assert response.headers["retry-after"]
    assert jobs.keys("rq:queue:*") == []


def test_a_worker_without_terminal_is_503_with_the_reason(
    http: httpx.Client, streams: redis.Redis, jobs: redis.Redis
) -> None:
    Worker(streams, jobs).beat(terminal={"state": "not_running", "reason": "QMT is not open"})
    problem = problem_of(http.get("/api/history?stock=000001.SZ"), 503, "terminal-not-connected")
    assert "QMT is not open" in problem["detail"]


def test_a_job_that_does_not_end_is_504_and_cancelled(
    hasty_gateway: GatewayProcess, worker: Worker
) -> None:
    def never(params: dict[str, Any]) -> None:
        raise TimeoutError

    worker.answers["history"] = never
    url = f"{hasty_gateway.url}/api/history?stock=000001.SZ"
    problem_of(httpx.get(url, timeout=120, trust_env=False), 504, "timed-out")
    wait_for(lambda: len(worker.cancelled) == 1, "the worker is told")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HistoryMissing("not in the cache", hint="download it", codes=["000001.SZ"]), 409),
        (TerminalUnsupported("no such function", hint="use another edition"), 501),
        (DownloadIncomplete("ended early", hint="again"), 502),
    ],
)
def test_a_failed_jobs_error_comes_through(
    http: httpx.Client, worker: Worker, error: Any, status: int
) -> None:
    def fail(params: dict[str, Any]) -> None:
        raise error

    worker.answers["history"] = fail
    problem = problem_of(http.get("/api/history?stock=000001.SZ"), status, error.slug)
    assert problem["message"] == error.message
    assert problem["data"] == error.data


def test_full_tick_is_read_from_redis_alone(http: httpx.Client, producer: Producer) -> None:
    sent = a_tick(1412.5, 30_012, OPEN_MS, pe=float("nan"))
    producer.publish(("600519.SH", sent))
    response = http.get("/api/full_tick?stocks=600519.SH,000001.SZ")
    assert response.headers["x-qmt-source"] == "SIMULATED"
    answer = response.json()
    assert answer["data"] == {"600519.SH": {**sent, "pe": None, "timetag": "20260105 09:30:00"}}
    assert answer["meta"]["absent"] == ["000001.SZ"]
    assert answer["meta"]["producer"]["alive"] is True
    assert answer["meta"]["age_ms"]["600519.SH"] > 0


def test_stored_ticks_stay_readable_when_the_producer_is_away(
    http: httpx.Client, producer: Producer
) -> None:
    producer.publish(("600519.SH", a_tick(1412.5, 30_012, OPEN_MS)))
    producer.beat(age_ms=60_000)
    answer = wait_for_status(http, "/api/full_tick?stocks=600519.SH", alive=False)
    assert answer["data"]["600519.SH"]["lastPrice"] == 1412.5
    assert answer["meta"]["producer"]["last_seen_ms"] > 0
    problem_of(http.get("/api/full_tick?stocks=999999.SH"), 404, "instrument-not-found")


def wait_for_status(http: httpx.Client, path: str, *, alive: bool) -> dict[str, Any]:
    """The gateway looks at heartbeats once a second."""

    def told() -> dict[str, Any]:
        answer: dict[str, Any] = http.get(path).json()
        return answer if answer["meta"]["producer"]["alive"] is alive else {}

    return wait_for(told, f"the producer is told to be {'alive' if alive else 'away'}")


def test_full_tick_of_nothing_stored(http: httpx.Client, streams: redis.Redis) -> None:
    problem = problem_of(http.get("/api/full_tick?stocks=600519.SH"), 503, "no-producer")
    assert problem["data"]["last_seen_ms"] is None
    producer = Producer(streams)
    producer.beat(age_ms=60_000)
    problem = problem_of(http.get("/api/full_tick?stocks=600519.SH"), 503, "no-producer")
    assert problem["data"]["last_seen_ms"] > 0
    producer.beat()
    problem_of(http.get("/api/full_tick?stocks=600519.SH"), 404, "instrument-not-found")
    problem_of(http.get("/api/full_tick?stocks=600519"), 422, "invalid-code")
    problem_of(http.get("/api/full_tick?stocks=,"), 422, "invalid-request")


def test_sector_stocks(http: httpx.Client, worker: Worker) -> None:
    def sectors(params: dict[str, Any]) -> list[str]:
        if params["sector"] != "沪深A股":
            raise SectorNotFound("no such sector", hint="see the list", sector=params["sector"])
        return ["000001.SZ", "600519.SH"]

    worker.answers["sector_stocks"] = sectors
    answer = http.get("/api/sector_stocks", params={"sector": "沪深A股"}).json()
    assert answer.keys() == {"sector", "stocks", "meta"}
    assert answer["sector"] == "沪深A股"
    assert answer["stocks"] == ["000001.SZ", "600519.SH"]
    problem_of(http.get("/api/sector_stocks?sector=nope"), 404, "sector-not-found")
    problem_of(http.get("/api/sector_stocks?sector="), 422, "invalid-request")


def test_instrument_detail(http: httpx.Client, worker: Worker) -> None:
    known = {"600519.SH": {"InstrumentName": "贵州茅台", "UpStopPrice": None}}
    worker.answers["instrument_detail"] = lambda params: {
        code: known.get(code) for code in params["codes"]
    }
    answer = http.get("/api/instrument_detail?stock=600519.SH").json()
    assert answer.keys() == {"stock", "detail", "meta"}
    assert answer["detail"] == known["600519.SH"]
    problem_of(http.get("/api/instrument_detail?stock=999999.SH"), 404, "instrument-not-found")


def test_download(http: httpx.Client, worker: Worker) -> None:
    worker.answers["download"] = lambda params: {params["codes"][0]: {"rows": 3}}
    body = {"stock": "000001.SZ", "period": "1m", "start": "20260105", "end": ""}
    answer = http.post("/api/download", json=body).json()
    meta = answer.pop("meta")
    assert answer == {"status": "ok", "stock": "000001.SZ", "period": "1m"}
    assert meta["simulated"] is True
    assert worker.asked[0][1]["start_ms"] == OPEN_MS - 34_200_000
    problem_of(http.post("/api/download", json={"stock": "1"}), 422, "invalid-code")
    problem_of(http.post("/api/download", json={}), 422, "invalid-request")
    wrong = http.post("/api/download", content=b"{", headers={"content-type": "application/json"})
    problem_of(wrong, 422, "invalid-request")


def test_a_caller_who_hangs_up_frees_the_worker(
    gateway_process: GatewayProcess, worker: Worker
) -> None:
    def never(params: dict[str, Any]) -> None:
        raise TimeoutError

    worker.answers["download"] = never
    host, port = gateway_process.url.removeprefix("http://").split(":")
    body = b'{"stock": "000001.SZ"}'
    head = f"POST /api/download HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        wait_for(lambda: worker.asked, "the worker has the job")
    wait_for(lambda: len(worker.cancelled) == 1, "the worker is told")


def test_large_histories_come_whole(http: httpx.Client, worker: Worker) -> None:
    # The incumbent deadlocks on two codes of 3,000 bars.
    worker.answers["history"] = lambda params: bars(params, rows=3_000, step_ms=60_000)
    answer = http.get("/api/batch_history?stocks=000001.SZ,600519.SH&period=1m&count=3000").json()
    assert [len(rows) for rows in answer["data"].values()] == [3_000, 3_000]
    assert answer["data"]["600519.SH"][-1]["date"] == "20260107112900"
