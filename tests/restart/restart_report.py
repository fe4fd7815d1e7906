"""Writes what the restart matrix counted: as JSON, and as the table of docs/restart-tests.md."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import describe
from redis_servers import MATRIX
from restart_cell import Outcome

__all__ = ["write"]

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "docs" / "restart-tests.json"
PAGE: Final = ROOT / "docs" / "restart-tests.md"
HEADING: Final = "## Last runs"
FAULTS: Final = ("term", "kill", "rewrite", "memory", "disk", "tail", "ring", "archive")


def write(outcome: Outcome) -> None:
    """Put a cell in place of an earlier one of the same name, and write all anew."""
    machine = _machine()
    stamp = {
        "at": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "commit": machine["commit"],
        "cores": machine["cores"],
    }
    cells: list[dict[str, Any]] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    known = {_name(one): one for one in cells}
    new = {**asdict(outcome), **stamp}
    cells = sorted(({**known, _name(new): new}).values(), key=_cell_key)
    RESULTS.write_text(json.dumps(cells, indent=1) + "\n", "utf-8")
    head = PAGE.read_text("utf-8").partition(HEADING)[0]
    PAGE.write_text(head + HEADING + "\n\n" + _table(cells), "utf-8")


@cache
def _machine() -> dict[str, Any]:
    """Return the machine and the commit as they were before the page was first written."""
    return describe()


def _name(cell: dict[str, Any]) -> tuple[str, str, str]:
    return cell["fault"], cell["server"], cell["windows"]


def _cell_key(cell: dict[str, Any]) -> tuple[int, int, str]:
    return FAULTS.index(cell["fault"]), MATRIX.index(cell["server"]), cell["windows"]


def _table(cells: list[dict[str, Any]]) -> str:
    commits = sorted({(one["at"][:10], one["commit"]) for one in cells})
    runs = ", ".join(f"{day} of commit {commit}" for day, commit in commits)
    total = sum(one["rounds"] for one in cells)
    bad = [one for one in cells if one["problems"]]
    lines = [
        f"Written by `scripts/restart-matrix`; {cells[0]['cores']} cores. Runs: {runs}. "
        f"{total} rounds, {len(bad)} cells not in order.",
        "",
        "| fault | server | Windows | rounds | ticks pushed | stored | named | entries before the "
        "restarts | gone with the tail | other writes acknowledged | gone with the tail | lost | "
        "seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in cells:
        figures = one["figures"]
        variants = ", ".join(f"{count} {name}" for name, count in sorted(one["variants"].items()))
        rounds = f"{one['rounds']}" if len(one["variants"]) < 2 else f"{one['rounds']}: {variants}"
        row = (
            *(one["fault"], one["version"], one["windows"], rounds),
            *(figures.get(name, 0) for name in ("pushed", "stored", "named", "entries before")),
            *(figures.get(name, 0) for name in ("entries cut", "writes acknowledged")),
            figures.get("writes cut", 0),
            "**FAULT**" if one["problems"] else 0,
            one["seed"],
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    for one in bad:
        lines += ["", f"`{' '.join(_name(one))}`:", "", "```", *one["problems"], "```"]
    return "\n".join(lines) + "\n"
