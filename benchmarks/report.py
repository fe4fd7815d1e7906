"""A run as JSON, and as the Markdown page that people read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any

from .measure import Section

__all__ = ["as_json", "as_markdown"]


def as_json(run: dict[str, Any], sections: Iterable[Section]) -> str:
    """Return everything measured, every sample included."""
    document = {**run, "sections": [dataclasses.asdict(section) for section in sections]}
    return json.dumps(document, ensure_ascii=False, indent=1, default=str) + "\n"


def as_markdown(run: dict[str, Any], sections: list[Section], told: str = "") -> str:
    """Return the report: machine, aims, what people have to say to them, a table per section."""
    parts = [
        "# Benchmark report",
        f"Made by `{run['command']}` on {run['date']}; do not edit. "
        "How to read it: [README.md](README.md).",
        _machine(run),
        *([_aims(sections)] if any(row.aims for one in sections for row in one.rows) else []),
        *([told.strip()] if told.strip() else []),
        *(_section(section) for section in sections),
    ]
    return "\n\n".join(parts) + "\n"


def _machine(run: dict[str, Any]) -> str:
    machine, load = run["machine"], run["load"]
    packages = ", ".join(f"{name} {found}" for name, found in machine["packages"].items())
    loads = ", ".join(f"{one['load_1_min']} ({one['busy_percent']} % busy)" for one in load)
    lines = [
        f"- {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; "
        f"{machine['system']}. Everything runs on it: simulator, servers and clients.",
        f"- Python {machine['python']}, {machine['redis_server']}, {packages}; "
        f"commit {machine['commit']}",
        f"- Load average (and what others than this run took) between the parts: {loads}",
    ]
    if run["size"] != "full":
        lines.append(
            f"- **A {run['size']} run: few samples over small sizes. It shows that the benchmarks "
            "work; its figures are not the project's.**"
        )
    return "\n".join(lines)


def _aims(sections: list[Section]) -> str:
    lines = ["## Aims", "", "| what | side | aim | measured | |", "| --- | --- | --- | --- | --- |"]
    for section in sections:
        for row in section.rows:
            for aim in row.aims:
                got = section.ratio(row) if aim.of == "ratio" else row.median
                at = "at least" if row.more_is_better else "at most"
                unit = "of the reference" if aim.of == "ratio" else row.unit
                lines.append(
                    f"| {section.name}: {row.what} | {row.side} "
                    f"| {at} {_number(aim.value)} {unit} | {_number(got)} "
                    f"| {_verdict(aim.value, got, more_is_better=row.more_is_better)} |"
                )
    return "\n".join(lines)


def _verdict(aim: float, got: float | None, *, more_is_better: bool) -> str:
    if got is None or math.isnan(got):
        return "not measured"
    if got >= aim if more_is_better else got <= aim:
        return "met"
    return f"**missed by {abs(got / aim - 1):.0%}**"


def _section(section: Section) -> str:
    lines = [f"## {section.name}", "", section.question, ""]
    if section.facts:
        facts = "; ".join(f"{name}: {_fact(value)}" for name, value in section.facts.items())
        lines += [f"{facts}.", ""]
    if section.failed:
        lines += [f"**It failed: {section.failed}**", ""]
    rated = any(section.ratio(row) is not None for row in section.rows)
    noted = any(row.note for row in section.rows)
    if section.rows:
        heads = ["what", "side", "median", "quartiles", "n"]
        heads += ["ratio"] * rated + ["note"] * noted
        lines += ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in section.rows:
        ratio = section.ratio(row)
        low, high = row.spread
        cells = [
            row.what,
            row.side,
            f"{_number(row.median)} {row.unit}",
            f"{_number(low)} to {_number(high)}" if len(row.samples) > 1 else "",
            str(len(row.samples)),
        ]
        if rated:
            cells.append("" if ratio is None else _number(ratio))
        if noted:
            cells.append(row.note)
        lines.append("| " + " | ".join(cells) + " |")
    lines += [line for note in section.notes for line in ("", note)]
    return "\n".join(lines)


def _fact(value: Any) -> str:
    return _number(value) if isinstance(value, (int, float)) else str(value)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
