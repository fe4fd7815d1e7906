"""How many ticks a second a core of the gateway delivers to many clients."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

from qmt_producer.candidates import Entry
from qmt_standalone.redis_server import RedisServer

from .latency import has_v1
from .measure import Aim, Context, Row, Section
from .processes import Meter
from .publish import Line
from .readers import Group, Task, readers
from .sample import Pushes
from .stacks import gateway

__all__ = ["Delivered", "deliver", "fed_gateway", "run"]

_QUEUE_BYTES: Final = 64_000_000
_WITHIN_S: Final = 180.0
_CLOCK_S: Final = 0.01
"""In such steps processor time is told."""


@dataclass
class Fed:
    """A gateway over a Redis that this process publishes into."""

    url: str
    pid: int
    line: Line
    published: int = 0

    def publish(self, entries: list[Entry]) -> None:
        """Publish ticks and wait until they are in Redis."""
        self.line.publish(entries)
        self.published += len(entries)
        self.line.wait(self.published)


@dataclass
class Delivered:
    """What came of some pushes."""

    ticks: int
    seconds: float
    gateway_cpu_s: float
    gateway_rss_bytes: int
    wrong_clients: int
    """Clients that did not get exactly their codes' ticks."""
    frames: int


@contextmanager
def fed_gateway(ctx: Context) -> Iterator[Fed]:
    """Run Redis, the producer's way from ring to Redis, and a gateway."""
    server = RedisServer(ctx.directory / f"redis-{time.monotonic_ns()}", password="")
    server.start()
    try:
        line = Line(ctx.directory, server.url)
        line.start()
        try:
            with gateway(
                ctx.directory, server.url, ws_queue_bytes=str(_QUEUE_BYTES), ws_stall_s="120"
            ) as (url, pid):
                yield Fed(url, pid, line)
        finally:
            line.close()
    finally:
        server.stop()
        shutil.rmtree(server.directory)


def deliver(
    ctx: Context, fed: Fed, pushes: list[list[Entry]], clients: int, watched: int
) -> Delivered:
    """Publish pushes to clients that watch so many codes each (0: everything), one by one.

    The next push is published when every client has decoded and checked the one before.
    """
    requested = _watchlists(sorted({code for code, _, _ in pushes[0]}), clients, watched)
    task = Task("v1", fed.url, clients, requested, at_once=True)
    if not has_v1(fed.url):
        task.kind = "realtime"
        task.codes = requested or [sorted({code for code, _, _ in pushes[0]})]
    facts = [_facts(entries) for entries in pushes]
    with readers(ctx.directory, task, min(2, clients)) as group:
        before = _settled(group)
        meter = Meter(gateway=fed.pid)
        began = time.perf_counter()
        expected = before
        for entries, (codes, _) in zip(pushes, facts, strict=True):
            fed.publish(entries)
            each = [int(np.isin(codes, own).sum()) for own in requested] or [len(codes)]
            expected += sum(each) if requested else clients * each[0]
            _wait(group, expected)
        seconds = time.perf_counter() - began
        cpu_s, rss = meter.cpu_s("gateway"), meter.rss_bytes("gateway")
        frames, _ = group.stop()
    frames = frames[frames["first_ms"] >= min(values[0].min() for _, values in facts)]
    return Delivered(
        ticks=int(frames["ticks"].sum()),
        seconds=seconds,
        gateway_cpu_s=cpu_s,
        gateway_rss_bytes=rss,
        wrong_clients=_wrong(frames, facts, requested, clients),
        frames=len(frames),
    )


def run(ctx: Context) -> Section:
    """Measure shared whole-market frames and watchlists of 300 and 50 codes."""
    clients = ctx.pick(full=1000, quick=200, smoke=1)
    source = Pushes(ctx.pick(full=0, quick=0, smoke=400))
    section = Section(
        "deliveries",
        "How many ticks a second does one core of the gateway deliver?",
        facts={"clients": clients, "processes of clients": min(2, clients)},
        notes=[
            "Deliveries are counted by the clients, which decode every frame and check it by "
            "number and sums of times, volumes and prices. Per core: deliveries over the "
            "processor seconds that the gateway's process took, the kernel's part of sending "
            "included; the clients need more than the gateway and have the other core. Per "
            "second: by the wall clock, clients included. The next push comes when all clients "
            "have checked the one before; clients connect 20 at a time per process.",
        ],
    )
    # Pushes that one turn publishes: the more, the less a client gets of each.
    plans = {
        "whole market, shared frames": (0, ctx.pick(full=3, quick=1, smoke=1), Aim(10e6)),
        "own 300 codes": (300, ctx.pick(full=10, quick=2, smoke=1), None),
        "own 50 codes": (50, ctx.pick(full=30, quick=4, smoke=1), Aim(0.2e6)),
    }
    step = 0
    with fed_gateway(ctx) as fed:
        fed.publish(source.entries(step))  # so that latest knows every code
        if ctx.size == "smoke":
            del plans["own 300 codes"]
        for _ in range(ctx.pick(full=2, quick=1, smoke=1)):
            for what, (watched, count, aim) in plans.items():
                ctx.say(f"deliveries: {what}")
                pushes = [source.entries(step + 1 + n) for n in range(count)]
                step += count
                got = deliver(ctx, fed, pushes, clients, watched)
                _add(section, what, got, aim)
    section.rows.sort(key=lambda row: row.what)
    return section


def _add(section: Section, what: str, got: Delivered, aim: Aim | None) -> None:
    cpu_s = max(got.gateway_cpu_s, _CLOCK_S)
    figures: dict[str, tuple[str, float, bool, tuple[Aim, ...]]] = {
        "per core": ("ticks/s", got.ticks / cpu_s, True, () if aim is None else (aim,)),
        "per second": ("ticks/s", got.ticks / got.seconds, True, ()),
        "ticks in a frame": ("ticks", got.ticks / max(got.frames, 1), True, ()),
        "clients with missing or wrong ticks": ("clients", got.wrong_clients, False, (Aim(0),)),
    }
    for side, (unit, value, more, aims) in figures.items():
        row = section.row(what, side)
        if row is None:
            section.rows.append(Row(what, side, unit, [value], more, aims))
        else:
            row.samples.append(value)


Facts = tuple[npt.NDArray[np.str_], npt.NDArray[np.int64]]
"""Codes of a push, and times, volumes and prices of its ticks, read by the msgpack package."""


def _facts(entries: list[Entry]) -> Facts:
    codes, values = [], []
    for code, _, t1 in entries:
        row = msgpack.unpackb(t1)
        price = row[1] if isinstance(row[1], int) else round(row[1] * 10_000)
        codes.append(code)
        values.append((row[0], row[7], price))
    return np.array(codes), np.array(values, np.int64).T


def _watchlists(codes: list[str], clients: int, watched: int) -> list[list[str]]:
    if not watched:
        return []
    choice = random.Random(clients * 1000 + watched)
    return [choice.sample(codes, min(watched, len(codes))) for _ in range(clients)]


def _settled(group: Group) -> int:
    """Wait until nothing more comes; return what had come."""
    seen, again = -1, group.received_ticks
    while seen != again:
        time.sleep(0.5)
        seen, again = again, group.received_ticks
    return again


def _wait(group: Group, expected: int) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while (received := group.received_ticks) < expected:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{expected} ticks should have come, {received} did")
        time.sleep(0.005)


def _wrong(
    frames: npt.NDArray[Any], facts: list[Facts], requested: list[list[str]], clients: int
) -> int:
    names = ("ticks", "times", "volumes", "prices")
    got = np.zeros((clients, 4), np.int64)
    for at, name in enumerate(names):
        np.add.at(got[:, at], frames["client"], frames[name])
    wrong = 0
    for client in range(clients):
        expected = np.zeros(4, np.int64)
        for codes, values in facts:
            own = np.isin(codes, requested[client]) if requested else np.ones(len(codes), bool)
            expected += (own.sum(), *values[:, own].sum(axis=1))
        wrong += not np.array_equal(got[client], expected)
    return wrong
