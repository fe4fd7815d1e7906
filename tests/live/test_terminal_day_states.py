"""What the producer says of the terminal through a day's troubles, against a real process.

Each step by itself is in tests/producer/test_listener.py.
"""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import redis
from live_processes import process, producer_env, producer_status
from told_events import told_events
from waiting import wait_for

from qmt_simulator.control import Control
from qmt_standalone.redis_server import RedisServer

INDEX = "{qmt:SH}:tick:000001.SH"


def test_each_trouble_has_its_state_and_needs_no_restart(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    app_dir = tmp_path / "国金QMT" / "bin.x64"
    app_dir.mkdir(parents=True)

    def terminal() -> dict[str, Any]:
        return dict(producer_status(streams).get("terminal", {}))

    def wait_for_state(state: str) -> None:
        wait_for(lambda: terminal().get("state") == state, f"the heartbeat says {state}")

    def wait_for_ticks() -> None:
        held = streams.xlen(INDEX)
        wait_for(lambda: streams.xlen(INDEX) >= held + 1, "ticks flow")

    with (
        process("qmt_simulator", "--port", "0", "--app-dir", str(app_dir)) as (simulator, ready),
        closing(Control(port := int(json.loads(ready.readline())["port"]))) as control,
    ):
        control.set_fault("not_logged_in")
        env = producer_env(streams_server, port, tmp_path / "ring")
        # Other tests' simulators run too: the folder tells which one is meant.
        env |= {"QMT_TERMINAL_PROGRAMS": "qmt_simulator", "QMT_TERMINAL_PATH": str(app_dir.parent)}
        with process("qmt_producer", **env, QMT_DEAF_AFTER_S="1") as (producer, _):
            wait_for_state("waiting_for_login")
            assert "qmt_simulator" in terminal()["reason"]
            control.set_fault("quote_server_down")
            control.clear_fault("not_logged_in")
            wait_for_state("quote_server_down")
            assert streams.xlen(INDEX) == 0
            control.clear_fault("quote_server_down")
            wait_for_state("ok")
            wait_for_ticks()
            control.set_fault("quote_server_down")
            wait_for_state("quote_server_down")
            wait_for(lambda: _silent_ms(terminal()) > 4000, "longer than deafness is helped")
            control.clear_fault("quote_server_down")
            wait_for_ticks()
            wait_for_state("ok")
            simulator.kill()
            simulator.wait(60)
            wait_for_state("not_running")
            assert producer.poll() is None
    told = told_events(streams)
    assert [event for event in told if event["kind"] == "deaf"] == []
    states = [(event["was"], event["state"]) for event in told if event["kind"] == "terminal"]
    # A program may be seen for a moment longer than its connection.
    assert [state for _, state in states if state != "waiting_for_login"] == [
        "quote_server_down",
        "ok",
        "quote_server_down",
        "ok",
        "not_running",
    ]
    assert states[0][0] == "waiting_for_login"
    assert all(was == before for (was, _), (_, before) in zip(states[1:], states, strict=False))
    gaps = {event["reason"] for event in told if event["kind"] == "gap"}
    # One silence, where the second outage begins before the end of the first was seen.
    assert gaps in ({"the quote server was away"}, {"no producer was listening"})


def _silent_ms(terminal: dict[str, Any]) -> int:
    return time.time_ns() // 1_000_000 - int(terminal["since_ms"])
