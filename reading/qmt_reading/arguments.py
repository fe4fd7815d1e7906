"""Arguments as people write them: codes, markets, names, times of day."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from qmt_protocol.codes import parse_codes, parse_markets, parts_of
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.texts import parse_text
from qmt_protocol.times import day_start_ms, parse_start

__all__ = [
    "Clock",
    "Codes",
    "is_all",
    "is_one",
    "parse_clock",
    "parse_names",
    "parse_one",
    "parse_rows",
    "parse_scope",
]

Codes = str | Iterable[str]
_CLOCK: Final = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
_NAME: Final = 64
"""Characters of a column's or sector's name at most."""


@dataclass(frozen=True)
class Clock:
    """A time of day in China, of a day not known yet."""

    seconds: int

    def on(self, day: int) -> int:
        """Return that time of a ``YYYYMMDD`` day, in ms since the epoch."""
        return day_start_ms(day) + self.seconds * 1000


def parse_clock(start: Any) -> Clock | int | None:
    """Return a start as ms since the epoch, or, of ``HH:MM[:SS]``, as a time of day.

    Raises
    ------
    InvalidRequest
        When it is no time.
    """
    if isinstance(start, str) and (at := _CLOCK.fullmatch(start.strip())):
        hours, minutes, seconds = (int(part or 0) for part in at.groups())
        return Clock(hours * 3600 + minutes * 60 + seconds)
    return parse_start(start)


def parse_scope(codes: Codes | None, markets: Codes) -> tuple[list[str] | None, list[str]]:
    """Check that either codes or markets are named, and return both as lists."""
    whole = parse_markets(markets)
    if bool(whole) == (codes is not None):
        raise InvalidRequest("Give codes, or markets.", hint="codes=['600519.SH'].", field="codes")
    return (None if codes is None else parse_codes(codes)), whole


def is_one(codes: Codes) -> bool:
    """Whether one code was named, so that its answer is not put in a dict."""
    return isinstance(codes, str) and "," not in codes


def is_all(codes: Codes) -> bool:
    """Whether ``*`` stands for the codes."""
    return codes == "*" or (not isinstance(codes, str) and list(codes) == ["*"])


def parse_one(code: str) -> str:
    """Check that one code was named and return it."""
    found = parse_codes(code)
    if len(found) != 1:
        raise InvalidRequest("Give one code.", hint="Several go to get_batch_history().")
    return found[0]


def parse_rows(count: Any) -> Any:
    """Return a count of rows; xtquant's -1, which means all, as ``None``."""
    return None if count == -1 else count  # checked with the job's other parameters


def parse_names(names: Codes | None, field: str = "fields") -> list[str] | None:
    """Return names given as a list or comma-separated; ``None`` for none.

    Raises
    ------
    InvalidRequest
        When one is no text, or too long for a name.
    """
    if names is None or names == "":
        return None
    checked = (parse_text(name, field, most=_NAME).strip() for name in parts_of(names, field))
    return list(dict.fromkeys(filter(None, checked)))
