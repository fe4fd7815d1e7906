"""A long run at 20,000 ticks a second through xtdata: is all there, and who works how much?"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import redis

from qmt_protocol.keys import Keys

from .measure import Aim, Context, Row, Section
from .processes import Meter
from .readers import Task, readers
from .stacks import ours, terminal

__all__ = ["run"]

KEYS: Final = Keys()
_DRAIN_S: Final = 60.0
_LOOK_S: Final = 1.0


def run(ctx: Context) -> Section:
    """Push, watch the backlog and the processor time, then compare Redis with the log."""
    seconds = ctx.pick(full=300, quick=8, smoke=1)
    interval_ms = ctx.pick(full=300, quick=300, smoke=3000)
    section = Section(
        "throughput",
        "Does the whole way carry 20,000 ticks a second, and with how much of the machine?",
        facts={
            "seconds": seconds,
            "market": f"SH, SZ and BJ, each code once in {interval_ms} ms, pushes every 250 ms",
        },
    )
    with (
        ExitStack() as opened,
        terminal(ctx.directory, "--interval-ms", str(interval_ms)) as source,
        ours(ctx.directory, source) as stack,
        redis.Redis.from_url(stack.streams) as streams,
    ):
        source.control.set_fault("deaf")  # the reader begins where all that was pushed is stored
        _drain(streams, len(source.pushed()))
        before = len(source.pushed())
        group = opened.enter_context(
            readers(ctx.directory, Task("redis", stack.streams, 1, at_once=True))
        )
        source.control.clear_fault("deaf")
        time.sleep(1.0)
        meter = Meter(**stack.pids, **group.pids)
        began_ms = source.control.now()
        behind: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(_LOOK_S)
            behind.append(float(_figures(streams).get("waiting_batches", 0)))
        cpu = meter.cpu_percent()
        rss = {name: meter.rss_bytes(name) / 1e6 for name in (*stack.pids, *group.pids)}
        end_ms = source.control.now()
        source.control.set_fault("deaf")
        pushed = source.pushed()
        drained_s = _drain(streams, len(pushed))
        time.sleep(1.0)
        frames, _ = group.stop()
        unread = _unread(frames, pushed[before:])
        stored, wrong = _compare(streams, pushed)
        events: Any = streams.xrange(KEYS.events)
        told = [json.loads(fields[b"e"]) for _, fields in events]
    gaps = [event for event in told if event["kind"] == "gap"]
    window = (pushed["wall_ms"] >= began_ms) & (pushed["wall_ms"] < end_ms)
    rate = 1000 * int(window.sum()) / (end_ms - began_ms)
    section.rows = [
        Row("rate through xtdata", "ours", "ticks/s", [rate], aims=(Aim(20_000),)),
        Row("ticks that differ from the log", "ours", "ticks", [wrong], False, (Aim(0),)),
        Row("ticks that the client did not read", "ours", "ticks", [unread], False, (Aim(0),)),
        Row("gap events", "ours", "events", [len(gaps)], more_is_better=False),
        Row("batches waiting", "ours", "batches", behind, more_is_better=False),
        Row("time to drain at the end", "ours", "s", [drained_s], more_is_better=False),
        *(
            Row("processor time", name, "% of a core", [percent], more_is_better=False)
            for name, percent in cpu.items()
        ),
        *(
            Row("resident memory at the end", name, "MB", [mb], more_is_better=False)
            for name, mb in rss.items()
        ),
    ]
    section.facts |= {
        "ticks pushed": len(pushed),
        "ticks stored": stored,
        "ticks read by the client": int(frames["ticks"].sum()),
    }
    section.notes.append(
        "Each code's stream is compared with the terminal's log by number of ticks and sum of "
        "their times, once the producer has drained; tests/live compares every field. One client "
        "of the library reads everything over Redis meanwhile, by number and sums; the gateway "
        "has no clients."
    )
    return section


def _unread(frames: npt.NDArray[Any], pushed: npt.NDArray[Any]) -> int:
    """Return by how many ticks a client's differ from the log, at least 1 when a sum does."""
    missing = abs(len(pushed) - int(frames["ticks"].sum()))
    prices = np.rint(pushed["lastPrice"] * 10_000).astype(np.int64).sum()
    expected = (pushed["time"].sum(), pushed["volume"].sum(), prices)
    got = tuple(frames[name].sum() for name in ("times", "volumes", "prices"))
    return missing or int(got != expected)


def _figures(streams: redis.Redis) -> dict[str, Any]:
    for beat in streams.hgetall(KEYS.status).values():
        status = json.loads(beat)
        if status["role"] == "producer":
            return dict(status["figures"])
    return {}


def _drain(streams: redis.Redis, pushed: int) -> float:
    """Wait until the producer has published what was pushed; return how long that took."""
    began = time.monotonic()
    while time.monotonic() - began < _DRAIN_S:
        figures = _figures(streams)
        if figures.get("published", 0) + figures.get("repeated", 0) >= pushed:
            break
        time.sleep(0.05)
    return time.monotonic() - began


def _compare(streams: redis.Redis, pushed: npt.NDArray[Any]) -> tuple[int, int]:
    """Return how many ticks are stored, and by how many the codes' streams differ from the log."""
    order = np.argsort(pushed["code"], kind="stable")
    codes, starts = np.unique(pushed["code"][order], return_index=True)
    stored, wrong = 0, 0
    for code, times in zip(codes, np.split(pushed["time"][order], starts[1:]), strict=True):
        entries: Any = streams.xrange(KEYS.tick(code.decode()))
        ids = [entry_id for entry_id, _ in entries]
        found = np.array([int(entry_id.partition(b"-")[0]) for entry_id in ids], np.int64)
        stored += len(found)
        missing = abs(len(found) - len(times))
        wrong += missing or int((np.sort(found) != np.sort(times)).sum())
    return stored, wrong
