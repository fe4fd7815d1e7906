"""Lays an answered questionnaire beside the simulator's, fact by fact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from .question import EQUAL, How
from .questions import QUESTIONS
from .report import read_report

__all__ = ["Comparison", "Difference", "compare", "load_references", "nearest"]

_FAILED: Final = ("failed", "hung", "aborted")


@dataclasses.dataclass(frozen=True)
class Difference:
    """One fact in which two terminals differ."""

    question: str
    fact: str
    """Empty: the question as a whole was answered by one of them alone."""
    terminal: Any
    reference: Any

    @property
    def name(self) -> str:
        """``question.fact``."""
        return f"{self.question}.{self.fact}" if self.fact else self.question


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison brought."""

    profile: str
    differences: tuple[Difference, ...]
    compared: int
    """Facts that both know."""
    unknown: int
    """Facts that one of them could not tell, for example at night."""


def compare(report: Mapping[str, Any], reference: Mapping[str, Any]) -> Comparison:
    """Compare two reports' facts, each as its question says.

    Parameters
    ----------
    report, reference
        Documents of `Report.document` or `Report.reference`.
    """
    differences: list[Difference] = []
    compared = unknown = 0
    for name, question in QUESTIONS.items():
        ours, theirs = (document["answers"].get(name, {}) for document in (report, reference))
        statuses = (ours.get("status"), theirs.get("status"))
        if None in statuses or "not asked" in statuses or not question.facts:
            unknown += len(question.facts)
            continue
        if statuses != ("answered", "answered"):
            compared += 1
            if statuses[0] != statuses[1] or ours.get("reason_kind") != theirs.get("reason_kind"):
                differences.append(Difference(name, "", _shown(ours), _shown(theirs)))
            continue
        for fact, how in question.facts.items():
            mine, other = ours["facts"].get(fact), theirs["facts"].get(fact)
            if mine is None or other is None:
                unknown += 1
                continue
            compared += 1
            if not _same(mine, other, how):
                differences.append(Difference(name, fact, mine, other))
    return Comparison(str(reference.get("profile", "")), tuple(differences), compared, unknown)


def _shown(answer: Mapping[str, Any]) -> str:
    if answer["status"] in _FAILED:
        return f"{answer['status']}: {answer.get('reason', '')}".rstrip(": ")
    return "answered"


def _same(mine: Any, other: Any, how: How) -> bool:
    if how == EQUAL:
        return bool(mine == other)
    low, high = sorted((float(mine), float(other)))
    return high == low or (low > 0 and high / low <= how)


def load_references(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the simulator's reference reports by profile.

    Parameters
    ----------
    folder
        Where they lie; default: beside the installed simulator. They are read as data: nothing
        of the simulator is imported. Empty where it is not installed.
    """
    if folder is None:
        spec = find_spec("qmt_simulator")
        if spec is None or spec.origin is None:
            return {}
        folder = Path(spec.origin).parent / "reports"
    return {path.stem: read_report(path) for path in sorted(folder.glob("*.json"))}


def nearest(
    report: Mapping[str, Any], references: Mapping[str, Mapping[str, Any]]
) -> Comparison | None:
    """Return the comparison with the profile that differs least; None without any."""
    all_of_them = [
        dataclasses.replace(compare(report, reference), profile=name)
        for name, reference in references.items()
    ]
    return min(all_of_them, key=lambda one: len(one.differences), default=None)
