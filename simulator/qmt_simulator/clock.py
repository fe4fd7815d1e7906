"""The terminal's clock: market time as a linear function of the wall clock."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from zoneinfo import ZoneInfo

CHINA = ZoneInfo("Asia/Shanghai")
CHINA_OFFSET_MS = 8 * 3_600_000
DAY_MS = 86_400_000


def wall_ms() -> int:
    """Return the wall clock in ms since the epoch."""
    return time.time_ns() // 1_000_000


def parse_start(text: str) -> int:
    """Return ms since the epoch of 'YYYY-MM-DD HH:MM:SS' in China time."""
    moment = dt.datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=CHINA)
    return int(moment.timestamp() * 1000)


def parse_moment(text: str, now_ms: int) -> int:
    """Return ms since the epoch of 'HH:MM[:SS]' on the day that holds `now_ms`, or of a start."""
    if " " in text.strip():
        return parse_start(text)
    clock = dt.time.fromisoformat(text.strip())
    if clock.tzinfo is not None:
        raise ValueError(f"{text!r} is not a time of day in China")
    return (
        day_start_ms(day_of(now_ms)) + ((clock.hour * 60 + clock.minute) * 60 + clock.second) * 1000
    )


def day_of(now_ms: int) -> int:
    """Return the China date YYYYMMDD that holds `now_ms`."""
    moment = dt.datetime.fromtimestamp(now_ms / 1000, CHINA)
    return moment.year * 10_000 + moment.month * 100 + moment.day


def day_start_ms(day: int) -> int:
    """Return ms since the epoch of 00:00 China time of the date YYYYMMDD."""
    moment = dt.datetime(day // 10_000, day // 100 % 100, day % 100, tzinfo=CHINA)
    return int(moment.timestamp() * 1000)


@dataclasses.dataclass(frozen=True)
class Clock:
    """Market time: the wall clock itself, or `start_ms` at `wall_start_ms` and on at `speed`."""

    start_ms: int | None = None
    speed: float = 1.0
    wall_start_ms: int | None = None
    """None: not started yet, so it stands."""

    def now_ms(self) -> int:
        """Return the market time in ms since the epoch."""
        if self.start_ms is None:
            return wall_ms()
        if self.wall_start_ms is None:
            return self.start_ms
        return self.start_ms + int((wall_ms() - self.wall_start_ms) * self.speed)
