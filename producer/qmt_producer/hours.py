"""When a market trades, as the terminal tells."""

from __future__ import annotations

from typing import Final

import structlog

from qmt_protocol.errors import QMTError, TerminalNotConnected
from qmt_protocol.times import DAY_MS, day_of, day_start_ms, to_datetime
from qmt_terminal import Terminal, TradingSession

from .bar_maker import DEFAULT_CLOSE_S

__all__ = ["TradingHours"]

log: Final = structlog.get_logger(__name__)

_CONTINUOUS: Final = 3
_USUAL: Final = [
    TradingSession(_CONTINUOUS, 9 * 3600 + 1800, 11 * 3600 + 1800),
    TradingSession(_CONTINUOUS, 13 * 3600, DEFAULT_CLOSE_S),
]
"""The stock exchanges' continuous trading, where the terminal does not tell."""
_WHOLE_DAY_S: Final = DAY_MS // 1000 - 60


class TradingHours:
    """Sessions and trading days, asked once and kept."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._sessions: dict[str, list[TradingSession]] = {}
        self._days: dict[tuple[str, int], bool] = {}

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
        now_ms = self._terminal.now_ms()
        today = day_of(now_ms)
        second = (now_ms - day_start_ms(today)) // 1000
        sessions = self._of(code)
        always = sum(one.end_s - one.start_s for one in sessions) >= _WHOLE_DAY_S
        for session in sessions:
            if session.status == _CONTINUOUS and session.start_s <= second < session.end_s:
                if always or self._is_trading_day(code.rpartition(".")[2], today, now_ms):
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

    def _is_trading_day(self, market: str, today: int, now_ms: int) -> bool:
        if (market, today) not in self._days:
            try:
                days = self._terminal.trading_days(market, now_ms - 30 * DAY_MS, now_ms)
            except TerminalNotConnected:
                raise
            except QMTError as error:
                log.info("the terminal does not tell trading days", error=error.message)
                days = []
            # A terminal without any calendar leaves the weekday as the only sign.
            weekday = to_datetime(now_ms).weekday() < 5
            self._days = {(market, today): today in days if days else weekday}
        return self._days[market, today]
