"""Scenarios: one process is killed again and again, each time with a batch on its way."""

from __future__ import annotations

import time
from pathlib import Path

from crash_rig import Result, Rig
from crash_scale import Scale
from waiting import wait_for

__all__ = ["kill_alone", "kill_client", "kill_gateway", "kill_holder", "kill_redis", "kill_standby"]


def kill_redis(directory: Path, seed: int, scale: Scale) -> Result:
    """Redis (append-only file, fsync each second) is killed and started again."""
    result = Result("kill_redis")
    with Rig(directory, seed) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        rig.start_reader("reader", rig.server.url, "--stored")
        for _ in range(scale.kills):
            time.sleep(rig.random.uniform(0, scale.pause_s))
            rig.in_flight()
            rig.kill_redis()
            rig.start_redis()
            rig.wait_flowing()
        finish(rig, result, ["reader"])
    return result


def kill_holder(directory: Path, seed: int, scale: Scale) -> Result:
    """The producer that holds the leases is killed; every second time the standby takes over."""
    result = Result("kill_holder")
    takeovers: list[float] = []
    with Rig(directory, seed) as rig:
        start_two(rig)
        rig.start_reader("reader", rig.server.url, "--stored")
        for number in range(scale.kills):
            name = wait_holder(rig)
            time.sleep(rig.random.uniform(0, scale.pause_s))
            rig.in_flight()
            rig.kill(name)
            killed_at = time.monotonic()
            if number % 2 == 0:
                rig.wait_flowing()
                takeovers.append(time.monotonic() - killed_at)
            rig.start_producer(name)
            rig.wait_subscribed(2)
            rig.wait_flowing()
        finish(rig, result, ["reader"], late_allowed=True)
        result.figures["takeover_s"] = [round(took, 2) for took in takeovers]
    return result


def kill_alone(directory: Path, seed: int, scale: Scale) -> Result:
    """The only producer is killed and stays away for longer than a code's interval."""
    result = Result("kill_alone")
    with Rig(directory, seed, ticks_per_s=10_000) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        rig.start_reader("reader", rig.server.url, "--stored", markets="BJ")
        for _ in range(scale.kills):
            time.sleep(rig.random.uniform(0, scale.pause_s))
            rig.in_flight()
            rig.kill("producer1")
            time.sleep(rig.random.uniform(0, 1))
            rig.start_producer("producer1")
            rig.wait_flowing()
        finish(rig, result, ["reader"])
        result.figures["pushed_by_terminal"] = rig.control.status()["last_seq"]
    return result


def kill_standby(directory: Path, seed: int, scale: Scale) -> Result:
    """The producer that stands by is killed: nobody may notice."""
    result = Result("kill_standby")
    with Rig(directory, seed) as rig:
        start_two(rig)
        rig.start_reader("reader", rig.server.url, "--stored")
        holder = wait_holder(rig)
        standby = "producer2" if holder == "producer1" else "producer1"
        for _ in range(scale.kills):
            time.sleep(rig.random.uniform(0, scale.pause_s))
            rig.in_flight()
            rig.kill(standby)
            rig.start_producer(standby)
            rig.wait_subscribed(2)
            rig.in_flight()
        finish(rig, result, ["reader"])
        gaps = [event for event in rig.events if event["kind"] == "gap"]
        result.check(not gaps, f"gaps were named: {gaps[:2]}")
        result.check(rig.holder() == holder, "the lease changed hands")
    return result


def kill_gateway(directory: Path, seed: int, scale: Scale) -> Result:
    """The gateway is killed under a client that reads through it."""
    result = Result("kill_gateway")
    with Rig(directory, seed) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        rig.start_gateway()
        rig.start_reader("reader", rig.gateway_url, "--stored")
        wait_grows(rig, "reader")
        for _ in range(scale.kills):
            time.sleep(rig.random.uniform(0, scale.pause_s))
            rig.in_flight()
            rig.kill("gateway")
            rig.start_gateway()
            wait_grows(rig, "reader")
        finish(rig, result, ["reader"])
        result.check(not rig.gaps_told("reader"), f"gaps told: {rig.gaps_told('reader')[:2]}")
    return result


def kill_client(directory: Path, seed: int, scale: Scale) -> Result:
    """Two readers, one over Redis and one over the gateway, are killed in turn."""
    result = Result("kill_client")
    with Rig(directory, seed) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        rig.start_gateway()
        urls = {"reader-redis": rig.server.url, "reader-gateway": rig.gateway_url}
        for name, url in urls.items():
            rig.start_reader(name, url, "--stored")
            wait_grows(rig, name)
        for number in range(scale.kills * len(urls)):
            name = list(urls)[number % len(urls)]
            time.sleep(rig.random.uniform(0, scale.pause_s))
            rig.in_flight()
            rig.kill(name)
            rig.start_reader(name, urls[name], "--stored")
            wait_grows(rig, name)
        finish(rig, result, list(urls))
        for name in urls:
            told = rig.gaps_told(name)
            result.check(not told, f"{name}: gaps told: {told[:2]}")
    return result


def start_two(rig: Rig) -> None:
    """Start two producers; either may become the holder."""
    rig.start_producer("producer1")
    rig.wait_flowing()
    rig.start_producer("producer2")
    rig.wait_subscribed(2)


def wait_holder(rig: Rig) -> str:
    """Return who holds the leases, as soon as it can be told."""
    wait_for(lambda: rig.holder() is not None, "a producer holds the lease")
    name = rig.holder()
    if name is None:
        raise TimeoutError("the holder went away")
    return name


def wait_grows(rig: Rig, name: str) -> None:
    """Wait until a reader has written more than it had."""
    file = rig.file_of(name)

    def size() -> int:
        return file.stat().st_size if file.exists() else 0

    before = size()
    wait_for(lambda: size() > before + 5000 or size() < before, f"{name} reads")


def finish(
    rig: Rig,
    result: Result,
    readers: list[str],
    *,
    late_allowed: bool = False,
    may_repeat: bool = False,
) -> None:
    """Silence the market, wait for the rest, and account for streams and readers.

    Parameters
    ----------
    may_repeat
        Whether readers whose position knows no codes may get ticks again behind an epoch's gap.
    """
    rig.quiet()
    result.add("streams", rig.account(late_allowed=late_allowed))
    for name in readers:
        rig.wait_read(name)
        brief = may_repeat and name.endswith("brief")
        result.add(name, rig.account_reader(name, may_repeat=brief))
        result.figures[name]["gaps_told"] = len(rig.gaps_told(name))
    events = [event["kind"] for event in rig.events]
    result.figures["events"] = {kind: events.count(kind) for kind in sorted(set(events))}
    result.figures["kills"] = dict(rig.kills)
