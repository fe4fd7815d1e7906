"""The file that corrects the calendar: what it may say, what is refused, when it is read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import wait_for

from qmt_protocol.errors import ConfigurationError
from qmt_terminal import calendar_file
from qmt_terminal.calendar_file import CalendarFile, parse_days, read_days

# Invented: what is tested is that these very days are told.
WHOLE_YEAR = """\
[2027]
holidays = [
    "2027-01-01",
    "2027-02-05..2027-02-12",  # Friday to Friday, a weekend in it
    2027-10-01,
    "2027-10-02 .. 2027-10-05",
]

[2026]
closed = [2026-12-28]
open = ["2026-12-29"]
"""


def test_a_year_single_closings_and_a_day_that_trades() -> None:
    days = parse_days(WHOLE_YEAR)
    assert days.years == {2027}
    assert days.opened == {20261229}
    spring = {20270205, 20270208, 20270209, 20270210, 20270211, 20270212}
    assert days.closed == {20261228, 20270101, *spring, 20271001, 20271004, 20271005}
    assert [days.trades(day) for day in (20261228, 20261229, 20261230)] == [False, True, None]
    assert days.trades(20270104) is None, "not named"
    assert [days.trades_in_year(day) for day in (20270104, 20270109, 20270205, 20261230)] == [
        *(True, False, False, None)
    ]


WRONG = [
    ('[2027]\nclosed = [\n  "2027-02-30",\n]', 3, "'2027-02-30' is no day"),
    ("[2027]\nclosed = [\n  2027-02-30,\n]", 3, "'2027-02-30,'"),
    ('[2027]\nclosed = ["27-02-03"]', 2, "'27-02-03' is no day"),
    ('[2027]\nclosed = ["2027-02-05 to 2027-02-12"]', 2, "is no day"),
    ('[2027]\nclosed = ["2027-02-05..2027-02-08..2027-02-12"]', 2, "is no range of two days"),
    ('[2027]\nclosed = ["2027-02-12..2027-02-05"]', 2, "ends before it begins"),
    ('[2027]\nclosed = ["2027-01-12..2027-02-15"]', 2, "is longer than 31 days"),
    (
        "[2027]\n# 2028-02-05\nclosed = [\n 2027-02-04,\n 2028-02-05]",
        5,
        "2028-02-05 is not in 2027",
    ),
    ('[2027]\nopen = ["2027-02-06"]', 2, "2027-02-06 is a Saturday"),
    ('[2027]\nopen = ["2027-02-05"]\nclosed = ["2027-02-05"]', 2, "is both closed and open"),
    ('[2027]\nholidays = ["2027-02-05..2027-02-12"]', 2, "lack 2027-01-01, a public holiday"),
    ('[2027]\nholiday = ["2027-02-05"]', 2, "'holiday' is none of holidays, closed and open"),
    ('[2027]\nclosed = "2027-02-05"', 2, "closed is no list"),
    ("[2027]\nclosed = [20270205]", 2, "'20270205' is no day"),
    ('\nclosed = ["2027-02-05"]', 2, "'closed' is no year"),
    ('2027 = ["2027-02-05"]', 1, "2027 is no table"),
    ("[20270]\nclosed = []", 1, "'20270' is no year"),
    ('[2027]\nclosed = ["2027-02-05" "2027-02-06"]', 2, "is not TOML"),
]


@pytest.mark.parametrize(("text", "line", "what"), WRONG)
def test_what_is_wrong_is_told_with_its_line_and_value(text: str, line: int, what: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_days(text, "calendar.toml")
    assert caught.value.message.startswith(f"calendar.toml, line {line}: ")
    assert what in caught.value.message
    assert caught.value.hint


def test_a_file_as_windows_editors_leave_it(tmp_path: Path) -> None:
    file = tmp_path / "calendar.toml"
    file.write_bytes(b"\xef\xbb\xbf" + WHOLE_YEAR.replace("\n", "\r\n").encode())
    assert read_days(file) == parse_days(WHOLE_YEAR)
    file.write_bytes("[2027]\n# 春节\nclosed = []".encode("gbk"))
    with pytest.raises(ConfigurationError, match="line 2: the text is not UTF-8"):
        read_days(file)
    file.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigurationError, match="longer than"):
        read_days(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_days(tmp_path)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[CalendarFile], None]:
    """Return what looks at a file as often as need be, however seldom it would by itself."""
    monkeypatch.setattr(calendar_file, "_LOOK_S", 0.0)

    def look(file: CalendarFile) -> None:
        before = file.version
        wait_for(lambda: file.days is not None and file.version != before, "it is read again")

    return look


def test_a_change_is_read_and_a_mistake_leaves_what_was(
    tmp_path: Path, looks: Callable[[CalendarFile], None]
) -> None:
    path = tmp_path / "calendar.toml"
    file = CalendarFile(path)
    assert (file.days.trades(20270104), file.error) == (None, "")
    path.write_text('[2027]\nclosed = ["2027-01-04"]', "utf-8")
    looks(file)
    assert file.days.trades(20270104) is False
    path.write_text('[2027]\nclosed = ["2027-01-04", "2027-01-32"]', "utf-8")
    looks(file)
    assert file.days.trades(20270104) is False, "a mistake takes nothing away"
    assert f"{path}, line 2: '2027-01-32' is no day" in file.error
    path.write_text('[2027]\nopen = ["2027-01-04"]', "utf-8")
    looks(file)
    assert (file.days.trades(20270104), file.error) == (True, "")
    path.unlink()
    looks(file)
    assert (file.days.trades(20270104), file.error) == (None, "")


def test_a_file_that_is_wrong_from_the_start_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "calendar.toml"
    path.write_text("[2027", "utf-8")
    file = CalendarFile(path)
    assert file.days == parse_days("")
    assert "is not TOML" in file.error
