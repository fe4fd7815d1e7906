"""Writes what the last full runs counted: as JSON, and as the table of docs/fuzz-tests.md."""

from __future__ import annotations

import datetime as dt
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.machine import describe

if TYPE_CHECKING:
    from fuzz_children import Report
    from fuzz_run import Target

__all__ = ["write"]

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "docs" / "fuzz-tests.json"
PAGE: Final = ROOT / "docs" / "fuzz-tests.md"
HEADING: Final = "## Last full runs"


def write(target: Target, seed: int, report: Report, took_s: float) -> None:
    """Put a target's run in place of its earlier one, and write all anew."""
    machine = _machine()
    runs: dict[str, dict[str, Any]] = (
        json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    )
    runs[target.name] = {
        "what": target.what,
        "at": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "commit": machine["commit"],
        "cores": machine["cores"],
        "seed": seed,
        "tried": report.tried,
        "refused": report.refused,
        "held": report.held,
        "failures": [failure.again for failure in report.failures],
        "took_s": round(took_s),
    }
    runs = dict(sorted(runs.items()))
    RESULTS.write_text(json.dumps(runs, indent=1) + "\n", "utf-8")
    head = PAGE.read_text("utf-8").partition(HEADING)[0]
    PAGE.write_text(head + HEADING + "\n\n" + _table(runs), "utf-8")


@cache
def _machine() -> dict[str, Any]:
    """Return the machine and the commit as they were before the page was first written."""
    return describe()


def _table(runs: dict[str, dict[str, Any]]) -> str:
    lines = [
        "Written by `scripts/fuzz`.",
        "",
        "| target | what | inputs | refused | held | failures | seed | s | cores | day | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, run in runs.items():
        bad = f"**{len(run['failures'])}**" if run["failures"] else 0
        row = (
            *(name, run["what"], *(f"{run[one]:,}" for one in ("tried", "refused", "held")), bad),
            *(run[one] for one in ("seed", "took_s", "cores")),
            *(run["at"][:10], run["commit"]),
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    for run in runs.values():
        if run["failures"]:
            lines += ["", "```", *run["failures"], "```"]
    return "\n".join(lines) + "\n"
