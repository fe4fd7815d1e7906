"""Where what is known of trading days ends, and the days behind it: who says what, for how long.

exchange_calendars and the State Council's days (chinesecalendar) are each other's judge.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from chinese_calendar.constants import holidays as state_holidays
from chinese_calendar.constants import workdays as state_workdays
from shifted_clock import shifted
from terminal_rig import open_terminal
from test_terminal_calendar import StandIn
from waiting import wait_for

from qmt_protocol.errors import TerminalUnsupported
from qmt_protocol.trading_days import closed_by_law, days_left, ends_soon
from qmt_simulator.market.calendar import trading_calendar
from qmt_simulator.process import TerminalProcess
from qmt_terminal import Terminal, calendar, calendar_file
from qmt_terminal.calendar import ExchangeCalendar, TradingCalendar, exchange_calendar
from qmt_terminal.calendar_file import CalendarFile

NEW_YEAR, SATURDAY, MONDAY = 20270101, 20270102, 20270104
UNSUPPORTED = TerminalUnsupported("no holidays")
WHOLE_2027 = '[2027]\nholidays = ["2027-01-01", "2027-02-05..2027-02-12", "2027-10-01..2027-10-07"]'


@pytest.fixture
def until_2026(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A library that knows 2026 and no more, whatever is installed; returns when it was asked."""
    asked: list[str] = []

    def library() -> ExchangeCalendar:
        asked.append("library")
        return ExchangeCalendar(20250101, 20261231, frozenset({20260101, 20260102, 20261001}))

    monkeypatch.setattr(calendar, "_LIBRARY", calendar._Library())
    monkeypatch.setattr(calendar, "_by_library", library)
    return asked


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], CalendarFile]:
    """Return what makes a calendar file of a text."""

    def write(text: str) -> CalendarFile:
        (tmp_path / "calendar.toml").write_text(text, "utf-8")
        return CalendarFile(tmp_path / "calendar.toml")

    return write


def calendar_of(stand_in: StandIn | None, file: CalendarFile | None = None) -> TradingCalendar:
    return TradingCalendar(cast(Terminal, stand_in), file=file)


def told(found: TradingCalendar, day: int, market: str = "SH") -> tuple[bool, str]:
    one = found.of_day(day, market)
    return one.trades, one.source


def date_of(day: int) -> dt.date:
    return dt.date(day // 10_000, day // 100 % 100, day % 100)


def number_of(date: dt.date) -> int:
    return int(f"{date:%Y%m%d}")


def days_between(first: int, last: int) -> list[int]:
    begin = date_of(first)
    count = (date_of(last) - begin).days + 1
    return [number_of(begin + dt.timedelta(number)) for number in range(count)]


# -- witnesses ----------------------------------------------------------------------------------


def test_two_witnesses_agree_on_every_year_that_both_know() -> None:
    """The exchange rests on all of the State Council's holidays, and on some days before them."""
    library = exchange_calendar()
    assert library is not None
    first, last = (number_of(day) for day in (min(state_holidays), max(state_holidays)))
    assert (first // 10_000, min(last, library.last) // 10_000 >= 2026) == (2004, True)
    last = min(last // 10_000 * 10_000 + 1231, library.last)
    alone = []
    for day in days_between(first, last):
        rests = date_of(day) in state_holidays or date_of(day).weekday() >= 5
        if rests:
            assert library.trades(day) is False, day
        elif library.trades(day) is False:
            alone.append(day)
    before_spring_festival = [
        *(20040119, 20040120, 20040121, 20050207, 20050208, 20060126, 20060127, 20240209)
    ]
    assert [day for day in alone if day < NEW_YEAR] == before_spring_festival
    # A weekend on which China works (调休) is no trading day.
    worked = [number_of(day) for day in state_workdays]
    assert len(worked) >= 150
    assert [day for day in worked if library.trades(day)] == []


def test_what_the_law_fixes_was_closed_in_every_year_that_is_known() -> None:
    library = exchange_calendar()
    assert library is not None
    fixed = [day for day in days_between(19970101, library.last) if closed_by_law(day)]
    assert len(fixed) >= 5 * 30
    assert [day for day in fixed if library.trades(day)] == []


def test_the_simulated_market_rests_on_what_is_known_and_on_what_the_law_fixes() -> None:
    library, simulated = exchange_calendar(), trading_calendar()
    assert library is not None
    days = days_between(20150105, 20351231)
    weekdays = [day for day in days if date_of(day).weekday() < 5]
    rests = {
        day
        for day in weekdays
        if (closed_by_law(day) if day > library.last else library.trades(day) is False)
    }
    assert simulated.days.tolist() == [day for day in weekdays if day not in rests]
    assert simulated.holidays == sorted(rests), "its terminals know all of it"


_BOTH = """
import sys
from qmt_simulator.market.calendar import trading_calendar
from qmt_terminal.xshg import main
main()
sys.stdout.write("\\n" + str(trading_calendar().days.tolist()))
"""


@pytest.mark.parametrize("moment", ["2025-03-03 10:00:00", "2027-01-04 10:00:00"])
def test_no_calendar_depends_on_the_day_on_which_it_is_asked(tmp_path: Path, moment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BOTH],
        env={**os.environ, **shifted(tmp_path, moment)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    library, simulated = done.stdout.splitlines()
    assert json.loads(simulated) == trading_calendar().days.tolist()
    here = exchange_calendar()
    assert here is not None
    assert ExchangeCalendar(**{**json.loads(library), "holidays": here.holidays}) == here
    assert frozenset(json.loads(library)["holidays"]) == here.holidays


# -- who says what ------------------------------------------------------------------------------


@pytest.mark.usefixtures("until_2026")
@pytest.mark.parametrize("stand_in", [None, StandIn([20261231], UNSUPPORTED, UNSUPPORTED)])
def test_behind_the_horizon_only_what_is_certain_is_certain(stand_in: StandIn | None) -> None:
    found = calendar_of(stand_in)
    assert told(found, 20261231) == (True, "exchange_calendars" if stand_in is None else "terminal")
    assert told(found, NEW_YEAR) == (False, "law")
    assert told(found, SATURDAY) == (False, "weekday")
    assert told(found, MONDAY) == (True, "weekday")
    assert found.of_day(MONDAY).guessed
    assert told(found, 20271004) == (True, "weekday"), "the law does not say when it is made up for"
    assert told(found, NEW_YEAR, "HK") == (True, "weekday")


@pytest.mark.usefixtures("until_2026")
def test_a_terminal_is_not_made_to_download_what_is_certain() -> None:
    able = StandIn([20261231], [], [20270101, 20271001])
    assert told(calendar_of(able), NEW_YEAR) == (False, "law")
    assert able.asked == ["days", "holidays"]
    assert told(calendar_of(able), MONDAY) == (True, "terminal")


@pytest.mark.usefixtures("until_2026")
def test_the_file_comes_first_for_the_days_that_it_names(
    written: Callable[[str], CalendarFile],
) -> None:
    file = written('[2027]\nclosed = ["2027-01-04"]\nopen = ["2027-01-01"]\n[2026]\nopen = []')
    listed = StandIn([20261231, MONDAY, 20270105], [])
    found = calendar_of(listed, file)
    assert told(found, MONDAY) == (False, "file")
    assert told(found, NEW_YEAR) == (True, "file"), "people may say even that"
    assert listed.asked == []
    assert told(found, 20270105) == (True, "terminal")
    assert told(found, MONDAY, "HK") == (True, "terminal"), "another exchange"
    assert told(calendar_of(None, file), 20261001) == (False, "exchange_calendars")


@pytest.mark.usefixtures("until_2026")
def test_a_whole_year_in_the_file_is_known(written: Callable[[str], CalendarFile]) -> None:
    found = calendar_of(None, written(WHOLE_2027))
    assert told(found, 20270205) == (False, "file")
    assert told(found, MONDAY) == (True, "file")
    assert told(found, 20270206) == (False, "file"), "a Saturday"
    assert told(found, 20270501) == (False, "law")
    assert told(found, 20280104) == (True, "weekday")
    assert told(found, 20261008) == (True, "exchange_calendars")


@pytest.mark.usefixtures("until_2026")
def test_a_file_that_changes_counts_at_once(
    written: Callable[[str], CalendarFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calendar_file, "_LOOK_S", 0.0)
    found = calendar_of(StandIn([MONDAY], []), written(""))
    assert told(found, MONDAY) == (True, "terminal")
    written('[2027]\nclosed = ["2027-01-04"]')
    wait_for(lambda: told(found, MONDAY) == (False, "file"), "the file is read again")
    written("[2027]\nclosed = [\n2027-01-99]")
    wait_for(lambda: "file_error" in found.describe(found.of_day(MONDAY)), "its mistake is told")
    assert "line 3" in found.describe(found.of_day(MONDAY))["file_error"]
    assert told(found, MONDAY) == (False, "file"), "what it said before still counts"


# -- for how long -------------------------------------------------------------------------------


def test_known_until_the_end_of_the_last_year_that_somebody_knows(
    until_2026: list[str], written: Callable[[str], CalendarFile]
) -> None:
    nobody = StandIn([20261130], UNSUPPORTED, UNSUPPORTED)
    assert calendar_of(nobody).known_until(20261130) == 20261231
    old = StandIn([20261130], [20251001, 20261001])
    assert calendar_of(old).known_until(20261130) == 20261231
    assert calendar_of(None, written(WHOLE_2027)).known_until(20261130) == 20271231
    assert until_2026 == ["library"], "asked once, and kept"
    until_2026.clear()
    new = StandIn([20261130], [20261001, 20271001, 20280501])
    calendar._LIBRARY._done = False
    assert calendar_of(new).known_until(20261130) == 20271231, "of 2028 there is a beginning only"
    assert until_2026 == [], "the terminal's holidays reach far enough"


@pytest.mark.usefixtures("until_2026")
def test_behind_the_horizon_it_is_told_where_it_was() -> None:
    found = calendar_of(StandIn([20261231], UNSUPPORTED, UNSUPPORTED))
    facts = found.describe(found.of_day(MONDAY))
    assert facts == {
        "day": MONDAY,
        "trades": True,
        "source": "weekday",
        "known_until": 20261231,
    }
    assert days_left(facts) == -4
    assert ends_soon(facts)


def test_without_any_source_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendar, "_LIBRARY", calendar._Library())
    monkeypatch.setattr(calendar, "_by_library", lambda: None)
    facts = calendar_of(None).describe(calendar_of(None).of_day(MONDAY))
    assert "known_until" not in facts
    assert (days_left(facts), ends_soon(facts)) == (None, False)


@pytest.mark.usefixtures("until_2026")
def test_a_terminal_that_is_away_has_told_its_years(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = StandIn([20261130], [20261001, 20271001])
    found = calendar_of(terminal)
    assert found.known_until(20261130) == 20271231
    terminal.connected = False
    assert found.known_until(20261130) == 20271231, "else people are warned every night"
    asked = len(terminal.asked)
    terminal.connected = True
    for _ in range(3):
        found.known_until(20261130)
    assert len(terminal.asked) <= asked + 1, "not at each look"


@pytest.mark.parametrize(("left", "soon"), [(61, False), (60, True), (0, True), (-1, True)])
def test_people_are_told_sixty_days_before(left: int, soon: bool) -> None:
    until = date_of(20261231)
    facts = {"day": number_of(until - dt.timedelta(left)), "known_until": 20261231}
    assert days_left(facts) == left
    assert ends_soon(facts) is soon
    assert ends_soon({**facts, "known_until": "soon"}) is False


# -- a terminal at New Year ---------------------------------------------------------------------


@pytest.mark.usefixtures("china_time", "until_2026")
def test_new_year_s_day_beside_a_terminal(start_simulated: Callable[..., TerminalProcess]) -> None:
    simulated = start_simulated("--start", "2027-01-01 10:00:00", "--real-hours")
    door = open_terminal(simulated.port)
    door.connect()
    try:
        found = TradingCalendar(door)
        facts: dict[str, Any] = found.describe(found.of_day(NEW_YEAR))
        known = {"source": "terminal", "known_until": 20351231}
        assert facts == {"day": NEW_YEAR, "trades": False, **known}
        days = [20261229, 20261230, 20261231]
        assert simulated.oracle.trading_days(20261229, 20270110) == days
        assert [day for day in range(20261229, 20261232) if told(found, day)[0]] == days
        simulated.control.set_fault("not_realized", func="get_holidays")
        found = TradingCalendar(door)
        assert told(found, NEW_YEAR) == (False, "law"), "a broker's, which knows no holidays"
    finally:
        door.close()
