"""The trading day's plan: which columns (minutes and auction prints) it has, and when they tick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from qmt_simulator.market.hashing import I64

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_END_LABEL_MS: Final = 86_399_000
PHASE_AUCTION: Final = 12
PHASE_TRADING: Final = 13
PHASE_CLOSED: Final = 15
PHASE_SUSPENDED: Final = 17
PHASE_CLOSING: Final = 18
VIRTUAL: Final = -1

_AUCTION_MS: Final = 9 * HOUR_MS + 15 * MINUTE_MS
_OPEN_MS: Final = 9 * HOUR_MS + 25 * MINUTE_MS
_MORNING_MS: Final = 9 * HOUR_MS + 30 * MINUTE_MS
_LUNCH_MS: Final = 11 * HOUR_MS + 30 * MINUTE_MS
_AFTERNOON_MS: Final = 13 * HOUR_MS
_CLOSE_MS: Final = 15 * HOUR_MS


@dataclass(frozen=True)
class Segment:
    """A stretch of the day in which every instrument ticks once per interval.

    `single` stretches tick once only (the prints of the auctions).
    """

    start_ms: int
    end_ms: int
    single: bool = False


@dataclass(frozen=True, eq=False)
class Layout:
    """One kind of trading day.

    A column is a minute of slots, or the print of an auction (one slot). Columns lie in parts;
    a part is the unit that is worked out at once.

    Attributes
    ----------
    parts : first column and number of columns of each part
    part_of : part of each column
    bar_of : one-minute bar of each column
    label_ms : label (end) of each one-minute bar, from midnight
    weights : how the day's volume is spread over the trading parts
    """

    name: str
    segments: tuple[Segment, ...]
    parts: tuple[tuple[int, int], ...]
    part_of: I64
    bar_of: I64
    label_ms: I64
    weights: tuple[float, ...]

    @property
    def auctions(self) -> bool:
        """Whether the day has call auctions."""
        return self is STANDARD

    @property
    def start_ms(self) -> int:
        """When the day's first tick may come, from midnight."""
        return self.segments[0].start_ms

    def column(self, tod_ms: I64) -> I64:
        """Column of each tick by its time of day; -1 for the virtual matches before the open."""
        if not self.auctions:
            return np.asarray(tod_ms // MINUTE_MS)
        afternoon = tod_ms >= _AFTERNOON_MS
        begin = np.where(afternoon, _AFTERNOON_MS, _MORNING_MS)
        column = (tod_ms - begin) // MINUTE_MS + np.where(afternoon, 121, 1)
        column = np.where(tod_ms < _MORNING_MS, 0, np.minimum(column, 241))
        return np.where(tod_ms < _OPEN_MS, VIRTUAL, column)

    def newest(self, tod_ms: int, offset_ms: I64, interval_ms: int) -> I64:
        """Time of day of each instrument's newest tick at or before `tod_ms`; -1 before all."""
        out = np.full(len(offset_ms), -1, dtype=np.int64)
        since = tod_ms - offset_ms
        for segment in self.segments:
            last = segment.start_ms if segment.single else segment.end_ms - interval_ms
            at = segment.start_ms + (since - segment.start_ms) // interval_ms * interval_ms
            begun = since >= segment.start_ms
            out[begun] = (np.minimum(at, last) + offset_ms)[begun]
        return out

    def times(self, offset_ms: int, interval_ms: int, tod_ms: int) -> I64:
        """All times of day at or before `tod_ms` at which one instrument ticks."""
        parts = [
            np.array([segment.start_ms], dtype=np.int64)
            if segment.single
            else np.arange(segment.start_ms, segment.end_ms, interval_ms, dtype=np.int64)
            for segment in self.segments
        ]
        times = np.concatenate(parts) + offset_ms
        return times[times <= tod_ms]

    def phase(self, column: I64) -> I64:
        """Trading phase of ticks, by their column."""
        if not self.auctions:
            return np.full(len(column), PHASE_TRADING, dtype=np.int64)
        phase = np.where(column >= 238, PHASE_CLOSING, PHASE_TRADING)
        phase = np.where(column == 241, PHASE_CLOSED, phase)
        return np.where(column <= 0, PHASE_AUCTION, phase)


def _labels() -> I64:
    morning = _MORNING_MS + MINUTE_MS * np.arange(121, dtype=np.int64)
    afternoon = _AFTERNOON_MS + MINUTE_MS * np.arange(1, 121, dtype=np.int64)
    return np.concatenate([morning, afternoon])


# Column 0 is the print of the opening auction, 1-237 are minutes of trading, 238-240 the closing
# auction's minutes without trades, 241 its print, which belongs to the bar of 15:00.
STANDARD: Final = Layout(
    name="standard",
    segments=(
        Segment(_AUCTION_MS, _OPEN_MS),
        Segment(_OPEN_MS, _MORNING_MS, single=True),
        Segment(_MORNING_MS, _LUNCH_MS),
        Segment(_AFTERNOON_MS, _CLOSE_MS),
        Segment(_CLOSE_MS, _CLOSE_MS + MINUTE_MS, single=True),
    ),
    parts=((0, 1), (1, 60), (61, 60), (121, 60), (181, 57), (238, 4)),
    part_of=np.repeat(np.arange(6), [1, 60, 60, 60, 57, 4]).astype(np.int64),
    bar_of=np.minimum(np.arange(242, dtype=np.int64), 240),
    label_ms=_labels(),
    weights=(1.5, 0.9, 0.8, 1.0),
)

# 1,440 minutes; the last is labelled 23:59:59, since midnight belongs to the next day.
AROUND_THE_CLOCK: Final = Layout(
    name="around the clock",
    segments=(Segment(0, 24 * HOUR_MS),),
    parts=tuple((hour * 60, 60) for hour in range(24)),
    part_of=np.arange(1440, dtype=np.int64) // 60,
    bar_of=np.arange(1440, dtype=np.int64),
    label_ms=np.minimum(MINUTE_MS * np.arange(1, 1441, dtype=np.int64), DAY_END_LABEL_MS),
    weights=(1.0,) * 24,
)
