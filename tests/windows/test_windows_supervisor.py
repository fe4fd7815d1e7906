"""What the supervisor concludes from heartbeats: which terminal, which clock, which day."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qmt_protocol.status import Heartbeat
from qmt_protocol.times import day_of
from qmt_windows.alerts import title_and_body
from qmt_windows.home import Home
from qmt_windows.overview import _of
from qmt_windows.settings import WindowsSettings
from qmt_windows.supervisor import Supervisor
from qmt_windows.troubles import Alert
from qmt_windows.watch import Heard


class Fixed:
    """A supervisor whose children are told to be such processes, and what it then sees."""

    def __init__(self, tmp_path: Path) -> None:
        self.said: list[str] = []
        settings = WindowsSettings(alert_at=["08:30"], alert_urls=[])
        self.one = Supervisor(Home(tmp_path), settings, self.said.append)

    def heard(self, **terminals: dict[str, Any]) -> Heard:
        beats = {}
        for child in self.one._children:
            terminal = terminals.get(child.name.replace("-", "_"))
            if terminal is not None:
                beats[child.name.partition("-")[0], child.pid or 0] = Heartbeat(
                    role=child.name.partition("-")[0],
                    terminal=terminal,
                    simulated="clock" in terminal,
                )
        return Heard(beats)

    def compare(self, producer: dict[str, Any], worker: dict[str, Any]) -> list[str]:
        """Let it look; returns the workers' states."""
        self.one._compare_terminals(self.heard(producer=producer, worker_query=worker))
        return [child.state for child in self.one._workers]


@pytest.fixture
def fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fixed]:
    monkeypatch.setattr("qmt_windows.supervisor._DIFFER_FOR_S", 0.0)
    found = Fixed(tmp_path)
    yield found
    for child in found.one._children:
        child.log.close()
    found.one._watch._redis.close()


def at(path: str, address: str, state: str = "ok") -> dict[str, Any]:
    return {"state": state, "path": path, "address": address}


GUOJIN, HUATAI = "D:/国金QMT/bin.x64", "D:/华泰QMT/bin.x64"


@pytest.mark.parametrize(
    ("producer", "worker"),
    [
        (at(GUOJIN, "127.0.0.1:58610"), at(GUOJIN, "127.0.0.1:58610")),
        # The same one, restarted: one of them is not yet at its new port.
        (at(GUOJIN, "127.0.0.1:58611"), at(GUOJIN + "/", "127.0.0.1:58610")),
        (at(GUOJIN, "127.0.0.1:58610"), at(HUATAI, "127.0.0.1:58611", "waiting_for_login")),
        (at("", "127.0.0.1:58610"), at(HUATAI, "127.0.0.1:58610")),
        (at("", ""), at(HUATAI, "127.0.0.1:58610")),
    ],
)
def test_the_same_terminal(fixed: Fixed, producer: dict[str, Any], worker: dict[str, Any]) -> None:
    assert fixed.compare(producer, worker) == ["stopped", "stopped"]
    assert fixed.one._child_troubles() == {}


def test_on_different_terminals_the_worker_is_stopped(fixed: Fixed) -> None:
    ours, theirs = at(GUOJIN, "127.0.0.1:58610"), at(HUATAI, "127.0.0.1:58611")
    assert fixed.compare(ours, theirs) == ["held", "held"]
    (kind, (state, reason)) = next(iter(fixed.one._child_troubles().items()))
    assert (kind, state) == ("terminals", "differ")
    assert "国金" in reason
    assert "华泰" in reason
    # Stopped, it is not heard of: that does not mean that all is well.
    assert fixed.compare(ours, {}) == ["held", "held"]
    assert fixed.compare(at(GUOJIN, "127.0.0.1:58610", "not_running"), {}) == ["held", "held"]
    # The producer has moved: now they may agree.
    assert fixed.compare(theirs, {}) == ["stopped", "stopped"]
    assert fixed.one._child_troubles() == {}


def test_without_folders_their_addresses_are_compared(fixed: Fixed) -> None:
    ours, theirs = at("", "127.0.0.1:58610"), at("", "127.0.0.1:58611", "quote_server_down")
    assert fixed.compare(ours, theirs) == ["held", "held"]


def test_market_time_is_the_simulators_also_when_it_is_gone(fixed: Fixed) -> None:
    wall_ms = time.time_ns() // 1_000_000
    clock = {"market_ms": 1_795_141_800_000, "wall_ms": wall_ms - 1000, "speed": 60.0}
    seen = fixed.one._see(fixed.heard(producer={**at("", ""), "clock": clock}))
    assert seen.simulated
    assert 60_000 <= seen.market_ms - clock["market_ms"] < 70_000
    seen = fixed.one._see(fixed.heard())
    assert seen.terminal == ""
    assert 60_000 <= seen.market_ms - clock["market_ms"] < 70_000


@pytest.mark.parametrize(
    ("told", "trades"),
    [
        ({"trades": True, "source": "terminal"}, True),
        ({"trades": False, "source": "exchange_calendars"}, False),
        ({"trades": False, "source": "law"}, False),
        ({"trades": True, "source": "file"}, True),
        ({"trades": True, "source": "weekday"}, None),
        ({"trades": False, "source": "terminal", "day": 20200101}, None),
        ({}, None),
    ],
)
def test_whether_today_trades(fixed: Fixed, told: dict[str, Any], trades: bool | None) -> None:
    day = {"day": day_of(time.time_ns() // 1_000_000), **told} if told else {}
    seen = fixed.one._see(fixed.heard(producer={**at("", ""), "trading_day": day}))
    assert seen.trades is trades


def test_a_calendar_file_that_is_wrong_is_told(fixed: Fixed) -> None:
    wrong = {"file_error": "calendar.toml, line 2: '2027-02-30' is no day"}
    fixed.one._see(fixed.heard(producer={**at("", ""), "trading_day": wrong}))
    seen = fixed.one._see(fixed.heard())
    assert seen.others["calendar"] == ("wrong", wrong["file_error"]), "also while it is silent"
    title, body = title_and_body(Alert("calendar", *seen.others["calendar"], 0), "box")
    assert "交易日历calendar.toml 有误" in title
    assert "line 2: '2027-02-30'" in body
    mended = fixed.one._see(fixed.heard(producer={**at("", ""), "trading_day": {}}))
    assert "calendar" not in mended.others


def test_redis_that_is_away_hides_the_terminal(fixed: Fixed) -> None:
    heard = fixed.heard(producer=at("", "", "not_running"))
    assert fixed.one._see(heard).terminal == "not_running"
    seen = fixed.one._see(Heard(heard.beats, time.monotonic() - 90, "refused"))
    assert seen.terminal == ""
    assert 89 < seen.redis_away_s < 95


def test_status_tells_when_trading_days_are_not_known_for_long() -> None:
    def lines(**day: Any) -> str:
        terminal = {**at("", ""), "trading_day": {"day": 20261201, **day}}
        return "\n".join(_of(Heartbeat(role="producer", terminal=terminal))[0])

    told = lines(known_until=20261231)
    assert "交易日只知道到 2026-12-31，还有 30 天 · trading days are known until 2026-12-31" in told
    assert "calendar.toml" in told
    assert "交易日" not in lines(known_until=20271231)
    assert "line 2: no day" in lines(known_until=20271231, file_error="line 2: no day")
