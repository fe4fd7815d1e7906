"""Scenarios: something happens while batches stand in the feed and are not filed yet.

That takes some 10 to 40 ms. A relay before Redis makes it as long as it is wanted: it keeps the
holder's calls that file, as a slow network would.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from crash_calls import CallProxy
from crash_kills import finish
from crash_rig import Result, Rig
from crash_scale import Scale
from waiting import wait_for

__all__ = ["kill_unfiled", "kill_unfiled_alone", "out_of_memory", "repeat_takeover"]

LEASE_S = 4.0
NAMES = ("producer1", "producer2")
Relays = dict[str, CallProxy]


def relays_of(rig: Rig, stack: ExitStack, *names: str) -> Relays:
    """Return a relay before Redis for each producer."""
    return {name: stack.enter_context(CallProxy(rig.server.port)) for name in names}


def start_behind(rig: Rig, relays: Relays, name: str, **env: str) -> None:
    """Start a producer that reaches Redis through its relay."""
    rig.start_producer(name, port=relays[name].port, **env)


def start_both(rig: Rig, relays: Relays) -> None:
    """Start two producers behind their relays."""
    for count, name in enumerate(relays, 1):
        start_behind(rig, relays, name)
        rig.wait_subscribed(count)
        rig.wait_flowing()


def wait_holder(relays: Relays, *, but: str = "") -> str:
    """Return who holds leases: whose next batch Redis takes. What heartbeats say may be old."""

    def applied() -> dict[str, int]:
        return {name: one.answered["append", "applied"] for name, one in relays.items()}

    before = applied()

    def found() -> str:
        grown = {name: count - before[name] for name, count in applied().items() if name != but}
        most = max(grown, key=grown.__getitem__)
        return most if grown[most] else ""

    return wait_for(found, "a producer publishes")


def kill_unfiled(directory: Path, seed: int, scale: Scale) -> Result:
    """The holder is killed between append and filing; the standby takes over."""
    return _kill(Result("kill_unfiled"), directory, seed, scale, NAMES)


def kill_unfiled_alone(directory: Path, seed: int, scale: Scale) -> Result:
    """The same without a standby: it comes back itself."""
    return _kill(Result("kill_unfiled_alone"), directory, seed, scale, NAMES[:1])


def _kill(
    result: Result, directory: Path, seed: int, scale: Scale, names: tuple[str, ...]
) -> Result:
    unfiled: dict[str, list[int]] = {way.__name__: [] for way in WAYS}
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(directory, seed, lease_s=LEASE_S))
        relays = relays_of(rig, stack, *names)
        start_both(rig, relays)
        rig.start_reader("reader", rig.server.url, "--stored")
        kills = scale.rounds if len(names) > 1 else scale.kills  # a lease has to run out
        for number in range(max(kills, len(WAYS))):
            way = WAYS[number % len(WAYS)]
            time.sleep(rig.random.uniform(0, scale.pause_s))
            rig.in_flight()
            name = wait_holder(relays)
            while not way(rig, relays[name]):
                relays[name].let_go()
                name = wait_holder(relays)
            rig.kill(name)
            unfiled[way.__name__].append(rig.unfiled())
            at_once = rig.random.random() < 0.5
            if at_once:
                relays[name].let_go()  # what was under way arrives before anybody takes over
            if len(names) > 1:
                rig.wait_flowing()
            relays[name].let_go()
            start_behind(rig, relays, name)
            rig.wait_subscribed(len(names))
            rig.wait_complete()  # so what the one did not hear the other one has published
        finish(rig, result, ["reader"], late_allowed=len(names) > 1)
        result.add("feed", rig.account_feed())
        result.figures["unfiled_at_kill"] = unfiled
        result.figures["too_late"] = too_late(relays)
    for way_name, counts in unfiled.items():
        result.check(any(counts), f"{way_name}: nothing was unfiled at a kill")
    for way in (slow_filing, backlog):
        result.check(all(unfiled[way.__name__]), f"{way.__name__}: nothing was unfiled")
    most = max(unfiled["backlog"])
    result.check(most > len(names), f"never more than {most} entries were unfiled")
    if len(names) > 1:
        result.check(not result.figures["streams"]["named_by_window"], "ticks are missing")
    return result


def out_of_memory(directory: Path, seed: int, scale: Scale) -> Result:
    """Redis has no memory left while batches are appended and filed; some holders die of it."""
    result = Result("out_of_memory")
    unfiled: list[int] = []
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(directory, seed, lease_s=LEASE_S))
        relays = relays_of(rig, stack, *NAMES)
        start_both(rig, relays)
        rig.start_reader("reader", rig.server.url, "--stored")
        for number in range(max(scale.rounds, 3)):
            name = wait_holder(relays)
            relay = relays[name]
            rig.in_flight()
            call = ("file", "append", "")[number % 3]  # at the last one, any moment
            if call:
                relay.hold(call)
                wait_for(lambda: relay.waiting(call), f"{call} is under way")  # noqa: B023
            rig.streams.config_set("maxmemory", 1)
            refused = refusals(relay)
            relay.let_go()
            wait_for(lambda: refusals(relay) > refused, "a call is refused")  # noqa: B023
            if call == "file":
                unfiled.append(rig.unfiled())
            killed = rig.random.random() < 0.5
            if killed:
                rig.kill(name)
            time.sleep(rig.random.uniform(0, 2))
            rig.streams.config_set("maxmemory", 0)
            if killed:
                rig.wait_flowing()
                start_behind(rig, relays, name)
                rig.wait_subscribed(2)
            rig.wait_complete()
        finish(rig, result, ["reader"], late_allowed=True)
        result.add("feed", rig.account_feed())
        result.figures["refused"] = {
            call: sum(relay.answered[call, "OOM"] for relay in relays.values())
            for call in ("append", "file", "lease")
        }
        result.figures["unfiled_without_memory"] = unfiled
        result.check(all(result.figures["refused"].values()), "a call was never refused")
        result.check(all(unfiled), "nothing was unfiled")
        result.check(not result.figures["streams"]["named_by_window"], "ticks are missing")
    return result


def refusals(relay: CallProxy) -> int:
    """Return how many calls Redis has refused for want of memory."""
    return sum(count for (_, state), count in relay.answered.items() if state == "OOM")


def repeat_takeover(directory: Path, seed: int, scale: Scale) -> Result:
    """The terminal sends again what it had sent, and the holder dies of it."""
    result = Result("repeat_takeover")
    unfiled: list[int] = []
    sent_again = 0
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(directory, seed, lease_s=LEASE_S))
        relays = relays_of(rig, stack, *NAMES)
        start_both(rig, relays)
        rig.start_reader("reader", rig.server.url, "--stored")
        rig.wait_complete()
        began = time.monotonic()
        repeated = 0
        for number in range(max(scale.kills // 2, 2)):
            name = wait_holder(relays)
            held = number % 2 == 0
            if held:
                slow_filing(rig, relays[name])
            back_ms = rig.random.uniform(500, min((time.monotonic() - began) * 1000, 60_000))
            sent_again += rig.control.set_fault("server_switch", back_ms=int(back_ms))
            time.sleep(rig.random.uniform(0, 0.5))
            if held and rig.random.random() < 0.5:
                relays[name].let_go()
                rig.in_flight()
            rig.kill(name)
            unfiled.append(rig.unfiled())
            relays[name].let_go()
            rig.wait_flowing()
            start_behind(rig, relays, name)
            rig.wait_subscribed(2)
            rig.wait_complete()
            repeated += max(one["figures"]["repeated"] for one in rig.live_statuses())
        finish(rig, result, ["reader"], late_allowed=True)
        result.add("feed", rig.account_feed())
        result.figures["sent_again"] = sent_again
        result.figures["repeats_dropped_by_takers"] = repeated
        result.figures["unfiled_at_kill"] = unfiled
        result.check(sent_again > 0 and repeated > 0, "nothing was sent again")
        result.check(any(unfiled), "nothing was unfiled at a kill")
        result.check(not result.figures["streams"]["named_by_window"], "ticks are missing")
    return result


def as_it_comes(rig: Rig, _: CallProxy) -> bool:
    """Wait until something is unfiled, without a hand in it."""
    wait_for_unfiled(rig)
    return True


def slow_filing(rig: Rig, relay: CallProxy) -> bool:
    """Keep the next call that files."""
    relay.hold("file")
    wait_for(lambda: relay.waiting("file"), "a call that files is under way")
    wait_for_unfiled(rig)
    return True


def backlog(rig: Rig, relay: CallProxy) -> bool:
    """Let batches wait, so that as many are appended at once as may be unfiled.

    False where that took so long that another one has the lease.
    """
    fenced = relay.answered["append", "fenced"]
    relay.hold("append")
    wait_for(lambda: relay.waiting("append"), "a call that appends is under way")
    time.sleep(rig.random.uniform(0.8, 1.5))
    relay.hold("file")
    relay.let_go("append")
    wait_for(
        lambda: relay.waiting("file") or relay.answered["append", "fenced"] > fenced,
        "a call that files is under way",
    )
    return relay.waiting("file") > 0


WAYS = (as_it_comes, slow_filing, backlog)


def wait_for_unfiled(rig: Rig) -> None:
    """Return as soon as an entry is unfiled."""
    deadline = time.monotonic() + 60
    while not rig.unfiled():
        if time.monotonic() > deadline:
            raise TimeoutError("nothing is ever unfiled")


def too_late(relays: Relays) -> dict[str, int]:
    """Return what Redis answered to calls of producers that were gone."""
    found: dict[str, int] = {}
    for relay in relays.values():
        for (call, state), count in relay.too_late.items():
            told = f"{call} {state}".strip()
            found[told] = found.get(told, 0) + count
    return found
