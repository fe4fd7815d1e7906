"""The file in which people correct the calendar: holidays by year, extra closings, extra days.

.. code-block:: toml

    [2027]
    holidays = ["2027-01-01", "2027-02-05..2027-02-12"]   # all of that year
    [2026]
    closed = ["2026-12-28"]
    open = ["2026-12-29"]
"""

from __future__ import annotations

import datetime as dt
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.times import is_weekday
from qmt_protocol.trading_days import FIXED_HOLIDAYS, iso_day

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CalendarFile", "NamedDays", "parse_days", "read_days"]

log: Final = structlog.get_logger(__name__)

_LOOK_S: Final = 2.0
_MOST_BYTES: Final = 1_000_000
_LONGEST_DAYS: Final = 31
_YEARS: Final = range(1990, 2100)
_KINDS: Final = ("holidays", "closed", "open")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_HINT: Final = (
    'Write days as "2027-02-05", ranges as "2027-02-05..2027-02-12", below their year [2027], as '
    "holidays (all of the year), closed or open."
)


@dataclass(frozen=True)
class NamedDays:
    """What the file says; days are ``YYYYMMDD``."""

    closed: frozenset[int] = frozenset()
    opened: frozenset[int] = frozenset()
    years: frozenset[int] = frozenset()
    """Years of which all holidays are given: their other weekdays trade."""

    def trades(self, day: int) -> bool | None:
        """Whether there is trading on a day that is named; ``None`` for one that is not."""
        if day in self.closed:
            return False
        return True if day in self.opened else None

    def trades_in_year(self, day: int) -> bool | None:
        """Whether there is trading on a day of a year whose holidays are all given."""
        if day // 10_000 not in self.years:
            return None
        return is_weekday(day) and day not in self.closed


class CalendarFile:
    """The file, read again when it has changed.

    A file that is not there says nothing. One that is wrong never stops who reads it: what it said
    before goes on to count, and `error` tells what is wrong.

    Parameters
    ----------
    path
        Where it lies; ``None``: there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._days = NamedDays()
        self._stamp: tuple[int, int] | None = None
        self._changing: tuple[int, int] | None = None
        self._looked_s = time.monotonic()
        self.version = 0
        """Grows when what the file says, or its error, has changed."""
        self.error = ""
        if path is not None:
            self._stamp = _stamp_of(path)
            self._read()

    @property
    def days(self) -> NamedDays:
        """What it says now; looks at the disk every two seconds at most."""
        now_s = time.monotonic()
        if self._path is not None and now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            stamp = _stamp_of(self._path)
            # Read once it has stood still: an editor may be in the midst of writing it.
            if stamp != self._stamp and stamp == self._changing:
                self._stamp = stamp
                self._read()
            self._changing = stamp
        return self._days

    def _read(self) -> None:
        assert self._path is not None
        self.version += 1
        self.error = ""
        if self._stamp is None:
            self._days = NamedDays()
            return
        try:
            self._days = read_days(self._path)
        except ConfigurationError as error:
            self.error = error.message
            log.error("the calendar file is wrong", error=error.message, hint=error.hint)
            return
        log.info(
            "calendar file",
            path=str(self._path),
            years=sorted(self._days.years),
            closed=len(self._days.closed),
            open=len(self._days.opened),
        )


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    except OSError:
        return 0, 0  # reading it says why
    return stat.st_mtime_ns, stat.st_size


def read_days(path: Path) -> NamedDays:
    """Read a calendar file.

    Raises
    ------
    ConfigurationError
        When it cannot be read, or says what cannot be; the message names the line and the value.
    """
    try:
        with path.open("rb") as file:
            written = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or error}.",
            hint="It must be a file that this user may read.",
        ) from error
    if len(written) > _MOST_BYTES:
        raise ConfigurationError(f"{path} is longer than {_MOST_BYTES} bytes.", hint=_HINT)
    try:
        text = written.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = written[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            f"{path}, line {line}: the text is not UTF-8.", hint="Save it as UTF-8."
        ) from error
    return parse_days(text, str(path))


def parse_days(text: str, name: str = "calendar.toml") -> NamedDays:
    """Return what the text of a calendar file says.

    Parameters
    ----------
    name
        What errors call it.

    Raises
    ------
    ConfigurationError
        When it says what cannot be; the message names the line and the value.
    """
    try:
        document = tomllib.loads(text)
    except ValueError as error:
        at = re.search(r"at line (\d+)", str(error))
        shown = text.split("\n")[int(at[1]) - 1].strip() if at else ""
        where = f"{name}, line {at[1]}: {shown!r}" if at else name
        raise ConfigurationError(f"{where} is not TOML: {error}.", hint=_HINT) from error
    return _Reader(text, name).days(document)


class _Reader:
    """Reads the years of one file; knows the line of what is wrong."""

    def __init__(self, text: str, name: str) -> None:
        # Values hold no '#': what follows one is a remark.
        self._lines = [line.partition("#")[0] for line in text.split("\n")]
        self._name = name

    def days(self, document: dict[str, Any]) -> NamedDays:
        years: set[int] = set()
        found: dict[str, set[int]] = {kind: set() for kind in _KINDS}
        for year, table in document.items():
            if not (year.isascii() and year.isdigit() and int(year) in _YEARS):
                raise self._wrong(year, year, f"{year!r} is no year such as [2027]")
            if not isinstance(table, dict):
                raise self._wrong(year, year, f"{year} is no table; write [{year}] above its days")
            for kind, items in table.items():
                if kind not in _KINDS:
                    raise self._wrong(year, kind, f"{kind!r} is none of holidays, closed and open")
                if not isinstance(items, list):
                    raise self._wrong(year, kind, f"{kind} is no list of days")
                for item in items:
                    found[kind].update(self._span(year, kind, item))
            if "holidays" in table:
                self._check_whole(year, found["holidays"])
                years.add(int(year))
        closed = found["holidays"] | found["closed"]
        for day in sorted(closed & found["open"]):
            written = iso_day(day)
            raise self._wrong(written[:4], written, f"{written} is both closed and open")
        return NamedDays(
            frozenset(filter(is_weekday, closed)), frozenset(found["open"]), frozenset(years)
        )

    def _span(self, year: str, kind: str, item: Any) -> Iterator[int]:
        """Return the days of one entry: a date of TOML, a text, or a text with two dates."""
        written = str(item)
        parts = written.split("..") if isinstance(item, str) else [written]
        days = [self._day(year, written, part.strip()) for part in parts]
        if len(days) > 2:
            raise self._wrong(year, written, f"{written!r} is no range of two days")
        first, last = days[0], days[-1]
        if last < first:
            raise self._wrong(year, written, f"{written!r} ends before it begins")
        if (last - first).days >= _LONGEST_DAYS:
            raise self._wrong(year, written, f"{written!r} is longer than {_LONGEST_DAYS} days")
        for number in range((last - first).days + 1):
            day = first + dt.timedelta(number)
            if kind == "open" and day.weekday() >= 5:
                raise self._wrong(
                    year,
                    written,
                    f"{day} is a {day:%A}: no exchange trades at a weekend, not even where it is "
                    "a working day (调休)",
                )
            yield day.year * 10_000 + day.month * 100 + day.day

    def _day(self, year: str, written: str, part: str) -> dt.date:
        try:
            if not _DAY.fullmatch(part):
                raise ValueError
            day = dt.date.fromisoformat(part)
        except ValueError:
            raise self._wrong(year, written, f"{part!r} is no day such as 2027-02-05") from None
        if day.year != int(year):
            raise self._wrong(year, written, f"{part} is not in {year}")
        return day

    def _check_whole(self, year: str, holidays: set[int]) -> None:
        """Refuse a list that lacks what every year has: other weekdays would be trading days."""
        for fixed in FIXED_HOLIDAYS:
            day = int(year) * 10_000 + fixed
            if is_weekday(day) and day not in holidays:
                raise self._wrong(
                    year,
                    "holidays",
                    f"the holidays of {year} lack {iso_day(day)}, a public holiday: give all days "
                    "of the year without trading, or single ones as closed",
                )

    def _wrong(self, year: str, written: str, what: str) -> ConfigurationError:
        line = self._line_of(year, written)
        return ConfigurationError(f"{self._name}, line {line}: {what}.", hint=_HINT)

    def _line_of(self, year: str, written: str) -> int:
        """Return where a value stands, from its year's line on."""
        head = re.compile(rf"\s*(\[\s*)?[\"']?{re.escape(year)}\b")
        starts = (at for at, line in enumerate(self._lines) if head.match(line))
        begin = next(starts, 0)
        rest = range(begin, len(self._lines))
        return next((at for at in rest if written in self._lines[at]), begin) + 1
