"""The ring on disk, and what is named when something cannot be kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qmt_producer.bar_maker import BarMaker
from qmt_producer.intake import Intake
from qmt_producer.losses import Losses
from qmt_producer.ring import Entry, Ring
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
    assert (third.market, third.kind, third.received_ms, third.entries) == (
        "SH",
        "tick",
        3,
        entries(1),
    )
    ring.tidy({"SH": 3, "SZ": 3}, before_ms=10**15)
    ring.append([("SH", "tick", 4, entries(1))])
    assert ring.first("SH") == (4, 4), "a number is never used twice, even after all were dropped"
    ring.close()


def test_silences_are_cut_to_what_is_asked(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    ring.add_silence(100, 200)
    ring.add_silence(300, 400)
    assert ring.silences(150) == [(150, 200), (300, 400)]
    assert ring.silences(400) == []
    ring.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    ring.append([("SH", "tick", 1, entries(1))])
    with pytest.raises(ConfigurationError, match="another producer"):
        Ring(tmp_path / "ring.sqlite", 10_000_000)
    ring.close()


def test_beyond_its_size_it_gives_up_the_oldest_and_says_which(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 50_000)
    ring.append([("SH", "tick", n, entries(100, AT_MS + 1000 * n)) for n in range(1, 4)])
    ring.acknowledge("SH", 1)
    lost = ring.append([("SH", "tick", 4, entries(100, AT_MS + 4000))])
    kept = ring.after("SH", 0, 10)
    gone = {1, 2, 3, 4} - {batch.number for batch in kept}
    assert [batch.number for batch in lost] == sorted(gone - {1}), "what Redis has is not lost"
    assert all(len(batch.entries) == 100 for batch in lost)
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
        bars=BarMaker(lambda: AT_MS, 1000),
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
    assert [(b.market, [code for code, _, _ in b.entries]) for b in batches] == [
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
    ((code, at_ms, t1),) = batch.entries
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
    assert sum(len(batch.entries) for batch in ring.after("SH", 0, 100)) == 8
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
    (first, body), _ = ring.events()
    assert json.loads(body) == {"kind": "gap", "why": "停牌"}
    ring.told(first)
    assert [json.loads(body)["kind"] for _, body in ring.events()] == ["late"]
    ring.close()
