"""Is this a trading day, and who says so."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

from qmt_protocol.errors import QMTError
from qmt_protocol.times import DAY_MS, day_start_ms, is_weekday

from .xshg import NOT_INSTALLED

if TYPE_CHECKING:
    from .door import Terminal

__all__ = ["Source", "TradingCalendar", "TradingDay", "exchange_calendar"]

log: Final = structlog.get_logger(__name__)

Source = Literal["terminal", "exchange_calendars", "weekday"]

_MAINLAND: Final = frozenset({"SH", "SZ", "BJ", "IF", "SF", "DF", "ZF", "INE", "GF", "SHO", "SZO"})
"""Markets that keep Shanghai's trading days."""
_AROUND_MS: Final = 30 * DAY_MS
_ASK_AGAIN_S: Final = 600.0
_LIBRARY_TIMEOUT_S: Final = 60.0
_NO_WINDOW: Final = getattr(subprocess, "CREATE_NO_WINDOW", 0)


@dataclass(frozen=True)
class TradingDay:
    """What is known of a day."""

    day: int
    """``YYYYMMDD``, China time."""
    trades: bool
    source: Source
    """``weekday``: nobody knows, and it is no weekend."""

    @property
    def guessed(self) -> bool:
        """Whether it may be a holiday all the same: silence on such a day proves nothing."""
        return self.trades and self.source == "weekday"

    def to_dict(self) -> dict[str, Any]:
        """Return the heartbeat's ``trading_day``."""
        return {"day": self.day, "trades": self.trades, "source": self.source}


@dataclass(frozen=True)
class ExchangeCalendar:
    """Weekdays without trading between two days, as a library has them."""

    first: int
    last: int
    holidays: frozenset[int]

    def trades(self, day: int) -> bool | None:
        """Whether there is trading; ``None`` beyond the horizon."""
        if not self.first <= day <= self.last:
            return None
        return is_weekday(day) and day not in self.holidays


class _Library:
    """exchange_calendars' answer: got once, in a thread where nobody may wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking: threading.Thread | None = None
        self._failed_s = -math.inf
        self._done = False
        self._answer: ExchangeCalendar | None = None

    def ask(self) -> ExchangeCalendar | None:
        """Return the answer, waiting for it the first time."""
        with self._lock:
            if not self._done and time.monotonic() - self._failed_s >= _ASK_AGAIN_S:
                try:
                    self._answer = _by_library()
                    self._done = True
                except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
                    self._failed_s = time.monotonic()
                    log.warning("exchange_calendars does not answer", error=str(error))
            return self._answer

    def look(self) -> tuple[bool, ExchangeCalendar | None]:
        """Return whether it has answered, and what; see to it that it will."""
        if self._done or time.monotonic() - self._failed_s < _ASK_AGAIN_S:
            return True, self._answer
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self.ask, name="calendar", daemon=True)
            self._asking.start()
        return False, None


def _by_library() -> ExchangeCalendar | None:
    done = subprocess.run(
        [sys.executable, "-m", "qmt_terminal.xshg"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_LIBRARY_TIMEOUT_S,
        check=False,
        creationflags=_NO_WINDOW,
    )
    if done.returncode == NOT_INSTALLED:
        log.info("exchange_calendars is not installed")
        return None
    done.check_returncode()
    told = json.loads(done.stdout)
    return ExchangeCalendar(told["first"], told["last"], frozenset(told["holidays"]))


_LIBRARY: Final = _Library()


def exchange_calendar() -> ExchangeCalendar | None:
    """Return Shanghai's calendar of exchange_calendars; ``None`` where it is not installed.

    The first time it takes another process: a second, or twenty where pandas loads slowly.
    """
    return _LIBRARY.ask()


@dataclass
class _Kept:
    told: TradingDay
    generation: object
    asked_s: float
    until_library: bool
    """Whether it only stands until the library has answered."""


class TradingCalendar:
    """Trading days by the best source there is, each asked as seldom as can be.

    The terminal knows best: its trading dates where they reach that day, else its holidays of that
    year. Then exchange_calendars, as far as it reaches. Only where both fail is the terminal made
    to download its holidays, a call that may hang. Then the weekday is left, marked as a guess.

    Parameters
    ----------
    terminal
        The door, connected or not; ``None`` where there is none.
    waits
        Whether to wait for the library, once, a second or some; else the weekday serves until it
        has answered.
    """

    def __init__(self, terminal: Terminal | None, *, waits: bool = True) -> None:
        self._terminal = terminal
        self._waits = waits
        self._until_library = False
        self._kept: dict[str, _Kept] = {}
        self._downloaded: object = None

    def of_day(self, day: int, market: str = "SH") -> TradingDay:
        """Return whether a market trades on a ``YYYYMMDD`` day.

        What is not the terminal's own word is asked again when the terminal has connected, and
        every ten minutes.
        """
        generation = self._generation()
        kept = self._kept.get(market)
        now_s = time.monotonic()
        if kept is not None and kept.told.day == day:
            late = generation is not None and now_s - kept.asked_s >= _ASK_AGAIN_S
            better = kept.until_library and _LIBRARY.look()[0]
            same = generation is None or (kept.generation == generation and not late)
            if kept.told.source == "terminal" or (same and not better):
                return kept.told
        self._until_library = False
        told = self._find(day, market, generation)
        self._kept[market] = _Kept(told, generation, now_s, self._until_library)
        if kept is None or kept.told != told:
            log.info("trading day", **told.to_dict(), market=market)
        return told

    def _generation(self) -> object:
        """Which connection there is; ``None`` without one."""
        if self._terminal is None or not self._terminal.connected:
            return None
        return self._terminal.generation

    def _find(self, day: int, market: str, generation: object) -> TradingDay:
        connected = generation is not None
        trades = self._by_terminal(day, market) if connected else None
        if trades is not None:
            return TradingDay(day, trades, "terminal")
        if market in _MAINLAND:
            there, library = (True, exchange_calendar()) if self._waits else _LIBRARY.look()
            if not there:
                self._until_library = True
                return TradingDay(day, is_weekday(day), "weekday")
            trades = None if library is None else library.trades(day)
            if trades is not None:
                return TradingDay(day, trades, "exchange_calendars")
            trades = self._after_download(day, generation) if connected else None
            if trades is not None:
                return TradingDay(day, trades, "terminal")
        return TradingDay(day, is_weekday(day), "weekday")

    # -- the terminal -------------------------------------------------------------------------

    def _by_terminal(self, day: int, market: str) -> bool | None:
        assert self._terminal is not None
        around_ms = day_start_ms(day)
        try:
            days = self._terminal.trading_days(
                market, around_ms - _AROUND_MS, around_ms + _AROUND_MS
            )
        except QMTError as error:
            log.info("the terminal does not tell trading days", error=error.message)
            days = []
        if days and days[-1] >= day:
            return day in days
        return self._by_holidays(day) if market in _MAINLAND else None

    def _by_holidays(self, day: int) -> bool | None:
        assert self._terminal is not None
        try:
            holidays = self._terminal.holidays()
        except QMTError as error:
            log.info("the terminal does not tell holidays", error=error.message)
            return None
        # A year is known when its National Day is: the lists grow year by year.
        october = day // 10_000 * 100 + 10
        if not any(holiday // 100 == october for holiday in holidays):
            return None
        return is_weekday(day) and day not in holidays

    def _after_download(self, day: int, generation: object) -> bool | None:
        assert self._terminal is not None
        if self._downloaded == (generation, day):
            return None
        self._downloaded = (generation, day)
        try:
            self._terminal.download_holidays()
        except QMTError as error:
            log.info("the terminal does not download holidays", error=error.message)
            return None
        return self._by_holidays(day)
