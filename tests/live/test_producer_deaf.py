"""A terminal that is connected and pushes nothing: noticed, helped, named, and at last given up."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import redis
from live_processes import process, producer_env, producer_status
from told_events import told_events
from waiting import wait_for

from qmt_producer.producer import EXIT_RESTART
from qmt_simulator.control import Control
from qmt_standalone.redis_server import RedisServer


def steps(streams: redis.Redis) -> list[str]:
    return [event["done"] for event in told_events(streams) if event["kind"] == "deaf"]


def gap_markets(streams: redis.Redis) -> list[str]:
    gaps = [event for event in told_events(streams) if event["kind"] == "gap"]
    return sorted(one for gap in gaps for one in gap.get("markets", [gap.get("market")]))


def test_deaf_is_told_recovered_from_and_else_ends_in_a_restart(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    with (
        process("qmt_simulator", "--port", "0") as (_, ready),
        closing(Control(port := int(json.loads(ready.readline())["port"]))) as control,
    ):
        env = producer_env(streams_server, port, tmp_path / "ring")
        env["QMT_DEAF_AFTER_S"] = "1.5"
        with process("qmt_producer", **env) as (producer, _):
            wait_for(lambda: streams.xlen("{qmt:SH}:tick:000001.SH") >= 1, "ticks flow")
            assert steps(streams) == []
            control.set_fault("deaf")
            deaf_ms = int(streams.time()[0] * 1000)
            wait_for(
                lambda: (
                    (told := producer_status(streams)["terminal"])["state"] == "deaf"
                    and "nothing came" in told["reason"]
                ),
                "the heartbeat says that the feed is deaf",
            )
            wait_for(lambda: steps(streams) == ["resubscribed", "reconnected"], "two steps")
            assert producer.poll() is None
            control.clear_fault("deaf")
            wait_for(lambda: len(steps(streams)) == 3, "it hears again")
            wait_for(lambda: producer_status(streams)["terminal"]["state"] == "ok", "and says so")
            wait_for(
                lambda: gap_markets(streams) == ["BJ", "SH", "SZ"], "each market's gap is told"
            )
            gaps = [event for event in told_events(streams) if event["kind"] == "gap"]
            assert all(gap["from_ms"] < deaf_ms + 1500 < gap["to_ms"] for gap in gaps), gaps

            control.set_fault("deaf")
            assert producer.wait(60) == EXIT_RESTART
        assert steps(streams)[3:] == ["resubscribed", "reconnected", "restart"]
        control.clear_fault("deaf")
        with process("qmt_producer", **env):
            wait_for(
                lambda: len([e for e in told_events(streams) if e["kind"] == "gap"]) > len(gaps),
                "the next start names the silence",
            )
            wait_for(lambda: producer_status(streams)["terminal"]["state"] == "ok", "and listens")
