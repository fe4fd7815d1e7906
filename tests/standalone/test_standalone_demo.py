"""What a user sees of a running demo: REST, WebSocket, streams; a terminal that dies."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import msgpack
import psutil
import pytest
import redis
import websockets
from standalone_runs import Demo
from waiting import wait_for

from qmt_client import QMTClient
from qmt_reading.stored.archive import ArchiveReader


@pytest.fixture
def http(demo: Demo) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo.run["http_url"], timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def stored(demo: Demo) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(demo.run["streams_url"]) as connection:
        yield connection


def described(stored: redis.Redis, packed: bytes) -> dict[str, Any]:
    """Decode a tick with nothing but the msgpack package and what `qmt:schema` says."""
    schema = json.loads(stored.hget("qmt:schema", "t1"))
    scale = schema["price_scale"]

    def in_yuan(value: Any) -> Any:
        return value / scale if isinstance(value, int) else value

    tick: dict[str, Any] = {}
    row = msgpack.unpackb(packed)
    assert len(row) == len(schema["fields"])
    for field, value in zip(schema["fields"], row, strict=True):
        if value is None:
            continue
        if field["type"] == "price":
            value = in_yuan(value)
        elif field["type"] == "array of price":
            value = [in_yuan(one) for one in value]
        tick[field["name"]] = value
    return tick


def test_history_answers_sixty_bars(http: httpx.Client) -> None:
    answer = http.get("/api/history", params={"stock": "000001.SZ", "period": "1d", "count": 60})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["stock"] == "000001.SZ"
    assert len(told["data"]) == 60
    days = [bar["date"] for bar in told["data"]]
    assert days == sorted(set(days))
    for bar in told["data"]:
        assert bar["low"] <= min(bar["open"], bar["close"])
        assert bar["high"] >= max(bar["open"], bar["close"])
    assert "SIMULATED" in answer.text


def test_a_full_tick_is_fresh(http: httpx.Client) -> None:
    def fresh() -> dict[str, Any] | None:
        answer = http.get("/api/full_tick", params={"stocks": "600519.SH"})
        assert answer.status_code == 200, answer.text
        tick = answer.json()["data"]["600519.SH"]
        return tick if time.time() * 1000 - tick["time"] < 5000 else None

    tick = wait_for(fresh, "a tick younger than five seconds")
    assert len(tick["askPrice"]) == len(tick["bidPrice"]) == 5
    assert tick["low"] <= tick["lastPrice"] <= tick["high"]


async def test_a_websocket_moves(demo: Demo) -> None:
    code = "600519.SH"
    times: list[int] = []
    url = demo.run["http_url"].replace("http", "ws") + "/ws/realtime"

    async def watch() -> None:
        async with websockets.connect(url, proxy=None) as socket:
            await socket.send(json.dumps({"stocks": [code], "period": "tick"}))
            while len(set(times)) < 3:
                frame = json.loads(await socket.recv())
                times.extend(row["time"] for row in frame.get(code, []))

    await asyncio.wait_for(watch(), 120)
    assert times == sorted(times)


def test_a_stream_explains_itself(stored: redis.Redis) -> None:
    newest = stored.xrevrange("{qmt:SH}:tick:600519.SH", count=5)
    assert newest
    for entry_id, fields in newest:
        tick = described(stored, fields[b"t1"])
        assert int(entry_id.split(b"-")[0]) == tick["time"]
        assert tick["low"] <= tick["lastPrice"] <= tick["high"]
        assert tick["bidPrice"][0] <= tick["lastPrice"] <= tick["askPrice"][0]
        assert tick["flags"] == 0


def test_what_is_stored_is_what_the_streams_hold(
    demo: Demo, http: httpx.Client, stored: redis.Redis
) -> None:
    """Read over the gateway, part of it from the archive's files, part from the streams."""
    code, key = "600519.SH", "{qmt:SH}:tick:600519.SH"
    wait_for(lambda: stored.xlen(key) >= 2, "two ticks")

    def has_read() -> bool:
        told = http.get("/api/v1/status").json()["processes"]
        return any(one["figures"]["ticks"] > 10_000 for one in told if one["role"] == "archive")

    wait_for(has_read, "the archive has read some seconds of the market")
    # It writes when it is told to end, and goes on when it is started again.
    before = demo.run["pids"]["archive"]
    os.kill(before, signal.SIGTERM)
    wait_for(lambda: demo.run["pids"]["archive"] not in (None, before), "restart")
    assert "archive ended (exit code 0)" in demo.text()
    archive = ArchiveReader(demo.run["archive_url"])
    in_files = sum(len(batch) for batch in archive.ticks([code]))
    assert in_files > 0
    wait_for(lambda: stored.xlen(key) > in_files, "a tick that is not yet archived")

    entries = stored.xrange(key)
    wanted = [
        {"code": code, "id": entry_id.decode(), **described(stored, fields[b"t1"])}
        for entry_id, fields in entries
    ]
    answer = http.get("/api/v1/stored/ticks", params={"codes": code})
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][: len(wanted)] == wanted
    told = http.get("/api/v1/archive").json()
    assert told["archived"] is True
    assert "SH" in told["markets"]

    with QMTClient(demo.run["http_url"]) as client:
        frame = client.stored_ticks(code)
        assert frame["lastPrice"].tolist()[: len(wanted)] == [one["lastPrice"] for one in wanted]
        with client.replay([code], speed="max") as replay:
            again = [tick.id for tick in islice(replay, len(wanted))]
        assert again == [one["id"] for one in wanted]


def test_the_three_things_to_try_work_as_printed(demo: Demo) -> None:
    told = dict(re.findall(r"^([123])  (.+)$", demo.text(), re.M))
    if not shutil.which("curl"):
        get = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
        told["1"] = told["1"].replace("curl", f'{shlex.quote(sys.executable)} -c "{get}"')
    for number, sign in (("1", '"close":'), ("2", "close"), ("3", r"\d{13}-\d+")):
        done = run(told[number], demo)
        assert done.returncode == 0, done.stderr
        assert re.search(sign, done.stdout), done.stdout


def test_the_readmes_snippet_reads_a_stream(demo: Demo) -> None:
    """In both languages, with this run's URL in place of the example's."""
    for name in ("README.md", "README.zh-CN.md"):
        snippets = re.findall(
            r"```python\n(import json, msgpack.*?|import json\n.*?)```", readme(name), re.S
        )
        (snippet,) = [one for one in snippets if "xrevrange" in one]
        snippet = re.sub(r"redis://reader:[^\"]*", demo.run["streams_url"], snippet)
        done = run([sys.executable, "-c", snippet], demo)
        assert done.returncode == 0, done.stderr
        assert "'lastPrice': " in done.stdout


def test_the_readmes_live_example_prints_ticks(demo: Demo) -> None:
    """It is the same in both languages but for its comments."""
    (snippet,), (other,) = (
        re.findall(r"```python\n(import asyncio\n.*?)```", readme(name), re.S)
        for name in ("README.md", "README.zh-CN.md")
    )
    assert ast.dump(ast.parse(other)) == ast.dump(ast.parse(snippet))
    assert "async for tick in client.ticks([" in snippet
    with subprocess.Popen(
        [sys.executable, "-u", "-c", snippet],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "QMT_URL": demo.run["http_url"]},
    ) as child:
        try:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(3)]
        finally:
            child.kill()
    assert all(re.fullmatch(r"(600519.SH|000001.SZ) \d+\.\d+\n", line) for line in lines), lines


def test_the_seeds_examples_run_verbatim_elsewhere(demo: Demo) -> None:
    port = demo.run["http_url"].rpartition(":")[2]
    script = f"""
import asyncio
from qmt_client import QMTClient

client = QMTClient(host="127.0.0.1", port={port})
frame = client.get_history("000001.SZ", period="1d", count=60)
print(len(frame), "rows")


def on_tick(data):
    print("tick of", *data)
    raise KeyboardInterrupt


try:
    asyncio.run(client.subscribe_realtime(stocks=["000001.SZ", "600519.SH"], callback=on_tick))
except KeyboardInterrupt:
    print("end")
"""
    done = run([sys.executable, "-c", script], demo)
    assert done.stdout.splitlines()[0] == "60 rows", done.stderr
    assert "tick of" in done.stdout
    assert done.stdout.splitlines()[-1] == "end", done.stderr


def readme(name: str) -> str:
    return (Path(__file__).resolve().parents[2] / name).read_text("utf-8")


def run(command: str | list[str], demo: Demo) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=demo.temporary,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_everything_says_simulated(demo: Demo, http: httpx.Client) -> None:
    assert "SIMULATED" in demo.text()
    assert "模拟行情" in demo.text()
    assert http.get("/api/v1/status").json()["simulated"] is True
    assert "SIMULATED" in http.get("/api/full_tick", params={"stocks": "600519.SH"}).text


def test_the_whole_market_comes(stored: redis.Redis) -> None:
    def codes() -> bool:
        return sum(stored.hlen(f"{{qmt:{market}}}:latest") for market in ("SH", "SZ", "BJ")) >= 5000

    assert wait_for(codes, "5,000 codes")


def test_the_terminal_dies_and_returns(demo: Demo, http: httpx.Client, stored: redis.Redis) -> None:
    question = {"stock": "000001.SZ", "period": "1d", "count": 60}
    before = demo.run["pids"]["simulator"]
    # Stopped first, so that it stays away for as long as the test needs.
    supervisor = psutil.Process(demo.run["pid"])
    supervisor.suspend()
    try:
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: http.get("/api/history", params=question).status_code == 503, "503")
        began = time.monotonic()
        refused = http.get("/api/history", params=question)
        assert time.monotonic() - began < 8
        assert refused.status_code == 503
        assert refused.headers["content-type"].startswith("application/problem+json")
        problem = refused.json()
        assert problem["error"] == "terminal-not-connected"
        assert problem["detail"]

        latest = http.get("/api/full_tick", params={"stocks": "600519.SH"})
        assert latest.status_code == 200
        assert latest.json()["data"]["600519.SH"]["lastPrice"] > 0
        held = stored.xlen("{qmt:SH}:tick:600519.SH")
        assert held > 0
    finally:
        supervisor.resume()

    wait_for(lambda: demo.run["pids"]["simulator"] != before, "restart of the terminal")
    wait_for(lambda: http.get("/api/history", params=question).status_code == 200, "history")
    wait_for(lambda: stored.xlen("{qmt:SH}:tick:600519.SH") > held + 2, "new ticks")


@pytest.mark.parametrize("part", ["gateway", "producer", "worker", "archive", "jobs-redis"])
def test_a_part_that_dies_is_restarted(demo: Demo, http: httpx.Client, part: str) -> None:
    before = demo.run["pids"][part]
    killed_ms = time.time() * 1000
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: demo.run["pids"][part] not in (None, before), f"restart of {part}")
    assert f"{part} ended (exit code -9)" in demo.text()

    def well() -> bool:
        try:
            asked = {"stock": "000001.SZ", "period": "1d", "count": 5}
            history = http.get("/api/history", params=asked)
            tick = http.get("/api/full_tick", params={"stocks": "600519.SH"})
        except httpx.TransportError:
            return False
        if (history.status_code, tick.status_code) != (200, 200):
            return False
        return bool(tick.json()["data"]["600519.SH"]["time"] > killed_ms + 3000)

    wait_for(well, "everything well again")


def test_the_streams_survive_a_crash_of_their_server(demo: Demo, stored: redis.Redis) -> None:
    key = "{qmt:SH}:tick:600519.SH"
    first = stored.xrange(key, count=3)
    before = demo.run["pids"]["streams-redis"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: demo.run["pids"]["streams-redis"] not in (None, before), "restart")

    def newer() -> bool:
        try:
            newest = stored.xrevrange(key, count=1)
        except redis.RedisError:
            return False
        return bool(newest and time.time() * 1000 - int(newest[0][0].split(b"-")[0]) < 10_000)

    wait_for(newer, "new ticks")
    assert stored.xrange(key, count=3) == first
