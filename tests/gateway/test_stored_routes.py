"""Stored ticks and bars by REST: archive and streams as one, in three formats, as a stream."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gateway_bench import GatewayProcess, gateway
from stored_rig import CODES, DAY, GAP, MINUTE_MS, OPEN_MS, SH, SZ, StoredDay, stored_gateway
from test_gateway_market import problem_of

from qmt_gateway.budget import Budget
from qmt_gateway.streaming import Held, Streamed
from qmt_protocol.columns import TICK_COLUMNS
from qmt_standalone.redis_server import RedisServer

Rig = tuple[StoredDay, GatewayProcess]


@pytest.fixture(scope="module")
def rig(
    streams_server: RedisServer,
    jobs_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Rig]:
    """A gateway over a stored day."""
    with stored_gateway(streams_server, jobs_server, tmp_path_factory.mktemp("stored")) as made:
        yield made


@pytest.fixture
def day(rig: Rig) -> StoredDay:
    """What it has stored."""
    return rig[0]


@pytest.fixture
def ask(rig: Rig) -> Iterator[httpx.Client]:
    """A client of that gateway."""
    with httpx.Client(base_url=rig[1].url, timeout=120, trust_env=False) as client:
        yield client


def table_of(response: httpx.Response) -> pa.Table:
    assert response.status_code == 200, response.text
    if response.headers["content-type"].endswith("parquet"):
        return pq.read_table(io.BytesIO(response.content))
    return pa.ipc.open_stream(response.content).read_all()


def places(table: pa.Table) -> list[tuple[str, str]]:
    numbers = zip(table["id_ms"].to_pylist(), table["id_seq"].to_pylist(), strict=True)
    ids = [f"{ms}-{number}" for ms, number in numbers]
    return list(zip(table["code"].to_pylist(), ids, strict=True))


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_ticks_as_columns(ask: httpx.Client, day: StoredDay, form: str) -> None:
    response = ask.get("/api/v1/stored/ticks", params={"codes": "*", "format": form})
    table = table_of(response)
    assert response.headers["X-QMT-Source"] == "SIMULATED"
    assert "content-length" not in response.headers, "made while it is sent"
    assert places(table) == [(code, entry_id) for code, entry_id, _ in day.rows]
    assert table["lastPrice"].to_pylist() == [row[1] / 10_000 for _, _, row in day.rows]
    assert table["flags"].to_pylist() == [row[-1] for _, _, row in day.rows]
    assert table.schema.names == TICK_COLUMNS.names
    assert table.schema.field("lastPrice").metadata == {b"unit": b"yuan"}


def test_ticks_as_json(ask: httpx.Client, day: StoredDay) -> None:
    params = {"codes": f"{SH[0]},{SZ[1]}", "start": "2026-11-20"}
    document = ask.get("/api/v1/stored/ticks", params=params).json()
    assert document["meta"] == {"source": "SIMULATED", "simulated": True}
    wanted = day.of(SH[0], SZ[1])
    told = document["data"]
    assert document["absent"] == []
    assert [one["reason"] for one in document["missing"]] == ["ring full"]
    assert [(row["code"], row["id"], row["flags"]) for row in told] == [
        (code, entry_id, row[-1]) for code, entry_id, row in wanted
    ]
    assert [row["lastPrice"] for row in told] == [row[1] / 10_000 for _, _, row in wanted]
    assert {row.get("note") for row in told} == {None, "late"}
    assert told[0]["askPrice"] == [10.01, 0.0, 0.0, 0.0, 0.0]


def test_a_range_and_some_fields(ask: httpx.Client, day: StoredDay) -> None:
    params = {
        "markets": "SH",
        "start": "2026-11-20T09:30:05.000+08:00",
        "end": "2026-11-20 09:30:25",
        "fields": "lastPrice",
        "format": "arrow",
    }
    table = table_of(ask.get("/api/v1/stored/ticks", params=params))
    wanted = [
        (code, entry_id)
        for code, entry_id, _ in day.of(*SH)
        if OPEN_MS + 5_000 <= int(entry_id.split("-")[0]) <= OPEN_MS + 25_000
    ]
    assert places(table) == wanted
    assert sorted(table.schema.names) == ["code", "id_ms", "id_seq", "lastPrice"]


@pytest.mark.parametrize("form", ["arrow", "parquet", "json"])
def test_a_day_without_data_is_empty(ask: httpx.Client, form: str) -> None:
    params = {"codes": CODES[0], "start": "2026-11-19", "end": "2026-11-19", "format": form}
    response = ask.get("/api/v1/stored/ticks", params=params)
    if form == "json":
        assert response.json()["data"] == []
        assert response.json()["absent"] == [CODES[0]]
    else:
        table = table_of(response)
        assert (table.num_rows, table.schema.names) == (0, TICK_COLUMNS.names)


def test_bars(ask: httpx.Client) -> None:
    params = {"codes": SH[0], "period": "1m"}
    bars = ask.get("/api/v1/stored/bars", params=params).json()["data"]
    assert [(bar["time"], bar["close"], bar["closed"]) for bar in bars] == [
        (OPEN_MS + minute * MINUTE_MS, 10.5 + minute, True) for minute in range(3)
    ]
    table = table_of(ask.get("/api/v1/stored/bars", params={**params, "format": "arrow"}))
    assert table["close"].to_pylist() == [10.5, 11.5, 12.5]


def test_what_the_archive_holds(ask: httpx.Client, day: StoredDay) -> None:
    document = ask.get("/api/v1/archive").json()
    (held,) = document["days"]
    assert (document["archived"], held["day"]) == (True, DAY)
    assert document["markets"] == ["SH", "SZ"]
    assert 0 < sum(one["ticks"] for one in held["markets"].values()) < len(day.rows)
    assert document["bars"] == [{"period": "1m", "market": "SH"}]
    (missing,) = document["missing"]
    assert (missing["codes"], missing["from_ms"], missing["state"]) == (
        GAP.codes,
        GAP.from_ms,
        "open",
    )


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "Name codes or markets"),
        ({"codes": "600519"}, "600519"),
        ({"codes": "600519.SH", "markets": "SH"}, "Name codes or markets"),
        ({"codes": "*", "start": "2026-11-21", "end": "2026-11-20"}, "before the start"),
        ({"codes": "*", "start": "yesterday"}, "not a time"),
        ({"codes": "*", "format": "csv"}, "format"),
        ({"codes": "*", "format": "arrow", "fields": "price"}, "no column price"),
        ({"codes": "*", "fields": "lastPrice"}, "JSON always has all fields"),
        ({"codes": "*", "from": "2026-11-20"}, "no parameter"),
    ],
)
def test_clear_errors(ask: httpx.Client, params: dict[str, str], words: str) -> None:
    response = ask.get("/api/v1/stored/ticks", params=params)
    kind = "invalid-code" if params.get("codes") == "600519" else "invalid-request"
    assert words in problem_of(response, 422, kind)["detail"]


async def test_a_caller_who_goes_ends_the_reading() -> None:
    """An endless answer, sent by Starlette itself to a caller who takes some parts and goes."""
    made: list[str] = []

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                made.append("part")
                yield b"x"
        finally:
            made.append("closed")

    gone = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 3:
            gone.set()
            await asyncio.sleep(20)  # nothing more is taken

    budget = Budget(1_000_000)
    response = Streamed(endless(), Held(budget, 1_000), media_type="text/plain")
    assert budget.held_bytes == 1_000
    await asyncio.wait_for(response({"type": "http"}, receive, send), 120)
    assert made == ["part", "part", "part", "closed"]
    assert budget.held_bytes == 0


def test_without_an_archive(
    streams_server: RedisServer, jobs_server: RedisServer, rig: Rig, tmp_path: Path
) -> None:
    day = rig[0]
    with (
        gateway(streams_server.url, jobs_server.url, tmp_path) as process,
        httpx.Client(base_url=process.url, timeout=120, trust_env=False) as client,
    ):
        told: dict[str, Any] = client.get("/api/v1/archive").json()
        assert (told["archived"], told["days"], told["missing"]) == (False, [], [])
        params = {"codes": SH[1], "start": "2026-11-20 09:30:15"}
        rows = client.get("/api/v1/stored/ticks", params=params).json()["data"]
        wanted = [one for _, one, _ in day.of(SH[1]) if int(one[:13]) >= OPEN_MS + 15_000]
        assert [row["id"] for row in rows] == wanted


def test_an_archive_that_is_away_is_told(
    streams_server: RedisServer, jobs_server: RedisServer, rig: Rig, tmp_path: Path
) -> None:
    flags = ["--archive-url", str(tmp_path / "none")]
    with (
        gateway(streams_server.url, jobs_server.url, tmp_path, *flags) as process,
        httpx.Client(base_url=process.url, timeout=120, trust_env=False) as client,
    ):
        for path in ("/api/v1/stored/ticks?codes=600000.SH", "/api/v1/archive"):
            problem_of(client.get(path), 503, "archive-unavailable")
