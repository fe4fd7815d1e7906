"""Numbers that callers give: counts, seconds and speeds."""

from __future__ import annotations

import math
import operator
import re
from typing import Any, Final

from .errors import InvalidRequest
from .texts import shown

__all__ = ["MAX_ROWS", "parse_count", "parse_seconds", "parse_speed", "whole_number"]

MAX_ROWS: Final = 1_000_000
"""Most rows of one code in one request."""
_LONGEST_S: Final = 10.0**9
_BEYOND: Final = 10.0**18
_SPEEDS: Final = 1e-6, 1e6
_DIGITS: Final = re.compile(r"-?[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]{0,18})?")


def parse_count(value: Any, field: str, *, least: int = 1, most: int = MAX_ROWS) -> int:
    """Return a whole number, given as one or (in a URL, on a command line) as its digits.

    Parameters
    ----------
    field
        What it is called where it comes from.
    least, most
        Its bounds, both included.

    Raises
    ------
    InvalidRequest
        When it is none, or out of bounds; a bool and a float are none.
    """
    number = whole_number(value)
    if number is not None and least <= number <= most:
        return number
    raise InvalidRequest(
        f"{field}={shown(value)} is not a whole number from {least} to {most}.",
        hint=f"Give digits, such as {max(least, 1)}.",
        field=field,
    )


def whole_number(value: Any) -> int | None:
    """Return a whole number, given as one or as its digits; ``None`` where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(value) if _DIGITS.fullmatch(value) else None
    try:
        return operator.index(value)  # numpy's integers too
    except TypeError:
        return None


def parse_seconds(value: Any, field: str, *, least: float = 0.0, most: float = _LONGEST_S) -> float:
    """Return a length of time in seconds, given as a number or as its text.

    Raises
    ------
    InvalidRequest
        When it is no finite number within the bounds.
    """
    number = _number(value)
    if number is not None and least <= number <= most:
        return number
    raise InvalidRequest(
        f"{field}={shown(value)} is no time.",
        hint=f"Give seconds, from {least:g} to {most:g}.",
        field=field,
    )


def parse_speed(value: Any, field: str = "speed") -> float:
    """Return a speed as a number; ``'max'`` is infinite.

    Raises
    ------
    InvalidRequest
        When it is none.
    """
    if value == "max":
        return math.inf
    number = _number(value)
    least, most = _SPEEDS
    if number is not None and least <= number <= most:
        return number
    raise InvalidRequest(
        f"{field}={shown(value)} is not a speed.",
        hint=f"Give a number from {least:g} to {most:g}, such as 1 or 10, or 'max'.",
        field=field,
    )


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return float(value) if _DECIMAL.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < _BEYOND else None  # nor is NaN below it
