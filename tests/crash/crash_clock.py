"""Scenario: the clocks of producers' machines step against Redis' and the exchange's."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

from crash_evidence import stored_by_code
from crash_kills import finish
from crash_rig import Result, Rig
from crash_scale import Scale
from crash_unfiled import LEASE_S, NAMES, backlog, relays_of, start_behind, wait_holder
from shifted_clock import SteppedClock

__all__ = ["clock_steps"]

STEP_S = 15
CLAMPED = 2


def clock_steps(directory: Path, seed: int, scale: Scale) -> Result:
    """A clock steps by 15 s, forward or back: of the holder, the standby, one that is down."""
    result = Result("clock_steps")
    steps: Counter[str] = Counter()
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(directory, seed, lease_s=LEASE_S))
        relays = relays_of(rig, stack, *NAMES)
        clocks = {
            name: stack.enter_context(closing(SteppedClock(directory / f"clock-{name}")))
            for name in NAMES
        }
        ahead_s = dict.fromkeys(NAMES, 0)

        def step(name: str, what: str) -> None:
            by_s = -ahead_s[name] or rig.random.choice((STEP_S, -STEP_S))
            ahead_s[name] += by_s
            clocks[name].set_ahead(ahead_s[name])
            steps[f"{what} {'forward' if by_s > 0 else 'back'}"] += 1

        for count, name in enumerate(NAMES, 1):
            start_behind(rig, relays, name, **clocks[name].env)
            rig.wait_subscribed(count)
            rig.wait_flowing()
        rig.start_reader("reader", rig.server.url, "--stored")
        for number in range(max(scale.rounds, 4)):
            rig.in_flight()
            holder = wait_holder(relays)
            standby = next(name for name in NAMES if name != holder)
            if number % 4 == 1:
                step(standby, "standby")
            elif number % 4 == 2:
                step(holder, "holder")
            elif number % 4 == 3:  # what waits was received by the other clock
                backlog(rig, relays[holder])
                step(holder, "holder with a backlog")
                relays[holder].let_go()
            time.sleep(rig.random.uniform(0, 1))
            rig.kill(holder)
            relays[holder].let_go()
            if number % 4 == 0:
                step(holder, "down")
            wait_holder(relays, but=holder)
            rig.wait_flowing()
            start_behind(rig, relays, holder, **clocks[holder].env)
            rig.wait_subscribed(2)
            rig.wait_complete()
        finish(rig, result, ["reader"], late_allowed=True)
        result.add("feed", rig.account_feed())
        result.figures["steps"] = dict(steps)
        stored = stored_by_code(rig.streams)
        clamped = sum(one.flags & CLAMPED > 0 for some in stored.values() for one in some)
        result.check(not clamped, f"{clamped} ticks were taken for ones from the future")
        result.check(not result.figures["streams"]["named_by_window"], "ticks are missing")
        told = [one for one in rig.events if one["kind"] == "clock" and one["which"] == "redis"]
        result.check(bool(told), "no step was told")
        back = [one for one in rig.events if one.get("from_ms", 0) > one.get("to_ms", 0)]
        result.check(not back, f"gaps that end before they begin: {back[:1]}")
    return result
