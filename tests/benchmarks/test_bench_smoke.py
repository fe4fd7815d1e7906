"""Each benchmark runs over tiny sizes, and its report holds what it found; no speed is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "publish",
    "codec",
    "latency",
    "throughput",
    "deliveries",
    "rest",
    "memory",
    "growth",
    "stored",
    "hostile",
    "unread",
]


def test_every_benchmark_runs_and_reports(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--size", "smoke", "--no-incumbent"),
            *("--output", str(tmp_path), "--scratch", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=190,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (raw,) = tmp_path.glob("*.json")
    (report,) = tmp_path.glob("*.md")
    assert {path.name for path in tmp_path.iterdir()} == {raw.name, report.name}, "scratch is left"
    run, page = json.loads(raw.read_text("utf-8")), report.read_text("utf-8")

    assert [section["name"] for section in run["sections"]] == NAMES
    for section in run["sections"]:
        assert section["failed"] == ""
        assert all(row["samples"] for row in section["rows"]), section["name"]
        assert f"## {section['name']}\n\n{section['question']}" in page
        assert all(f"| {row['what']} | {row['side']} |" in page for row in section["rows"])
    assert "A smoke run" in page

    sides = {
        section["name"]: {row["side"] for row in section["rows"]} for section in run["sections"]
    }
    assert sides["publish"] == {"limit", "pipeline", "ours", "ours, from pushes"}
    assert {"producer", "redis", "gateway", "terminal"} <= sides["throughput"]
    # What was counted and summed up by the clients is what the terminal's log says.
    found = {
        (row["what"], row["side"]): row for section in run["sections"] for row in section["rows"]
    }
    assert found["ticks that differ from the log", "ours"]["samples"] == [0]
    assert found["ticks that the client did not read", "ours"]["samples"] == [0]
    notes = [row["note"] for (what, _), row in found.items() if what.startswith("median tick, ")]
    assert set(notes) == {"every tick right"}
    for (_, side), row in found.items():
        if side == "clients with missing or wrong ticks":
            assert row["samples"] == [0], row


def test_an_unknown_name_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no benchmark nothing; there are publish" in done.stderr
