"""The account itself: it must find a planted loss, repeat and reorder, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from crash_accounting import (
    LATE,
    CountedGap,
    Pushed,
    Stored,
    WindowGap,
    account,
    account_feed,
    account_reader,
)
from crash_evidence import gaps_of

CODE = "600519.SH"
SENT = [Pushed(f"tick {n}", 1000 * n, 50_000 + 1000 * n) for n in range(1, 10)]
HELD = [Stored(tick.content, tick.at_ms, tick.at_ms) for tick in SENT]


def faults(held: list[Stored], **more: object) -> list[str]:
    verdict = account({CODE: SENT}, {CODE: held}, **more)  # type: ignore[arg-type]
    return [line for line in verdict.problems if line[0].isdigit()]


def test_in_order() -> None:
    assert faults(HELD) == []
    assert account({CODE: SENT}, {CODE: HELD}).figures()["stored"] == 9


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lambda held: held[:3] + held[4:], "1 lost"),
        (lambda held: held[:-1], "1 lost"),
        (lambda held: [], "9 lost"),
        (lambda held: held[:4] + held[3:], "1 repeated"),
        (lambda held: [*held, held[0]], "1 repeated"),
        (lambda held: [held[1], held[0], *held[2:]], "reordered"),
        (lambda held: [*held[:5], Stored("never sent", 5500, 5500), *held[5:]], "1 invented"),
        (lambda held: [*held[:5], held[5]._replace(content="other volume"), *held[6:]], "1 lost"),
        (lambda held: [*held[:5], held[5]._replace(id_ms=1), *held[6:]], "1 reordered"),
    ],
)
def test_planted_faults(plant: Callable[[list[Stored]], list[Stored]], found: str) -> None:
    assert any(found in line for line in faults(plant(HELD)))


def test_a_window_names_only_what_lies_in_it() -> None:
    held = HELD[:3] + HELD[5:]  # pushed at 54 and 55 s
    market = frozenset({"SH"})
    assert faults(held, gaps=[WindowGap(market, 54_000, 55_000)]) == []
    assert faults(held, gaps=[WindowGap(frozenset(), 54_000, 55_000)]) == []
    assert faults(held, gaps=[WindowGap(market, 54_000, 54_999)]) == ["1 lost"]
    assert faults(held, gaps=[WindowGap(market, 56_001, 60_000)]) == ["2 lost"]
    assert faults(held, gaps=[WindowGap(frozenset({"SZ"}), 0, 99_000)]) == ["2 lost"]


def test_a_counted_gap_names_exactly() -> None:
    held = HELD[:3] + HELD[5:]
    assert faults(held, gaps=[CountedGap({CODE: (4000, 5000, 2)})]) == []
    assert faults(held, gaps=[CountedGap({CODE: (4000, 5000, 1)})]) == ["1 lost"]
    assert faults(held, gaps=[CountedGap({CODE: (4000, 5000, 3)})]) == ["1 overnamed"]
    assert faults(held, gaps=[CountedGap({CODE: (4000, 4000, 2)})]) == ["1 lost", "1 overnamed"]
    assert faults(held, gaps=[CountedGap({"000001.SZ": (4000, 5000, 2)})]) == [
        "2 lost",
        "2 overnamed",
    ]


def test_late_entries_follow_the_rules() -> None:
    late = Stored(SENT[3].content, 4000, 7000, LATE)
    held = [*HELD[:3], *HELD[4:7], late, *HELD[7:]]
    assert faults(held, late_allowed=True) == []
    assert faults(held) == ["1 reordered"]
    for wrong in (late._replace(id_ms=6000), late._replace(flags=0)):
        held[6] = wrong
        assert any("reordered" in line for line in faults(held, late_allowed=True))


def test_a_repeated_snapshot_is_no_fault_and_two_terminals_count_once() -> None:
    again = [tick._replace(subscription=2, wall_ms=70_000 + n) for n, tick in enumerate(SENT)]
    verdict = account({CODE: [*SENT, *again]}, {CODE: HELD})
    assert verdict.problems == []
    assert verdict.pushed == 9
    snapshot = SENT[8]._replace(subscription=2, wall_ms=80_000)
    assert account({CODE: [*SENT, snapshot]}, {CODE: HELD}).problems == []


def test_reader() -> None:
    sent = {CODE: list("abcdef")}
    assert account_reader(sent, {CODE: list("abcdef")}).problems == []
    for wrong, found in (
        ("abdef", "1 lost"),
        ("abccdef", "1 repeated"),
        ("abdcef", "1 reordered"),
        ("abcdefx", "1 invented"),
    ):
        assert account_reader(sent, {CODE: list(wrong)}).problems[0] == found
    got = {CODE: list("abf")}
    assert account_reader(sent, got, lambda code, content: content in "cde").problems == []
    assert account_reader(sent, got, lambda code, content: content == "c").problems[0] == "2 lost"


IDS = [f"{1000 * n}-0" for n in range(1, 6)]
FILED = [(one, 0) for one in IDS]


@pytest.mark.parametrize(
    ("fed", "filed", "newest", "found"),
    [
        (IDS, FILED, IDS[-1], []),
        (IDS, [*FILED[:4], (IDS[4], LATE)], IDS[3], []),
        (IDS, FILED[:-1], IDS[-2], ["1 lost"]),
        (IDS[:-1], FILED, IDS[-1], ["1 invented"]),
        ([*IDS, IDS[0]], FILED, IDS[-1], ["1 repeated"]),
        ([*IDS[1:], IDS[0]], FILED, IDS[-1], ["1 reordered"]),
        (IDS, FILED, IDS[-2], ["1 reordered"]),
    ],
)
def test_a_feed_and_what_was_filed_of_it(
    fed: list[str], filed: list[tuple[str, int]], newest: str, found: list[str]
) -> None:
    verdict = account_feed({CODE: fed}, {CODE: filed}, {CODE: newest})
    assert [line for line in verdict.problems if line[0].isdigit()] == found


def test_ticks_that_redis_refused_are_named_one_by_one() -> None:
    words = f"{CODE} 3000-0: WRONGTYPE no stream; {CODE} 5000-1: WRONGTYPE no stream"
    event = {"kind": "gap", "market": "SH", "reason": f"rejected by Redis: {words}", "ticks": 2}
    assert gaps_of([event]) == [CountedGap({CODE: (3000, 5000, 2)})]
