"""Producers whose clocks are an hour slow and an hour fast: what Redis holds is right all the same.

The judge is the simulator's push log, which has the right time, against the streams read with the
msgpack package.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import redis
from live_processes import process, producer_env
from told_events import told_events
from waiting import wait_for

from qmt_simulator.control import Control
from qmt_simulator.oracle import read_push_log
from qmt_standalone.redis_server import RedisServer

HOUR_MS = 3_600_000
APART_S = 6
"""A standby names what lies that close before a takeover, as terminals may lie apart."""
MARKETS = ["BJ", "SH", "SZ"]
SHIFT = """
import os, time
_off_s = float(os.environ.get("QMT_TEST_CLOCK_OFF_S", "0"))
if _off_s:
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _off_s
    time.time_ns = lambda: _time_ns() + int(_off_s * 1e9)
"""


def heartbeat(streams: redis.Redis, pid: int) -> dict[str, Any]:
    for member, body in streams.hgetall("qmt:status").items():
        if member.decode().endswith(f":{pid}"):
            return dict(json.loads(body))
    return {}


def told(streams: redis.Redis, kind: str) -> list[dict[str, Any]]:
    return [event for event in told_events(streams) if event["kind"] == kind]


def off_s(streams: redis.Redis, which: str) -> list[int]:
    found = [event for event in told(streams, "clock") if event["which"] == which]
    return [round(event["off_ms"] / 1000) for event in found]


def stored(streams: redis.Redis, code: str) -> list[int]:
    key = f"{{qmt:{code.rpartition('.')[2]}}}:tick:{code}"
    return [msgpack.unpackb(fields[b"t1"])[0] for _, fields in streams.xrange(key)]


@pytest.mark.long
def test_takeover_and_gaps_do_not_depend_on_the_local_clock(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SHIFT)
    codes = [f"600{number:03d}.SH" for number in range(300)] + ["000001.SZ", "430047.BJ"]
    log_path = tmp_path / "pushed"
    with process("qmt_simulator", "--port", "0", "--push-log", str(log_path)) as (_, ready):
        port = int(json.loads(ready.readline())["port"])

        def env(ring: str, ahead_s: int) -> dict[str, str]:
            tests = Path(__file__).resolve().parent.parent
            return {
                **producer_env(streams_server, port, tmp_path / ring),
                "QMT_NATIVE_MODULE": "few_codes_native",
                "QMT_TEST_CODES": ",".join(codes),
                "QMT_TEST_CLOCK_OFF_S": str(ahead_s),
                "PYTHONPATH": f"{tmp_path}:{tests}",
                "PYTHONNOUSERSITE": "1",  # a start from nothing, which reads sitecustomize
            }

        with (
            Control(port) as control,
            process("qmt_producer", **env("slow", -3600)) as (slow, _),
        ):
            wait_for(lambda: len(told(streams, "lease taken")) == 3, "the slow one publishes")
            with process("qmt_producer", **env("fast", 3600)) as (fast, _):
                wait_for(
                    lambda: (
                        set(heartbeat(streams, fast.pid)["figures"]["standby"]) == set(MARKETS)
                        if heartbeat(streams, fast.pid)
                        else False
                    ),
                    "the fast one stands by",
                )
                wait_for(lambda: len(off_s(streams, "redis")) == 2, "both say that they are off")
                assert set(off_s(streams, "redis")) == {-3600, 3600}
                time.sleep(APART_S)
                slow.kill()
                slow.wait(60)
                wait_for(lambda: len(told(streams, "lease taken")) == 6, "taken over")
                assert told(streams, "gap") == [], "the standby had heard everything"
                before_ms = int(control.now())
                control.set_fault("drop_connection", pid=fast.pid)
                wait_for(lambda: len(told(streams, "gap")) == 3, "the break is named")
                after_ms = int(control.now())
                published = heartbeat(streams, fast.pid)["figures"]["published"]
                wait_for(
                    lambda: heartbeat(streams, fast.pid)["figures"]["published"] > published + 300,
                    "ticks flow on",
                )
                control.set_fault("deaf")
                figures: dict[str, Any] = {}

                def quiet() -> bool:
                    seen = dict(figures)
                    figures.update(heartbeat(streams, fast.pid)["figures"])
                    return bool(seen) and seen["received"] == figures["received"]

                wait_for(quiet, "the last push is published")
                wait_for(
                    lambda: heartbeat(streams, fast.pid)["figures"]["waiting_batches"] == 0, "all"
                )
    assert (figures["clamped"], figures["late"], figures["rejected"], figures["lost"]) == (0,) * 4
    assert abs(figures["clocks"]["redis_ms"] - HOUR_MS) <= figures["clocks"]["redis_rtt_ms"] + 5

    # The exchange's time is the right one; a tick is some 100 ms old when it is pushed.
    assert abs(figures["clocks"]["exchange_ms"] - HOUR_MS) < 10_000
    assert set(off_s(streams, "exchange")) <= {-3600, -3599, 3600, 3601}

    gaps = told(streams, "gap")
    assert sorted(gap["market"] for gap in gaps) == MARKETS
    for gap in gaps:  # told in the producer's own time, which its clock event corrects
        assert before_ms - 3000 <= gap["from_ms"] - HOUR_MS <= gap["to_ms"] - HOUR_MS <= after_ms

    log = read_push_log(log_path)
    for code in np.unique(log["code"]):
        pushed = sorted(set(log["time"][log["code"] == code].tolist()))
        assert stored(streams, code.decode()) == pushed, code
    assert len(np.unique(log["code"])) > 100
