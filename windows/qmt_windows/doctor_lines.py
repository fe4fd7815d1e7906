"""What the doctor says: one line per thing looked at, in Chinese and English."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal

__all__ = ["Level", "Line", "shown", "worst"]

Level = Literal["ok", "warn", "fail"]
_LEVELS: Final[tuple[Level, ...]] = ("ok", "warn", "fail")


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing looked at.

    Parameters
    ----------
    name
        Short and stable, for programs.
    chinese, english
        What was found and what it means.
    todo
        What to do about it, Chinese and English.
    facts
        The same for programs.
    """

    name: str
    level: Level
    chinese: str
    english: str
    todo: tuple[str, str] | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the line for ``--json``."""
        return {
            "name": self.name,
            "level": self.level,
            "chinese": self.chinese,
            "english": self.english,
            "todo": list(self.todo or ()),
            "facts": self.facts,
        }


def shown(line: Line) -> str:
    """Return a line as a person reads it."""
    todo = "".join(f"\n       → {one}" for one in dict.fromkeys(line.todo or ()) if one)
    return f"[{line.level:^4}] {line.chinese} · {line.english}{todo}"


def worst(lines: list[Line]) -> Level:
    """Return the worst level of all lines."""
    return max((line.level for line in lines), key=_LEVELS.index, default="ok")
