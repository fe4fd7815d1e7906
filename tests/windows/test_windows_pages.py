"""The pages about the Windows box: both languages tell the same, and only what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qmt_producer.settings import ProducerSettings
from qmt_terminal.calendar import exchange_calendar
from qmt_terminal.calendar_file import parse_days
from qmt_terminal.states import AWAY
from qmt_windows.home import Home
from qmt_windows.settings import WindowsSettings
from qmt_windows.words import CHILD_STATES, TERMINAL_STATES

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/windows.md", "docs/windows.zh-CN.md")
SETTINGS = {**ProducerSettings.model_fields, **WindowsSettings.model_fields}
LANGUAGES = [PAGES, ("README.md", "README.zh-CN.md")]


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(text: str, *kinds: str) -> list[str]:
    """Return the lines of code that a reader copies, without remarks and the words in them."""
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```", text, re.M | re.S)
    lines = [line for kind, code in found if kind in kinds for line in code.splitlines()]
    bare = [re.sub(r"\s{2,}#.*|<[^<>]*>|密码|PASSWORD", "", line).strip() for line in lines]
    return [line for line in bare if line]


@pytest.mark.parametrize("names", LANGUAGES)
def test_both_languages_give_the_same_commands(names: tuple[str, str]) -> None:
    english, chinese = (blocks(page(name), "bat", "toml", "sh") for name in names)
    windows = [line for line in english if "scripts\\windows" in line or "docker/join" in line]
    assert len(windows) >= 5
    assert english == chinese


@pytest.mark.parametrize("name", [name for names in LANGUAGES for name in names])
def test_every_script_named_is_there(name: str) -> None:
    named = set(re.findall(r"scripts\\windows\\([\w.-]+)", page(name)))
    assert {"install.ps1", "join.ps1", "check.ps1", "start-at-logon.ps1"} <= named
    assert all((ROOT / "scripts" / "windows" / one).is_file() for one in named)
    assert "-ExecutionPolicy Bypass" in page(name)


@pytest.mark.parametrize("name", PAGES)
def test_every_setting_named_is_one(name: str) -> None:
    text = page(name)
    given = {line.partition(" =")[0] for line in blocks(text, "toml") if " = " in line}
    given -= {"holidays", "closed", "open"}  # of the calendar file
    assert {"alert_urls", "alert_secret", "alert_at", "terminal_path", "xtquant_path"} <= given
    spoken = set(re.findall(r"`(\w+) = ", text))
    spoken |= {one for one in re.findall(r"`([a-z]+_[a-z_]+)`", text) if one in SETTINGS}
    assert given | spoken <= set(SETTINGS)
    assert {"ring", "ring_max_mb", "log_max_mb", "log_files", "terminal_programs"} <= spoken


@pytest.mark.parametrize("name", PAGES)
def test_the_calendar_file_shown_is_that_year_s(name: str) -> None:
    shown = re.findall(r"```toml\n(# calendar\.toml\n.*?)```", page(name), re.S)
    assert len(shown) == 1
    days, library = parse_days(shown[0]), exchange_calendar()
    assert library is not None
    assert days.closed == {day for day in library.holidays if day // 10_000 == 2026}
    assert days.years == {2026}
    assert "`calendar_file = '" in page(name)


@pytest.mark.parametrize("name", PAGES)
def test_defaults_that_are_told_are_those_of_the_code(name: str) -> None:
    text = page(name)
    fields = WindowsSettings.model_fields
    for at in fields["alert_at"].default:
        assert at in text
    assert (fields["log_max_mb"].default, fields["log_files"].default) == (20, 10)
    assert ProducerSettings.model_fields["ring_max_mb"].default == 2048
    assert "20 MB" in text
    assert "2 GB" in text


@pytest.mark.parametrize("name", PAGES)
def test_every_state_has_its_line(name: str) -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", page(name), re.M))
    assert set(TERMINAL_STATES) - {"unknown"} <= rows
    assert rows >= AWAY
    assert "misconfigured" in CHILD_STATES


@pytest.mark.parametrize("name", PAGES)
def test_every_file_of_the_home_folder_is_named(name: str) -> None:
    home = Home(Path("home"))
    text = page(name)
    for path in (home.config, home.ring, home.functions, home.calendar):
        assert f"`{path.name}`" in text
    for folder in (home.logs, home.reports):
        assert f"`{folder.name}\\`" in text


def test_the_scripts_know_the_folder_by_the_same_names() -> None:
    home = Home(Path("home"))
    script = page("scripts/windows/remove.ps1")
    ours = (home.config, home.ring, home.functions, home.calendar, home.logs, home.reports)
    for path in ours:
        assert f"'{path.name}" in script
    for path in (home.lock, home.record):
        assert f"'{path.stem}.*'" in script
