"""Trading days of the Shanghai exchange and China time (UTC+8, no summer time)."""

from __future__ import annotations

import datetime as dt
import warnings
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from qmt_simulator.market.hashing import I64

DAY_MS: Final = 86_400_000
CHINA_OFFSET_MS: Final = 28_800_000
FIRST_DAY: Final = 20150105
LAST_DAY: Final = 20351231
_CLOSED_EVERY_YEAR: Final = (101, 501, 1001, 1002, 1003)
"""``MMDD`` of the public holidays whose dates the law fixes."""
_EPOCH: Final = np.datetime64("1970-01-01", "D")


def to_ordinal(day: int) -> int:
    """Days since 1970-01-01 of a YYYYMMDD day; ValueError if there is no such day."""
    return dt.date(day // 10000, day // 100 % 100, day % 100).toordinal() - 719_163


def to_day(ordinal: int) -> int:
    """The YYYYMMDD day of an ordinal."""
    date = dt.date.fromordinal(ordinal + 719_163)
    return date.year * 10000 + date.month * 100 + date.day


def days_of(ordinals: ArrayLike) -> I64:
    """YYYYMMDD of many ordinals."""
    dates = _EPOCH + np.asarray(ordinals, dtype=np.int64)
    month = dates.astype("datetime64[M]").astype(np.int64)
    first = dates.astype("datetime64[M]").astype("datetime64[D]")
    day = (dates - first).astype(np.int64) + 1
    return np.asarray((1970 + month // 12) * 10000 + (month % 12 + 1) * 100 + day, dtype=np.int64)


def ordinal_of_ms(time_ms: int) -> int:
    """The China day of an instant, as an ordinal."""
    return (time_ms + CHINA_OFFSET_MS) // DAY_MS


def midnight_ms(ordinal: int) -> int:
    """00:00 China time of an ordinal, ms since the epoch."""
    return ordinal * DAY_MS - CHINA_OFFSET_MS


class TradingCalendar:
    """Trading days from 2015-01-05 to 2035.

    Up to the horizon of exchange_calendars these are XSHG sessions; after it every weekday but the
    public holidays of fixed date. It is this market's own truth: a terminal in it knows all of it,
    and nothing depends on the day on which it is asked.

    Attributes
    ----------
    ordinals : int64[n], days since 1970-01-01
    days : int64[n], the same as YYYYMMDD
    holidays : weekdays without trading, YYYYMMDD
    """

    def __init__(self) -> None:
        first, last = to_ordinal(FIRST_DAY), to_ordinal(LAST_DAY)
        # Imported here: it brings pandas along and costs most of the start-up time. What pandas
        # deprecates in it is not ours to change.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from exchange_calendars.exchange_calendar_xshg import XSHGExchangeCalendar

            # Its own end would be a year from now.
            end = XSHGExchangeCalendar.bound_max()
            xshg = XSHGExchangeCalendar(start=f"{FIRST_DAY // 10000}-01-01", end=end)
            sessions = xshg.sessions.to_numpy().astype("datetime64[D]").astype(np.int64)
        sessions = sessions[(sessions >= first) & (sessions <= last)]
        every = np.arange(first, last + 1, dtype=np.int64)
        weekdays = every[(every + 3) % 7 < 5]
        later = weekdays[weekdays > np.datetime64(end, "D").astype(np.int64)]
        later = later[~np.isin(days_of(later) % 10000, _CLOSED_EVERY_YEAR)]
        self.ordinals: I64 = np.concatenate([sessions, later])
        self.days: I64 = days_of(self.ordinals)
        self.holidays: list[int] = days_of(np.setdiff1d(weekdays, self.ordinals)).tolist()

    def position(self, ordinal: int) -> int:
        """Position of the newest trading day at or before a day; -1 before the first."""
        return int(np.searchsorted(self.ordinals, ordinal, side="right")) - 1

    def is_trading(self, ordinal: int) -> bool:
        """Whether a day is a session of the exchange."""
        at = self.position(ordinal)
        return at >= 0 and int(self.ordinals[at]) == ordinal


@lru_cache(maxsize=1)
def trading_calendar() -> TradingCalendar:
    """The one calendar of this process, loaded at first use."""
    return TradingCalendar()
