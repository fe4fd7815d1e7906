"""Trading days, sessions and how many bars a day has: what history is measured against.

Days are counted as China dates since 1970 (`day number`), so that they can be computed with.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from qmt_protocol.errors import TerminalRefused, TerminalUnsupported
from qmt_protocol.periods import INTRADAY_MINUTES
from qmt_protocol.times import DAY_MS, day_start_ms
from qmt_protocol.trading_days import MAINLAND

if TYPE_CHECKING:
    from qmt_terminal import Terminal
    from qmt_terminal.calendar_file import CalendarFile

__all__ = ["Calendar", "Sessions", "day_number", "day_numbers", "number_of", "period_span"]

Days = npt.NDArray[np.int64]

_CHINA_MS: Final = 8 * 3_600_000
_FIRST_DAY: Final = 19901219  # the first trading day of the Shanghai exchange
_DEFAULT_SESSIONS_S: Final = ((34_200, 41_400), (46_800, 54_000))  # 09:30-11:30, 13:00-15:00
_MATCHING: Final = (3, 8)  # continuous and closing auction: the parts that have bars

FULL_DAY_ROWS: Final = {"1m": 240, "5m": 48, "1d": 1, "tick": 1}
"""Fewest rows of a stored period that make a past day complete."""
ESTIMATED_ROWS: Final = {"1m": 241, "5m": 48, "1d": 1, "tick": 4800}
"""Rows of one day by which a download is estimated."""


def day_number(at_ms: int) -> int:
    """Return the China date of a moment."""
    return (at_ms + _CHINA_MS) // DAY_MS


def day_numbers(times_ms: npt.NDArray[np.int64]) -> Days:
    """Return the China dates of moments."""
    return (times_ms + _CHINA_MS) // DAY_MS


def number_of(day: int) -> int:
    """Return the day number of a ``YYYYMMDD`` date."""
    return day_number(day_start_ms(day))


def start_of(day: int) -> int:
    """Return the first ms of a day number's date in China time."""
    return day * DAY_MS - _CHINA_MS


def date_of(day: int) -> int:
    """Return a day number as ``YYYYMMDD``."""
    date = dt.date(1970, 1, 1) + dt.timedelta(days=day)
    return date.year * 10_000 + date.month * 100 + date.day


def period_span(period: str, day: int) -> tuple[int, int]:
    """Return the first day of the daily-or-longer bar that holds a day, and of the one after."""
    if period == "1d":
        return day, day + 1
    if period == "1w":
        monday = day - (day + 3) % 7
        return monday, monday + 7
    months = {"1mon": 1, "1q": 3, "1hy": 6, "1y": 12}[period]
    date = dt.date(1970, 1, 1) + dt.timedelta(days=day)
    first = (date.year * 12 + date.month - 1) // months * months
    return _month_start(first), _month_start(first + months)


def _month_start(months: int) -> int:
    return (dt.date(months // 12, months % 12 + 1, 1) - dt.date(1970, 1, 1)).days


class Calendar:
    """Trading days of each market up to today, as the terminal has them and people correct them."""

    def __init__(self, terminal: Terminal, file: CalendarFile) -> None:
        self._terminal = terminal
        self._file = file
        self._known: dict[str, tuple[int, int, Days]] = {}

    def days(self, market: str, now_ms: int) -> Days:
        """Return all trading days up to today; a market without any has Shanghai's."""
        today, named = day_number(now_ms), self._file.days
        known = self._known.get(market)
        if known is not None and known[:2] == (today, self._file.version):
            return known[2]
        dates = self._terminal.trading_days(market, day_start_ms(_FIRST_DAY), now_ms)
        if dates:
            if market in MAINLAND:
                opened = {day for day in named.opened if day <= date_of(today)}
                dates = sorted((opened | {*dates}) - named.closed)
            days = np.array([number_of(date) for date in dates], dtype=np.int64)
        elif market != "SH":
            days = self.days("SH", now_ms)
        else:
            days = np.empty(0, dtype=np.int64)
        self._known[market] = today, self._file.version, days
        return days


@dataclasses.dataclass(frozen=True)
class Sessions:
    """When one instrument trades within a day, seconds from its 00:00."""

    parts_s: tuple[tuple[int, int], ...]

    @classmethod
    def ask(cls, terminal: Terminal, code: str) -> Sessions:
        """Return what the terminal says, or the hours of stocks where it cannot say."""
        try:
            sessions: list[Any] = terminal.trading_sessions(code)
        except (TerminalUnsupported, TerminalRefused):
            sessions = []
        parts = tuple((one.start_s, one.end_s) for one in sessions if one.status in _MATCHING)
        return cls(parts or _DEFAULT_SESSIONS_S)

    @property
    def close_s(self) -> int:
        """End of the trading day."""
        return max(end_s for _start_s, end_s in self.parts_s)

    def labels_until(self, period: str, second: int) -> int:
        """Return how many bars of an intraday period ended by a second of the day."""
        length_s = INTRADAY_MINUTES[period] * 60
        traded_s = sum(max(0, min(end_s, second) - start_s) for start_s, end_s in self.parts_s)
        return traded_s // length_s
