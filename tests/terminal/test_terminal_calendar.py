"""Which days are trading days, by whose word, and what is said where nobody knows."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from waiting import wait_for

from qmt_protocol.errors import QMTError, TerminalNotConnected, TerminalUnsupported, TimedOut
from qmt_simulator.process import TerminalProcess
from qmt_terminal import Terminal, calendar
from qmt_terminal.calendar import TradingCalendar, TradingDay, exchange_calendar
from qmt_terminal.xshg import NOT_INSTALLED

# As the exchanges have announced them, weekends aside.
NATIONAL_DAY_2026 = {20261001, 20261002, 20261005, 20261006, 20261007}
SPRING_FESTIVAL_2027 = {20270205, 20270208, 20270209, 20270210, 20270211, 20270212}
HORIZON = 20261231


class StandIn:
    """A terminal that knows so many trading days and holidays."""

    def __init__(
        self, days: list[int] | QMTError, holidays: list[int] | QMTError, download: Any = ()
    ) -> None:
        self.connected = True
        self.generation = (1, 0)
        self._days = days
        self._holidays = holidays
        self._download = download
        self.asked: list[str] = []

    def trading_days(self, _market: str, _start_ms: int, _end_ms: int) -> list[int]:
        return self._answer("days", self._days)

    def holidays(self) -> list[int]:
        return self._answer("holidays", self._holidays)

    def download_holidays(self) -> None:
        self._answer("download", self._download)
        self._holidays = self._download

    def _answer(self, name: str, answer: Any) -> Any:
        self.asked.append(name)
        if isinstance(answer, QMTError):
            raise answer
        return answer


def told(stand_in: StandIn | None, day: int, market: str = "SH") -> tuple[bool, str]:
    found = TradingCalendar(cast(Terminal, stand_in)).of_day(day, market)
    assert found.day == day
    return found.trades, found.source


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave exchange_calendars out, as where it is not installed."""
    monkeypatch.setattr(calendar, "_LIBRARY", calendar._Library())
    monkeypatch.setattr(calendar, "_by_library", lambda: None)


UNSUPPORTED = TerminalUnsupported("no holidays")


def test_the_terminal_s_trading_dates_come_first() -> None:
    listed = StandIn([20260929, 20260930, 20261008], [])
    assert told(listed, 20260930) == (True, "terminal")
    assert told(listed, 20261001) == (False, "terminal"), "a later day is listed, this one is not"
    assert listed.asked == ["days", "days"], "and nothing else is asked"


def test_a_day_not_yet_listed_goes_by_its_holidays() -> None:
    for day in sorted(NATIONAL_DAY_2026):
        early = StandIn([20260930], sorted(NATIONAL_DAY_2026))
        assert told(early, day) == (False, "terminal")
    assert told(StandIn([20260930], sorted(NATIONAL_DAY_2026)), 20261008) == (True, "terminal")
    # 10 October 2026 is a Saturday on which China works, and its exchanges do not.
    assert told(StandIn([20261009], sorted(NATIONAL_DAY_2026)), 20261010) == (False, "terminal")


def test_holidays_of_another_year_say_nothing_about_this_one() -> None:
    old = StandIn([20261231], [*sorted(NATIONAL_DAY_2026), 20270101], UNSUPPORTED)
    assert told(old, 20270208) == (True, "weekday")
    assert old.asked == ["days", "holidays", "download"]


def test_exchange_calendars_where_the_terminal_does_not_know() -> None:
    for day in sorted(NATIONAL_DAY_2026):
        assert told(StandIn([20260930], UNSUPPORTED), day) == (False, "exchange_calendars")
    lacking = StandIn(UNSUPPORTED, [])
    assert told(lacking, 20261008) == (True, "exchange_calendars")
    assert told(lacking, 20261010) == (False, "exchange_calendars")
    assert "download" not in lacking.asked, "a call that may hang is the last resort"
    assert told(None, 20260930) == (True, "exchange_calendars")


def test_the_end_of_the_library_s_horizon() -> None:
    library = exchange_calendar()
    assert library is not None
    assert library.last >= HORIZON
    assert library.trades(HORIZON) is True
    assert library.trades(20991231) is None
    beyond = (library.last // 10_000 + 1) * 10_000 + 101
    assert library.trades(beyond) is None
    assert told(None, 20991005) == (True, "weekday"), "a Monday, and a holiday as likely as not"
    assert TradingCalendar(None).of_day(20991005).guessed
    assert not TradingCalendar(None).of_day(20991003).guessed, "no exchange trades on a Saturday"


def test_beyond_it_the_terminal_downloads_its_holidays_once() -> None:
    if (library := exchange_calendar()) is not None and library.last > 20270212:
        pytest.fail("the library knows 2027 by now: take a later Spring Festival here")
    october = [20271001, 20271004]
    for day in sorted(SPRING_FESTIVAL_2027):
        able = StandIn([20270204], [], [*sorted(SPRING_FESTIVAL_2027), *october])
        assert told(able, day) == (False, "terminal")
        assert able.asked == ["days", "holidays", "download", "holidays"]
    unable = StandIn([20270204], [], UNSUPPORTED)
    found = TradingCalendar(cast(Terminal, unable))
    assert found.of_day(20270208).to_dict() == {
        "day": 20270208,
        "trades": True,
        "source": "weekday",
    }
    assert found.of_day(20270208).guessed
    assert unable.asked.count("download") == 1


def test_who_may_not_wait_has_the_weekday_until_the_library_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered, library = threading.Event(), exchange_calendar()

    def slow() -> Any:
        answered.wait(10)
        return library

    monkeypatch.setattr(calendar, "_LIBRARY", calendar._Library())
    monkeypatch.setattr(calendar, "_by_library", slow)
    terminal = StandIn([20260930], UNSUPPORTED, UNSUPPORTED)
    found = TradingCalendar(cast(Terminal, terminal), waits=False)
    first = found.of_day(20261006)
    assert first == TradingDay(20261006, True, "weekday")
    assert found.of_day(20261006) == first
    assert "download" not in terminal.asked
    answered.set()
    wait_for(lambda: found.of_day(20261006) != first, "the library has answered")
    assert found.of_day(20261006) == TradingDay(20261006, False, "exchange_calendars")
    assert len(terminal.asked) == 4, "asked twice, not in each look"


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("error", [UNSUPPORTED, TimedOut("hangs"), TerminalNotConnected("gone")])
def test_without_library_and_terminal_a_weekday_is_a_guess(error: QMTError) -> None:
    assert told(StandIn(error, error, error), 20261006) == (True, "weekday")
    assert told(StandIn([], [], error), 20261010) == (False, "weekday")
    assert told(None, 20261006) == (True, "weekday")


def test_other_markets_have_their_own_days() -> None:
    assert told(StandIn([20260930], sorted(NATIONAL_DAY_2026)), 20261002, "HK") == (
        True,
        "weekday",
    )
    assert told(StandIn([20260930, 20261002], []), 20261002, "HK") == (True, "terminal")
    assert told(StandIn([], []), 20261002, "IF") == (False, "exchange_calendars")


def test_it_is_asked_again_when_the_terminal_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(calendar.time, "monotonic", lambda: clock[0])
    terminal = StandIn([20260930], UNSUPPORTED)
    terminal.connected = False
    found = TradingCalendar(cast(Terminal, terminal))
    first = found.of_day(20261008)
    assert first == TradingDay(20261008, True, "exchange_calendars")
    assert terminal.asked == []
    terminal.connected = True
    assert found.of_day(20261008).source == "exchange_calendars"
    assert terminal.asked == ["days", "holidays"]
    clock[0] += 599
    assert found.of_day(20261008) == first
    assert len(terminal.asked) == 2
    terminal._days = [20260930, 20261008]
    clock[0] += 1
    assert found.of_day(20261008) == TradingDay(20261008, True, "terminal")
    clock[0] += 10_000
    terminal.connected = False
    found.of_day(20261008)
    assert len(terminal.asked) == 3, "the terminal's own word stands"
    assert found.of_day(20261009).source == "exchange_calendars"


def test_a_process_without_the_library_says_so(tmp_path: Path) -> None:
    (tmp_path / "exchange_calendars").mkdir()
    (tmp_path / "exchange_calendars" / "__init__.py").write_text("raise ImportError('blocked')")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from qmt_terminal.xshg import main; sys.exit(main())"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (NOT_INSTALLED, b"", b"")


def test_a_library_that_fails_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [5000.0]
    asked: list[str] = []

    def slow() -> None:
        asked.append("once more")
        raise subprocess.TimeoutExpired("python", 60)

    monkeypatch.setattr(calendar.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(calendar, "_by_library", slow)
    library = calendar._Library()
    assert library.ask() is None
    assert library.look() == (True, None)
    assert library.ask() is None
    assert len(asked) == 1, "not at each look"
    clock[0] += 600
    assert library.look() == (False, None)
    assert library.ask() is None
    assert len(asked) == 2


def test_terminals_of_brokers(
    start_simulated: Callable[..., TerminalProcess], china_time: None
) -> None:
    """They cannot download holidays; what is listed, and the library, still tell."""
    simulated = start_simulated(
        "--profile", "broker", "--start", "2026-10-02 10:00:00", "--real-hours"
    )
    simulated.control.set_fault("not_realized", func="get_holidays")
    from terminal_rig import open_terminal

    door = open_terminal(simulated.port)
    door.connect()
    found = TradingCalendar(door)
    assert found.of_day(20261002).to_dict() == {
        "day": 20261002,
        "trades": False,
        "source": "exchange_calendars",
    }
    assert found.of_day(20260930) == TradingDay(20260930, True, "terminal")
    simulated.control.clear_fault()
    door.close()
    again = open_terminal(simulated.port)
    again.connect()
    assert TradingCalendar(again).of_day(20261002) == TradingDay(20261002, False, "terminal")
    again.close()
