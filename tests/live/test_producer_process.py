"""The producer as a process: the terminal dies and returns, the producer is killed and returns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgpack
import redis
from live_processes import process, producer_env, producer_status
from told_events import told_events
from waiting import wait_for

from qmt_standalone.redis_server import RedisServer

INDEX = "000001.SH"


def stored(streams: redis.Redis, code: str = INDEX) -> list[list[Any]]:
    entries = streams.xrange(f"{{qmt:SH}}:tick:{code}")
    return [msgpack.unpackb(fields[b"t1"]) for _, fields in entries]


def test_terminal_killed_and_back(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    with process("qmt_simulator", "--port", "0") as (terminal, ready):
        port = int(json.loads(ready.readline())["port"])
        with process("qmt_producer", **producer_env(streams_server, port, tmp_path / "ring")):
            wait_for(lambda: len(stored(streams)) >= 2, "ticks flow")
            terminal.kill()
            terminal.wait(60)
            wait_for(
                lambda: producer_status(streams)["terminal"]["state"] == "not_running",
                "the heartbeat says that the terminal is gone",
            )
            held = stored(streams)
            assert held, "what was stored stays readable"
            with process("qmt_simulator", "--port", str(port)) as (_, ready_again):
                assert json.loads(ready_again.readline())["port"] == port
                wait_for(lambda: len(stored(streams)) >= len(held) + 2, "ticks flow again")
                wait_for(
                    lambda: producer_status(streams)["terminal"]["state"] == "ok", "and it says so"
                )
                assert producer_status(streams)["simulated"] is True
    rows = stored(streams)
    times = [row[0] for row in rows]
    assert times == sorted(set(times)), "no repeat, no step back over the restart"
    kinds = [event["kind"] for event in told_events(streams)]
    told = [kind for kind in kinds if kind in ("connected", "lost")]
    assert told[:3] == ["connected", "lost", "connected"]


def test_producer_killed_and_back_repeats_nothing_and_names_the_gap(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    with process("qmt_simulator", "--port", "0") as (_, ready):
        port = int(json.loads(ready.readline())["port"])
        env = producer_env(streams_server, port, tmp_path / "ring")
        with process("qmt_producer", **env) as (producer, _):
            wait_for(lambda: len(stored(streams)) >= 2, "ticks flow")
            os.kill(producer.pid, signal.SIGKILL)
            producer.wait(60)
        held = len(stored(streams))
        with process("qmt_producer", **env):
            wait_for(lambda: len(stored(streams)) >= held + 2, "ticks flow again")
    times = [row[0] for row in stored(streams)]
    assert times == sorted(set(times))
    gaps = [event for event in told_events(streams) if event["kind"] == "gap"]
    named = [market for gap in gaps for market in gap.get("markets", [gap.get("market")])]
    assert sorted(named) == ["BJ", "SH", "SZ"], gaps
    assert all(gap["from_ms"] < gap["to_ms"] for gap in gaps)


def test_ctrl_c_ends_it_in_order(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    with process("qmt_simulator", "--port", "0") as (_, ready):
        port = int(json.loads(ready.readline())["port"])
        env = producer_env(streams_server, port, tmp_path / "ring")
        with process("qmt_producer", **env) as (producer, _):
            wait_for(lambda: len(stored(streams)) >= 1, "ticks flow")
            producer.send_signal(signal.SIGINT)
            assert producer.wait(60) == 0
    figures = producer_status(streams)["figures"]
    assert figures["waiting_batches"] == 0, "what was received was published before the end"
    assert figures["lost"] == 0
    assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["max"] < 30_000
    assert sum(one["published"] for one in figures["markets"].values()) == figures["published"]
    assert figures["retention"]["memory_bytes"] > 0
    assert not streams.exists("{qmt:SH}:lease")


def test_bad_start_says_what_to_do(tmp_path: Path, streams_server: RedisServer) -> None:
    env = producer_env(streams_server, 1, tmp_path / "ring")
    for wrong, words in (
        ({"TZ": "UTC"}, "China Standard Time"),
        ({"QMT_BATCH_TICKS": "9999"}, "batch_ticks"),
        ({"QMT_PREFIX": "a{b"}, "prefix"),
    ):
        with process("qmt_producer", stderr=subprocess.PIPE, **{**env, **wrong}) as (child, _):
            assert child.stderr is not None
            said = child.stderr.read().decode()
            assert child.wait(60) == 2, said
            assert words in said
            assert "Traceback" not in said
