"""From callback entry to the client that has decoded the tick."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt
import redis
from websockets.exceptions import InvalidHandshake
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from qmt_protocol.live import MSGPACK_SUBPROTOCOL

from .measure import Aim, Context, Row, Section
from .processes import Meter
from .publish import KEYS
from .readers import Group, Kind, Task, readers
from .sample import MARKETS
from .stacks import Stack, Terminal, incumbent, ours, stamps_of, terminal

__all__ = ["has_v1", "run"]

_BURST: Final = "whole market in one push"
_SPREAD: Final = "spread pushes"
_BURST_MS: Final = 2500
_CALM_S: Final = 240.0
_CALM_PERCENT: Final = 12.0


_Stacks = Callable[[Path, Terminal], AbstractContextManager[Stack]]


@dataclass
class _Side:
    name: str
    stack: _Stacks
    kind: Kind
    clients: int
    spread: bool = False
    bursts: int = 3
    aims: tuple[Aim, ...] = ()

    @property
    def what(self) -> str:
        plural = "client" if self.clients == 1 else "clients"
        return f"{_SPREAD if self.spread else _BURST}, {self.clients} {plural}"


@dataclass
class _Found:
    """What one turn of one side gave, in ms; one number per burst, or per second of spread."""

    median: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    decoded: list[float] = field(default_factory=list)
    """ms spent in BSON decoding per burst, all decodes together."""
    stored: list[float] = field(default_factory=list)
    """When the median tick was in the market's feed, ours only."""
    ticks: int = 0
    wrong: int = 0
    """Bursts of which at least one client did not get exactly what the terminal's log says."""


def run(ctx: Context) -> Section:
    """Measure bursts and spread pushes, ours and the incumbent's, in turns."""
    section = Section(
        "latency",
        "How long after its callback entered has a tick been decoded by a client?",
        references=("incumbent",),
        facts={"markets": "SH, SZ, BJ"},
    )
    found: dict[tuple[str, str], _Found] = {}
    sides = _sides(ctx)
    rounds = ctx.pick(full=1, quick=1, smoke=1)
    with terminal(ctx.directory) as source:
        for turn in range(rounds):
            for stack, group in _by_stack(sides, turn):
                with stack(ctx.directory, source) as running:
                    for side in group:
                        _one(ctx, section, found, side, running, source)
    _rows(section, sides, found)
    section.notes += [
        "Each sample is one burst: the median (or the 99th percentile) over all its ticks and all "
        "clients, from the first entry of the push into the native callback to the moment when "
        "the client's decoder had returned. Of spread pushes a sample is one second. The next "
        "burst comes 3 s after the one before has been worked off by all. Clients share the "
        "machine: with many of them most of the time is their own decoding. In Redis: by the id "
        "of the feed's entry, which is the moment when the script began, so to the ms and without "
        "the script's own time.",
        "Clients decode: ours over v1 msgspec's msgpack into the protocol's messages, ticks as "
        "`t1` rows; JSON sides msgspec's JSON; over Redis the client library's `Tick`. Each "
        "decodes every tick, and what it got is compared with the terminal's own log (count, "
        "sums of times, volumes and prices).",
        "The incumbent subscribes anew for each client, so its process decodes each push once "
        "per client, here by pymongo's C decoder in place of the one that xtquant has on Windows; "
        "this time is part of its figures and given apart as well. Ours reads BSON by columns "
        "while it encodes; `codec` has that figure.",
    ]
    return section


def _sides(ctx: Context) -> list[_Side]:
    gateway = "gateway, v1"
    many = ctx.pick(full=(1, 20, 100), quick=(1, 20), smoke=(1,))
    aims = {1: (Aim(60),), 20: (Aim(90),), 100: (Aim(250),)}
    bursts = ctx.pick(full=8, quick=1, smoke=1)
    seconds = ctx.pick(full=15, quick=3, smoke=1)
    sides = [_Side(gateway, ours, "v1", n, bursts=bursts, aims=aims.get(n, ())) for n in many]
    sides.append(_Side(gateway, ours, "v1", 1, spread=True, bursts=seconds, aims=(Aim(10),)))
    if ctx.size != "smoke":
        sides.append(_Side("Redis, client library", ours, "redis", 1, bursts=bursts))
    if ctx.size == "full":
        sides.append(_Side("Redis, client library", ours, "redis", 1, spread=True, bursts=seconds))
    if ctx.incumbent:
        shared = [n for n in many if n <= 20]
        sides += [_Side("incumbent", incumbent, "whole_quote", n, bursts=bursts) for n in shared]
        sides.append(_Side("incumbent", incumbent, "whole_quote", 1, spread=True, bursts=seconds))
        if ctx.size == "full":  # it needs tens of seconds for each burst
            sides.append(_Side("incumbent", incumbent, "whole_quote", 100, bursts=2))
    return sides


def _by_stack(sides: list[_Side], turn: int) -> Iterator[tuple[_Stacks, list[_Side]]]:
    stacks = list(dict.fromkeys(side.stack for side in sides))
    for stack in stacks if turn % 2 == 0 else stacks[::-1]:
        yield stack, [side for side in sides if side.stack is stack]


def _one(
    ctx: Context,
    section: Section,
    found: dict[tuple[str, str], _Found],
    side: _Side,
    stack: Stack,
    source: Terminal,
) -> None:
    if side.kind == "v1" and not has_v1(stack.url):
        # An earlier gateway: its JSON socket, where everything has to be named.
        codes = sorted({str(code, "ascii") for code in source.pushed()["code"]})
        task = Task("realtime", stack.url, side.clients, [codes])
        side.name = "gateway, realtime"
    else:
        url = stack.streams if side.kind == "redis" else stack.url
        task = Task(side.kind, url, side.clients)
    task = replace(task, per_tick=side.spread)
    processes = min(2, side.clients)
    ctx.say(f"latency: {side.name}, {side.what}")
    source.control.set_fault("deaf")  # nothing is pushed while clients come
    with readers(ctx.directory, task, processes) as group:
        _calm(group, stack)
        measured = _spread if side.spread else _bursts
        one = measured(side, group, stack, source)
    so_far = found.setdefault((side.what, side.name), _Found())
    so_far.median += one.median
    so_far.p99 += one.p99
    so_far.decoded += one.decoded
    so_far.stored += one.stored
    so_far.wrong += one.wrong
    so_far.ticks = max(so_far.ticks, one.ticks)
    section.facts["ticks of a burst"] = max(
        section.facts.get("ticks of a burst", 0), 0 if side.spread else one.ticks
    )


def has_v1(url: str) -> bool:
    """Whether a gateway speaks protocol v1."""
    try:
        with connect(
            f"ws://{url}/ws/v1", subprotocols=[Subprotocol(MSGPACK_SUBPROTOCOL)], proxy=None
        ):
            return True
    except InvalidHandshake:
        return False


def _bursts(side: _Side, group: Group, stack: Stack, source: Terminal) -> _Found:
    offsets = []
    for _ in range(side.bursts + 1):
        source.control.clear_fault("deaf")
        offsets.append(source.control.burst())
        source.control.set_fault("deaf")
        _calm(group, stack)
    del offsets[0]  # the first warms up
    frames, _ = group.stop()
    pushed, stamps = source.pushed(), stamps_of(stack.stamps)
    found = _Found()
    for offset in offsets:
        log = pushed[offset["first_seq"] - 1 : offset["last_seq"]]
        if not len(log):  # the side's subscriptions are gone: it died of what came before
            found.wrong += 1
            continue
        # Several subscriptions get the same ticks; one of them tells what a client should have.
        log = log[log["subscription"] == log["subscription"][0]]
        first_ms, last_ms = log["time"].min(), log["time"].max()
        of_burst = frames[(frames["first_ms"] >= first_ms) & (frames["last_ms"] <= last_ms)]
        entered = stamps[(stamps[:, 0] == 0) & (stamps[:, 1] >= offset["wall_ms"] * 1_000_000)]
        entry_ns = int(entered[0, 1])
        late_ms = (of_burst["ns"] - entry_ns) / 1e6
        per_tick = np.repeat(late_ms, of_burst["ticks"])
        if len(per_tick):
            found.median.append(float(np.median(per_tick)))
            found.p99.append(float(np.quantile(per_tick, 0.99)))
        found.ticks = len(log)
        found.wrong += not _all_there(of_burst, log, side.clients)
        if stack.streams:
            found.stored.append(_stored_ms(stack.streams, entry_ns))
        decoded = _decoding_ms(stamps, entry_ns, offset["last_seq"] - offset["first_seq"] + 1)
        if decoded is not None:
            found.decoded.append(decoded)
    return found


def _calm(group: Group, stack: Stack) -> None:
    """Wait until servers and clients have worked off what they have."""
    deadline = time.monotonic() + _CALM_S
    busy = True
    while busy and time.monotonic() < deadline:
        meter = Meter(**stack.pids, **group.pids)
        time.sleep(0.4)
        busy = any(
            percent > _CALM_PERCENT
            for name, percent in meter.cpu_percent().items()
            if name != "terminal"
        )


def _all_there(frames: npt.NDArray[Any], log: npt.NDArray[Any], clients: int) -> bool:
    """Whether each client's ticks of a burst add up to what the terminal's log says."""
    prices = np.rint(log["lastPrice"] * 10_000).astype(np.int64).sum()
    expected = (len(log), log["time"].sum(), log["volume"].sum(), prices)
    for client in range(clients):
        own = frames[frames["client"] == client]
        got = tuple(own[name].sum() for name in ("ticks", "times", "volumes", "prices"))
        if got != expected:
            return False
    return True


def _stored_ms(streams: str, entry_ns: int) -> float:
    """Return when the median tick of a burst was in its market's feed."""
    entry_ms, stored = entry_ns / 1e6, []
    with redis.Redis.from_url(streams) as connection:
        for market in MARKETS:
            feed: Any = connection.xrange(KEYS.feed(market), min=int(entry_ms))
            for entry_id, fields in feed:
                at_ms = int(entry_id.partition(b"-")[0]) - entry_ms
                if at_ms < _BURST_MS:
                    stored += [at_ms] * len(msgpack.unpackb(fields[b"b1"]))
    return float(np.median(stored))


def _spread_stored_ms(
    streams: str, log: npt.NDArray[Any], entry_ns: npt.NDArray[np.int64]
) -> float:
    """Return how long after its push's entry the median tick was in its market's feed."""
    at_ms: dict[tuple[bytes, int], int] = {}
    with redis.Redis.from_url(streams) as connection:
        for market in MARKETS:
            feed: Any = connection.xrange(KEYS.feed(market), min=int(entry_ns[0] / 1e6))
            for entry_id, fields in feed:
                published_ms = int(entry_id.partition(b"-")[0])
                for code, _, row in msgpack.unpackb(fields[b"b1"]):
                    at_ms.setdefault((code.encode(), row[0]), published_ms)
    keys = zip(log["code"].tolist(), log["time"].tolist(), entry_ns.tolist(), strict=True)
    late = [at_ms[code, at] - ns / 1e6 for code, at, ns in keys if (code, at) in at_ms]
    return float(np.median(late))


def _decoding_ms(stamps: npt.NDArray[np.int64], entry_ns: int, ticks: int) -> float | None:
    """Return what decoding BSON took within a burst, where the side tells."""
    ends = np.flatnonzero((stamps[:, 0] == 1) & (stamps[:, 1] >= entry_ns))
    total_ns, seen = 0, 0
    for end in ends:
        if seen >= ticks:
            break
        before = stamps[:end]
        entered = before[before[:, 0] == 0]
        total_ns += int(stamps[end, 1] - entered[-1, 1])
        seen += int(stamps[end, 2])
    return total_ns / 1e6 if len(ends) else None


def _spread(side: _Side, group: Group, stack: Stack, source: Terminal) -> _Found:
    source.control.clear_fault("deaf")
    time.sleep(1.0)
    begin_ms = source.control.now()
    time.sleep(side.bursts)
    end_ms = source.control.now()
    source.control.set_fault("deaf")
    _calm(group, stack)
    _, ticks = group.stop()
    pushed, stamps = source.pushed(), stamps_of(stack.stamps)
    log = pushed[(pushed["wall_ms"] >= begin_ms) & (pushed["wall_ms"] < end_ms)]
    log = log[log["subscription"] == log["subscription"][-1]]
    entered = stamps[stamps[:, 0] == 0][:, 1]
    entry_ns = entered[np.searchsorted(entered, log["wall_ms"] * 1_000_000)]
    got = {(bytes(code), int(at)): int(ns) for code, at, ns in ticks.tolist()}
    late = [
        (got.get((bytes(code), at), 0) - ns) / 1e6
        for code, at, ns in zip(
            log["code"].tolist(), log["time"].tolist(), entry_ns.tolist(), strict=True
        )
    ]
    present = np.array([ms for ms in late if ms >= 0])
    seconds = ((log["wall_ms"] - begin_ms) // 1000)[np.array(late) >= 0]
    found = _Found(ticks=len(log), wrong=int(len(present) != len(log)))
    if stack.streams:
        found.stored.append(_spread_stored_ms(stack.streams, log, entry_ns))
    for second in np.unique(seconds):
        found.median.append(float(np.median(present[seconds == second])))
        found.p99.append(float(np.quantile(present[seconds == second], 0.99)))
    return found


def _rows(section: Section, sides: list[_Side], found: dict[tuple[str, str], _Found]) -> None:
    for side in sides:
        what = side.what
        one = found.get((what, side.name))
        if one is None or section.row(f"median tick, {what}", side.name):
            continue
        note = f"{one.wrong} with missing or wrong ticks" if one.wrong else "every tick right"
        if not one.median:
            section.notes.append(f"{side.name}, {what}: nothing was pushed to it any more.")
        for label, samples, aims in (
            ("median tick", one.median, side.aims),
            ("99 % of ticks", one.p99, ()),
            ("median tick in Redis", one.stored, ()),
            ("BSON decoding in it", one.decoded, ()),
        ):
            if samples:
                section.rows.append(
                    Row(
                        f"{label}, {what}",
                        side.name,
                        "ms",
                        samples,
                        more_is_better=False,
                        aims=aims,
                        note=note if label == "median tick" else "",
                    )
                )
    section.rows.sort(key=lambda row: row.what.partition(", ")[2])
