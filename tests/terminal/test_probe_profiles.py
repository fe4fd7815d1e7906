"""The probe tells one simulated edition from another: its differences, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from probe_rig import REPORTS, RESTARTS, probe_profile

from qmt_simulator.profiles import PROFILES, Profile, load_profile
from qmt_terminal.probe import QUESTIONS, compare, load_references, nearest
from qmt_terminal.probe.download_questions import REACH_AGES_DAYS

CUSTOMARY = {31: 20, 366: 340, 1098: 1080}
"""The oldest age asked for that lies within each customary reach of downloads."""


def expected_differences(profile: Profile) -> set[str]:
    """Return the facts in which a profile must differ from research, from its fields alone."""
    research = PROFILES["research"]
    told: set[str] = set()

    def where(differs: bool, *names: str) -> None:
        told.update(names if differs else ())

    where(profile.depth_levels != research.depth_levels, "values.depth_levels")
    # Of stocks 'raw' and 'lots*100' look alike: a lot is a hundred shares. Of bonds it is ten.
    where(profile.pvolume == "lots", "values.pvolume_of_stocks")
    where(profile.pvolume != "raw", "values.pvolume_of_bonds")
    where(profile.amount_factor != research.amount_factor, "values.amount_unit")
    where(not profile.counts_transactions, "values.counts_transactions")
    where(not profile.full_tick_has_time, "full_tick.keys", "full_tick.has_time")
    where(profile.full_tick_millis, "full_tick.timetag")
    where(not profile.dividends_by_date, "dividends.index")
    where(profile.pads_with_zero, "no_data.filled_close")
    where(not profile.unknown_code_is_empty, "asks_unknown_code.answer")
    where(
        profile.download_version is None,
        "has_getapiversion.download_version",
        "download_year.returns",
    )
    where(profile.single_subscriptions != 300, "single_limit.subscriptions")
    for period, days in profile.history_days.items():
        where(days != research.history_days[period], f"reach_{period}.ages_days")
    lacks = {
        "getapiversion": ["has_getapiversion.answers"],
        "getperiodlist": ["has_get_period_list.answers"],
        "getfullkline": ["has_get_full_kline.answers"],
        # The calendar is made from the holidays.
        "downloadholidaydata": [
            "has_download_holiday_data.answers",
            "has_get_trading_calendar.answers",
        ],
        "downloadhisstdata": ["has_download_his_st_data.answers"],
        "downloadmetadata": [],  # a download of feature data: not asked of a live terminal
    }
    for function in profile.not_realized:
        where(True, *lacks[function])
    return told


def check_differences(name: str, left_out: set[str]) -> None:
    report = probe_profile(name, set(QUESTIONS) - RESTARTS - left_out)
    references = load_references()
    asked = {question for question, answer in report["answers"].items() if answer.get("facts")}
    unknown = [
        f"{question}.{fact}"
        for question, answer in report["answers"].items()
        for fact, value in answer.get("facts", {}).items()
        if value is None
    ]
    assert asked == {one.name for one in QUESTIONS.values() if one.facts} - RESTARTS - left_out
    assert unknown == []

    against_research = compare(report, references["research"])
    assert {one.name for one in against_research.differences} == expected_differences(
        PROFILES[name]
    )
    assert against_research.compared == sum(len(QUESTIONS[one].facts) for one in asked)
    found = nearest(report, references)
    assert found is not None
    assert (found.profile, found.differences) == (name, ())


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_profile_differs_from_research_as_its_fields_say_and_in_nothing_else(name: str) -> None:
    """The callbacks of a hundred pushes, the longest question, are listened to for one profile."""
    check_differences(name, set() if name == "broker" else {"callbacks", "tables"})


@pytest.mark.long  # the same, whatever it takes
@pytest.mark.parametrize("name", ["old", "research"])
def test_a_profile_differs_as_its_fields_say_in_every_question(name: str) -> None:
    check_differences(name, set())


def altered_broker() -> dict[str, Any]:
    """Return the broker's reference as another broker's terminal might have answered."""
    document = copy.deepcopy(load_references()["broker"])
    answers = document["answers"]
    answers["values"]["facts"].update(
        depth_levels=3, pvolume_of_stocks="1 x volume", pvolume_of_bonds="1 x volume"
    )
    answers["has_get_period_list"]["facts"]["answers"] = "yes"
    answers["has_get_trading_period"]["facts"]["answers"] = "unsupported"
    answers["full_tick"]["facts"]["timetag"] = "99999999 99:99:99.999"
    document["terminal"].update(edition="somebroker", version="2.1.0.1")
    return document


def check_report_as_profile(document: dict[str, Any], folder: Path, names: set[str]) -> None:
    file = folder / "somebroker.json"
    file.write_text(json.dumps(document), "utf-8")
    report = probe_profile(str(file), names)
    assert report["terminal"]["edition"] == "somebroker"
    assert report["terminal"]["version"] == "2.1.0.1"
    same = compare(report, document)
    assert same.differences == ()
    assert {one.name for one in compare(report, load_references()["broker"]).differences} == {
        "values.depth_levels",
        "values.pvolume_of_stocks",
        "values.pvolume_of_bonds",
        "has_get_period_list.answers",
        "has_get_trading_period.answers",
        "full_tick.timetag",
    }


def test_a_report_becomes_a_profile_that_gives_the_same_answers(tmp_path: Path) -> None:
    slow = {name for name, question in QUESTIONS.items() if question.downloads}
    names = set(QUESTIONS) - RESTARTS - slow - {"callbacks", "single_limit"}
    check_report_as_profile(altered_broker(), tmp_path, names)


@pytest.mark.long  # the same with its downloads and its hundred callbacks
def test_a_report_becomes_a_profile_in_every_answer(tmp_path: Path) -> None:
    check_report_as_profile(altered_broker(), tmp_path, set(QUESTIONS) - RESTARTS)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_reference_becomes_its_profile_again(name: str) -> None:
    """All fields but those that cannot be asked: a metadata download, and 1d's whole depth."""
    profile = PROFILES[name]
    rebuilt = Profile.from_report(load_references()[name])
    # Instruments are younger than what a download of daily bars would reach.
    reach = {**profile.history_days, "1d": 3600}
    assert dataclasses.replace(rebuilt, not_realized=frozenset()) == dataclasses.replace(
        profile, not_realized=frozenset(), history_days=reach
    )
    assert rebuilt.not_realized ^ profile.not_realized <= {"downloadmetadata"}


def test_reaches_between_two_ages_stay_between_them() -> None:
    document = load_references()["research"]
    for period, ages in REACH_AGES_DAYS.items():
        for count in range(1, len(ages)):
            facts = document["answers"][f"reach_{period}"]["facts"]
            facts["ages_days"] = list(ages[:count])
            days = Profile.from_report(document).history_days[period]
            assert ages[count - 1] <= days < ages[count] - 12
            assert CUSTOMARY.get(days, days) == ages[count - 1]


def test_what_is_no_report_is_no_profile(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"kind": "other"}', "utf-8")
    with pytest.raises(ValueError, match="no report"):
        load_profile(str(file))
    with pytest.raises(ValueError, match="invalid choice"):
        load_profile("gold")


def test_every_profile_has_its_reference() -> None:
    assert {path.stem for path in REPORTS.glob("*.json")} == set(PROFILES)
    for name, document in load_references().items():
        assert document["profile"] == name
        assert {
            question: set(answer["facts"]) for question, answer in document["answers"].items()
        } == {
            question.name: set(question.facts) for question in QUESTIONS.values() if question.facts
        }


@pytest.mark.long  # lunch, night and a holiday: what cannot be known then is left out
@pytest.mark.parametrize(
    "start", ["2026-11-20 12:10:00", "2026-11-20 22:30:00", "2026-10-03 10:30:00"]
)
@pytest.mark.parametrize("name", sorted(PROFILES))
def test_outside_trading_the_differences_are_the_same_or_unknown(name: str, start: str) -> None:
    report = probe_profile(name, start=start)
    against_research = compare(report, load_references()["research"])
    expected = expected_differences(PROFILES[name])
    assert {one.name for one in against_research.differences} == expected
    assert report["answers"]["callbacks"]["facts"]["cadence_ms"] is None
    assert against_research.unknown < 12
