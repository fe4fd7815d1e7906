"""What a question is: its words, its time limit, what of its answer is compared and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .session import Session

__all__ = ["EQUAL", "Answer", "How", "Question"]

How = float
"""How two values of a fact are compared: `EQUAL`, or a number: the greater over the smaller."""
EQUAL: How = 0.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a question brought.

    Parameters
    ----------
    facts
        Stable values, in JSON's types, that are compared. ``None``: not to be known now, such as
        the cadence of pushes at night.
    evidence
        What else is worth keeping for a reader; never compared.
    """

    facts: dict[str, Any]
    evidence: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question to a terminal.

    Parameters
    ----------
    facts
        The facts that its answer holds, each with how it is compared.
    limit_s
        After so long the child that asks is ended.
    downloads
        It makes the terminal fetch data; left out by ``--no-download``.
    disturbs
        Other programs on this terminal may notice it; asked with ``--disturb`` alone.
    """

    name: str
    english: str
    chinese: str
    ask: Callable[[Session], Answer]
    facts: Mapping[str, How]
    limit_s: float = 30.0
    downloads: bool = False
    disturbs: bool = False
