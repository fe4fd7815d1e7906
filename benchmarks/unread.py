"""What a gateway holds for callers who never read: whole markets, and all that is stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from qmt_standalone.redis_server import RedisServer

from .measure import Context, Row, Section
from .processes import Child, Meter, child, wait_until
from .publish import Line
from .readers import Group, Task, readers
from .sample import INTERVAL_MS, Pushes
from .stacks import gateway

__all__ = ["run"]

_MB: Final = 1e6
_STALL_S: Final = "3600"
"""Nobody is sent away for reading nothing: the bound alone is measured."""
_READY_WITHIN_S: Final = 30.0


def run(ctx: Context) -> Section:
    """Measure the gateway's memory with each kind of caller, and after they have gone."""
    section = Section(
        "unread",
        "What does a gateway hold for callers who never read?",
        notes=[
            "The whole market is published at one push in three seconds. The callers have small "
            "receive buffers and read nothing; that who takes nothing is sent away is turned off, "
            "so that they stay as long as the gateway lets them. Memory is the process' resident "
            "memory above what it was before they came, at its peak and after they went.",
        ],
    )
    sockets = ctx.pick(full=300, quick=60, smoke=2)
    answers = ctx.pick(full=8, quick=8, smoke=1)
    seconds = ctx.pick(full=60.0, quick=30.0, smoke=1.0)
    stored = ctx.pick(full=120, quick=40, smoke=3)
    server = RedisServer(ctx.directory / "redis-unread", password="")
    server.start()
    try:
        line = Line(ctx.directory, server.url)
        line.start()
        try:
            with _Publishing(line, Pushes(ctx.pick(full=0, quick=0, smoke=60)), stored) as market:
                section.facts["codes"] = market.codes
                section.facts["stored ticks"] = market.published
                for what, kind, count in (
                    (f"{sockets} sockets, msgpack", "sockets", sockets),
                    (f"{sockets} sockets, JSON", "json_sockets", sockets),
                    (f"{answers} answers of all stored ticks, JSON", "answers", answers),
                    (f"{answers} answers of all stored ticks, Arrow", "arrow_answers", answers),
                ):
                    ctx.say(f"unread: {what}")
                    _one(ctx, section, server.url, what, kind, count, seconds)
        finally:
            line.close()
    finally:
        server.stop()
    return section


class _Publishing:
    """Publishes a market: some of it at once, then a push in three seconds."""

    def __init__(self, line: Line, source: Pushes, steps: int) -> None:
        self._line = line
        self._source = source
        self._steps = steps
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.published = 0
        self.codes = 0

    def __enter__(self) -> _Publishing:
        for step in range(self._steps):
            self._publish(step)
            if step % 20 == 19:
                self._line.wait(self.published)
        self._line.wait(self.published)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _publish(self, step: int) -> None:
        entries = self._source.entries(step)
        self.codes = max(self.codes, len({code for code, _, _ in entries}))
        self._line.publish(entries)
        self.published += len(entries)

    def _run(self) -> None:
        step = self._steps
        while not self._end.wait(INTERVAL_MS / 1000):
            self._publish(step)
            step += 1


@contextmanager
def _callers(ctx: Context, url: str, kind: str, count: int) -> Iterator[Child]:
    command = ["benchmarks.attackers", kind, url, str(count)]
    with child(command, log=ctx.directory / "attackers.log") as one:
        yield one


def _one(
    ctx: Context, section: Section, redis_url: str, what: str, kind: str, count: int, seconds: float
) -> None:
    with gateway(ctx.directory, redis_url, ws_stall_s=_STALL_S) as (url, pid):
        meter = Meter(gateway=pid)
        task = Task("v1", url, 1, at_once=True)
        with readers(ctx.directory, task) as group:  # one who reads: everything is warm
            _wait_for_some(group)
        before = meter.rss_bytes("gateway")
        peak = before
        with _callers(ctx, url, kind, count) as callers:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                peak = max(peak, meter.rss_bytes("gateway"))
                time.sleep(0.1)
            callers.tell("enough")
            section.facts[what] = str(callers.line())
        time.sleep(ctx.pick(full=20.0, quick=25.0, smoke=0.5))
        after = meter.rss_bytes("gateway")
    section.rows += [
        Row(what, "before they come", "MB", [before / _MB], False),
        Row(what, "peak above that", "MB", [(peak - before) / _MB], False),
        Row(what, "above that after they went", "MB", [(after - before) / _MB], False),
    ]


def _wait_for_some(group: Group) -> None:
    wait_until(lambda: group.received_ticks > 0, "ticks come", _READY_WITHIN_S)
