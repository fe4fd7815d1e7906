"""``qmt status``: which terminal each process sits on."""

from __future__ import annotations

import redis
from heartbeats import write_heartbeat
from typer.testing import CliRunner

from qmt_client.cli import app
from qmt_protocol.keys import Keys
from qmt_protocol.status import new_heartbeat
from qmt_reading.processes import Process, Status
from qmt_standalone.redis_server import RedisServer

ENDING = {"day": 20261130, "trades": True, "source": "terminal", "known_until": 20261231}
TERMINAL = {
    "state": "ok",
    "address": "127.0.0.1:58611",
    "edition": "sp3",
    "version": "1.0.0.36000",
    "broker": "国金证券",
    "path": "D:\\国金证券QMT交易端",
    "xtquant_version": "250807",
}


def test_the_terminal_is_named(streams: redis.Redis, streams_server: RedisServer) -> None:
    for role, terminal in (
        ("producer", TERMINAL),
        ("worker", {"state": "not_running", "address": "127.0.0.1:58610"}),
        ("gateway", {}),
    ):
        write_heartbeat(streams, Keys("qmt"), new_heartbeat(role, 0, terminal=terminal))
    shown = CliRunner().invoke(app, ["--url", streams_server.url, "status"])
    lines = [line.strip() for line in shown.output.splitlines()]
    assert (
        "国金证券 sp3 1.0.0.36000 at 127.0.0.1:58611, D:\\国金证券QMT交易端, xtquant 250807"
        in lines
    )
    assert "a terminal at 127.0.0.1:58610" in lines
    assert len(lines) == 5


def test_trading_days_that_are_not_known_for_long(
    streams: redis.Redis, streams_server: RedisServer
) -> None:
    def shown(**day: object) -> str:
        beat = new_heartbeat("producer", 0, terminal={"state": "ok", "trading_day": day})
        write_heartbeat(streams, Keys("qmt"), beat)
        return CliRunner().invoke(app, ["--url", streams_server.url, "status"]).output

    assert "trading days are known until 2026-12-31 only" in shown(**ENDING)
    assert "known until" not in shown(**{**ENDING, "known_until": 20271231})
    assert "whether today trades is a guess" in shown(day=20270104, trades=True, source="weekday")
    assert "calendar file: line 2" in shown(**{**ENDING, "file_error": "line 2: no day"})
    assert "known until" not in shown(day=20261130, trades=True, source="terminal")


async def test_who_serves_is_no_evidence_of_a_real_terminal() -> None:
    """An archive or a gateway that lives alone says nothing of where its data came from."""

    def status(*processes: Process) -> Status:
        return Status(0, processes)

    def process(role: str, age_ms: int, *, simulated: bool) -> Process:
        return Process(new_heartbeat(role, 0, simulated=simulated), age_ms)

    gone = process("producer", 3_600_000, simulated=True)
    serving = [process("gateway", 100, simulated=False), process("archive", 100, simulated=False)]
    assert status(*serving, gone).simulated
    assert not status(*serving, process("producer", 3_600_000, simulated=False)).simulated
    assert not status(process("producer", 100, simulated=False), gone).simulated
    assert not status(*serving).simulated
