"""Readers want single codes and bars: subscribed for all, judged by the simulator's own market."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import redis
from live_processes import process, producer_env, producer_status
from told_events import told_events
from waiting import wait_for
from wanting import Readers

from qmt_simulator.control import Control
from qmt_standalone.redis_server import RedisServer

CODE = "600519.SH"
MINUTE_MS = 60_000
FIELDS = {"time": 0, "open": 1, "high": 2, "low": 3, "close": 4, "volume": 5, "amount": 6}


def bars(streams: redis.Redis, period: str = "1m", code: str = CODE) -> list[list[Any]]:
    market = code.rpartition(".")[2]
    entries = streams.xrange(f"{{qmt:{market}}}:bar:{period}:{code}")
    rows = [msgpack.unpackb(fields[b"k1"]) for _, fields in entries]
    assert [int(entry_id.split(b"-")[0]) for entry_id, _ in entries] == [row[0] for row in rows]
    return rows


def final(rows: list[list[Any]]) -> dict[int, list[Any]]:
    """Return label to the last state told as closed."""
    return {row[0]: row for row in rows if row[11]}


def truth(control: Control, start_ms: int, end_ms: int) -> list[dict[str, float]]:
    columns = {
        name: np.frombuffer(data, kind)
        for name, kind, data in control.call(
            "oracle.bars", CODE, "1m", start_ms, end_ms, "none", None
        )
    }
    count = len(columns["time"])
    return [{name: columns[name][at].item() for name in FIELDS} for at in range(count)]


def assert_closed_equal_truth(control: Control, closed: dict[int, list[Any]]) -> None:
    labels = sorted(closed)
    true = truth(control, labels[0], labels[-1])
    assert [int(bar["time"]) for bar in true] == labels, "a closed bar is missing"
    for bar in true:
        row = closed[int(bar["time"])]
        prices = [row[FIELDS[name]] / 10_000 for name in ("open", "high", "low", "close")]
        np.testing.assert_allclose(
            prices, [bar[name] for name in ("open", "high", "low", "close")], rtol=0, atol=1e-9
        )
        assert (row[FIELDS["volume"]], row[FIELDS["amount"]]) == (bar["volume"], bar["amount"])


def refused(streams: redis.Redis) -> dict[str, str]:
    return {
        series.decode(): json.loads(document)["reason"]
        for series, document in streams.hgetall("qmt:refused").items()
    }


def test_wants_are_served_closed_by_the_clock_and_given_back(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    # Twenty market seconds a second, and bars pushed each second: so a grace of 40 s.
    clock = ("--start", "2026-01-05 10:00:10", "--speed", "20")
    with process("qmt_simulator", "--port", "0", "--interval-ms", "1000", *clock) as (_, ready):
        port = int(json.loads(ready.readline())["port"])
        env = {
            **producer_env(streams_server, port, tmp_path / "ring"),
            "QMT_MARKETS": "SH",
            "QMT_DEMAND_MAX": "3",
            "QMT_BAR_GRACE_S": "40",
        }
        with (
            process("qmt_producer", **env),
            closing(Control(port)) as control,
            Readers(streams) as readers,
        ):
            singles: Callable[[], int] = lambda: control.status()["single_subscriptions"]  # noqa: E731
            stay = (f"1m|{CODE}", "tick|000001.SZ", "tick|000001.SH")
            unknown = ("1m|999999.SH", "tick|000404.SZ", "nonsense")
            readers.wants = (*stay, f"1d|{CODE}", *unknown)
            wait_for(lambda: singles() == 3, "three subscriptions, the index is pushed anyway")
            wait_for(lambda: len(refused(streams)) == 2, "what cannot be served is refused")
            assert "999999.SH" in refused(streams)["1m|999999.SH"]
            readers.wants += (f"5m|{CODE}",)
            wait_for(lambda: "All 3" in refused(streams).get(f"5m|{CODE}", ""), "the limit")
            wait_for(
                lambda: streams.xlen("{qmt:SZ}:tick:000001.SZ") >= 3, "ticks of another market"
            )
            assert len(bars(streams, "1d")) >= 1
            assert not any(row[11] for row in bars(streams, "1d")), "the day is not over"

            readers.wants = (*stay, *unknown, f"5m|{CODE}")
            wait_for(lambda: f"5m|{CODE}" not in refused(streams), "nobody wants 1d any more")
            wait_for(lambda: len(bars(streams, "5m")) > 0, "its place is taken by 5m")
            assert singles() == 3
            wait_for(
                lambda: set(producer_status(streams)["markets"]) == {"SH", "SZ"}, "both are told"
            )

            wait_for(lambda: len(final(bars(streams))) >= 2, "two minutes are closed")
            control.set_fault("drop_connection")
            wait_for(
                lambda: len([e for e in told_events(streams) if e["kind"] == "connected"]) == 2,
                "the terminal is connected again",
            )
            wait_for(lambda: singles() == 3, "everything is subscribed again")
            known = len(final(bars(streams)))
            wait_for(lambda: len(final(bars(streams))) >= known + 2, "bars go on")
            time.sleep(1.5)  # a last correction may be on its way
            rows = bars(streams)
            assert_closed_equal_truth(control, final(rows))
            assert any(not row[11] for row in rows), "forming bars are told too"
            for row in rows:
                label_closed = [other[11] for other in rows if other[0] == row[0]]
                assert label_closed == sorted(label_closed), "no forming bar behind a closed one"

            readers.wants = ()
            wait_for(lambda: singles() == 0, "all is given back")
            wait_for(lambda: refused(streams) == {}, "nothing is refused that nobody wants")
    told = [event["series"] for event in told_events(streams) if event["kind"] == "demand refused"]
    assert sorted(told) == sorted(["1m|999999.SH", "tick|000404.SZ", f"5m|{CODE}"]), "each once"
    assert [event for event in told_events(streams) if event["kind"] == "late bar"] == []
