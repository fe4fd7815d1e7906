"""More is wanted than can be served: who came first keeps the place, all is bounded and told."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import redis
from live_processes import process, producer_env
from waiting import wait_for
from wanting import Readers

from qmt_simulator.control import Control
from qmt_standalone.redis_server import RedisServer

PLACES = 2
BESIDE = 500
CROWD = 10_000
GAP = {"kind": "gap", "market": "SH", "reason": "the terminal was away", "from_ms": 1, "to_ms": 2}
KEPT = ("5m|600519.SH", "15m|600519.SH")


def beat_of(streams: redis.Redis) -> tuple[int, dict[str, Any]]:
    """Return size and figures of the producer's heartbeat."""
    for member, document in streams.hgetall("qmt:status").items():
        if member.startswith(b"producer:"):
            return len(document), json.loads(document)["figures"]
    return 0, {}


def test_a_crowd_takes_no_place_fills_nothing_and_hides_no_gap(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    mid_session = ("--start", "2026-01-05 10:00:10")
    with process("qmt_simulator", "--port", "0", *mid_session) as (_, ready):
        port = int(json.loads(ready.readline())["port"])
        env = {
            **producer_env(streams_server, port, tmp_path / "ring"),
            "QMT_MARKETS": "SH",
            "QMT_DEMAND_MAX": str(PLACES),
        }
        with (
            process("qmt_producer", **env) as (producer, _),
            closing(Control(port)) as control,
            Readers(streams) as early,
            Readers(streams) as crowd,
        ):
            early.wants = KEPT
            singles = lambda: control.status()["single_subscriptions"]  # noqa: E731
            wait_for(lambda: singles() == PLACES, "both places are taken")
            streams.xadd("qmt:events", {"e": json.dumps(GAP)})
            crowd.wants = tuple(f"1m|9{number:05}.SH" for number in range(CROWD))
            most = PLACES + BESIDE
            told = wait_for(lambda: streams.hget("qmt:refused", "*.SH"), "many are turned away")
            others = json.loads(told)
            wait_for(lambda: streams.hlen("qmt:refused") > 200, "others are refused by name")
            assert streams.hlen("qmt:refused") <= most + 1
            assert f"{most} codes and bars are wanted already" in others["reason"]
            assert set(KEPT) < set(others["known"])
            assert len(others["known"]) == most

            wait_for(lambda: "..." in beat_of(streams)[1]["demand"]["refused"], "how many more")
            size_bytes, figures = beat_of(streams)
            assert size_bytes <= 8 * 1024
            assert len(figures["demand"]["refused"]) == 51
            assert figures["demand"]["served"] == sorted(KEPT)
            assert [json.loads(row[b"e"]) for _, row in streams.xrange("qmt:events")] == [GAP]
            refused = wait_for(lambda: streams.xlen("qmt:events:refused"), "refusals are told")
            assert refused < 100
            assert singles() == PLACES
            assert producer.poll() is None
