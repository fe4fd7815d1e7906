"""Scenario: somebody else writes into the feed and to the keys of filing, in the midst of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from crash_calls import CallProxy
from crash_kills import wait_grows
from crash_rig import MARKETS, Result, Rig
from crash_scale import Scale
from crash_unfiled import LEASE_S, relays_of, wait_for_unfiled
from waiting import wait_for

__all__ = ["bad_entries"]

Harm = Callable[[Rig, str], Callable[[], Any] | None]


def bad_entries(directory: Path, seed: int, scale: Scale) -> Result:
    """What no producer writes stands in the feed, in `filed`, in place of a stream."""
    result = Result("bad_entries")
    done: Counter[str] = Counter()
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(directory, seed, lease_s=LEASE_S))
        relay = relays_of(rig, stack, "producer1")["producer1"]
        # Where `filed` says nothing all that the feed holds is filed again before anything new.
        rig.start_producer("producer1", port=relay.port, QMT_FEED_KEEP_S="20")
        rig.wait_flowing()
        rig.start_reader("reader", rig.server.url, "--stored", "--full")
        wait_grows(rig, "reader")
        count = max(scale.rounds, len(HARMS))
        rounds = [HARMS[number % len(HARMS)] for number in range(count)]
        # At last: what was refused comes again with another epoch, and is named already.
        rounds += [stream_of_another_type] * (1 + count // len(HARMS))
        for harm in rounds:
            do_harm(rig, relay, harm, rig.random.choice(MARKETS))
            done[harm.__name__] += 1
        rig.quiet()
        result.add("streams", rig.account())
        rig.wait_read("reader")
        result.add("reader", rig.account_reader("reader", against_log=True))
        result.figures["reader"]["gaps_told"] = len(rig.gaps_told("reader"))
        kinds = [event["kind"] for event in rig.events]
        result.figures["events"] = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        result.figures["done"] = dict(done)
        check(rig, result, done)
    return result


def check(rig: Rig, result: Result, done: Counter[str]) -> None:
    """Each harm was seen for what it is, and cost no tick that is not named by its code."""
    told = [event for event in rig.events if event["kind"] == "gap"]
    # One that is filed again is named again.
    damaged = len({event["reason"] for event in told if " is damaged" in event["reason"]})
    wanted = sum(done[harm.__name__] for harm in HARMS if harm in DAMAGED)
    result.figures["damaged"] = damaged
    result.check(damaged == wanted, f"{damaged} of {wanted} damaged entries were named")
    streams = result.figures["streams"]
    result.check(streams["named_by_count"] > 0, "no tick was refused")
    result.check(not streams["named_by_window"], "ticks are missing")
    again = done["filed_ahead"] + done["unfiled_is_trimmed"]
    epochs = result.figures["events"].get("epoch", 0)
    result.figures["epochs"] = epochs
    result.check(epochs >= again, f"{epochs} epochs of {again}")


def do_harm(rig: Rig, relay: CallProxy, harm: Harm, market: str) -> None:
    """Do it while something is unfiled, mend what does not mend itself, and see it flow."""
    time.sleep(rig.random.uniform(0, 0.5))
    rig.in_flight()
    relay.hold("file")
    wait_for(lambda: relay.waiting("file"), "a call that files is under way")
    wait_for_unfiled(rig)
    mend = harm(rig, market)
    relay.let_go()
    if mend is not None:
        time.sleep(rig.random.uniform(0.5, 1.5))
        mend()
    rig.wait_flowing()
    rig.wait_complete()


def last_entry(rig: Rig, market: str) -> dict[bytes, bytes]:
    """Return a copy of the newest batch: readers know its ticks by their ids."""
    _, fields = rig.streams.xrevrange(f"{{qmt:{market}}}:feed", count=1)[0]
    return dict(fields)


def add(rig: Rig, market: str, fields: dict[Any, Any]) -> None:
    """Append to a feed as nobody should."""
    rig.streams.xadd(f"{{qmt:{market}}}:feed", fields)


def sizes_cut(rig: Rig, market: str) -> None:
    """There are fewer sizes than ticks."""
    one = last_entry(rig, market)
    add(rig, market, {**one, b"sizes": one[b"sizes"][:-2]})


def sizes_wrong(rig: Rig, market: str) -> None:
    """The sizes lead beyond the body."""
    one = last_entry(rig, market)
    add(rig, market, {**one, b"sizes": b"\x00\x01\x00\x00" + one[b"sizes"][4:]})


def sizes_missing(rig: Rig, market: str) -> None:
    """There are none."""
    add(rig, market, {b"b1": last_entry(rig, market)[b"b1"]})


def body_missing(rig: Rig, market: str) -> None:
    """There is neither a tick nor a bar."""
    add(rig, market, {b"x": b"y"})


def body_cut(rig: Rig, market: str) -> None:
    """The batch breaks off."""
    one = last_entry(rig, market)
    add(rig, market, {**one, b"b1": one[b"b1"][:-9]})


def stream_of_another_type(rig: Rig, market: str) -> Callable[[], Any]:
    """A code's stream is a string for a while; its own is kept aside."""
    keys = sorted(rig.streams.scan_iter(match=f"{{qmt:{market}}}:tick:*", count=5000))
    lengths = {key: rig.streams.xlen(key) for key in keys[:200]}
    key = max(lengths, key=lengths.__getitem__)  # one that is pushed often
    refused = len(rejected(rig))

    def mend() -> None:
        wait_for(lambda: len(rejected(rig)) > refused, "a tick is refused, and named")
        with rig.streams.pipeline() as pipe:
            pipe.delete(key)
            pipe.rename(key + b":aside", key)
            pipe.execute()

    with rig.streams.pipeline() as pipe:
        pipe.rename(key, key + b":aside")
        pipe.set(key, "no stream")
        pipe.execute()
    return mend


def rejected(rig: Rig) -> list[dict[str, Any]]:
    """Return the events that name ticks that Redis refused."""
    return [one for one in rig.events if one["kind"] == "gap" and "ticks" in one]


def latest_of_another_type(rig: Rig, market: str) -> Callable[[], Any]:
    """`latest` is a string for a while."""
    return aside(rig, f"{{qmt:{market}}}:latest", "no hash")


def filed_of_another_type(rig: Rig, market: str) -> Callable[[], Any]:
    """`filed` is a hash for a while."""
    key = f"{{qmt:{market}}}:filed"
    mend = aside(rig, key, "")
    rig.streams.hset(key, "no", "string")
    return mend


def aside(rig: Rig, key: str, instead: str) -> Callable[[], Any]:
    """Put a string in the place of a key; what is returned puts the key back."""
    rig.streams.rename(key, f"{key}:aside")
    if instead:
        rig.streams.set(key, instead)
    return lambda: rig.streams.rename(f"{key}:aside", key)


def filed_ahead(rig: Rig, market: str) -> None:
    """It claims that more is filed than was ever published."""
    ahead_ms = rig.streams.time()[0] * 1000 + rig.random.randint(10_000, 10**9)
    rig.streams.set(f"{{qmt:{market}}}:filed", f"{ahead_ms}-0")


def filed_back(rig: Rig, market: str) -> None:
    """It says that nothing is filed."""
    rig.streams.set(f"{{qmt:{market}}}:filed", "0-0")


def filed_gone(rig: Rig, market: str) -> None:
    """It says nothing."""
    rig.streams.delete(f"{{qmt:{market}}}:filed")


def filed_garbage(rig: Rig, market: str) -> None:
    """It is no id."""
    rig.streams.set(f"{{qmt:{market}}}:filed", b"\xff no id")


def unfiled_is_trimmed(rig: Rig, market: str) -> None:
    """The feed loses what is not filed."""
    rig.streams.xtrim(f"{{qmt:{market}}}:feed", maxlen=0, approximate=False)


DAMAGED: tuple[Harm, ...] = (sizes_cut, sizes_wrong, sizes_missing, body_missing, body_cut)
HARMS: tuple[Harm, ...] = (
    *DAMAGED,
    *(latest_of_another_type, filed_of_another_type),
    *(filed_ahead, filed_back, filed_gone, filed_garbage, unfiled_is_trimmed),
)
