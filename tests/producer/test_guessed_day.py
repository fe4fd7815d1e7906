"""国庆 without a calendar: a weekday on which nothing comes must not become a panic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_listener import CLOCK, Rig

from qmt_protocol.errors import TerminalUnsupported
from qmt_protocol.times import day_start_ms
from qmt_terminal import calendar

TEN_HOURS_MS = 10 * 3_600_000
NATIONAL_DAY_MS = day_start_ms(20271004) + TEN_HOURS_MS  # a Monday
AN_ORDINARY_MONDAY_MS = day_start_ms(20271011) + TEN_HOURS_MS


def unsupported(*_: object) -> None:
    raise TerminalUnsupported("no holidays")


def silent(market_ms: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], Rig]:
    """Return what makes a listener on a silent feed, whose terminal knows some holidays."""
    monkeypatch.setattr(calendar._LIBRARY, "look", lambda: (True, None))
    monkeypatch.setattr("qmt_producer.listener._now_ms", CLOCK)

    def make(holidays: list[int]) -> Rig:
        rig = Rig()
        rig.terminal.market_ms = market_ms
        rig.terminal.known_holidays = holidays
        monkeypatch.setattr(rig.terminal, "download_holidays", unsupported, raising=False)
        return rig

    return make


def test_nobody_knows_that_it_is_a_holiday(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = silent(NATIONAL_DAY_MS, monkeypatch)([])
    rig.wait(4.5)  # in which it would have been restarted otherwise
    assert rig.steps == ["resubscribed"], "told once, helped once, and that is all"
    assert not rig.listener.must_restart
    assert "close" not in rig.terminal.calls
    rig.push()
    rig.wait(0.6)
    rig.push()
    rig.wait(0.3)
    assert rig.steps[-1] == "pushes came again"
    assert rig.listener.state == "ok"


def test_who_knows_that_it_is_one_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = silent(NATIONAL_DAY_MS, monkeypatch)([20271001, 20271004])
    rig.wait(1.5)
    assert rig.steps == []
    assert rig.listener.state == "ok"


def test_who_knows_that_it_is_none_helps_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = silent(AN_ORDINARY_MONDAY_MS, monkeypatch)([20271001, 20271004])
    rig.wait(4.5)
    assert rig.steps[:3] == ["resubscribed", "reconnected", "restart"]
    assert rig.listener.must_restart
