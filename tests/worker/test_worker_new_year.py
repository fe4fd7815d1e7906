"""History that spans New Year 2027, behind the end of what the library knows; corrected days."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from worker_rig import Caller, WorkerProcess

from qmt_protocol.times import parse_start
from qmt_simulator.process import TerminalProcess
from qmt_terminal import Terminal, calendar_file
from qmt_terminal.calendar_file import CalendarFile
from qmt_worker.days import Calendar, date_of

NOW = parse_start("2027-01-11 10:00:00")
# Weekdays but New Year's Day, a Friday.
DAYS = [*range(20261221, 20261226), *range(20261228, 20261232), *range(20270104, 20270109)]
INDEX, STOCK = "000001.SH", "600519.SH"


def days_of(frame: Any) -> list[int]:
    return sorted({int(f"{at:%Y%m%d}") for at in frame["time"]})


def test_no_day_is_missing_and_none_too_many(
    start_simulated: Callable[..., TerminalProcess],
    start_worker: Callable[..., WorkerProcess],
    caller: Caller,
) -> None:
    simulated = start_simulated(
        *("--start", "2027-01-11 10:00:00", "--real-hours", "--profile", "broker"),
        *("--cache-delay-s", "0.05,0.1"),
    )
    start_worker(simulated.port, "--queue", "qmt-query")
    span = {"start_ms": parse_start("20261220"), "end_ms": parse_start("20270111") - 1}
    daily = caller.ask("history", codes=[INDEX, STOCK], period="1d", **span)
    assert [days_of(daily.frame(code)) for code in (INDEX, STOCK)] == [DAYS, DAYS]
    assert (daily.manifest["meta"]["absent"], daily.manifest["meta"]["partial"]) == ({}, {})
    minutes = caller.ask("history", codes=[INDEX], period="1m", **span)
    assert (days_of(minutes.frame(INDEX)), len(minutes.frame(INDEX))) == (DAYS, 241 * len(DAYS))
    last = caller.ask("history", codes=[INDEX], period="1d", count=7)
    assert days_of(last.frame(INDEX)) == [*DAYS[-6:], 20270111]
    weeks = caller.ask("history", codes=[INDEX], period="1w", **span)
    assert days_of(weeks.frame(INDEX)) == [20261225, 20261231, 20270108]
    assert weeks.frame(INDEX)["closed"].tolist() == [True] * 3


class Listed:
    """A terminal that lists some days, whatever is asked."""

    def __init__(self, days: list[int]) -> None:
        self.days = days
        self.asked = 0

    def trading_days(self, *_: object) -> list[int]:
        self.asked += 1
        return self.days


def test_the_calendar_file_corrects_the_terminal_s_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calendar_file, "_LOOK_S", 0.0)
    path = tmp_path / "calendar.toml"
    path.write_text(
        '[2026]\nclosed = ["2026-12-30"]\n[2027]\nopen = ["2027-01-08", "2027-01-12"]', "utf-8"
    )
    terminal = Listed([20261230, 20261231, 20270101, 20270104])
    found = Calendar(cast(Terminal, terminal), CalendarFile(path))

    def days(market: str) -> list[int]:
        return [date_of(day) for day in found.days(market, NOW).tolist()]

    corrected = [20261231, 20270101, 20270104, 20270108]
    assert days("SH") == corrected, "of the days to come none is expected"
    assert days("HK") == terminal.days
    assert days("SH") == corrected
    assert terminal.asked == 2
