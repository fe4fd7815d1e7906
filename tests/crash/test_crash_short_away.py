"""Redis away; then readers away, beyond the feed, and while Redis is wiped."""

from __future__ import annotations

import time
from pathlib import Path

import msgpack
from crash_breaks import AWAY, waiting_ms, wipe
from crash_cuts import away
from crash_evidence import read_notes
from crash_kills import finish, wait_grows
from crash_rig import Result, Rig
from crash_scale import SHORT
from crash_short import SEED, fail_on
from waiting import wait_for


def catch_up(rig: Rig, name: str, market: str) -> None:
    """Wait until a reader has what the market has now."""
    latest = rig.streams.hvals(f"{{qmt:{market}}}:latest")
    newest_ms = max(int(msgpack.unpackb(entry)[0].split("-")[0]) for entry in latest)

    def has_it() -> bool:
        ticks, _ = read_notes(rig.file_of(name))
        times = (int(ticks[code][-1].split(" ")[0]) for code in ticks)
        return max(times, default=0) >= newest_ms

    wait_for(has_it, f"{name} has caught up")


def test_redis_away_then_beyond_the_feed_then_wiped(tmp_path: Path) -> None:
    result = Result("away")
    with Rig(tmp_path / "rig", SEED) as rig:
        rig.start_producer("producer1")
        rig.wait_flowing()
        for name, flags in AWAY.items():
            rig.start_reader(name, rig.server.url, *flags, markets="BJ")
            wait_grows(rig, name)
        rig.in_flight()
        rig.kill_redis()
        time.sleep(SHORT.away_s)
        rig.start_redis()
        rig.wait_flowing()
        wait_for(lambda: waiting_ms(rig) < 1000, "the ring is drained")
        for name in AWAY:
            catch_up(rig, name, "BJ")
        readers = {name: (rig.server.url, flags) for name, flags in AWAY.items()}
        away(rig, readers, streams=False, markets="BJ")
        rig.keep_events()
        assert "gap" not in {event["kind"] for event in rig.events}
        assert not rig.gaps_told("reader-away")
        assert {gap["market"] for gap in rig.gaps_told("reader-brief")} == {"BJ"}
        wipe(rig, AWAY, markets="BJ")
        finish(rig, result, list(AWAY), may_repeat=True)
        for name in AWAY:
            told = [(gap["market"], gap["reason"]) for gap in rig.gaps_told(name)]
            assert ("BJ", "epoch") in told
    fail_on(result, tmp_path)
