"""Runs the long crash tests, counts, and writes JSON and benchmarks/CRASHES.md."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import redis

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "tests")]

from benchmarks.machine import describe  # noqa: E402
from crash_rig import Result  # noqa: E402
from crash_scale import LONG, SHORT, Scale  # noqa: E402
from crash_scenarios import SCENARIOS  # noqa: E402

from qmt_protocol.errors import QMTError  # noqa: E402

Scenario = Callable[[Path, int, Scale], Result]


def run_one(name: str, scenario: Scenario, seed: int, scale: Scale, work: Path) -> dict[str, Any]:
    """Run one scenario; what it raises is a problem of its own."""
    begun = time.monotonic()
    directory = work / name
    try:
        result = scenario(directory, seed, scale)
    except (OSError, RuntimeError, TimeoutError, redis.RedisError, QMTError):
        result = Result(name, problems=[traceback.format_exc(limit=-4)])
    if not result.ok:
        result.problems.append(f"its files are in {directory.name}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return {**asdict(result), "ok": result.ok, "seed": seed, "took_s": time.monotonic() - begun}


def markdown(document: dict[str, Any]) -> str:
    """Return the report."""
    machine = document["machine"]
    lines = [
        "# Crash tests",
        "",
        f"Written by `scripts/crash` on {document['at']}, commit {machine['commit']}, "
        f"{machine['cores']} cores, {machine['redis_server']}, Python {machine['python']}. "
        "Simulated market. What is counted and how is in docs/crash-tests.md.",
        "",
        "| scenario | result | counts | seed | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for run in document["runs"]:
        shown = "; ".join(_shown(name, told) for name, told in run["figures"].items())
        state = "in order" if run["ok"] else "**FAULT**"
        took = f"{run['took_s']:.0f}"
        lines.append(f"| {run['name']} | {state} | {shown} | {run['seed']} | {took} |")
    faults = [run for run in document["runs"] if not run["ok"]]
    if faults:
        lines += ["", "## Faults", ""]
        for run in faults:
            lines += [f"### {run['name']}", "", "```", *run["problems"], "```", ""]
    return "\n".join(lines) + "\n"


def _shown(name: str, told: Any) -> str:
    if isinstance(told, dict):
        told = ", ".join(f"{key} {value}" for key, value in told.items() if value)
    return f"{name}: {told}".replace("|", "/")


def merge(old: Path, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put runs in place of earlier ones of the same name."""
    known = json.loads(old.read_text("utf-8"))["runs"] if old.exists() else []
    by_name = {run["name"]: run for run in [*known, *runs]}
    return [by_name[name] for name in SCENARIOS if name in by_name]


def main() -> int:
    """Run the scenarios named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true", help="the short versions; nothing written")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    parser.add_argument("--work", type=Path, help="keep the files of faulty runs here")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(SCENARIOS))
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    scale = SHORT if options.quick else LONG
    work = options.work or Path(tempfile.mkdtemp(prefix="qmt-crash-"))
    runs = []
    for name, scenario in SCENARIOS.items():
        if options.names and name not in options.names:
            continue
        run = run_one(name, scenario, options.seed, scale, work)
        runs.append(run)
        print(json.dumps(run, indent=1), flush=True)
        if not options.quick:
            write(options.output, runs)
    bad = [run["name"] for run in runs if not run["ok"]]
    print(f"{len(runs) - len(bad)} in order, faults: {', '.join(bad) or 'none'}", flush=True)
    if bad:
        print(f"files: {work}", flush=True)
    elif options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    return bool(bad)


def write(output: Path, runs: list[dict[str, Any]]) -> None:
    """Write JSON and Markdown; runs of other scenarios stay as they are."""
    results = output / "results"
    results.mkdir(parents=True, exist_ok=True)
    document = {
        "at": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe(),
        "runs": merge(results / "crash.json", runs),
    }
    (results / "crash.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (output / "CRASHES.md").write_text(markdown(document), "utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
