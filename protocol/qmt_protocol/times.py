"""Time at the borders: China time in, milliseconds since the epoch inside."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn
from zoneinfo import ZoneInfo

import numpy as np

from .amounts import whole_number
from .errors import InvalidRequest
from .texts import shown

__all__ = [
    "CHINA",
    "DAY_MS",
    "LAST_MS",
    "day_of",
    "is_weekday",
    "parse_end",
    "parse_ms",
    "parse_start",
    "redis_ms",
    "to_datetime",
    "trading_day",
    "xt_time",
]

CHINA: Final = ZoneInfo("Asia/Shanghai")
DAY_MS: Final = 86_400_000
LAST_MS: Final = 4_102_415_999_999
"""End of 2099 in China. What callers name lies in 1970 to 2099; from there no sum overflows."""
_FIRST_MS: Final = -8 * 3_600_000
_CHINA_OFFSET_MS: Final = 8 * 3_600_000  # no summer time since 1991; xtquant's data are younger
_MS: Final = re.compile(r"\d{13}", re.ASCII)
_BEYOND_DIGITS: Final = 10**14
_DIGITS: Final = re.compile(r"\d{8}(?:\d{2}(?:\d{2}(?:\d{2})?)?)?", re.ASCII)


def redis_ms(time: tuple[int, int]) -> int:
    """Return ms since the epoch from what Redis answers to ``TIME``: seconds, microseconds."""
    seconds, micros = time
    return seconds * 1000 + micros // 1000


def parse_start(value: Any, field: str = "start") -> int | None:
    """Return a start bound as ms since the epoch; ``None`` or ``""`` means no bound.

    Accepts dates, datetimes (naive means China time), pandas timestamps, ``YYYYMMDD[HHMM[SS]]``
    and ISO 8601 strings, and ms since the epoch as xtdata's own ``time`` has them (13 digits), of
    the years 1970 to 2099. A date is its first millisecond. A datetime at midnight in China is a
    date, for it is what pandas makes of one; as a string with its time it is that moment.

    Raises
    ------
    InvalidRequest
        When it is none of these.
    """
    parsed = _parse(value, field)
    return None if parsed is None else max(0, parsed[0])


def parse_end(value: Any, field: str = "end") -> int | None:
    """Return an end bound as `parse_start` does; a date includes that whole day."""
    parsed = _parse(value, field)
    if parsed is None:
        return None
    at_ms, is_date = parsed
    return max(0, at_ms + DAY_MS - 1 if is_date else at_ms)


def parse_ms(value: Any, field: str) -> int:
    """Return a moment that is given in ms since the epoch, of the years 1970 to 2099.

    Raises
    ------
    InvalidRequest
        When it is no whole number, or none of these years.
    """
    at_ms = whole_number(value)
    if at_ms is not None and 0 <= at_ms <= LAST_MS:
        return at_ms
    raise InvalidRequest(
        f"{field}={shown(value)} is not a moment of the years 1970 to 2099.",
        hint="Give whole ms since the epoch, such as 1767576600000.",
        field=field,
    )


def _parse(value: Any, field: str) -> tuple[int, bool] | None:
    if value is None or value == "":
        return None
    try:
        at_ms, is_date = _moment(value)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{field}={shown(value)} is not a time.",
            hint="Give a date, a datetime, '20260105', '20260105093000', '2026-01-05 09:30' or "
            "whole ms since the epoch.",
            field=field,
        ) from None
    if not _FIRST_MS <= at_ms <= LAST_MS:
        raise InvalidRequest(
            f"{field}={shown(value)} lies outside of the years 1970 to 2099.",
            hint="Leave it out where there is no bound.",
            field=field,
        )
    return at_ms, is_date


def _moment(value: Any) -> tuple[int, bool]:
    """Return a moment in ms, and whether it is a date; whatever else raises `ValueError`."""
    if isinstance(value, str) and value.isascii():
        return _parse_text(value.strip())
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()  # naive, or an int or None that is no time
    if isinstance(value, dt.datetime):
        at_ms = _ms(value)
        return at_ms, (at_ms + _CHINA_OFFSET_MS) % DAY_MS == 0
    if isinstance(value, dt.date):
        return _ms(dt.datetime(value.year, value.month, value.day, tzinfo=CHINA)), True
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return _parse_text(str(value)) if 0 < value < _BEYOND_DIGITS else _no_time()
    return _no_time()


def _no_time() -> NoReturn:
    raise ValueError("no time")


def _parse_text(text: str) -> tuple[int, bool]:
    if _DIGITS.fullmatch(text):
        is_date = len(text) == 8
        return _ms(_china(text.ljust(14, "0"), "%Y%m%d%H%M%S")), is_date
    if _MS.fullmatch(text):
        return int(text), False
    if len(text) == 10:
        return _ms(_china(text, "%Y-%m-%d")), True
    return _ms(dt.datetime.fromisoformat(text.replace("Z", "+00:00"))), False


def _china(text: str, shape: str) -> dt.datetime:
    return dt.datetime.strptime(text, shape).replace(tzinfo=CHINA)


def _ms(at: dt.datetime) -> int:
    if at != at:  # pandas' NaT is a datetime that equals nothing
        raise ValueError("not a time")
    aware = at if at.tzinfo is not None else at.replace(tzinfo=CHINA)
    return int(aware.timestamp() * 1000)


def to_datetime(at_ms: int) -> dt.datetime:
    """Return ms since the epoch as an aware datetime in China time."""
    return dt.datetime.fromtimestamp(at_ms / 1000, CHINA)


def xt_time(at_ms: int | None) -> str:
    """Return the ``YYYYMMDDHHMMSS`` that xtdata takes, rounded down; ``""`` for no bound."""
    return "" if at_ms is None else to_datetime(at_ms).strftime("%Y%m%d%H%M%S")


def day_of(at_ms: int) -> int:
    """Return the China date of a moment as ``YYYYMMDD``."""
    return int(to_datetime(at_ms).strftime("%Y%m%d"))


def day_start_ms(day: int) -> int:
    """Return the first ms of a ``YYYYMMDD`` day in China time."""
    at = dt.datetime(day // 10_000, day // 100 % 100, day % 100, tzinfo=CHINA)
    return int(at.timestamp() * 1000)


_NIGHT_FROM_H: Final = 18
_NIGHT_TO_H: Final = 6
_LONGEST_HOLIDAY_DAYS: Final = 15


def is_weekday(day: int) -> bool:
    """Whether a ``YYYYMMDD`` day is one of Monday to Friday.

    It is all that `trading_day` needs in China: no exchange trades at a weekend, and none has a
    night session before a holiday.
    """
    return dt.date(day // 10_000, day // 100 % 100, day % 100).weekday() < 5


def trading_day(at_ms: int, is_trading_day: Callable[[int], bool] = is_weekday) -> int:
    """Return the trading day (``YYYYMMDD``) that a moment belongs to.

    From 06:00 until 18:00 China time that is its own date, whatever day it is. A night session,
    before and after midnight, belongs to the next trading day.

    Parameters
    ----------
    at_ms
        ms since the epoch.
    is_trading_day
        Tells of a ``YYYYMMDD`` day whether there is trading.
    """
    at = to_datetime(at_ms)
    day = at.date()
    if _NIGHT_TO_H <= at.hour < _NIGHT_FROM_H:
        return _number(day)
    if at.hour >= _NIGHT_FROM_H:
        day += dt.timedelta(days=1)
    for _ in range(_LONGEST_HOLIDAY_DAYS):
        if is_trading_day(_number(day)):
            break
        day += dt.timedelta(days=1)
    return _number(day)


def _number(day: dt.date) -> int:
    return day.year * 10_000 + day.month * 100 + day.day
