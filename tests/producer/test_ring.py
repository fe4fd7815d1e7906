"""The ring on disk, and what is named when something cannot be kept."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from small_disk import SmallDisk, can_mount

from qmt_producer.bar_maker import BarMaker
from qmt_producer.candidates import Entry
from qmt_producer.intake import Intake
from qmt_producer.losses import Losses
from qmt_producer.ring import Ring, RingUnwritable, Silence
from qmt_protocol.errors import ConfigurationError
from qmt_protocol.ticks import TickFlag, decode_tick
from qmt_simulator import bson

AT_MS = 1_763_697_600_000


def entries(count: int, at_ms: int = AT_MS, size: int = 100) -> list[Entry]:
    return [("600519.SH", at_ms + n, b"x" * size) for n in range(count)]


def test_numbers_have_no_holes_and_outlive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ring.sqlite"
    ring = Ring(path, 10_000_000)
    ring_id = ring.id
    ring.append(
        [
            ("SH", "tick", 1, entries(3)),
            ("SZ", "tick", 2, entries(2)),
            ("SH", "tick", 3, entries(1)),
        ]
    )
    assert [batch.number for batch in ring.after("SH", 0, 10)] == [1, 3]
    assert [batch.number for batch in ring.after("SZ", 0, 10)] == [2]
    ring.acknowledge("SH", 1)
    ring.tidy({"SH": 1}, before_ms=2)
    ring.close()
    ring = Ring(path, 10_000_000)
    assert (ring.id, ring.acked("SH"), ring.acked("SZ")) == (ring_id, 1, 0)
    assert (ring.first("SH"), ring.first("SZ"), ring.first("BJ")) == ((3, 3), (2, 2), (0, 0))
    assert (ring.number_before("SH", 3), ring.number_before("SH", 4)) == (0, 3)
    (third,) = ring.after("SH", ring.acked("SH"), 10)
    assert (third.market, third.kind, third.received_ms, third.candidates.entries) == (
        "SH",
        "tick",
        3,
        entries(1),
    )
    ring.tidy({"SH": 3, "SZ": 3}, before_ms=10**15)
    ring.append([("SH", "tick", 4, entries(1))])
    assert ring.first("SH") == (4, 4), "a number is never used twice, even after all were dropped"
    ring.close()


def test_silences_are_in_order_and_one_is_open_over_a_restart(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    assert (ring.open_silence, ring.silent_after(0)) == (None, math.inf)
    ring.begin_silence(100, "one")
    ring.begin_silence(150, "a further try")
    assert (ring.silences(0), ring.silent_after(0)) == ([], 100)
    ring.close()
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    assert ring.silent_since_ms == ring.open_silence == 100
    ring.end_silence(200)
    ring.begin_silence(300, "two")
    assert ring.silences(0) == [Silence(1, 100, 200, "one")]
    assert (ring.silent_after(0), ring.silent_after(1)) == (100, 300)
    ring.end_silence(400)
    assert ring.silences(1) == [Silence(2, 300, 400, "two")]
    assert ring.silences(2) == []
    ring.tidy({}, before_ms=86_400_000 + 201)
    assert ring.silences(0) == [Silence(2, 300, 400, "two")]
    assert ring.silent_after(0) == 300
    ring.close()


def test_what_was_heard_last_outlives_the_batches_and_is_no_bar(tmp_path: Path) -> None:
    """A bar may be closed by the clock while ticks received before still wait for the ring."""
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    assert ring.silent_since_ms == 0
    ring.append(
        [("SH", "tick", 1000, entries(1)), ("SH", "bar", 5000, [("1m|600519.SH", AT_MS, b"x")])]
    )
    assert ring.heard_ms == 1000
    ring.tidy({"SH": 2}, before_ms=10**15)
    ring.close()
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    assert ring.after("SH", 0, 10) == []
    assert ring.silent_since_ms == 1000
    ring.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    ring.append([("SH", "tick", 1, entries(1))])
    with pytest.raises(ConfigurationError, match="another producer"):
        Ring(tmp_path / "ring.sqlite", 10_000_000)
    ring.close()


def overflow(ring: Ring, *numbers: int) -> None:
    """Append batches of 100 entries; a ring of 50,000 bytes holds three."""
    ring.append([("SH", "tick", n, entries(100, AT_MS + 1000 * n)) for n in numbers])


def kept(ring: Ring) -> list[int]:
    return [batch.number for batch in ring.after("SH", 0, 100)]


def is_ours(_market: str) -> bool:
    return True


def test_beyond_its_size_it_gives_up_the_oldest_and_says_which(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 50_000)
    overflow(ring, 1, 2, 3)
    ring.acknowledge("SH", 1)
    overflow(ring, 4)
    assert kept(ring) == [2, 3, 4]
    assert ring.take_lost(is_ours, hold=False) is None, "what Redis has is not lost"
    overflow(ring, 5, 6)
    assert kept(ring) == [4, 5, 6]
    ring.close()
    ring = Ring(tmp_path / "ring.sqlite", 50_000)  # killed before it was told
    gap = ring.take_lost(is_ours, hold=False)
    assert gap is not None
    told = {"600519.SH": [AT_MS + 2000, AT_MS + 3099, 200]}
    assert (gap["codes"], gap["ticks"], gap["reason"]) == (told, 200, "ring full")
    assert [json.loads(body) for _, body in ring.gaps()] == [gap]
    assert ring.take_lost(is_ours, hold=False) is None
    ring.close()


def test_what_may_have_been_sent_is_never_given_up(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 50_000)
    overflow(ring, 1, 2, 3)
    assert [batch.number for batch in ring.take("SH", 0, 2, 10**9)] == [1, 2]
    overflow(ring, 4, 5)
    assert kept(ring) == [1, 2, 5]
    ring.close()
    ring = Ring(tmp_path / "ring.sqlite", 50_000)  # a killed producer cannot know the answer
    overflow(ring, 6, 7)
    assert kept(ring) == [1, 2, 7]
    ring.acknowledge("SH", 1)
    overflow(ring, 8)
    assert kept(ring) == [2, 7, 8]
    ring.acknowledge("SH", 2)
    overflow(ring, 9)
    assert kept(ring) == [7, 8, 9]
    gap = ring.take_lost(is_ours, hold=False)
    assert gap is not None
    assert gap["codes"] == {"600519.SH": [AT_MS + 3000, AT_MS + 6099, 400]}, "3 to 6 alone"
    assert ring.gone("SH") == (2, 2)
    ring.close()


def test_losses_gather_in_one_row_while_they_cannot_be_told(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 50_000)
    for n in range(1, 200):
        overflow(ring, n)
        assert ring.take_lost(is_ours, hold=True) is None
    assert ring._one("SELECT count(*) FROM lost") <= 65
    gap = ring.take_lost(is_ours, hold=False)
    assert gap is not None
    assert gap["ticks"] == 100 * (199 - len(kept(ring)))
    ring.close()


def test_a_standby_names_nothing_and_remembers_what_it_let_go(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 50_000)
    overflow(ring, *range(1, 8))
    assert ring.take_lost(lambda _: False, hold=False) is None
    assert ring.gone("SH") == (4, 4)
    assert ring.gaps() == []
    ring.close()


def test_a_batch_is_sent_again_with_the_same_bounds(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    overflow(ring, 1, 2, 3)
    size_bytes = ring.size_bytes // 3
    assert [batch.number for batch in ring.take("SH", 0, 8, 1)] == [1], "one at least"
    assert [batch.number for batch in ring.take("SH", 0, 8, 2 * size_bytes)] == [1, 2]
    assert [batch.number for batch in ring.take("SH", 2, 8, 2 * size_bytes)] == [3]
    ring.rewind("SH", 0)
    assert (ring.acked("SH"), len(ring.take("SH", 0, 8, 10**9))) == (0, 3)
    ring.close()


def test_committed_batches_survive_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "ring.sqlite"
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib\n"
            "from qmt_producer.ring import Ring\n"
            "ring = Ring(pathlib.Path(sys.argv[1]), 10**9)\n"
            "for n in range(10**9):\n"
            "    ring.append([('SH', 'tick', n, [('600519.SH', n, b'x' * 500)] * 50)])\n"
            "    print(n + 1, flush=True)\n",
            str(path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    told = 0
    for line in writer.stdout:
        told = int(line)
        if told >= 200:
            break
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait(10)
    told = max([told, *(int(line) for line in writer.stdout.read().split())])
    writer.stdout.close()
    ring = Ring(path, 10**9)
    numbers = [batch.number for batch in ring.after("SH", 0, 10**6)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= told
    ring.close()


def test_losses_are_exact() -> None:
    losses = Losses()
    losses.add("queue full", [("600519.SH", 50), ("000001.SZ", 9)])
    losses.add("queue full", [("600519.SH", 20)])
    losses.add("ring full", [("600519.SH", 70)])
    full, ring = losses.take()
    assert full == {
        "kind": "gap",
        "reason": "queue full",
        "from_ms": 9,
        "to_ms": 50,
        "ticks": 3,
        "codes": {"600519.SH": [20, 50, 2], "000001.SZ": [9, 9, 1]},
    }
    assert (ring["reason"], ring["ticks"]) == ("ring full", 1)
    assert losses.take() == []
    assert losses.total_ticks == 4


def run_intake(
    tmp_path: Path, *pushes: dict[str, Any], queue_bytes: int = 1_000_000
) -> tuple[Ring, Intake]:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    intake = Intake(
        ring,
        ["SH", "SZ"],
        bars=BarMaker(lambda: AT_MS, 1000, lambda: None),
        batch_ticks=2,
        queue_bytes=queue_bytes,
        decode_bson=bson.decode,
    )
    for push in pushes:
        intake.put(bson.encode(push))
    intake.thread.start()
    intake.stop()
    return ring, intake


def test_a_push_becomes_batches_by_market_in_its_order(tmp_path: Path) -> None:
    codes = ["600000.SH", "000001.SZ", "600519.SH", "600004.SH", "430047.BJ"]
    ring, intake = run_intake(tmp_path, {code: {"time": AT_MS, "lastPrice": 1.5} for code in codes})
    batches = sorted(
        ring.after("SH", 0, 10) + ring.after("SZ", 0, 10), key=lambda batch: batch.number
    )
    assert [(b.market, list(b.candidates.names)) for b in batches] == [
        ("SH", ["600000.SH", "600519.SH"]),
        ("SH", ["600004.SH"]),
        ("SZ", ["000001.SZ"]),
    ]
    assert intake.received_ticks == 4
    assert intake.losses.take() == [], "BJ was not asked for: not published, not lost"
    ring.close()


def test_bad_ticks_are_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    ring, intake = run_intake(
        tmp_path,
        {
            "600000.SH": {"time": AT_MS, "lastPrice": "ten"},
            "600519.SH": {"lastPrice": 1.5, "timetag": "20260105 09:30:00"},
            "no market": {"lastPrice": 1.5},
        },
    )
    (batch,) = ring.after("SH", 0, 10)
    ((code, at_ms, t1),) = batch.candidates.entries
    assert (code, at_ms) == ("600519.SH", 1_767_576_600_000)
    assert decode_tick(t1, code).flags == TickFlag.TIME_FROM_TIMETAG
    (gap,) = intake.losses.take()
    assert (list(gap["codes"]), gap["ticks"]) == (["600000.SH"], 1)
    assert "rejected" in gap["reason"]
    ring.close()


def test_a_full_queue_loses_by_name(tmp_path: Path) -> None:
    push = {f"{600000 + n}.SH": {"time": AT_MS + n} for n in range(4)}
    size = len(bson.encode(push))
    ring, intake = run_intake(tmp_path, push, push, push, queue_bytes=2 * size)
    assert sum(len(batch.candidates.names) for batch in ring.after("SH", 0, 100)) == 8
    (gap,) = intake.losses.take()
    assert (gap["reason"], gap["ticks"], gap["from_ms"], gap["to_ms"]) == (
        "queue full",
        4,
        AT_MS,
        AT_MS + 3,
    )
    ring.close()


def test_events_wait_until_told(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    ring.add_event({"kind": "gap", "why": "停牌"})
    ring.add_event({"kind": "late"})
    ring.close()
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    ((gap, body),) = ring.gaps()
    assert json.loads(body) == {"kind": "gap", "why": "停牌"}
    ring.forget_gaps(gap)
    assert ring.gaps() == []
    ((late, body),) = ring.events()
    assert json.loads(body) == {"kind": "late"}
    ring.forget_events(late)
    assert ring.events() == []
    ring.close()


def test_what_happens_by_the_thousand_pushes_no_gap_out(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    ring.add_event({"kind": "gap", "reason": "first"})
    for number in range(1100):
        ring.add_event({"kind": "lost", "number": number})
    ring.add_event({"kind": "gap", "reason": "last"})
    assert [json.loads(body)["reason"] for _, body in ring.gaps()] == ["first", "last"]
    waiting = [json.loads(body)["number"] for _, body in ring.events(2000)]
    assert waiting == list(range(100, 1100))
    ring.close()


def test_an_older_ring_is_read_on(tmp_path: Path) -> None:
    """Its gaps wait among the other events, and are told from there."""
    Ring(tmp_path / "ring.sqlite", 10_000_000).close()
    with closing(sqlite3.connect(tmp_path / "ring.sqlite")) as older:
        older.executescript("DROP TABLE gap; DROP TRIGGER event_bound")
        older.execute('INSERT INTO event (body) VALUES (\'{"kind": "gap"}\')')
        older.commit()
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    assert [json.loads(body) for _, body in ring.events()] == [{"kind": "gap"}]
    ring.add_event({"kind": "gap", "reason": "new"})
    assert len(ring.gaps()) == 1
    ring.close()


def test_gaps_that_wait_become_few_and_name_all_that_they_named(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    silences = [(market, at, at + 5) for at in range(1000, 1600, 10) for market in ("SH", "SZ")]
    for market, from_ms, to_ms in silences:
        gap = {"kind": "gap", "reason": "the terminal was away", "market": market}
        ring.add_event({**gap, "at_ms": to_ms, "from_ms": from_ms, "to_ms": to_ms})
    counted = Losses()
    for at_ms in range(40):
        counted.add("queue full", [(f"60000{at_ms % 3}.SH", at_ms)])
        (gap,) = counted.take()
        ring.add_event({"at_ms": at_ms, **gap})
    for number in range(3):
        words = {"kind": "gap", "market": "SH", "reason": f"rejected by Redis: {number}"}
        ring.add_event({**words, "at_ms": number, "ticks": 2})
    ring.merge_gaps()
    gaps = [json.loads(body) for _, body in ring.gaps(100)]
    away = {"kind": "gap", "reason": "the terminal was away", "at_ms": 1595, "gaps": 60}
    assert gaps == [
        {**away, "market": "SH", "from_ms": 1000, "to_ms": 1595},
        {**away, "market": "SZ", "from_ms": 1000, "to_ms": 1595},
        {
            **{"kind": "gap", "reason": "queue full", "at_ms": 39, "gaps": 40},
            **{"from_ms": 0, "to_ms": 39, "ticks": 40},
            "codes": {
                "600000.SH": [0, 39, 14],
                "600001.SH": [1, 37, 13],
                "600002.SH": [2, 38, 13],
            },
        },
        {
            **{"kind": "gap", "market": "SH", "reason": "rejected by Redis: 0"},
            **{"at_ms": 2, "ticks": 6, "gaps": 3},
        },
    ]
    ring.close()
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    assert [json.loads(body) for _, body in ring.gaps(100)] == gaps
    ring.close()


def test_a_full_disk_keeps_what_it_took_and_tells_the_rest_later(tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("mounting a small disk needs root")
    with SmallDisk(tmp_path / "disk", 4 * 2**20) as disk:
        ring, kept = Ring(disk.folder / "ring.sqlite", 100_000_000), 0
        ring.begin_silence(1, "before")
        disk.fill()
        with pytest.raises(RingUnwritable):  # noqa: PT012
            while True:
                ring.append([("SH", "tick", kept, entries(100, AT_MS + kept))])
                kept += 1
        ring.add_event({"kind": "gap"})
        ring.end_silence(5)
        assert (ring.writable, ring.gaps(), ring.silences(0)) == (False, [], [])
        with pytest.raises(RingUnwritable):
            ring.begin_silence(6, "while it is full")
        with pytest.raises(RingUnwritable):
            ring.tidy({"SH": kept}, before_ms=10**15)
        disk.free()
        ring.append([("SH", "tick", kept, entries(100, AT_MS + kept))])
        ring.begin_silence(7, "behind")
        for _ in range(2):
            assert [batch.candidates.entries for batch in ring.after("SH", 0, kept + 9)] == [
                entries(100, AT_MS + number) for number in range(kept + 1)
            ]
            assert [json.loads(body) for _, body in ring.gaps()] == [{"kind": "gap"}]
            assert [(one.from_ms, one.to_ms) for one in ring.silences(0)] == [(1, 5)]
            assert ring.open_silence == 7
            ring.close()
            ring = Ring(disk.folder / "ring.sqlite", 100_000_000)
        ring.close()


def test_a_thread_that_is_left_behind_ends_with_the_ring(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    run = ring.ends_with(ring.merge_gaps)
    run()
    ring.close()
    run()
    with pytest.raises(sqlite3.ProgrammingError):
        ring.merge_gaps()


def test_batches_of_another_version_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ring.sqlite"
    ring = Ring(path, 10_000_000)
    ring.append([("SH", "tick", 1, entries(2))])
    ring._db.execute("UPDATE meta SET value = '1' WHERE name = 'format'")
    ring.close()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="another version"):
            Ring(path, 10_000_000)
    with closing(sqlite3.connect(path)) as found:
        assert found.execute("SELECT count(*) FROM ring").fetchone() == (1,)
        found.execute("DELETE FROM ring")
        found.commit()
    Ring(path, 10_000_000).close()
