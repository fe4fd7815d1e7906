"""What a worker remembers of its terminal: subscriptions, listings, what was downloaded."""

from __future__ import annotations

import bisect
import collections
import dataclasses
from typing import TYPE_CHECKING, Any, Final

from qmt_protocol.codes import asset_class, market_of

from .days import Calendar, Sessions, day_number, number_of

if TYPE_CHECKING:
    from qmt_terminal import Terminal
    from qmt_terminal.calendar_file import CalendarFile

__all__ = ["Listing", "Session", "Spans"]

MAX_SUBSCRIPTIONS: Final = 50
"""The vendor's advice for single subscriptions of one client."""
_NEVER: Final = 1 << 40


@dataclasses.dataclass(frozen=True)
class Listing:
    """First and last day on which an instrument can have traded; open where it is not told."""

    first: int = 0
    last: int = _NEVER


class Spans:
    """A set of days, held as ranges closed at both ends."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def add(self, first: int, last: int) -> None:
        """Put the days from first to last into the set."""
        kept: list[tuple[int, int]] = []
        for start, end in self._spans:
            if end < first - 1 or start > last + 1:
                kept.append((start, end))
            else:
                first, last = min(first, start), max(last, end)
        bisect.insort(kept, (first, last))
        self._spans = kept

    def __contains__(self, day: int) -> bool:
        at = bisect.bisect_right(self._spans, (day, _NEVER)) - 1
        return at >= 0 and self._spans[at][1] >= day


class Session:
    """One terminal connection's memory; most of it is void when the connection changes.

    Parameters
    ----------
    terminal
        The door; jobs use it through `Session.terminal`.
    calendar_file
        People's corrections of the calendar.
    """

    def __init__(self, terminal: Terminal, calendar_file: CalendarFile) -> None:
        self.terminal = terminal
        self._calendar_file = calendar_file
        self.calendar = Calendar(terminal, calendar_file)
        self._generation = terminal.generation
        self._subscribed: collections.OrderedDict[tuple[str, str], int] = collections.OrderedDict()
        self._verified: dict[tuple[str, str], Spans] = {}
        self._given_up: dict[tuple[str, str], int] = {}
        self._listings: dict[str, Listing | None] = {}
        self._sessions: dict[str, Sessions] = {}
        self._day = 0

    def refresh(self) -> int:
        """Forget what no longer holds and return the market's now; call it when a job begins."""
        now_ms = self.terminal.now_ms()
        if self.terminal.generation != self._generation:
            self._generation = self.terminal.generation
            self._subscribed.clear()
            self._verified.clear()
            self._given_up.clear()
            self.calendar = Calendar(self.terminal, self._calendar_file)
            self._day = 0
        if day_number(now_ms) != self._day:
            self._day = day_number(now_ms)
            self._listings.clear()
            self._sessions.clear()
        return now_ms

    # -- instruments --------------------------------------------------------------------------

    def listing(self, code: str) -> Listing | None:
        """Return when the instrument traded; None when the terminal does not know it."""
        if code not in self._listings:
            document = self.terminal.instrument_detail(code)
            self._listings[code] = None if document is None else _listing(document)
        return self._listings[code]

    def sessions(self, code: str) -> Sessions:
        """Return the instrument's trading hours; those of one market and class are alike."""
        kind = asset_class(code)
        product = code.rstrip("0123456789.")[:2] if kind != "future" else code[:2]
        key = f"{market_of(code)}:{kind}:{product if kind == 'future' else ''}"
        if key not in self._sessions:
            self._sessions[key] = Sessions.ask(self.terminal, code)
        return self._sessions[key]

    # -- today ----------------------------------------------------------------------------------

    def subscribe(self, code: str, period: str) -> bool:
        """Have the terminal keep today's part of a stored period; the oldest makes room.

        Returns
        -------
        bool
            Whether the subscription is new.
        """
        key = code, period
        if key in self._subscribed:
            self._subscribed.move_to_end(key)
            return False
        while len(self._subscribed) >= MAX_SUBSCRIPTIONS:
            _oldest, number = self._subscribed.popitem(last=False)
            self.terminal.unsubscribe(number)
        self._subscribed[key] = self.terminal.subscribe_quote(code, period, count=-1)
        return True

    # -- what was downloaded --------------------------------------------------------------------

    def verified(self, code: str, period: str) -> Spans:
        """Return the days that were downloaded: what they still lack does not exist."""
        return self._verified.setdefault((code, period), Spans())

    def give_up_today(self, code: str, period: str) -> None:
        """Remember that today's part was waited for and downloaded to no avail."""
        self._given_up[code, period] = self._day

    def gave_up_today(self, code: str, period: str) -> bool:
        """Whether today's missing part was tried for already."""
        return self._given_up.get((code, period)) == self._day


def _listing(document: dict[str, Any]) -> Listing:
    first = _date(document.get("OpenDate")) or _date(document.get("CreateDate"))
    last = _date(document.get("ExpireDate"))
    return Listing(
        number_of(first) if first else 0,
        number_of(last) if last else _NEVER,
    )


def _date(text: Any) -> int:
    """Read ``YYYYMMDD``; 0 for the marks that mean no date."""
    try:
        date = int(text)
        number_of(date)
    except (TypeError, ValueError):
        return 0
    return date if 1970_01_01 < date < 2100_01_01 else 0
