"""What a worker remembers of its terminal: subscriptions, listings, what was downloaded."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qmt_protocol.codes import asset_class, market_of

from .days import Calendar, Days, Sessions, day_number, number_of
from .suspensions import Spans, Suspensions

if TYPE_CHECKING:
    from qmt_terminal import Terminal
    from qmt_terminal.calendar_file import CalendarFile

__all__ = ["Listing", "Session"]

MAX_SUBSCRIPTIONS: Final = 50
"""The vendor's advice for single subscriptions of one client."""
_NEVER: Final = 1 << 40


@dataclasses.dataclass(frozen=True)
class Listing:
    """First and last day on which an instrument can have traded; open where it is not told."""

    first: int = 0
    last: int = _NEVER


class Session:
    """One terminal connection's memory; most of it is void when the connection changes.

    Parameters
    ----------
    terminal
        The door; jobs use it through `Session.terminal`.
    calendar_file
        People's corrections of the calendar.
    suspensions
        What is known of suspended days.
    """

    def __init__(
        self, terminal: Terminal, calendar_file: CalendarFile, suspensions: Suspensions
    ) -> None:
        self.terminal = terminal
        self._calendar_file = calendar_file
        self._suspensions = suspensions
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
        self._suspensions.look_again()
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

    def suspended(self, code: str) -> Spans:
        """Return the past days on which the code is known to have been suspended."""
        return self._suspensions.of(self._place, code)

    def note_suspended(self, code: str, suspended: Days, trading: Days) -> None:
        """Remember suspended days; what lies between two trading days is no end of a run."""
        at = np.searchsorted(trading, suspended)
        runs = np.split(suspended, np.flatnonzero(np.diff(at) > 1) + 1)
        self._suspensions.add(
            self._place, code, [(int(run[0]), int(run[-1])) for run in runs if len(run)]
        )

    @property
    def _place(self) -> str:
        info = self.terminal.info
        return "" if info is None else info.data_dir or info.path or info.address

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
