"""How a message repeats what somebody gave: cut, and without what controls a terminal."""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_SHOWN", "shown"]

MOST_SHOWN: Final = 80
"""Most characters of what somebody gave that an error repeats."""


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """Return a value as a message quotes it: at most ``most`` characters, none that controls."""
    part = value[: most + 1] if isinstance(value, (str, bytes)) else value
    text = repr(part)
    return text if len(text) <= most else f"{text[: most - 3]}..."
