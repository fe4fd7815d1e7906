"""The holder killed with batches that are not filed, answers lost, bad entries in the feed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from crash_answers import lose
from crash_damage import do_harm, sizes_cut
from crash_kills import finish
from crash_rig import Result, Rig
from crash_short import SEED, fail_on
from crash_unfiled import LEASE_S, backlog, relays_of, start_behind

CALLS = ("append", "file")


def test_kill_lost_answers_and_bad_entries_while_batches_are_unfiled(tmp_path: Path) -> None:
    result = Result("unfiled")
    with ExitStack() as stack:
        rig = stack.enter_context(Rig(tmp_path / "rig", SEED, ticks_per_s=500, lease_s=LEASE_S))
        relays = relays_of(rig, stack, "producer1")
        relay = relays["producer1"]
        start_behind(rig, relays, "producer1")
        rig.wait_flowing()
        rig.start_reader("reader", rig.server.url, "--stored", "--full")
        for call in CALLS:
            lose(relay, call, 1)
            rig.wait_flowing()
        assert "gap" not in {event["kind"] for event in rig.events}
        assert backlog(rig, relay)
        rig.kill("producer1")
        unfiled = rig.unfiled()
        relay.let_go()
        start_behind(rig, relays, "producer1")
        rig.wait_flowing()
        rig.wait_complete()
        do_harm(rig, relay, sizes_cut, "SH")
        finish(rig, result, ["reader"])
        told = rig.events
    fail_on(result, tmp_path)
    assert all(relay.lost[call] for call in CALLS)
    assert unfiled > 1
    damaged = [one for one in told if "is damaged" in one.get("reason", "")]
    assert len(damaged) == 1
