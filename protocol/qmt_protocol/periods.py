"""Bar periods and adjustment (复权) kinds, in xtquant's own words."""

from __future__ import annotations

from typing import Final

from .errors import InvalidRequest
from .texts import shown

__all__ = [
    "ADJUSTMENTS",
    "BAR_PERIODS",
    "DAILY_PERIODS",
    "INTRADAY_MINUTES",
    "PERIODS",
    "parse_adjust",
    "parse_period",
    "stored_period",
]

INTRADAY_MINUTES: Final[dict[str, int]] = {
    "1m": 1,
    "5m": 5,
    "15m": 15,
    "30m": 30,
    "60m": 60,
    "1h": 60,
}
"""Intraday periods and their length in minutes."""

DAILY_PERIODS: Final = ("1d", "1w", "1mon", "1q", "1hy", "1y")
BAR_PERIODS: Final = (*INTRADAY_MINUTES, *DAILY_PERIODS)
PERIODS: Final = ("tick", *BAR_PERIODS)

ADJUSTMENTS: Final = ("none", "front", "back", "front_ratio", "back_ratio")
_ALIASES: Final = {"": "none", "qfq": "front", "hfq": "back"}


def parse_period(period: object, *, bars_only: bool = False) -> str:
    """Check a period and return it.

    Raises
    ------
    InvalidRequest
        When the terminal has no such period.
    """
    allowed = BAR_PERIODS if bars_only else PERIODS
    if isinstance(period, str) and period in allowed:
        return period
    raise InvalidRequest(
        f"{shown(period)} is not a period.",
        hint=f"Choose one of {', '.join(allowed)}.",
        field="period",
    )


def parse_adjust(adjust: object) -> str:
    """Return xtquant's word for an adjustment; ``qfq`` is ``front``, ``hfq`` is ``back``.

    Raises
    ------
    InvalidRequest
        When it is no adjustment.
    """
    if adjust is None:
        return "none"
    if isinstance(adjust, str):
        word = _ALIASES.get(adjust, adjust)
        if word in ADJUSTMENTS:
            return word
    raise InvalidRequest(
        f"{shown(adjust)} is not an adjustment.",
        hint=f"Choose one of {', '.join(ADJUSTMENTS)}, qfq, hfq.",
        field="adjust",
    )


def stored_period(period: str) -> str:
    """Return the period that a terminal stores and derives the given one from."""
    if period in ("tick", "1m"):
        return period
    return "5m" if period in INTRADAY_MINUTES else "1d"
