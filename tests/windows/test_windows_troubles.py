"""When to ask for help: days of market time, judged without any clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmt_protocol.times import day_start_ms
from qmt_windows.troubles import Alert, Seen, Troubles

MINUTE = 60
AT = [8 * 3600 + 30 * MINUTE, 9 * 3600, 9 * 3600 + 10 * MINUTE, 9 * 3600 + 20 * MINUTE]
FRIDAY, SATURDAY, MONDAY = 20261120, 20261121, 20261123
NATIONAL_DAY = 20261001  # a Thursday
BAD = ("not_running", "waiting_for_login", "quote_server_down", "deaf")


def clock(text: str) -> int:
    hour, minute, *second = text.split(":")
    return int(hour) * 3600 + int(minute) * MINUTE + int(*second or ["0"])


def told(alerts: list[Alert], day: int = FRIDAY) -> list[tuple[str, str, str]]:
    """Return each alert's time of day, kind and state."""
    found = []
    for one in alerts:
        second = (one.at_ms - day_start_ms(day)) // 1000
        at = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        found.append((at, one.kind, one.state))
    return found


def play(
    schedule: dict[str, str],
    *,
    day: int = FRIDAY,
    start: str = "07:00",
    end: str = "16:00",
    step_s: int = 10,
    trades: bool | None = True,
    troubles: Troubles | None = None,
    more: Callable[[int], dict[str, object]] = lambda _second: {},
) -> list[Alert]:
    """Go through a day; the schedule says from when on the terminal is in which state."""
    troubles = troubles or Troubles(AT)
    changes = sorted((clock(at), state) for at, state in schedule.items())
    alerts, state = [], ""
    for second in range(clock(start), clock(end), step_s):
        while changes and changes[0][0] <= second:
            state = changes.pop(0)[1]
        seen = Seen(
            market_ms=day_start_ms(day) + second * 1000,
            now_s=float(day % 100 * 86_400 + second),
            terminal=state,
            reason=f"because {state}",
            trades=trades,
            **more(second),  # type: ignore[arg-type]
        )
        alerts += troubles.assess(seen)
    return alerts


def test_a_quiet_day_says_nothing() -> None:
    assert play({"00:00": "ok", "02:00": "not_running", "08:00": "ok"}) == []


def test_the_day_of_a_late_login() -> None:
    schedule = {
        "00:00": "ok",
        "02:00": "not_running",
        "08:00": "waiting_for_login",
        "08:40": "quote_server_down",
        "09:12": "ok",
    }
    alerts = play(schedule)
    assert told(alerts) == [
        ("08:30:00", "terminal", "waiting_for_login"),
        ("09:00:00", "terminal", "quote_server_down"),
        ("09:12:10", "terminal", "ok"),
    ]
    assert alerts[0].reason == "because waiting_for_login"
    assert alerts[2].well
    assert not alerts[0].well


def test_the_same_trouble_is_told_once_and_the_next_trading_day_again() -> None:
    troubles = Troubles(AT)
    first = play({"00:00": "not_running"}, troubles=troubles)
    assert told(first) == [("08:30:00", "terminal", "not_running")]
    assert play({"00:00": "not_running"}, day=SATURDAY, trades=False, troubles=troubles) == []
    second = play({"00:00": "not_running", "09:00": "ok"}, day=MONDAY, troubles=troubles)
    assert told(second, MONDAY) == [
        ("08:30:00", "terminal", "not_running"),
        ("09:00:10", "terminal", "ok"),
    ]


@pytest.mark.parametrize(
    ("day", "trades", "asks"),
    [
        (NATIONAL_DAY, False, False),
        (NATIONAL_DAY, None, True),  # nobody knows: a weekday may be one
        (SATURDAY, None, False),
        (SATURDAY, True, True),
    ],
)
def test_days_without_trading(day: int, trades: bool | None, asks: bool) -> None:
    assert bool(play({"00:00": "not_running"}, day=day, trades=trades)) is asks


def test_in_trading_hours_a_minute_is_waited_and_no_set_time() -> None:
    schedule = {
        "00:00": "ok",
        "10:00": "not_running",
        "10:00:50": "ok",  # restarted: nobody needs to know
        "11:00": "deaf",
        "11:20": "ok",
        "15:01": "not_running",  # after the close
    }
    assert told(play(schedule)) == [
        ("11:01:00", "terminal", "deaf"),
        ("11:20:10", "terminal", "ok"),
    ]


def test_a_set_time_before_anything_is_known_is_not_lost() -> None:
    assert told(play({"00:00": "", "08:30:30": "not_running"}, start="08:29:50")) == [
        ("08:30:40", "terminal", "not_running")
    ]


def test_a_producer_that_is_not_heard_of() -> None:
    assert told(play({"00:00": "ok", "08:29:30": ""}, start="08:00", end="09:30")) == [
        ("08:30:40", "terminal", "unknown")
    ]


def test_a_silence_that_has_its_own_trouble_is_not_told_twice() -> None:
    def away(second: int) -> dict[str, object]:
        since = clock("08:20")
        return {"redis_away_s": float(max(0, second - since)) if second < clock("09:30") else 0.0}

    alerts = play({"00:00": "ok", "08:20": "", "09:30": "ok"}, more=away)
    assert told(alerts) == [("08:21:10", "redis", "away"), ("09:30:00", "redis", "ok")]


def test_a_crash_is_one_alert_until_it_is_steady() -> None:
    def crashing(second: int) -> dict[str, object]:
        # Its reason changes with each crash.
        inside = clock("03:00") <= second < clock("03:20")
        return {"others": {"producer": ("crashed", f"exit {second}")} if inside else {}}

    assert told(play({"00:00": "ok"}, start="02:50", end="04:00", more=crashing)) == [
        ("03:00:00", "producer", "crashed"),
        ("03:20:00", "producer", "ok"),
    ]


def test_a_day_that_was_slept_through() -> None:
    troubles = Troubles(AT)
    assert play({"00:00": "not_running"}, end="08:00", troubles=troubles) == []
    # Waking after the close: the set times have passed, nobody needs to log in now.
    late = play({"00:00": "not_running"}, start="17:00", end="18:00", troubles=troubles)
    assert late == []


def test_accelerated_steps_do_not_jump_over_a_set_time() -> None:
    schedule = {"00:00": "waiting_for_login", "09:05": "ok"}
    assert told(play(schedule, start="00:00", step_s=70)) == [
        ("08:31:00", "terminal", "waiting_for_login"),
        ("09:07:10", "terminal", "ok"),
    ]


@st.composite
def schedules(draw: st.DrawFn) -> dict[int, str]:
    moments = draw(st.lists(st.integers(8 * 120, 16 * 120), max_size=25, unique=True))
    states = st.sampled_from(["ok", "ok", *BAD])
    return {0: "ok", **{moment * 30: draw(states) for moment in moments}}


def states_of(schedule: dict[int, str]) -> Iterator[tuple[int, str, int]]:
    """Yield second, state and how long it has lasted, each half minute."""
    state, since = "ok", 0
    for second in range(7 * 3600, 16 * 3600, 30):
        fresh = schedule.get(second, state)
        if fresh != state:
            state, since = fresh, second
        yield second, state, second - since


@settings(max_examples=40, deadline=None)
@given(schedules())
def test_any_day_keeps_the_rules(schedule: dict[int, str]) -> None:
    """Written anew from the rules, second by second, and compared alert by alert."""
    expected = []
    last: str | None = None
    due: int | None = None
    for second, state, lasted in states_of(schedule):
        if second in AT:
            due = second
        if lasted < 5:
            continue  # the next half minute shows whether it stays
        if state == "ok":
            due = None
            if last is not None:
                expected.append((second, "ok"))
                last = None
            continue
        in_hours = clock("09:15") <= second < clock("15:00") and lasted >= 60
        asked, due = due is not None and second - due <= 600, None
        if (asked or in_hours) and state != last:
            expected.append((second, state))
            last = state
    names = {f"{s // 3600}:{s // 60 % 60}:{s % 60}": state for s, state in schedule.items()}
    alerts = play(names, step_s=30)
    got = [((one.at_ms - day_start_ms(FRIDAY)) // 1000, one.state) for one in alerts]
    assert got == expected
