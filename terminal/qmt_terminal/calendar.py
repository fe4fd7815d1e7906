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
from qmt_protocol.trading_days import MAINLAND, WARN_DAYS, closed_by_law, days_left

from .calendar_file import CalendarFile, NamedDays
from .xshg import NOT_INSTALLED

if TYPE_CHECKING:
    from .door import Terminal

__all__ = ["Source", "TradingCalendar", "TradingDay", "exchange_calendar"]

log: Final = structlog.get_logger(__name__)

Source = Literal["file", "terminal", "exchange_calendars", "law", "weekday"]

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
    """``file``: people's own; ``law``: a public holiday in any year; ``weekday``: nobody knows."""

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

    @property
    def answered(self) -> bool:
        """Whether it has told what it knows, or that it is not installed."""
        return self._done

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
    trading_day = json.loads(done.stdout)
    return ExchangeCalendar(
        trading_day["first"], trading_day["last"], frozenset(trading_day["holidays"])
    )


_LIBRARY: Final = _Library()


def exchange_calendar() -> ExchangeCalendar | None:
    """Return Shanghai's calendar of exchange_calendars; ``None`` where it is not installed.

    The first time it takes another process: a second, or twenty where pandas loads slowly.
    """
    return _LIBRARY.ask()


@dataclass
class _Kept:
    trading_day: TradingDay
    generation: object
    file_version: int
    asked_s: float
    until_library: bool
    """Whether it only stands until the library has answered."""


@dataclass
class _Horizon:
    until: int | None
    key: tuple[object, ...]
    asked_s: float


class TradingCalendar:
    """Trading days by the best source there is, each asked as seldom as can be.

    People know best: a day that their file names. Then the terminal: its trading dates where they
    reach that day, else its holidays of that year. Then exchange_calendars, as far as it reaches,
    the holidays that the law fixes, and a year of which the file gives all holidays. Only where all
    fail is the terminal made to download its holidays, a call that may hang. Then the weekday is
    left, marked as a guess.

    Parameters
    ----------
    terminal
        The door, connected or not; ``None`` where there is none.
    file
        People's corrections; ``None``: there are none.
    waits
        Whether to wait for the library, once, a second or some; else the weekday serves until it
        has answered.
    """

    def __init__(
        self, terminal: Terminal | None, *, file: CalendarFile | None = None, waits: bool = True
    ) -> None:
        self._terminal = terminal
        self._file = file or CalendarFile(None)
        self._waits = waits
        self._until_library = False
        self._kept: dict[str, _Kept] = {}
        self._downloaded: object = None
        self._terminal_years: frozenset[int] = frozenset()
        self._horizon: _Horizon | None = None

    def of_day(self, day: int, market: str = "SH") -> TradingDay:
        """Return whether a market trades on a ``YYYYMMDD`` day.

        What is not the terminal's own word is asked again when the terminal has connected, and
        every ten minutes.
        """
        named = self._file.days if market in MAINLAND else NamedDays()
        generation = self._generation()
        kept = self._kept.get(market)
        now_s = time.monotonic()
        if (
            kept is not None
            and kept.trading_day.day == day
            and kept.file_version == self._file.version
        ):
            late = generation is not None and now_s - kept.asked_s >= _ASK_AGAIN_S
            better = kept.until_library and _LIBRARY.look()[0]
            same = generation is None or (kept.generation == generation and not late)
            if kept.trading_day.source == "terminal" or (same and not better):
                return kept.trading_day
        self._until_library = False
        trading_day = self._find(day, market, generation, named)
        self._kept[market] = _Kept(
            trading_day, generation, self._file.version, now_s, self._until_library
        )
        if kept is None or kept.trading_day != trading_day:
            log.info("trading day", **trading_day.to_dict(), market=market)
        return trading_day

    def describe(self, trading_day: TradingDay) -> dict[str, Any]:
        """Return the heartbeat's ``trading_day``: the day, how far is known, what is wrong."""
        facts = trading_day.to_dict()
        until = self.known_until(trading_day.day)
        if until is not None:
            facts["known_until"] = until
        if self._file.error:
            facts["file_error"] = self._file.error
        return facts

    def known_until(self, day: int) -> int | None:
        """Return up to which day the mainland's trading days are known and not guessed.

        It is the last of the known days that go on from this one without a break; the last before
        it where it is itself beyond them; ``None`` where nobody knows any. What counts are whole
        years of file and terminal, and the library: not single days, and not the law.
        """
        named = self._file.days
        generation = self._generation()
        key = (day, generation, self._file.version, _LIBRARY.answered)
        now_s = time.monotonic()
        kept = self._horizon
        if kept is not None and kept.key == key and now_s - kept.asked_s < _ASK_AGAIN_S:
            return kept.until
        if generation is not None and (holidays := self._holidays()) is not None:
            self._terminal_years = _years_of(holidays)
        years = named.years | self._terminal_years
        until = _reach(day, years, None)
        # The library costs a process: it is asked where the others do not reach far enough.
        left = days_left({"day": day, "known_until": until})
        if left is None or left <= WARN_DAYS:
            until = _reach(day, years, self._library()[1])
        self._horizon = _Horizon(until, key, now_s)
        return until

    def _generation(self) -> object:
        """Which connection there is; ``None`` without one."""
        if self._terminal is None or not self._terminal.connected:
            return None
        return self._terminal.generation

    def _library(self) -> tuple[bool, ExchangeCalendar | None]:
        return (True, exchange_calendar()) if self._waits else _LIBRARY.look()

    def _find(self, day: int, market: str, generation: object, named: NamedDays) -> TradingDay:
        trades = named.trades(day)
        if trades is not None:
            return TradingDay(day, trades, "file")
        connected = generation is not None
        trades = self._by_terminal(day, market) if connected else None
        if trades is not None:
            return TradingDay(day, trades, "terminal")
        if market not in MAINLAND:
            return TradingDay(day, is_weekday(day), "weekday")
        there, library = self._library()
        self._until_library = not there
        trades = None if library is None else library.trades(day)
        if trades is not None:
            return TradingDay(day, trades, "exchange_calendars")
        if closed_by_law(day):
            return TradingDay(day, False, "law")
        trades = named.trades_in_year(day)
        if trades is not None:
            return TradingDay(day, trades, "file")
        trades = self._after_download(day, generation) if connected and there else None
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
        return self._by_holidays(day) if market in MAINLAND else None

    def _by_holidays(self, day: int) -> bool | None:
        holidays = self._holidays()
        if holidays is None or day // 10_000 not in _years_of(holidays):
            return None
        return is_weekday(day) and day not in holidays

    def _holidays(self) -> list[int] | None:
        assert self._terminal is not None
        try:
            return self._terminal.holidays()
        except QMTError as error:
            log.info("the terminal does not tell holidays", error=error.message)
            return None

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


def _years_of(holidays: list[int]) -> frozenset[int]:
    """Return the years that are known: those whose National Day is, as lists grow by the year."""
    return frozenset(day // 10_000 for day in holidays if day // 100 % 100 == 10)


def _reach(day: int, years: frozenset[int], library: ExchangeCalendar | None) -> int | None:
    """Return where what whole years and a library tell ends; see `known_until`."""
    last = library.last if library is not None and library.first <= day else 0
    until, year = 0, day // 10_000
    while year in years or last // 10_000 >= year:
        end = year * 10_000 + 1231
        until = end if year in years else min(end, last)
        if until < end:
            break
        year += 1
    before = [one * 10_000 + 1231 for one in years if one < year]
    return until or max([last, *before]) or None
