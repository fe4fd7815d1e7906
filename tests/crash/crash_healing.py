"""Scenario: readers come back beyond the feed while what it has is not filed yet."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import msgpack
from crash_evidence import read_notes
from crash_kills import finish, wait_grows
from crash_rig import MARKETS, Result, Rig
from crash_scale import Scale
from crash_unfiled import backlog, relays_of
from waiting import wait_for

__all__ = ["healing_unfiled"]

READERS = ("reader-redis", "reader-gateway")
WAYS = (
    (READERS, True),
    (READERS, False),
    (("reader-redis", "gateway"), True),
    (("reader-redis", "gateway"), False),
)
"""Who is away, and whether killed or stopped."""


def healing_unfiled(directory: Path, seed: int, scale: Scale) -> Result:
    """Readers are away; the feed keeps only what is unfiled; they read the rest in streams."""
    result = Result("healing_unfiled")
    done: Counter[str] = Counter()
    unfiled: list[int] = []
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(directory, seed))
        relay = relays_of(rig, stack, "producer1")["producer1"]
        rig.start_producer("producer1", port=relay.port)
        rig.wait_flowing()
        start(rig, "gateway")
        rig.wait_gateway()
        for name in READERS:
            start(rig, name)
            wait_grows(rig, name)
        for number in range(max(scale.rounds, len(WAYS))):
            names, is_killed = WAYS[number % len(WAYS)]
            for name in names:
                if is_killed:
                    rig.kill(name)
                else:
                    rig.pause(name)
            time.sleep(rig.random.uniform(2, 3))
            backlog(rig, relay)
            trim_filed(rig)
            for name in names:
                if is_killed:
                    start(rig, name)
                else:
                    rig.resume(name)
            newest = newest_fed(rig)
            for name in READERS:
                wait_for(lambda name=name: has(rig, name, newest), f"{name} reads")  # type: ignore[misc]  # noqa: B023
            unfiled.append(rig.unfiled())
            done[f"{'killed' if is_killed else 'stopped'} {', '.join(names)}"] += 1
            relay.let_go()
            rig.wait_flowing()
        finish(rig, result, list(READERS))
        result.figures["rounds"] = dict(done)
        result.figures["unfiled_when_read"] = unfiled
        result.check(all(unfiled), "all was filed before readers had read")
        for name in READERS:
            result.check(not rig.gaps_told(name), f"{name}: {rig.gaps_told(name)[:2]}")
    return result


def start(rig: Rig, name: str) -> None:
    """Start a reader, or the gateway."""
    if name == "gateway":
        rig.start_gateway()
    else:
        url = rig.gateway_url if name == "reader-gateway" else rig.server.url
        rig.start_reader(name, url, "--stored", "--full")


def trim_filed(rig: Rig) -> None:
    """Trim from the feeds all that is filed."""
    for market in MARKETS:
        feed = f"{{qmt:{market}}}:feed"
        filed = rig.streams.get(f"{{qmt:{market}}}:filed") or b"0-0"
        first = rig.streams.xrange(feed, b"(" + filed, count=1)
        if first:
            rig.streams.xtrim(feed, minid=first[0][0], approximate=False)


def newest_fed(rig: Rig) -> dict[str, int]:
    """Return the newest exchange time (ms) in each market's feed."""
    found = {}
    for market in MARKETS:
        _, fields = rig.streams.xrevrange(f"{{qmt:{market}}}:feed", count=1)[0]
        found[market] = max(tick[2][0] for tick in msgpack.unpackb(fields[b"b1"]))
    return found


def has(rig: Rig, name: str, newest: dict[str, int]) -> bool:
    """Whether a reader has written what is newest in each market."""
    reached = dict.fromkeys(newest, 0)
    for code, seen in read_notes(rig.file_of(name))[0].items():
        market = code.rpartition(".")[2]
        reached[market] = max(reached[market], int(seen[-1].split(" ", 1)[0]))
    return all(reached[market] >= at_ms for market, at_ms in newest.items())
