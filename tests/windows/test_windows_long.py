"""What takes minutes: a Redis that is away, and a crash that is over once all runs steadily."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import redis
from waiting import wait_for
from windows_rig import Box, Receiver, children, heartbeats

from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer


@pytest.mark.long  # two minutes, mostly of waiting
def test_redis_is_away_for_more_than_a_minute(tmp_path: Path, receiver: Receiver) -> None:
    streams = RedisServer(tmp_path / "streams")
    jobs = RedisServer(tmp_path / "jobs", aof=False)
    streams.start()
    jobs.start()
    home = tmp_path / "home"
    home.mkdir()
    flags = ("--start", "2026-11-20 10:30:00", "--real-hours", "--interval-ms", "15000")
    with TerminalProcess(*flags) as terminal, redis.Redis.from_url(streams.url) as connection:
        url = f"post:{receiver.url}/"
        box = Box(home, streams.url, jobs.url, terminal.port, QMT_ALERT_URLS=url)

        def all_well() -> bool:
            beats = heartbeats(connection, "producer") + heartbeats(connection, "worker")
            well = {one["pid"] for one in beats if one["terminal"]["state"] == "ok"}
            told = children(connection)
            return len(told) == 3 and {one["pid"] for one in told.values()} == well

        try:
            box.start()
            wait_for(all_well, "all three")
            os.kill(children(connection)["producer"]["pid"], signal.SIGKILL)
            wait_for(lambda: receiver.states("producer"), "the alert of the crash")
            wait_for(lambda: children(connection)["producer"]["restarts"] == 1, "another one")
            wait_for(all_well, "all three")
            before = {name: one["pid"] for name, one in children(connection).items()}
            streams.stop()
            gone_s = time.time()
            wait_for(lambda: receiver.states("redis"), "the alert of Redis")
            assert 60 < receiver.got[-1].at_s - gone_s < 70
            streams.start()
            wait_for(lambda: len(receiver.states("redis")) == 2, "that Redis is back")
            wait_for(all_well, "all three")
            wait_for(lambda: len(receiver.states("producer")) == 2, "a steady producer")
            after = children(connection)
            assert {name: one["pid"] for name, one in after.items()} == before
        finally:
            box.stop()
            streams.stop()
            jobs.stop()
    assert receiver.states("redis") == ["away", "ok"]
    assert receiver.states("producer") == ["crashed", "ok"]
    # Neither the terminal nor the workers were in trouble.
    assert {one.body["kind"] for one in receiver.got} == {"redis", "producer"}
    assert all(one.body["simulated"] for one in receiver.got)
