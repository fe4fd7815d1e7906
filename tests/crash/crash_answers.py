"""Scenarios: Redis did what it was told, and who told it does not learn of it, or is gone."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from crash_breaks import no_gaps
from crash_calls import CallProxy
from crash_kills import finish
from crash_rig import Result, Rig
from crash_scale import Scale
from crash_unfiled import (
    LEASE_S,
    NAMES,
    Relays,
    relays_of,
    start_behind,
    start_both,
    too_late,
    wait_holder,
)
from waiting import wait_for

__all__ = ["late_calls", "lost_answers"]

CALLS = ("append", "complete", "file", "lease", "hgetall")
"""Each kind of call that the publisher makes; it reads `latest` by the last one."""
IDLE = "ZZ"
"""A market that never ticks: its lease is renewed by nothing but calls of its own."""


def lost_answers(directory: Path, seed: int, scale: Scale) -> Result:
    """The connection breaks behind a call and before its answer, or within the call."""
    result = Result("lost_answers")
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(directory, seed, lease_s=LEASE_S))
        relay = relays_of(rig, stack, "producer1")["producer1"]
        rig.start_producer("producer1", port=relay.port, QMT_MARKETS=f"SH,SZ,BJ,{IDLE}")
        rig.wait_flowing()
        rig.start_reader("reader", rig.server.url, "--stored")
        wanted: Counter[str] = Counter()
        for _ in range(scale.rounds):
            for call in rig.random.sample(CALLS, len(CALLS)):
                time.sleep(rig.random.uniform(0, scale.pause_s / 2))
                times = rig.random.choice((1, 1, 2, 3))  # the second hits what mends the first
                lose(relay, call, times)
                wanted[call] += times
                rig.wait_flowing()
                relay.cut_within(call)
                if call == "hgetall":
                    relay.cut_within("append")
                wait_for(lambda call=call: not relay.wanted(call), f"{call} is cut")  # type: ignore[misc]
                rig.wait_flowing()
        finish(rig, result, ["reader"])
        no_gaps(rig, result)
        result.add("feed", rig.account_feed())
        result.figures["answers_lost"] = dict(relay.lost)
        result.figures["calls_cut"] = dict(relay.cut)
        for call in CALLS:
            result.check(relay.lost[call] >= wanted[call] > 0, f"{call}: {relay.lost[call]} lost")
            result.check(relay.cut[call] >= scale.rounds, f"{call}: {relay.cut[call]} cut")
    return result


def lose(relay: CallProxy, call: str, times: int) -> None:
    """Lose the answers to the next calls of a kind; what is read comes behind a break only."""
    for _ in range(times):
        relay.lose(call)
        if call == "hgetall":
            relay.lose("append")
    wait_for(lambda: not relay.wanted(call), f"answers to {call} are lost")


def late_calls(directory: Path, seed: int, scale: Scale) -> Result:
    """Answers lie unread in the holder's socket, its calls arrive when another one holds."""
    result = Result("late_calls")
    done: Counter[str] = Counter()
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(directory, seed, lease_s=LEASE_S))
        relays = relays_of(rig, stack, *NAMES)
        start_both(rig, relays)
        rig.start_reader("reader", rig.server.url, "--stored")
        for number in range(max(scale.rounds, len(WAYS))):
            way = WAYS[number % len(WAYS)]
            rig.in_flight()
            name = wait_holder(relays)
            way(rig, relays, name)
            done[f"{way.func.__name__} {way.keywords['call']}"] += 1
            rig.wait_complete()
        finish(rig, result, ["reader"], late_allowed=True)
        result.add("feed", rig.account_feed())
        late = too_late(relays)
        result.figures["rounds"] = dict(done)
        result.figures["too_late"] = late
        result.check(not result.figures["streams"]["named_by_window"], "ticks are missing")
        result.check(late.get("append fenced", 0) > 0, "no call that appends came too late")
        result.check(late.get("file other", 0) > 0, "no call that files came too late")
    return result


def unread_answer(rig: Rig, relays: Relays, name: str, *, call: str) -> None:
    """The holder stops when Redis has done its call; the answer lies in its socket meanwhile."""
    relay = relays[name]
    relay.hold_answers(call)
    wait_for(lambda: relay.waiting(call), f"Redis has answered {call}")
    rig.pause(name)
    relay.let_go()
    wait_for(lambda: not relay.waiting(call), "the answer is given")
    wait_holder(relays, but=name)
    rig.wait_flowing()
    time.sleep(rig.random.uniform(0, 1))
    rig.resume(name)


def late_of_the_dead(rig: Rig, relays: Relays, name: str, *, call: str) -> None:
    """The holder is killed with a call under way, which arrives when another one holds."""
    relay = relays[name]
    relay.hold(call)
    wait_for(lambda: relay.waiting(call), f"{call} is under way")
    rig.kill(name)
    wait_holder(relays, but=name)
    rig.wait_flowing()
    relay.let_go()
    start_behind(rig, relays, name)
    rig.wait_subscribed(2)


def late_of_the_living(rig: Rig, relays: Relays, name: str, *, call: str) -> None:
    """The holder waits for a call no longer and makes it anew; then the first one arrives."""
    relay = relays[name]
    relay.catch(call)
    wait_for(lambda: relay.waiting(call), f"{call} is under way")
    rig.wait_flowing()
    relay.let_go()


WAYS: tuple[partial[None], ...] = tuple(
    partial(way, call=call)
    for call in ("append", "file")
    for way in (unread_answer, late_of_the_dead, late_of_the_living)
)
