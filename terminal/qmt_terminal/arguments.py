"""Arguments checked before they reach the terminal, and put as xtdata takes them."""

from __future__ import annotations

from qmt_protocol.errors import InvalidRequest
from qmt_protocol.periods import DAILY_PERIODS
from qmt_protocol.times import xt_time

__all__ = ["bounds_of", "clock_s", "integer", "strings"]


def clock_s(day_offset: int, clock: int) -> int:
    """Read ``[-]HMMSS``: the sign belongs to the hour alone, so -45500 is 20:55 the day before."""
    digits = abs(int(clock))
    hours = digits // 10_000 * (-1 if clock < 0 else 1)
    return int(day_offset) * 86_400 + hours * 3600 + digits // 100 % 100 * 60 + digits % 100


def bounds_of(period: str, start_ms: int | None, end_ms: int | None) -> tuple[str, str]:
    """Return both bounds as text: xtdata takes two strings or two datetimes, no mixture."""
    for value, name in ((start_ms, "start_ms"), (end_ms, "end_ms")):
        if value is not None:
            integer(value, name)
    start, end = xt_time(start_ms), xt_time(end_ms)
    return (start[:8], end[:8]) if period in DAILY_PERIODS else (start, end)


def integer(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{field}={value!r} is not a whole number.", field=field)
    return value


def strings(values: object, field: str) -> list[str]:
    """Check for a list of text: given one string, the native side would take its letters."""
    if not isinstance(values, (list, tuple)) or not values:
        raise InvalidRequest(f"{field} must be a list with at least one entry.", field=field)
    for value in values:
        if not isinstance(value, str) or not value:
            raise InvalidRequest(f"{value!r} in {field} is not text.", field=field)
    return list(values)
