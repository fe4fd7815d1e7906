"""Replays by protocol v1: steered by a client, beside live ticks, at the pace of who reads them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import redis
from gateway_bench import GatewayProcess
from stored_rig import CODES, GAP, OPEN_MS, ROUNDS, SH, STEP_MS, SZ, StoredDay, stored_gateway
from test_live_protocol import Talk, description, talking
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from qmt_protocol import live
from qmt_protocol.keys import Keys
from qmt_standalone.redis_server import RedisServer

__all__ = ["description"]

Rig = tuple[StoredDay, GatewayProcess]
END_MS = OPEN_MS + ROUNDS * STEP_MS


@pytest.fixture(scope="module")
def rig(
    streams_server: RedisServer,
    jobs_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Rig]:
    """A gateway over a stored day."""
    folder = tmp_path_factory.mktemp("replays")
    with stored_gateway(
        streams_server, jobs_server, folder, ws_replays="2", ws_queue_bytes="20000"
    ) as made:
        yield made


@pytest.fixture
def day(rig: Rig) -> StoredDay:
    """What it has stored."""
    return rig[0]


@pytest.fixture
def talk(rig: Rig, description: dict[str, Any]) -> Iterator[Talk]:
    """A connection that has been welcomed."""
    with talking(rig[1], description) as made:
        assert made.next()["type"] == "welcome"
        yield made


def begin(talk: Talk, **more: Any) -> dict[str, Any]:
    asked = {"id": "a", "codes": ["*"], "start_ms": OPEN_MS, "speed": "max", **more}
    talk.ask(op="replay", **asked)
    told = talk.next()
    assert (told["type"], told["id"]) == ("replay", asked["id"])
    return told


def rest_of(talk: Talk, name: str = "a") -> tuple[list[list[Any]], dict[str, Any]]:
    """Return all rows up to the end of a replay, and how it ended."""
    rows = []
    while (told := talk.next())["type"] != "replay_ended":
        if told["type"] == "live":
            assert (told["kind"], told["replay"], told["position"]) == ("replay", name, {})
            rows += told["ticks"]
    assert told["id"] == name
    return rows, told


def assert_rows(rows: list[list[Any]], wanted: list[tuple[str, str, list[Any]]]) -> None:
    assert [(code, entry_id, flags) for code, entry_id, flags, _ in rows] == [
        (code, entry_id, row[-1]) for code, entry_id, row in wanted
    ]
    assert [tick["lastPrice"] for *_, tick in rows] == [row[1] / 10_000 for _, _, row in wanted]


def test_all_of_a_day(talk: Talk, day: StoredDay) -> None:
    told = begin(talk)
    assert told == {
        "type": "replay",
        "id": "a",
        "state": "running",
        "at_ms": OPEN_MS,
        "speed": "max",
        "simulated": None,
        "late_ms": 0,
    }
    rows, ended = rest_of(talk)
    assert_rows(rows, day.rows)
    assert (ended["reason"], ended["ticks"]) == ("end", len(day.rows))
    begin(talk, codes=SZ[:1], start_ms=OPEN_MS + 1_000, end_ms=OPEN_MS + 2_000)
    rows, _ = rest_of(talk)
    assert len(rows) == 11
    begin(talk, codes=[], markets=["SZ"])
    assert_rows(rest_of(talk)[0], day.of(*SZ))


def test_by_msgpack_a_tick_is_its_t1(rig: Rig) -> None:
    day, process = rig
    url = f"ws{process.url[4:]}/ws/v1"
    offered = [Subprotocol(live.MSGPACK_SUBPROTOCOL)]
    with connect(url, proxy=None, subprotocols=offered, close_timeout=1) as client:
        client.send(
            msgpack.packb(
                {"op": "replay", "id": "m", "start_ms": OPEN_MS, "codes": ["*"], "speed": "max"}
            )
        )
        rows: list[Any] = []
        while (told := msgpack.unpackb(client.recv(timeout=120)))["type"] != "replay_ended":
            rows += told["ticks"] if told["type"] == "live" else []
    assert [tuple(row) for row in rows] == day.rows


def test_known_gaps_are_told_in_their_place(talk: Talk) -> None:
    begin(talk, codes=SH[:1], end_ms=OPEN_MS + 2_000, speed=50)
    seen: list[Any] = []
    while (told := talk.next())["type"] != "replay_ended":
        seen += ["gap"] if told["type"] == "gap" else [row[1] for row in told["ticks"]]
        if told["type"] == "gap":
            assert told["replay"] == "a"
            assert told["codes"] == {SH[0]: [GAP.from_ms, GAP.to_ms, 0]}
    at = seen.index("gap")
    assert int(seen[at - 1][:13]) <= GAP.to_ms
    assert at < 15


def test_pace_pause_step_seek_and_stop(talk: Talk, day: StoredDay) -> None:
    began = time.monotonic()
    begin(talk, speed=10, paused=True)
    talk.ask(op="replay_resume", id="a")
    assert talk.next()["state"] == "running"
    rows: list[Any] = []
    while len(rows) < 80:
        rows += talk.next("live")["ticks"]
    assert time.monotonic() - began > (int(rows[-1][1][:13]) - OPEN_MS) / 10_000 * 0.8

    talk.ask(op="replay_pause", id="a")
    while (told := talk.next())["type"] == "live":
        rows += told["ticks"]
    assert (told["type"], told["state"]) == ("replay", "paused")
    assert told["at_ms"] == int(rows[-1][1][:13])
    time.sleep(0.3)

    talk.ask(op="replay_step", id="a", count=3)
    stepped: list[Any] = []
    while (told := talk.next())["type"] == "live":
        stepped += told["ticks"]
    assert told["state"] == "paused"
    rows += stepped
    assert len(stepped) == 3
    assert_rows(rows, day.rows[: len(rows)])

    talk.ask(op="replay_seek", id="a", at_ms=OPEN_MS + 20_000)
    assert talk.next()["at_ms"] == OPEN_MS + 20_000
    talk.ask(op="replay_speed", id="a", speed="max")
    assert talk.next()["speed"] == "max"
    talk.ask(op="replay_resume", id="a")
    assert talk.next()["state"] == "running"
    rest, ended = rest_of(talk)
    assert_rows(rest, [row for row in day.rows if int(row[1][:13]) >= OPEN_MS + 20_000])
    assert ended["ticks"] == len(rows) + len(rest)

    begin(talk, speed=0.1)
    talk.ask(op="replay_stop", id="a")
    assert rest_of(talk)[1]["reason"] == "stopped"
    begin(talk, codes=SZ[:1])
    assert len(rest_of(talk)[0]) == ROUNDS, "the id is free again"


def test_two_at_once_and_no_third(talk: Talk, day: StoredDay) -> None:
    begin(talk, id="slow", speed=1, codes=SH[:1])
    begin(talk, id="paused", paused=True)
    for asked, words in (
        ({"id": "third"}, "2 replays"),
        ({"id": "slow"}, "cannot name a replay"),
    ):
        talk.ask(op="replay", codes=["*"], start_ms=OPEN_MS, **asked)
        told = talk.next("error")
        assert told["id"] == asked["id"]
        assert words in told["error"]["message"]
    talk.ask(op="replay_stop", id="slow")
    while (told := talk.next())["type"] != "replay_ended":
        assert told["replay"] == "slow"
    begin(talk, id="third", codes=SZ)
    assert_rows(rest_of(talk, "third")[0], day.of(*SZ))


def test_clear_errors(talk: Talk) -> None:
    for message, words in (
        ({"op": "replay_pause", "id": "x"}, "no replay 'x'"),
        ({"op": "replay", "id": "x", "start_ms": OPEN_MS}, "Name codes"),
        ({"op": "replay", "id": "", "codes": ["*"], "start_ms": OPEN_MS}, "cannot name"),
        ({"op": "replay", "id": "x", "codes": ["1"], "start_ms": OPEN_MS}, "1"),
        ({"op": "replay", "id": "x", "codes": ["*"], "start_ms": 5, "end_ms": 4}, "before"),
        ({"op": "replay", "id": "x", "codes": ["*"], "start_ms": 5, "speed": 0}, "speed"),
    ):
        talk.ask(**message)
        told = talk.next()
        assert (told["type"], told["id"]) == ("error", message["id"])
        assert words in told["error"]["message"]
    begin(talk, id="x", speed=1, start_ms=OPEN_MS)
    talk.ask(op="replay_step", id="x")
    assert "Pause it first" in talk.next("error")["error"]["hint"]


def test_live_ticks_come_beside(talk: Talk, day: StoredDay, streams_server: RedisServer) -> None:
    talk.ask(op="subscribe", id="s", codes=SH[:1], snapshot=False)
    talk.next("subscribed")
    begin(talk, speed=1, codes=SZ)
    keys = Keys()
    with redis.Redis.from_url(streams_server.url) as streams:
        row = msgpack.packb([[SH[0], f"{END_MS + 60_000}-0", day.of(SH[0])[0][2]]])
        tail = streams.xadd(keys.feed("SH"), {"b1": row}).decode()
    while True:
        told = talk.next("live")
        if "replay" not in told:
            break
        assert all(one[0] in SZ for one in told["ticks"])
    assert told["kind"] == "live"
    assert told["position"]["SH"][1] == tail
    assert [one[0] for one in told["ticks"]] == SH[:1]


def test_who_reads_slowly_delays_only_himself(
    rig: Rig, description: dict[str, Any], day: StoredDay
) -> None:
    with talking(rig[1], description) as slow, talking(rig[1], description) as quick:
        for one in (slow, quick):
            assert one.next()["type"] == "welcome"
            begin(one)
        rows, _ = rest_of(quick)
        assert_rows(rows, day.rows)
        rows, ended = rest_of(slow)
        assert_rows(rows, day.rows), "late, and all of it: a replay is not conflated"
        assert ended["reason"] == "end"


def test_a_client_that_goes_leaves_nothing(rig: Rig, description: dict[str, Any]) -> None:
    process = rig[1]
    for _ in range(3):
        with talking(process, description) as talk:
            assert talk.next()["type"] == "welcome"
            begin(talk, speed=1)
            talk.next("live")
    with talking(process, description) as talk:
        assert talk.next()["type"] == "welcome"
        begin(talk, codes=CODES[:1])
        assert rest_of(talk)[1]["reason"] == "end"
    told = process.log()
    assert "Traceback" not in told, told
    assert json.loads(told.splitlines()[-1] if told else "{}").get("level") != "error"
