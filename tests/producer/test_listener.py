"""What the listener does about drops and silence, step by step; the terminal is a stand-in.

The same against a real process is tests/live/test_producer_deaf.py.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qmt_producer.hours import TradingHours
from qmt_producer.listener import Listener
from qmt_protocol.errors import TerminalNotConnected, TerminalRefused, TerminalUnsupported
from qmt_terminal import Terminal, TradingSession
from qmt_terminal.programs import TerminalPrograms

# Monday, Saturday; in China time.
MONDAY_10 = 1_767_578_400_000
SATURDAY_10 = MONDAY_10 + 5 * 86_400_000
DEAF_AFTER_S = 0.5


class Clock:
    """The listener's clock, which only the tests move."""

    now_ms = time.time_ns() // 1_000_000

    def __call__(self) -> int:
        return self.now_ms


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmt_producer.listener._now_ms", CLOCK)


class StandIn:
    """A terminal that does what it is told."""

    def __init__(self) -> None:
        self.market_ms = MONDAY_10
        self.connected = False
        self.reachable = True
        self.generation = (0, 0)
        self.numbers: list[int] = []
        self.sessions: list[TradingSession] | None = None
        self.clock = None
        self.known_holidays = [20261001]
        self.quotes: bool | None = None
        self.refuses: TerminalRefused | None = None
        self.calls: list[str] = []

    def connect(self) -> Any:
        if not self.reachable:
            raise TerminalNotConnected("nobody there")
        if not self.connected:
            self.connected, self.numbers = True, []
            self.generation = (self.generation[0] + 1, self.generation[1])
        return SimpleNamespace(address="here")

    def close(self) -> None:
        self.connected = False
        self.calls.append("close")

    def watch_quote_server(self) -> None:
        self.calls.append("watch")

    def quote_server_up(self) -> bool | None:
        return self.quotes

    def subscribe_pushes(self, _markets: list[str], _put: Any) -> int:
        if self.refuses is not None:
            raise self.refuses
        self.calls.append("subscribe")
        self.numbers.append(len(self.calls))
        return self.numbers[-1]

    def unsubscribe(self, number: int) -> None:
        self.numbers.remove(number)

    def now_ms(self) -> int:
        self.market_ms += 10
        return self.market_ms

    def trading_sessions(self, _code: str) -> list[TradingSession]:
        if self.sessions is None:
            raise TerminalUnsupported("too old")
        return self.sessions

    def trading_days(self, _market: str, _start_ms: int, _end_ms: int) -> list[int]:
        return []

    def holidays(self) -> list[int]:
        return self.known_holidays


class Programs:
    sought = "XtMiniQmt.exe"

    def __init__(self) -> None:
        self.found: tuple[str, ...] = ()

    def running(self, *, fresh: bool = False) -> tuple[str, ...]:
        return self.found


class GuessedHours(TradingHours):
    """Of a terminal and a library that do not know whether today is a holiday."""

    guessed = True


class Rig:
    def __init__(self, hours: type[TradingHours] = TradingHours) -> None:
        self.terminal = StandIn()
        self.programs = Programs()
        self.last_push_ms = 0
        self.silences: list[tuple[int, int, str]] = []
        self.events: list[dict[str, Any]] = []
        terminal = cast(Terminal, self.terminal)
        self.listener = Listener(
            terminal,
            ["SZ", "HK"],
            hours(terminal),
            cast(TerminalPrograms, self.programs),
            put=lambda push: None,
            last_push_ms=lambda: self.last_push_ms,
            deaf_after_s=DEAF_AFTER_S,
            on_silent=self._on_silent,
            on_heard=self._on_heard,
            on_event=self.events.append,
            silent_since_ms=0,
        )

    def _on_silent(self, from_ms: int, reason: str) -> None:
        self.terminal.calls.append("silent")
        self._silent = (from_ms, reason)

    def _on_heard(self, to_ms: int) -> None:
        from_ms, reason = self._silent
        if from_ms:  # else that before the start
            self.silences.append((from_ms, to_ms, reason))

    def push(self) -> None:
        self.last_push_ms = CLOCK.now_ms

    def wait(self, share: float = 1.1) -> None:
        """Look often, for so many times the silence that is suspicious."""
        end_ms = CLOCK.now_ms + share * DEAF_AFTER_S * 1000
        while CLOCK.now_ms < end_ms:
            self.listener.look()
            CLOCK.now_ms += 20

    def told(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] in kinds]

    @property
    def states(self) -> list[str]:
        return [event["state"] for event in self.told("terminal")]

    @property
    def asked(self) -> list[str]:
        return [call for call in self.terminal.calls if call != "watch"]

    @property
    def steps(self) -> list[str]:
        return [event["done"] for event in self.events if event["kind"] == "deaf"]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_silent_feed_is_helped_and_then_given_up(rig: Rig) -> None:
    rig.wait()
    assert rig.steps == ["resubscribed"]
    assert (rig.listener.state, rig.listener.listening) == ("deaf", False)
    assert len(rig.terminal.numbers) == 1, "the old subscription was given back first"
    rig.wait()
    assert rig.steps == ["resubscribed", "reconnected"]
    calls = [call for call in rig.asked if call != "silent"]
    assert calls == ["subscribe", "subscribe", "close", "subscribe"]
    assert not rig.listener.must_restart
    rig.wait()
    assert rig.steps[-1] == "restart"
    assert rig.listener.must_restart


def test_the_snapshot_of_a_new_subscription_is_no_sign_of_life(rig: Rig) -> None:
    rig.listener.look()
    rig.push()
    deaf_from = rig.last_push_ms
    rig.wait()
    rig.push()
    rig.wait()
    assert rig.steps == ["resubscribed", "reconnected"]
    rig.push()
    rig.wait(0.6)
    assert len(rig.steps) == 2
    rig.push()
    rig.listener.look()
    assert rig.steps[2:] == ["pushes came again"]
    assert rig.silences == [(deaf_from, rig.last_push_ms, "the terminal was silent")]
    assert rig.listener.listening


def test_outside_trading_hours_silence_is_normal(rig: Rig) -> None:
    rig.terminal.market_ms = SATURDAY_10
    rig.wait(1.3)
    rig.terminal.market_ms = MONDAY_10 + 2 * 3_600_000  # 12:00, the lunch break
    rig.wait(1.3)
    assert rig.steps == []
    rig.terminal.market_ms = MONDAY_10
    rig.wait(0.2)
    assert rig.steps == ["resubscribed"]
    rig.terminal.market_ms = MONDAY_10 + 6 * 3_600_000
    rig.wait()
    assert rig.steps == ["resubscribed", "the market closed"]
    assert rig.listener.listening


def test_a_market_that_trades_around_the_clock_has_no_weekend(rig: Rig) -> None:
    rig.terminal.sessions = [TradingSession(3, 0, 86_400)]
    rig.terminal.market_ms = SATURDAY_10
    rig.wait()
    assert rig.steps == ["resubscribed"]


def test_a_connection_that_came_back_by_itself_is_subscribed_again(rig: Rig) -> None:
    rig.listener.look()
    rig.push()
    rig.listener.look()
    before = CLOCK.now_ms
    rig.terminal.generation = (1, 1)  # as its status callback told
    rig.listener.look()
    assert rig.told("connected", "resubscribed") == rig.events[:1] + rig.events[-1:]
    assert [event["kind"] for event in rig.events] == ["connected", "terminal", "resubscribed"]
    assert len(rig.terminal.numbers) == 1
    ((from_ms, to_ms, reason),) = rig.silences
    assert reason == "the terminal was away"
    assert rig.last_push_ms <= from_ms <= before <= to_ms
    assert rig.listener.subscriptions == 2, "single subscriptions are made again too"


def test_a_terminal_that_goes_leaves_a_silence_until_it_is_back(rig: Rig) -> None:
    rig.listener.look()
    rig.push()
    rig.terminal.connected = rig.terminal.reachable = False
    assert rig.listener.look() is False
    assert rig.listener.state == "not_running"
    assert "XtMiniQmt.exe" in rig.listener.reason
    assert rig.listener.look() is False
    rig.programs.found = ("XtMiniQmt.exe",)
    rig.listener.look()
    assert rig.listener.state == "waiting_for_login"
    assert "nobody there" in rig.listener.reason
    rig.terminal.reachable = True
    assert rig.listener.look() is True
    ((from_ms, to_ms, _),) = rig.silences
    assert rig.last_push_ms <= from_ms <= to_ms
    told = [(event["was"], event["state"]) for event in rig.told("terminal")]
    assert told == [
        ("not_running", "ok"),
        ("ok", "not_running"),
        ("not_running", "waiting_for_login"),
        ("waiting_for_login", "ok"),
    ]
    assert all(event["market_ms"] >= MONDAY_10 for event in rig.told("terminal"))


def test_a_silence_is_on_record_before_the_subscription_that_ends_it(rig: Rig) -> None:
    """Killed between the two, the next start would take the new pushes for the last ones."""
    rig.listener.look()
    assert rig.asked == ["silent", "subscribe"]
    rig.terminal.generation = (1, 1)
    rig.listener.look()
    assert rig.asked[2:] == ["silent", "subscribe"]
    rig.wait()
    assert rig.steps == ["resubscribed"]
    assert rig.asked[4:] == ["silent", "subscribe"]


def test_a_quote_server_that_is_away_is_waited_for_and_nothing_else(rig: Rig) -> None:
    rig.listener.look()
    rig.push()
    rig.listener.look()
    gone_from = rig.last_push_ms
    rig.terminal.quotes = False
    rig.wait(4)
    assert rig.states == ["ok", "quote_server_down"]
    assert rig.steps == []
    assert not rig.listener.must_restart
    assert not rig.listener.listening
    assert rig.asked == ["silent", "subscribe", "silent"], "on record, and nothing was tried"
    rig.terminal.quotes = True
    rig.listener.look()
    assert rig.listener.state == "ok"
    rig.wait(0.5)
    assert rig.silences == [], "until something is heard"
    rig.push()
    rig.listener.look()
    assert rig.silences == [(gone_from, rig.last_push_ms, "the quote server was away")]
    assert rig.listener.subscriptions == 1


def test_a_quote_server_that_comes_back_to_a_forgotten_subscription(rig: Rig) -> None:
    """Outside trading hours too: the first push of the day shall not be missed."""
    rig.terminal.market_ms = SATURDAY_10
    rig.terminal.quotes = False
    rig.listener.look()
    assert rig.states == ["quote_server_down"]
    rig.terminal.quotes = True
    rig.wait(1.3)
    assert rig.listener.subscriptions == 2
    (told,) = rig.told("resubscribed")
    assert "quote server" in told["reason"]
    rig.wait(1.5)
    assert rig.listener.subscriptions == 2, "once"
    assert rig.states == ["quote_server_down", "ok"]


def test_a_deaf_feed_is_left_alone_once_its_quote_server_is_away(rig: Rig) -> None:
    rig.wait(2.2)
    assert rig.steps == ["resubscribed", "reconnected"]
    rig.terminal.quotes = False
    rig.wait(2)
    assert rig.steps[2:] == ["the quote server is away"]
    assert rig.states == ["ok", "deaf", "quote_server_down"]
    rig.terminal.quotes = True
    rig.wait(0.9)
    assert rig.steps[3:] == [], "it is not taken for deaf for the time without quotes"
    rig.push()
    rig.listener.look()
    assert len(rig.silences) == 1
    rig.wait()
    assert rig.steps[3:] == ["resubscribed"], "a silence that it does not explain"


def test_pushes_refute_what_the_terminal_says_of_its_quote_server(rig: Rig) -> None:
    rig.terminal.quotes = False
    rig.listener.look()
    rig.push()  # the snapshot
    rig.listener.look()
    assert rig.listener.state == "quote_server_down"
    CLOCK.now_ms += int(600 * DEAF_AFTER_S)
    rig.push()
    rig.listener.look()
    assert rig.listener.state == "ok"
    CLOCK.now_ms += 10
    rig.push()
    rig.wait()
    assert rig.steps == ["resubscribed"], "so its word no longer excuses a silence"


def test_a_terminal_that_answers_and_takes_no_subscription_is_deaf(rig: Rig) -> None:
    rig.terminal.refuses = TerminalRefused("订阅超过上限")
    assert rig.listener.look() is False
    assert (rig.listener.state, rig.listener.reason) == ("deaf", "订阅超过上限")
    rig.terminal.refuses = None
    assert rig.listener.look() is True
    assert rig.states == ["deaf", "ok"]


def test_a_day_that_may_be_a_holiday_is_no_reason_to_restart() -> None:
    rig = Rig(GuessedHours)
    rig.wait(4)
    assert rig.steps == ["resubscribed"]
    assert not rig.listener.must_restart
    rig.push()
    rig.listener.look()
    CLOCK.now_ms += int(600 * DEAF_AFTER_S)
    rig.push()
    rig.listener.look()
    assert rig.steps == ["resubscribed", "pushes came again"]
    assert rig.states == ["ok", "deaf", "ok"]
