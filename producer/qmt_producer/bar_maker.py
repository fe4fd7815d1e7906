"""Bars as the terminal re-sends them, turned into updates of the forming bar and one closed bar.

The terminal sends the forming bar again and again under one label and never says that it is done.
A bar is closed when the market's clock has passed its end by a grace, or at once when a bar of the
next period arrives. Its end is

- of intraday bars: the label;
- of ``1d``: the close of the instrument's last session on the label's day;
- of ``1w`` and longer: the midnight that begins the next calendar week, month, quarter, half or
  whole year. Until then the label may move on from day to day, and nothing is closed.

A bar that changes after it was closed is told again, closed: a correction.

The clock closes nothing while a code is not subscribed: a bar may have ended unseen. Pushes wait
from `expect` to `resume`, which brings what the terminal has of the time between.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qmt_protocol.bars import encode_bar
from qmt_protocol.errors import EncodeError
from qmt_protocol.periods import INTRADAY_MINUTES
from qmt_protocol.tables import bar_nulls
from qmt_protocol.times import CHINA, DAY_MS, day_of, day_start_ms, to_datetime

__all__ = ["DEFAULT_CLOSE_S", "BarMaker", "MadeBar", "bar_end_ms"]

DEFAULT_CLOSE_S: Final = 15 * 3600
"""Close of the day, in seconds from midnight, where the terminal does not tell."""

_WAITING_ROWS: Final = 100
_MONTHS: Final = {"1mon": 1, "1q": 3, "1hy": 6, "1y": 12}
_AHEAD_MS: Final = 400 * DAY_MS

MadeBar = tuple[int, bytes | EncodeError]
"""Label, and ``k1`` or why there is none."""


@dataclass
class _State:
    close_s: int
    nulls: Mapping[str, Any]
    label_ms: int = 0
    row: Mapping[str, Any] | None = None
    closed: bool = False
    published: bytes = b""
    before: tuple[int, bytes] = (0, b"")
    """Label and ``k1`` of the bar before, which terminals send along again."""
    stamp: int | None = None
    """The subscription that its rows come from; ``None``: pushes wait."""
    waiting: list[Mapping[str, Any]] = field(default_factory=list)


class BarMaker:
    """Tells forming and closed bars of the wanted codes; safe to use from several threads.

    Parameters
    ----------
    now_ms
        The market's clock.
    grace_ms
        How long after its end a bar may still change without being called closed.
    stamp
        Tells which subscription to the terminal holds now; ``None``: none.
    """

    def __init__(
        self, now_ms: Callable[[], int], grace_ms: int, stamp: Callable[[], int | None]
    ) -> None:
        self._now_ms = now_ms
        self._grace_ms = grace_ms
        self._stamp = stamp
        self._lock = threading.Lock()
        self._states: dict[tuple[str, str], _State] = {}

    def expect(self, period: str, code: str, close_s: int = DEFAULT_CLOSE_S) -> int:
        """Let pushes of a code wait from now on; `close_s` is its close in seconds from midnight.

        Returns
        -------
        int
            The label of its last bar, ms since the epoch; 0 when none was seen.
        """
        with self._lock:
            fresh = _State(close_s, bar_nulls(code))
            state = self._states.setdefault((period, code), fresh)
            state.close_s, state.stamp = close_s, None
            return state.label_ms

    def resume(self, period: str, code: str, stamp: int, rows: list[dict[str, Any]]) -> None:
        """Take its bars as those of this subscription: first `rows`, then what waits."""
        with self._lock:
            state = self._states[period, code]
            state.stamp = stamp
            state.waiting[:0] = rows

    def forget(self, period: str, code: str) -> None:
        """Take no more of them; a forming bar stays as it was told last."""
        with self._lock:
            self._states.pop((period, code), None)

    def take(self, period: str, code: str, rows: list[dict[str, Any]]) -> list[MadeBar]:
        """Return what a push of rows has to tell, in order."""
        now_ms = self._now_ms()
        with self._lock:
            state = self._states.get((period, code))
            if state is None:
                return []
            state.waiting += rows
            if state.stamp is None:
                del state.waiting[:-_WAITING_ROWS]
                return []
            return self._take_waiting(period, state, now_ms)

    def due(self) -> list[tuple[str, str, MadeBar]]:
        """Return period, code and bar of what waited, and of all that the clock has closed since.

        Nothing of a code whose subscription holds no more: what comes next may end its bar.
        """
        now_ms, stamp = self._now_ms(), self._stamp()
        published: list[tuple[str, str, MadeBar]] = []
        with self._lock:
            for (period, code), state in self._states.items():
                if state.stamp is None or state.stamp != stamp:
                    continue
                made: list[MadeBar] = []
                if state.waiting:
                    made = self._take_waiting(period, state, now_ms)
                elif not state.closed and self._is_over(period, state, now_ms):
                    self._report(period, state, now_ms, made)
                published += [(period, code, one) for one in made]
        return published

    def _take_waiting(self, period: str, state: _State, now_ms: int) -> list[MadeBar]:
        made: list[MadeBar] = []
        for sent in state.waiting:
            row = {**sent, **state.nulls}
            label_ms = row.get("time")
            if not isinstance(label_ms, int) or not 0 < label_ms < now_ms + _AHEAD_MS:
                made.append((now_ms, EncodeError(f"A bar without a usable time: {label_ms}.")))
            elif label_ms < state.label_ms:
                # Redis will call it late, unless it is nothing new.
                made += [one for one in _made(int(label_ms), row) if one != state.before]
            else:
                self._move_on(period, state, label_ms, made)
                state.label_ms, state.row = int(label_ms), row
        state.waiting = []
        self._report(period, state, now_ms, made)
        return made

    @property
    def busy(self) -> bool:
        """Whether bars of anything are expected."""
        return bool(self._states)

    def _is_over(self, period: str, state: _State, now_ms: int) -> bool:
        if state.row is None:
            return False
        return now_ms >= bar_end_ms(period, state.label_ms, state.close_s) + self._grace_ms

    def _move_on(self, period: str, state: _State, label_ms: int, made: list[MadeBar]) -> None:
        """Close the bar before, if a later label means that it is over."""
        if state.row is None or label_ms == state.label_ms:
            return
        if label_ms >= bar_end_ms(period, state.label_ms, state.close_s):
            for closed_ms, k1 in _made(state.label_ms, state.row):
                if k1 != state.published:
                    made.append((closed_ms, k1))
                if isinstance(k1, bytes):
                    state.before = closed_ms, k1
        state.closed, state.published = False, b""

    def _report(self, period: str, state: _State, now_ms: int, made: list[MadeBar]) -> None:
        if state.row is None:
            return
        state.closed = state.closed or self._is_over(period, state, now_ms)
        for label_ms, k1 in _made(state.label_ms, state.row, closed=state.closed):
            if k1 != state.published:
                made.append((label_ms, k1))
            state.published = k1 if isinstance(k1, bytes) else b""


def _made(label_ms: int, row: Mapping[str, Any], *, closed: bool = True) -> list[MadeBar]:
    try:
        return [(label_ms, encode_bar({**row, "closed": closed}))]
    except EncodeError as error:
        return [(label_ms, error)]


def bar_end_ms(period: str, label_ms: int, close_s: int) -> int:
    """Return when the bar of this label is over, ms since the epoch."""
    if period in INTRADAY_MINUTES:
        return label_ms
    if period == "1d":
        return day_start_ms(day_of(label_ms)) + close_s * 1000
    day = to_datetime(label_ms).date()
    if period == "1w":
        after = day + dt.timedelta(days=7 - day.weekday())
    else:
        months = _MONTHS[period]
        number = day.year * 12 + (day.month - 1) // months * months + months
        after = dt.date(number // 12, number % 12 + 1, 1)
    return int(dt.datetime(after.year, after.month, after.day, tzinfo=CHINA).timestamp() * 1000)
