"""When a market trades: hours as the terminal tells, days as the best calendar there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from qmt_protocol.errors import QMTError, TerminalNotConnected
from qmt_protocol.times import DAY_MS, day_of, day_start_ms
from qmt_terminal import Terminal, TradingSession
from qmt_terminal.calendar import TradingCalendar, TradingDay
from qmt_terminal.calendar_file import CalendarFile

from .bar_maker import DEFAULT_CLOSE_S

__all__ = ["TradingHours"]

log: Final = structlog.get_logger(__name__)

_CONTINUOUS: Final = 3
_USUAL: Final = [
    TradingSession(_CONTINUOUS, 9 * 3600 + 1800, 11 * 3600 + 1800),
    TradingSession(_CONTINUOUS, 13 * 3600, DEFAULT_CLOSE_S),
]
"""The stock exchanges' continuous trading, where the terminal does not tell."""
_SHANGHAIS: Final = frozenset({"SH", "SZ", "BJ"})
_PATIENCE_S: Final = 5.0
"""So long the terminal, which knows best, may take to be there."""
_WHOLE_DAY_S: Final = DAY_MS // 1000 - 60


class TradingHours:
    """Sessions and trading days, asked once and kept.

    Parameters
    ----------
    terminal
        The door.
    now_ms
        Tells the market's time where it is better known than by the terminal.
    file
        People's corrections of the calendar.
    """

    def __init__(
        self,
        terminal: Terminal,
        now_ms: Callable[[], int] | None = None,
        file: CalendarFile | None = None,
    ) -> None:
        self._terminal = terminal
        self._now_ms = now_ms or terminal.now_ms
        self._sessions: dict[str, list[TradingSession]] = {}
        self._calendar = TradingCalendar(terminal, file=file, waits=False)
        self._made_s = time.monotonic()
        self._today: TradingDay | None = None
        self._facts: dict[str, Any] = {}
        self.session_ms = 0
        """For how long the exchange had been in continuous trading at the last `look`; 0: it is
        not, or the market has a clock of its own, as a simulated day has."""

    @property
    def today(self) -> dict[str, Any]:
        """The heartbeat's ``trading_day``, as last found out; empty before the first time."""
        return self._facts

    @property
    def guessed(self) -> bool:
        """Whether today may be a holiday for all that is known: silence proves nothing then."""
        return self._today is not None and self._today.guessed

    def look(self, code: str) -> None:
        """Find out about today where it is not known, or may be known better by now.

        Parameters
        ----------
        code
            Whose session `session_ms` tells; ``""``: none's.
        """
        if self._terminal.connected or time.monotonic() - self._made_s >= _PATIENCE_S:
            self._today = self._calendar.of_day(day_of(self._now_ms()))
            # Kept, as the heartbeat's thread may not wait for the terminal.
            self._facts = self._calendar.describe(self._today)
        clock = self._terminal.clock
        invented = clock is not None and not clock.is_real
        try:
            self.session_ms = 0 if invented or not code else self.open_for_ms(code)
        except QMTError:
            self.session_ms = 0  # the listener tells why

    def close_s(self, code: str) -> int:
        """Return when an instrument's trading day ends, in seconds from 00:00.

        Raises
        ------
        TerminalNotConnected
            When the connection is gone.
        """
        return max(session.end_s for session in self._of(code))

    def open_for_ms(self, code: str) -> int:
        """Return for how long an instrument has been in continuous trading; 0: it is not.

        Where it trades around the clock, as the simulator does, every day counts.

        Raises
        ------
        TerminalNotConnected
            When the connection is gone.
        """
        now_ms = self._now_ms()
        today = day_of(now_ms)
        second = (now_ms - day_start_ms(today)) // 1000
        sessions = self._of(code)
        always = sum(one.end_s - one.start_s for one in sessions) >= _WHOLE_DAY_S
        for session in sessions:
            if session.status == _CONTINUOUS and session.start_s <= second < session.end_s:
                if always or self._trades(code.rpartition(".")[2], today):
                    return (second - session.start_s) * 1000 + (DAY_MS if always else 0)
                return 0
        return 0

    def _of(self, code: str) -> list[TradingSession]:
        if code not in self._sessions:
            try:
                found = self._terminal.trading_sessions(code)
            except TerminalNotConnected:
                raise
            except QMTError as error:
                log.info("the terminal does not tell sessions", code=code, error=error.message)
                found = []
            self._sessions[code] = found or _USUAL
        return self._sessions[code]

    def _trades(self, market: str, day: int) -> bool:
        trading_day = self._calendar.of_day(day, market)
        if market in _SHANGHAIS:
            self._today = trading_day
        return trading_day.trades
