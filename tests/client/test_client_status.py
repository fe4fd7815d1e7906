"""``qmt status``: which terminal each process sits on."""

from __future__ import annotations

import redis
from heartbeats import write_heartbeat
from typer.testing import CliRunner

from qmt_client.cli import app
from qmt_protocol.keys import Keys
from qmt_protocol.status import new_heartbeat
from qmt_standalone.redis_server import RedisServer

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
