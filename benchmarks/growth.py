"""How memory and work grow with the number of codes and of clients."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import redis

from qmt_standalone.redis_server import RedisServer

from .deliveries import deliver, fed_gateway
from .measure import Context, Row, Section
from .processes import Meter, wait_until
from .publish import Line
from .readers import Task, readers
from .sample import Pushes, relabelled

__all__ = ["run"]

_WATCHED: Final = 50
_WITHIN_S: Final = 300.0


def run(ctx: Context) -> Section:
    """Publish for 500 to 50,000 codes, then serve 1 to 1,000 clients."""
    section = Section(
        "growth",
        "How do memory and work grow with codes and with clients?",
        notes=[
            "Codes: one market of invented codes with ticks of a real shape, one client of the "
            "library that reads all of them over Redis. Clients: each watches "
            f"{_WATCHED} codes of its own out of the whole market.",
        ],
    )
    source = Pushes(ctx.pick(full=0, quick=0, smoke=200))
    steps = ctx.pick(full=20, quick=4, smoke=2)
    section.facts["ticks of each code"] = steps
    for codes in ctx.pick(full=(500, 5_000, 50_000), quick=(500, 5_000), smoke=(50,)):
        ctx.say(f"growth: {codes} codes")
        _codes(ctx, section, source, codes, steps)
    pushes = ctx.pick(full=10, quick=3, smoke=1)
    step = 0
    for clients in ctx.pick(full=(1, 10, 100, 1_000), quick=(1, 100), smoke=(1,)):
        ctx.say(f"growth: {clients} clients")
        with fed_gateway(ctx) as fed:
            fed.publish(source.entries(step))
            got = deliver(
                ctx,
                fed,
                [source.entries(step + 1 + n) for n in range(pushes)],
                clients,
                _WATCHED,
            )
        what = f"{clients:,} clients"
        section.rows += [
            _row(what, "gateway, resident", "MB", got.gateway_rss_bytes / 1e6),
            _row(what, "gateway, processor", "us/tick", got.gateway_cpu_s * 1e6 / got.ticks),
            _row(what, "clients with missing or wrong ticks", "clients", got.wrong_clients),
        ]
    return section


def _codes(ctx: Context, section: Section, source: Pushes, codes: int, steps: int) -> None:
    server = RedisServer(ctx.directory / f"redis-{codes}", password="")
    server.start()
    assert server.process is not None
    try:
        with redis.Redis.from_url(server.url) as connection:
            empty: dict[str, Any] = connection.info("memory")
            line = Line(ctx.directory, server.url, markets=("SH",))
            try:
                line.start()
                line.publish(relabelled(source.entries(0), codes))
                line.wait(codes)
                pushes = [relabelled(source.entries(step), codes) for step in range(1, steps)]
                task = Task("redis", server.url, 1, markets=["SH"], at_once=True)
                with readers(ctx.directory, task) as group:
                    meter = Meter(redis=server.process.pid, own=os.getpid(), **group.pids)
                    began = time.perf_counter()
                    for entries in pushes:
                        line.publish(entries)
                    line.wait(codes * steps)
                    wait_until(
                        lambda: group.received_ticks >= codes * (steps - 1),
                        "the client has read everything",
                        _WITHIN_S,
                    )
                    seconds = time.perf_counter() - began
                    moved = codes * (steps - 1)
                    worked = {
                        "Redis, processor": meter.cpu_s("redis"),
                        "publisher, processor": meter.cpu_s("own"),
                        "client, processor": meter.cpu_s("clients 1"),
                    }
                    client_bytes = meter.rss_bytes("clients 1")
            finally:
                line.close()
            full: dict[str, Any] = connection.info("memory")
    finally:
        server.stop()
    used = full["used_memory"] - empty["used_memory"]
    what = f"{codes:,} codes"
    section.rows += [
        _row(what, "Redis, used", "MB", used / 1e6),
        _row(what, "Redis, used for a tick", "bytes", used / (codes * steps)),
        _row(what, "Redis, resident", "MB", full["used_memory_rss"] / 1e6),
        _row(what, "client of everything, resident", "MB", client_bytes / 1e6),
        _row(what, "published and read", "ticks/s", moved / seconds, more=True),
        *(_row(what, side, "us/tick", cpu_s * 1e6 / moved) for side, cpu_s in worked.items()),
    ]


def _row(what: str, side: str, unit: str, value: float, *, more: bool = False) -> Row:
    return Row(what, side, unit, [value], more_is_better=more)
