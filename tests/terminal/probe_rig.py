"""Probes a simulated terminal; as a program it writes the simulator's reference reports anew."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qmt_simulator.process import TerminalProcess
from qmt_simulator.profiles import PROFILES
from qmt_terminal.probe import QUESTIONS, Choice, Prober, Report

REPORTS = Path(__file__).parents[2] / "simulator" / "qmt_simulator" / "reports"
MORNING = "2026-11-20 10:00:00"
RESTARTS = frozenset(name for name in QUESTIONS if name.startswith("restart"))
QUICK = ("--speed", "4", "--push-ms", "25", "--real-hours", "--cache-delay-s", "0.02,0.05")


def environment(port: int, **more: str) -> dict[str, str]:
    """Return the variables with which a child finds the simulated terminal at a port."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QMT_")}
    return {
        **kept,
        "QMT_TERMINAL_PORT": str(port),
        "QMT_NATIVE_MODULE": "qmt_simulator.native",
        **more,
    }


def probe(
    port: int,
    names: Iterable[str] = QUESTIONS.keys() - RESTARTS,
    *,
    on_person: Callable[[str], None] = lambda what: None,
    **choice: Any,
) -> Report:
    """Ask a simulated terminal, quickly."""
    quick: dict[str, Any] = {"disturbs": True, "lag_s": 0.5, "listen_s": 30.0, "settle_s": 2.0}
    asked = Choice(names=frozenset(names), **{**quick, **choice})
    return Prober(asked, environment=environment(port), on_person=on_person).run(Report())


def probe_profile(
    profile: str, names: Iterable[str] = QUESTIONS.keys() - RESTARTS, *, start: str = MORNING
) -> dict[str, Any]:
    """Return the report's document of a simulated terminal with a profile's name or file."""
    with TerminalProcess("--profile", profile, "--start", start, *QUICK) as terminal:
        return probe(terminal.port, names).document()


class RestartingTerminal:
    """A simulated terminal that is restarted on the same port when a person is asked to."""

    def __init__(self, profile: str) -> None:
        self._flags = ("--profile", profile, "--start", MORNING, *QUICK)
        self._terminal = TerminalProcess(*self._flags)
        self.port = self._terminal.port
        self.asked: list[str] = []

    def restart(self, what: str) -> None:
        self.asked.append(what)
        self._terminal.stop()
        self._terminal = TerminalProcess("--port", str(self.port), *self._flags)

    def stop(self) -> None:
        self._terminal.stop()


def reference(profile: str) -> dict[str, Any]:
    """Return everything a terminal of a profile answers, restarts included."""
    terminal = RestartingTerminal(profile)
    try:
        report = probe(terminal.port, QUESTIONS, on_person=terminal.restart)
    finally:
        terminal.stop()
    return report.reference(profile)


def main() -> int:
    """Write the reference report of each profile."""
    REPORTS.mkdir(exist_ok=True)
    for profile in sys.argv[1:] or sorted(PROFILES):
        document = reference(profile)
        wrong = {
            name: answer
            for name, answer in document["answers"].items()
            if answer["status"] != "answered" and "reason_kind" not in answer
        }
        if wrong:
            print(f"{profile}: {wrong}", file=sys.stderr)
            return 1
        text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True)
        (REPORTS / f"{profile}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{profile}: {len(document['answers'])} answers")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
