"""When a market trades: sessions, days, a clock that is wrong, a day that is invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from qmt_producer import hours
from qmt_producer.hours import TradingHours
from qmt_protocol.errors import QMTError, TerminalNotConnected, TerminalUnsupported
from qmt_protocol.times import day_start_ms
from qmt_terminal import Terminal, calendar
from qmt_terminal.calendar_file import CalendarFile
from qmt_terminal.facts import Clock

INDEX = "000001.SH"
HOUR_MS = 3_600_000


def at(day: int, hour: float) -> int:
    return day_start_ms(day) + int(hour * HOUR_MS)


class StandIn:
    """A terminal that knows hours by default, and the days it is told."""

    def __init__(self, now_ms: int, days: list[int]) -> None:
        self.market_ms = now_ms
        self.days: list[int] | QMTError = days
        self.connected = True
        self.generation = (1, 0)
        self.clock: Clock | None = None

    def now_ms(self) -> int:
        return self.market_ms

    def trading_sessions(self, _code: str) -> Any:
        if not self.connected:
            raise TerminalNotConnected("gone")
        raise TerminalUnsupported("too old")

    def trading_days(self, *_: Any) -> list[int]:
        if isinstance(self.days, QMTError):
            raise self.days
        return self.days

    def holidays(self) -> list[int]:
        raise TerminalUnsupported("too old")

    def download_holidays(self) -> None:
        raise TerminalUnsupported("too old")


def hours_of(stand_in: StandIn, ahead_ms: int | None = None) -> TradingHours:
    terminal = cast(Terminal, stand_in)
    if ahead_ms is None:
        return TradingHours(terminal)
    return TradingHours(terminal, lambda: stand_in.now_ms() - ahead_ms)


def day_told(found: TradingHours) -> dict[str, Any]:
    """Return what is told of today, without how far days are known: the library may be slow."""
    return {name: value for name, value in found.today.items() if name != "known_until"}


def test_a_holiday_that_the_terminal_knows_has_no_session() -> None:
    found = hours_of(StandIn(at(20261002, 10), [20260930, 20261008]))
    found.look(INDEX)
    assert found.session_ms == 0
    assert day_told(found) == {"day": 20261002, "trades": False, "source": "terminal"}
    assert not found.guessed
    assert found.open_for_ms(INDEX) == 0


def test_in_session_and_the_day_after() -> None:
    stand_in = StandIn(at(20261008, 10), [20261008])
    found = hours_of(stand_in)
    assert found.today == {}
    found.look(INDEX)
    assert found.session_ms == HOUR_MS // 2
    stand_in.market_ms = at(20261008, 12)
    found.look(INDEX)
    assert found.session_ms == 0, "the lunch break"
    stand_in.market_ms = at(20261009, 10)
    stand_in.days = [20261009]
    found.look(INDEX)
    assert found.today["day"] == 20261009
    found.look("")
    assert found.session_ms == 0, "nothing is published whose session counts"


def test_a_weekday_that_nobody_knows_is_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendar._LIBRARY, "look", lambda: (True, None))
    found = hours_of(StandIn(at(20261006, 10), []))
    found.look(INDEX)
    assert found.guessed
    assert found.today == {"day": 20261006, "trades": True, "source": "weekday"}
    assert found.open_for_ms(INDEX) == HOUR_MS // 2, "so its silence is told, once"


def test_without_a_terminal_the_day_is_known_and_the_session_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calendar.exchange_calendar()
    stand_in = StandIn(at(20261008, 10), [20261008])
    stand_in.connected = False
    found = hours_of(stand_in)
    found.look(INDEX)
    assert found.today == {}, "the terminal, which knows best, may be there in a moment"
    monkeypatch.setattr(hours, "_PATIENCE_S", 0.0)
    found.look(INDEX)
    assert day_told(found) == {"day": 20261008, "trades": True, "source": "exchange_calendars"}
    assert found.today["known_until"] >= 20261231
    assert found.session_ms == 0


def test_the_calendar_file_and_what_is_wrong_with_it_are_told(tmp_path: Path) -> None:
    path = tmp_path / "calendar.toml"
    path.write_text('[2026]\nclosed = ["2026-10-08"]', "utf-8")
    terminal = cast(Terminal, StandIn(at(20261008, 10), [20261008]))
    found = TradingHours(terminal, file=CalendarFile(path))
    found.look(INDEX)
    assert day_told(found) == {"day": 20261008, "trades": False, "source": "file"}
    assert found.session_ms == 0
    path.write_text('[2026]\nclosed = ["2026-10-80"]', "utf-8")
    found = TradingHours(terminal, file=CalendarFile(path))
    found.look(INDEX)
    assert found.today["source"] == "terminal"
    assert "line 2: '2026-10-80'" in found.today["file_error"]


def test_new_year_s_day_is_no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendar._LIBRARY, "look", lambda: (True, None))
    found = hours_of(StandIn(at(20270101, 10), [20261231]))
    found.look(INDEX)
    assert found.today == {"day": 20270101, "trades": False, "source": "law"}
    assert (found.session_ms, found.open_for_ms(INDEX), found.guessed) == (0, 0, False)


def test_a_clock_that_is_wrong_is_corrected() -> None:
    stand_in = StandIn(at(20261008, 12.5), [20261008])  # it is 11:30 less a minute
    found = hours_of(stand_in, HOUR_MS + 60_000)
    found.look(INDEX)
    assert found.session_ms == 2 * HOUR_MS - 60_000


def test_an_invented_day_says_nothing_about_the_exchange() -> None:
    stand_in = StandIn(at(20261008, 10), [20261008])
    stand_in.clock = Clock(stand_in.market_ms, stand_in.market_ms - 9 * HOUR_MS, 60.0)
    found = hours_of(stand_in)
    found.look(INDEX)
    assert found.session_ms == 0
    stand_in.clock = Clock(stand_in.market_ms + 3, stand_in.market_ms, 1.0)
    found.look(INDEX)
    assert found.session_ms == HOUR_MS // 2


def test_the_usual_close() -> None:
    assert hours_of(StandIn(0, [])).close_s(INDEX) == 15 * 3600
