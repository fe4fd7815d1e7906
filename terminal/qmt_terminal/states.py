"""The terminal's day in five words, decided from evidence; nothing here asks or looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["AWAY", "Evidence", "State", "decide"]

State = Literal["not_running", "waiting_for_login", "quote_server_down", "deaf", "ok"]
"""What a heartbeat's ``terminal.state`` says; docs/events.md tells what each means."""

AWAY: Final[frozenset[State]] = frozenset({"not_running", "waiting_for_login"})
"""States in which no terminal answers."""


@dataclass(frozen=True)
class Evidence:
    """What is known of the terminal at one moment."""

    connected: bool
    why_not: str = ""
    """What a connection failed with."""
    sought: str = "a terminal's program"
    """Programs that were looked for, in words."""
    programs: tuple[str, ...] = ()
    """Those of them that run."""
    quote_server_up: bool | None = None
    """As the terminal tells; ``None``: it does not."""
    pushes_come: bool = False
    """Whether quotes come in spite of what it tells."""
    deaf: str = ""
    """Why the feed is taken for deaf; ``""``: it is not."""


def decide(evidence: Evidence) -> tuple[State, str]:
    """Return the state and its reason, ``""`` when all is well.

    A terminal that is not logged in runs and does not answer. A quote server that is away
    explains a silence, so the feed is not called deaf meanwhile; pushes that come all the same
    refute it.
    """
    why = f" ({evidence.why_not})" if evidence.why_not else ""
    if not evidence.connected:
        if evidence.programs:
            runs = ", ".join(evidence.programs)
            return "waiting_for_login", f"{runs} runs and does not answer: log in to it{why}"
        return "not_running", f"the terminal does not run: no {evidence.sought}{why}"
    if evidence.quote_server_up is False and not evidence.pushes_come:
        return "quote_server_down", "the terminal is connected to no quote server"
    if evidence.deaf:
        return "deaf", evidence.deaf
    return "ok", ""
