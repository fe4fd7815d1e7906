"""What is certain of trading days in any year, and when what is known of them ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .times import DAY_MS, day_start_ms

__all__ = [
    "FIXED_HOLIDAYS",
    "MAINLAND",
    "WARN_DAYS",
    "closed_by_law",
    "days_left",
    "ends_soon",
    "iso_day",
]

MAINLAND: Final = frozenset({"SH", "SZ", "BJ", "IF", "SF", "DF", "ZF", "INE", "GF", "SHO", "SZO"})
"""Markets that keep Shanghai's trading days."""
WARN_DAYS: Final = 60
"""So many days before what is known ends people are told."""

FIXED_HOLIDAYS: Final = (101, 501, 1001, 1002, 1003)
"""``MMDD`` of New Year's Day (元旦), Labour Day (劳动节) and National Day's three (国庆节)."""


def closed_by_law(day: int) -> bool:
    """Whether the mainland's exchanges are closed on a ``YYYYMMDD`` day in any year.

    Public holidays whose dates the law itself gives, in the solar calendar. The days around them,
    and the holidays of the lunar calendar, are arranged year by year and are not told here.
    """
    return day % 10_000 in FIXED_HOLIDAYS


def iso_day(day: int) -> str:
    """Return a ``YYYYMMDD`` day as ``YYYY-MM-DD``."""
    return f"{day // 10_000:04d}-{day // 100 % 100:02d}-{day % 100:02d}"


def days_left(trading_day: Mapping[str, Any]) -> int | None:
    """Return for how many days more trading days are known.

    Parameters
    ----------
    trading_day
        A heartbeat's ``terminal.trading_day``.

    Returns
    -------
    int or None
        0 on the last known day, less behind it; ``None`` where nobody tells.
    """
    try:
        day, until = int(trading_day["day"]), int(trading_day["known_until"])
        return (day_start_ms(until) - day_start_ms(day)) // DAY_MS
    except (KeyError, TypeError, ValueError):
        return None


def ends_soon(trading_day: Mapping[str, Any]) -> bool:
    """Whether people should see to it that later trading days become known."""
    left = days_left(trading_day)
    return left is not None and left <= WARN_DAYS
