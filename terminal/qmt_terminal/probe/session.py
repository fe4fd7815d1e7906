"""One connection to the terminal for a row of questions, and what they all need of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from qmt_protocol.settings import TerminalSettings
from qmt_protocol.times import DAY_MS, day_of, day_start_ms
from qmt_terminal.calendar import TradingCalendar
from qmt_terminal.calendar_file import CalendarFile
from qmt_terminal.door import Terminal, TerminalInfo
from qmt_terminal.failures import translate

__all__ = ["STOCK", "Session", "phase_of"]

STOCK: Final = "000001.SZ"
"""A stock that trades on practically every day."""
INDEX: Final = "000001.SH"
UNKNOWN: Final = "999999.SZ"
_LOOK_S: Final = 0.1
_PHASES: Final = (
    (9 * 60 + 15, "closed"),
    (9 * 60 + 25, "opening auction"),
    (9 * 60 + 30, "before continuous trading"),
    (11 * 60 + 30, "continuous"),
    (13 * 60, "lunch"),
    (14 * 60 + 57, "continuous"),
    (15 * 60, "closing auction"),
    (24 * 60, "closed"),
)
"""Until which minute of a trading day each phase of the Shenzhen exchange goes on."""


def phase_of(now_ms: int, *, trades: bool) -> str:
    """Return the market's phase at a time of China's clock."""
    if not trades:
        return "no trading day"
    minute = (now_ms - day_start_ms(day_of(now_ms))) // 60_000
    return next(name for until, name in _PHASES if minute < until)


class Session:
    """The terminal as the questions see it: xtdata, its client, its time.

    Parameters
    ----------
    options
        What whoever runs the probe asked for: ``listen_s``, ``settle_s``, ``lag_s``.
    tell_person
        Says that a person must do something now, by a word such as ``restart``.
    """

    def __init__(
        self,
        settings: TerminalSettings,
        options: dict[str, Any],
        ask_person: Callable[[str], None],
    ) -> None:
        self.door = Terminal(settings)
        self.calendar = TradingCalendar(self.door, file=CalendarFile(settings.calendar_file))
        # What is asked here is what the door itself is built on, so it is asked around it.
        self.xtdata: Any = self.door._xtdata
        self.bson: Any = self.door._bson.BSON
        self.client: Any = None
        self.options = options
        self.ask_person = ask_person
        self.first_push: dict[str, dict[str, Any]] = {}
        """Kept for all questions about it: the whole market is subscribed to once less."""
        self._trades: bool | None = None

    def loaded(self) -> dict[str, Any]:
        """Return what is known of xtquant before a terminal is met."""
        has_c = getattr(self.door._bson, "has_c", None)
        return {
            "xtquant": self.door._xtquant_version,
            "xtquant_path": self.door._xtquant_path,
            "c_bson": bool(has_c()) if callable(has_c) else None,
        }

    def connect(self) -> TerminalInfo:
        """Connect, and return what the terminal says of itself."""
        info = self.door.connect()
        self.client = self.door._client
        return info

    def now_ms(self) -> int:
        """Return the market's time."""
        return self.door.now_ms()

    @property
    def trades_today(self) -> bool:
        """Whether the exchanges trade today, by the terminal's list, else by the weekday."""
        if self._trades is None:
            now_ms = self.now_ms()
            weekday = (now_ms + 8 * 3_600_000) // DAY_MS % 7  # 0 is Thursday
            start, end = str(day_of(now_ms - 20 * DAY_MS)), str(day_of(now_ms))
            try:
                days = self.xtdata.get_trading_dates("SH", start, end, -1)
            except Exception:  # noqa: BLE001 - any failure of the terminal means: not known
                days = []
            newest = day_of(max(days)) if days else 0
            self._trades = newest == day_of(now_ms) or (
                not days and weekday not in (2, 3)  # Saturday, Sunday
            )
        return self._trades

    @property
    def phase(self) -> str:
        """The market's phase now."""
        return phase_of(self.now_ms(), trades=self.trades_today)

    @property
    def continuous(self) -> bool:
        """Whether ticks are due now."""
        return self.phase == "continuous"

    def failure(self, error: Exception, call: str) -> str:
        """Return the name of the project's error for what a call raised."""
        return type(translate(error, call, connected=bool(self.client.is_connected()))).__name__

    def close(self) -> None:
        """End the connection and its subscriptions."""
        self.door.close()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Return whether a condition came true in time."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(_LOOK_S)
        return True
