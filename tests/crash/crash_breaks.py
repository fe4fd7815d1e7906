"""Scenarios: Redis or a producer is away, paused, or comes back with less than it had."""

from __future__ import annotations

import time
from collections import Counter
from operator import eq
from pathlib import Path

from crash_evidence import pushed_by_code, pushed_view, read_notes, stored_by_code
from crash_kills import finish, start_two, wait_grows, wait_holder
from crash_rig import MARKETS, Result, Rig
from crash_scale import Scale
from waiting import wait_for

__all__ = [
    "holder_paused",
    "older_copy",
    "redis_away",
    "redis_paused",
    "redis_wiped",
    "ring_overflow",
    "tail_loss_within_lease",
    "takeover_while_away",
    "waiting_ms",
    "wipe",
]

AWAY = {"reader-away": ("--stored", "--full"), "reader-brief": ("--stored",)}
"""One saves its full position, the other the short one, which knows no codes."""


def redis_away(directory: Path, seed: int, scale: Scale) -> Result:
    """Redis is away under 10,000 ticks/s; the ring holds everything, a reader waits."""
    result = Result("redis_away")
    with Rig(directory, seed, ticks_per_s=10_000) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        rig.start_reader("reader", rig.server.url, "--stored", markets="BJ")
        wait_grows(rig, "reader")
        rig.in_flight()
        before = rig.control.status()["last_seq"]
        rig.kill_redis()
        time.sleep(scale.away_s)
        pushed = rig.control.status()["last_seq"] - before
        rig.start_redis()
        back_at = time.monotonic()
        rig.wait_flowing()
        wait_for(lambda: waiting_ms(rig) < 1500, "the ring is drained", 240)
        result.figures["drained_s"] = round(time.monotonic() - back_at, 1)
        result.figures["away_s"] = scale.away_s
        result.figures["pushed_while_away"] = pushed
        result.check(
            pushed > 0.7 * 10_000 * scale.away_s, f"only {pushed} ticks were pushed while away"
        )
        finish(rig, result, ["reader"])
        no_gaps(rig, result)
    return result


def redis_paused(directory: Path, seed: int, scale: Scale) -> Result:
    """Redis stops for longer than a call waits: its answer is lost, the call may be done."""
    result = Result("redis_paused")
    with Rig(directory, seed) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        rig.start_reader("reader", rig.server.url, "--stored")
        for _ in range(scale.times):
            rig.in_flight()
            pid = rig.pause_redis()
            time.sleep(rig.random.uniform(5.5, 8))
            rig.resume_redis(pid)
            rig.wait_flowing()
        finish(rig, result, ["reader"])
        no_gaps(rig, result)
        result.figures["pauses"] = scale.times
    return result


def ring_overflow(directory: Path, seed: int, scale: Scale) -> Result:
    """Redis is away until a small ring gives up its oldest: the gap is the exact difference."""
    result = Result("ring_overflow")
    with Rig(directory, seed, ticks_per_s=20_000) as rig:
        rig.start_producer("producer1", QMT_RING_MAX_MB=str(scale.ring_mb))
        rig.wait_flowing()
        rounds = min(scale.times, 3)
        for _ in range(rounds):
            rig.in_flight()
            rig.kill_redis()
            begun = rig.control.status()["last_seq"]
            full = scale.ring_mb * 1_000_000 / 150
            wait_for(
                lambda begun=begun, full=full: (  # type: ignore[misc]
                    rig.control.status()["last_seq"] - begun > 1.4 * full
                ),
                "the ring overflows",
            )
            rig.start_redis()
            rig.wait_flowing()
        finish(rig, result, [])
        counted = [event for event in rig.events if event["kind"] == "gap"]
        result.check(bool(counted), "the ring did not overflow")
        vague = [event for event in counted if "codes" not in event]
        result.check(not vague, f"gaps without codes: {vague[:1]}")
        compare_exactly(rig, result, [event for event in counted if "codes" in event])
        result.figures["overflows"] = rounds
    return result


def compare_exactly(rig: Rig, result: Result, gaps: list[dict[str, object]]) -> None:
    """Hold the gap events against the oracle's difference: codes, counts, ranges."""
    stored = stored_by_code(rig.streams)
    missing: dict[str, set[int]] = {}
    for code, ticks in pushed_by_code([rig.log_path]).items():
        there = {entry.content for entry in stored.get(code, ())}
        lost = {tick.at_ms for tick in ticks if tick.content not in there}
        if lost:
            missing[code] = lost
    told: dict[str, list[int]] = {}
    for gap in gaps:
        codes = gap["codes"]
        assert isinstance(codes, dict)
        for code, (first_ms, last_ms, ticks) in codes.items():
            one = told.setdefault(code, [first_ms, last_ms, 0])
            one[0], one[1] = min(one[0], first_ms), max(one[1], last_ms)
            one[2] += ticks
    oracle = {code: [min(times), max(times), len(times)] for code, times in missing.items()}
    wrong = [code for code in {*oracle, *told} if oracle.get(code) != told.get(code)]
    shown = [(code, oracle.get(code), told.get(code)) for code in wrong[:3]]
    result.check(not wrong, f"{len(wrong)} codes differ (code, oracle, told): {shown}")
    result.figures["missing_by_oracle"] = sum(len(times) for times in missing.values())
    result.figures["named"] = sum(one[2] for one in told.values())


def holder_paused(directory: Path, seed: int, scale: Scale) -> Result:
    """The holder is stopped past its lease, another takes over, then the first goes on."""
    result = Result("holder_paused")
    with Rig(directory, seed) as rig:
        start_two(rig)
        rig.start_reader("reader", rig.server.url, "--stored")
        for _ in range(scale.times):
            name = wait_holder(rig)
            rig.in_flight()
            rig.pause(name)
            time.sleep(rig.lease_s + 1)
            rig.wait_flowing()
            time.sleep(rig.random.uniform(0, 2))
            rig.resume(name)
            rig.in_flight()
            rig.wait_flowing()
            wait_for(lambda was=name: rig.holder() not in (None, was), "the lease moved")  # type: ignore[misc]
        finish(rig, result, ["reader"], late_allowed=True)
        result.figures["pauses"] = scale.times
    return result


def takeover_while_away(directory: Path, seed: int, scale: Scale) -> Result:
    """Redis is away, both rings fill, the holder dies, Redis returns: the standby has it all."""
    result = Result("takeover_while_away")
    with Rig(directory, seed) as rig:
        start_two(rig)
        rig.start_reader("reader", rig.server.url, "--stored")
        for _ in range(scale.times):
            name = wait_holder(rig)
            rig.in_flight()
            rig.kill_redis()
            time.sleep(rig.random.uniform(3, 6))
            rig.in_flight()
            rig.kill(name)
            time.sleep(rig.random.uniform(0, 2))
            rig.start_redis()
            rig.wait_flowing()
            rig.start_producer(name)
            rig.wait_subscribed(2)
        finish(rig, result, ["reader"], late_allowed=True)
        result.check(not result.figures["streams"]["named_by_window"], "ticks are missing")
        result.figures["takeovers"] = scale.times
    return result


def older_copy(directory: Path, seed: int, scale: Scale) -> Result:
    """Redis comes back on an older copy of its append-only file."""
    return _restore(Result("older_copy"), directory, seed, scale, lost_s=6.0, push_ms=250)


def tail_loss_within_lease(directory: Path, seed: int, scale: Scale) -> Result:
    """The same between two pushes, and by one push: no call fails, the old lease is still good."""
    result = Result("tail_loss_within_lease")
    return _restore(result, directory, seed, scale, lost_s=0, push_ms=1500)


def _restore(
    result: Result, directory: Path, seed: int, scale: Scale, *, lost_s: float, push_ms: int
) -> Result:
    with Rig(directory, seed, push_ms=push_ms) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        rig.start_reader("reader-there", rig.server.url, "--stored")
        flags = AWAY if lost_s else {}
        for name in flags:
            rig.start_reader(name, rig.server.url, *flags[name])
            wait_grows(rig, name)
        epochs = [epoch_of(rig)]
        for _ in range(scale.times):
            for name in flags:
                rig.kill(name, counted=False)
            rig.await_push()
            time.sleep(0.6)
            copy = rig.copy_aof()
            had = rig.acked()
            time.sleep(lost_s)
            rig.await_push()
            wait_for(
                lambda had=had: not any(map(eq, rig.acked(), had)),  # type: ignore[misc]
                "the push is published, however busy the machine is",
            )
            time.sleep(min(0.4, push_ms / 2000))  # its producer knows, and nothing is on its way
            rig.kill_redis()
            rig.put_aof(copy)
            rig.start_redis()
            rig.wait_flowing()
            was = epochs[-1]
            wait_for(lambda was=was: epoch_of(rig) != was, "a new epoch")  # type: ignore[misc]
            epochs.append(epoch_of(rig))
            for name in flags:
                rig.start_reader(name, rig.server.url, *flags[name])
                wait_grows(rig, name)
        finish(rig, result, ["reader-there", *flags], may_repeat=True)
        result.figures["restores"] = scale.times
        result.figures["epochs"] = len(set(epochs))
        result.check(len(set(epochs)) == scale.times + 1, "a restore without a new epoch")
    return result


def epoch_of(rig: Rig) -> object:
    """Return the identity of a market's history."""
    return rig.streams.get("{qmt:SH}:epoch")


def redis_wiped(directory: Path, seed: int, scale: Scale) -> Result:
    """Redis is wiped while readers are away: they are told, and read on."""
    result = Result("redis_wiped")
    names = ["reader-there", *AWAY]
    with Rig(directory, seed) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        for name in names:
            rig.start_reader(name, rig.server.url, *AWAY.get(name, ("--stored",)))
            wait_grows(rig, name)
        for _ in range(scale.times):
            time.sleep(1)
            wipe(rig, AWAY)
        finish(rig, result, names, may_repeat=True)
        for name in names:
            told = Counter(gap.get("market") for gap in rig.gaps_told(name))
            result.check(all(told[one] for one in MARKETS), f"{name} was told only {dict(told)}")
        against_log(rig, result, names)
        result.figures["wipes"] = scale.times
    return result


def wipe(rig: Rig, readers: dict[str, tuple[str, ...]], markets: str = ",".join(MARKETS)) -> None:
    """Wipe Redis while readers are away."""
    for name in readers:
        rig.kill(name, counted=False)
    rig.in_flight()
    rig.keep_events()
    rig.streams.flushall()
    rig.wait_flowing()
    for name, flags in readers.items():
        rig.start_reader(name, rig.server.url, *flags, markets=markets)
        wait_grows(rig, name)


def against_log(rig: Rig, result: Result, names: list[str]) -> None:
    """Hold readers against the terminal's own log: what they lack, they were told."""
    pushed = pushed_view(rig.log_path, MARKETS)
    for name in names:
        got, gaps = read_notes(rig.file_of(name))
        lacking = {
            code: sorted(set(contents) - set(got.get(code, ())))
            for code, contents in pushed.items()
        }
        count = sum(map(len, lacking.values()))
        result.figures[f"{name} lacks of the log"] = count
        result.check(count == 0 or bool(gaps), f"{name} lacks {count} ticks and was told nothing")


def waiting_ms(rig: Rig) -> int:
    """Return how long the oldest unpublished batch of any producer has waited."""
    return max(
        (
            market["waiting_ms"]
            for status in rig.live_statuses()
            for market in status["figures"]["markets"].values()
        ),
        default=10_000,
    )


def no_gaps(rig: Rig, result: Result) -> None:
    """Nothing may have been named: everything was kept."""
    gaps = [event for event in rig.events if event["kind"] == "gap"]
    result.check(not gaps, f"gaps were named: {gaps[:2]}")
