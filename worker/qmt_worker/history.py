"""The history job: rows that are true, as far as asked, or an error that says what is missing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qmt_protocol.codes import market_of
from qmt_protocol.errors import HistoryMissing, InstrumentNotFound
from qmt_protocol.jobs import HistoryParams
from qmt_protocol.periods import DAILY_PERIODS, INTRADAY_MINUTES, stored_period

from .coverage import CodeRange, Coverage, Outlet, batches
from .days import Days, date_of, day_number, day_numbers, period_span, start_of
from .session import Listing, Session
from .tables import arrow_chunks, arrow_table, closed, real_rows

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Outcome", "earliest_day", "history", "meta_of"]

_DEPTH_DAYS: Final = {"tick": 366, "1m": 3 * 366, "5m": 3 * 366, "1d": 40 * 366}
"""Farther back no edition of the terminal reaches."""
_DAYS_PER_BAR: Final = {"1d": 1, "1w": 5, "1mon": 23, "1q": 66, "1hy": 131, "1y": 262}
_TICKS_PER_DAY: Final = 4000
_KEPT_ROWS: Final = 1_000_000
"""Rows kept from checking to answering; beyond it they are read twice."""
_NAMED: Final = 5
_NO_DAYS: Final[Days] = np.empty(0, dtype=np.int64)
_NO_BOOLS: Final = np.empty(0, dtype=bool)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished task's result beside the chunks it handed over."""

    document: Any = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: int = 0


def meta_of(session: Session, absent: dict[str, str]) -> dict[str, Any]:
    """Return what every answer says of its source."""
    info = session.terminal.info
    return {
        "simulated": bool(info and info.simulated),
        "source": {
            "edition": info.edition if info else "",
            "version": info.version if info else "",
            "address": info.address if info else "",
            "xtquant": info.xtquant_version if info else "",
        },
        "absent": absent,
        "market_ms": session.terminal.now_ms(),
    }


def earliest_day(period: str, listing: Listing | None, today: int) -> int:
    """Return the first day that a terminal can have of an instrument."""
    deepest = today - _DEPTH_DAYS[period]
    return max(deepest, listing.first) if listing else deepest


def history(session: Session, params: HistoryParams, outlet: Outlet) -> Outcome:
    """Read bars or ticks; fetch what the terminal's cache lacks first, as far as allowed."""
    return _History(session, params, outlet).run()


class _History:
    def __init__(self, session: Session, params: HistoryParams, outlet: Outlet) -> None:
        self._session = session
        self._terminal = session.terminal
        self._params = params
        self._outlet = outlet
        self._stored = stored_period(params.period)
        self._now_ms = session.refresh()
        self._coverage = Coverage(session, self._stored, self._now_ms)
        self._kept: dict[str, tuple[int, pd.DataFrame]] = {}
        self._rows = 0
        self._absent: dict[str, str] = {}
        self._partial: dict[str, str] = {}

    def run(self) -> Outcome:
        code_ranges = [self._series(code) for code in self._params.codes]
        self._ensure(code_ranges)
        if self._params.count is not None and self._params.start_ms is None:
            self._reach_back(code_ranges)
        for group in batches(code_ranges):
            self._answer(group)
        unknown = [code_range.code for code_range in code_ranges if code_range.listing is None]
        if len(self._absent) == len(unknown) == len(code_ranges):
            raise InstrumentNotFound(
                f"The terminal knows no instrument {_named(unknown)}.",
                hint="Look the code up with sector_stocks, for example of 沪深A股.",
                codes=unknown,
            )
        meta = meta_of(self._session, self._absent)
        meta["partial"] = self._partial
        return Outcome(meta=meta, rows=self._rows)

    # -- the range ------------------------------------------------------------------------------

    def _series(self, code: str) -> CodeRange:
        params, today = self._params, self._coverage.today
        listing = self._session.listing(code)
        last = today if params.end_ms is None else min(today, day_number(params.end_ms))
        if params.start_ms is not None:
            first = day_number(params.start_ms)
        elif params.count is not None:
            first = self._days_back(code, last, self._days_of(params.count))
        else:
            first = earliest_day(self._stored, listing, today)
        return CodeRange(code, listing, min(self._whole_span(first), last), last)

    def _whole_span(self, day: int) -> int:
        """A bar longer than a day is only right when all its days are there."""
        period = self._params.period
        return period_span(period, day)[0] if period in DAILY_PERIODS else day

    def _days_of(self, count: int) -> int:
        """Return how many trading days hold so many rows, one more for the day that forms."""
        period = self._params.period
        if period == "tick":
            return count // _TICKS_PER_DAY + 1
        if period in DAILY_PERIODS:
            return (count + 1) * _DAYS_PER_BAR[period]
        return count * INTRADAY_MINUTES[period] // 240 + 2

    def _days_back(self, code: str, last: int, days: int) -> int:
        calendar = self._session.calendar.days(market_of(code), self._now_ms)
        at = int(np.searchsorted(calendar, last, side="right"))
        return int(calendar[max(0, at - days)]) if len(calendar) else last - 2 * days

    def _reach_back(self, code_ranges: list[CodeRange]) -> None:
        """Go farther back for codes that had too few rows, such as suspended ones."""
        count = self._params.count or 0
        days = self._days_of(count)
        short = [code_range for code_range in code_ranges if code_range.listing is not None]
        while short := [
            code_range
            for code_range in short
            if code_range.first > self._earliest(code_range) and self._count(code_range) < count
        ]:
            days *= 4
            traded = self._traded_days(short) if self._stored != "1d" else {}
            for code_range in short:
                self._kept.pop(code_range.code, None)
                if self._stored != "1d":
                    # The daily bars tell on which days there are rows at all.
                    found = traded.get(code_range.code, _NO_DAYS)
                    reached = (
                        int(found[-self._days_of(count) :][0]) if len(found) else code_range.first
                    )
                else:
                    reached = self._whole_span(
                        self._days_back(code_range.code, code_range.last, days)
                    )
                    # The calendar's first day ends the search.
                    reached = reached if reached < code_range.first else self._earliest(code_range)
                code_range.first = max(min(reached, code_range.first), self._earliest(code_range))
            self._ensure(short)
            if self._stored != "1d":
                return

    def _earliest(self, code_range: CodeRange) -> int:
        return earliest_day(self._stored, code_range.listing, self._coverage.today)

    def _traded_days(self, code_ranges: list[CodeRange]) -> dict[str, Days]:
        """Return the days with trades by the daily bars, which are few and cheap to fetch."""
        daily = Coverage(self._session, "1d", self._now_ms)
        whole = [
            dataclasses.replace(code_range, first=self._earliest(code_range))
            for code_range in code_ranges
        ]
        missing: dict[str, Days] = {}
        for group in batches(whole):
            frames = daily.read(group)
            for code_range in group:
                lacking = daily.missing(code_range, frames.get(code_range.code))
                if len(before := lacking[lacking < daily.today]):
                    missing[code_range.code] = before
        if missing and self._params.download == "auto":
            daily.fetch(
                missing, {code_range.code: code_range for code_range in whole}, self._outlet
            )
        traded: dict[str, Days] = {}
        for group in batches(whole):
            for code, frame in daily.read(group).items():
                real = real_rows(frame, "1d", suspended=False)
                traded[code] = day_numbers(real["time"].to_numpy())
        return traded

    def _count(self, code_range: CodeRange) -> int:
        frame = self._frames([code_range]).get(code_range.code)
        return 0 if frame is None else len(self._within(frame[1], fill=False))

    # -- completeness ---------------------------------------------------------------------------

    def _ensure(self, code_ranges: list[CodeRange]) -> None:
        """Fetch what is missing, or raise `HistoryMissing`."""
        missing: dict[str, Days] = {}
        refresh = False
        for group in batches(code_ranges):
            now_ms = self._terminal.now_ms()
            frames = self._coverage.read_with_today(group, self._adjust)
            for code_range in group:
                frame = frames.get(code_range.code)
                lacking = (
                    self._coverage.missing(code_range, frame) if code_range.listing else _NO_DAYS
                )
                if self._params.download == "auto":
                    unsettled = self._coverage.unsettled(code_range, frame)
                    refresh = refresh or bool(len(unsettled))
                    lacking = np.union1d(lacking, unsettled)
                if len(lacking):
                    missing[code_range.code] = lacking
                elif frame is not None:
                    self._keep(code_range.code, now_ms, frame)
        if not missing:
            return
        by_code = {code_range.code: code_range for code_range in code_ranges}
        if self._params.download == "never":
            self._refuse_gaps(missing)
            return
        if self._coverage.rows(missing.values()) > self._params.auto_download_rows:
            raise self._history_missing(missing, "is more than may be fetched by itself")
        self._coverage.fetch(missing, by_code, self._outlet, refresh=refresh)

    @property
    def _adjust(self) -> str:
        return self._params.adjust if self._stored == self._params.period else "none"

    def _keep(self, code: str, now_ms: int, frame: pd.DataFrame) -> None:
        usable = self._stored == self._params.period and not self._params.fill
        kept = sum(len(one) for _now_ms, one in self._kept.values())
        if usable and kept + len(frame) <= _KEPT_ROWS:
            self._kept[code] = now_ms, frame

    def _refuse_gaps(self, missing: dict[str, Days]) -> None:
        past = {
            code: before
            for code, days in missing.items()
            if len(before := days[days < self._coverage.today])
        }
        if past:
            raise self._history_missing(past, "is missing and download='never'")

    def _history_missing(self, missing: dict[str, Days], why: str) -> HistoryMissing:
        ranges = {
            code: [date_of(int(days.min())), date_of(int(days.max()))]
            for code, days in missing.items()
        }
        first = min(one[0] for one in ranges.values())
        last = max(one[1] for one in ranges.values())
        rows = self._coverage.rows(missing.values())
        command = (
            f"qmt download {','.join(missing)} --period {self._stored} --start {first} --end {last}"
        )
        shown = (
            command
            if len(missing) <= _NAMED
            else command.replace(",".join(missing), f"{','.join(list(missing)[:_NAMED])},...")
        )
        return HistoryMissing(
            f"The terminal's cache lacks about {rows} rows of {self._stored} for "
            f"{_named(list(missing))} between {first} and {last}, which {why}.",
            hint=f"Fetch them first: {shown}"
            + ("" if shown == command else " (the error's `command` names all codes)"),
            codes=list(missing),
            period=self._stored,
            ranges=ranges,
            rows=rows,
            command=command,
        )

    # -- the answer -----------------------------------------------------------------------------

    def _frames(self, group: list[CodeRange]) -> dict[str, tuple[int, pd.DataFrame]]:
        """Return each code's frame with the market time before it was read."""
        frames = {
            code_range.code: self._kept[code_range.code]
            for code_range in group
            if code_range.code in self._kept
        }
        rest = [code_range for code_range in group if code_range.code not in frames]
        if not rest:
            return frames
        now_ms = self._terminal.now_ms()
        if self._stored == "tick":
            read = self._coverage.read(rest)
        else:
            read = self._terminal.bars(
                [code_range.code for code_range in rest],
                self._params.period,
                start_ms=start_of(min(code_range.first for code_range in rest)),
                end_ms=self._params.end_ms,
                count=None,
                adjust=self._params.adjust,
                fill=self._params.fill,
            )
        return frames | {code: (now_ms, frame) for code, frame in read.items()}

    def _within(self, frame: pd.DataFrame, *, fill: bool) -> pd.DataFrame:
        if self._params.period != "tick" and not fill:
            frame = real_rows(frame, self._params.period, suspended=True)
        times = frame["time"].to_numpy()
        inside = np.ones(len(times), dtype=bool)
        if self._params.start_ms is not None:
            inside &= times >= self._params.start_ms
        if self._params.end_ms is not None:
            inside &= times <= self._params.end_ms
        requested: pd.DataFrame = frame[inside]
        return requested if self._params.count is None else requested.tail(self._params.count)

    def _answer(self, group: list[CodeRange]) -> None:
        # Other groups may have pushed these subscriptions out.
        self._coverage.follow_today(
            [code_range for code_range in group if code_range.code not in self._kept]
        )
        frames = self._frames(group)
        tables: list[pa.Table] = []
        empty: list[CodeRange] = []
        for code_range in group:
            now_ms, frame = frames.get(code_range.code, (0, None))
            rows = None if frame is None else self._within(frame, fill=self._params.fill)
            if rows is None or not len(rows):
                empty.append(code_range)
                continue
            self._note_short(code_range, rows)
            times = rows["time"].to_numpy()
            is_closed = (
                _NO_BOOLS
                if self._params.period == "tick"
                else closed(
                    times,
                    self._params.period,
                    now_ms,
                    self._session.sessions(code_range.code),
                    self._newest_ms(frame),
                )
            )
            tables.append(
                arrow_table(
                    code_range.code, rows, self._params.period, self._params.fields, is_closed
                )
            )
        self._learn_suspensions(empty)
        self._absent |= {code_range.code: self._reason(code_range) for code_range in empty}
        if not tables:
            if self._rows or len(self._params.codes) > len(group):
                return
            tables = [arrow_table("", None, self._params.period, self._params.fields, _NO_BOOLS)]
        for rows_in, data in arrow_chunks(tables):
            self._rows += rows_in
            self._outlet.chunk(data)

    def _newest_ms(self, frame: pd.DataFrame | None) -> int:
        """Return the label of the newest bar, also where it lies behind the range."""
        if frame is None:
            return 0
        real = real_rows(frame, self._params.period, suspended=True)
        return int(real["time"].iloc[-1]) if len(real) else 0

    def _reason(self, code_range: CodeRange) -> str:
        if code_range.listing is None:
            return "no such instrument"
        if not len(self._coverage.days(code_range)):
            return "not listed, or no trading day, in the range"
        if self._coverage.is_suspended(code_range):
            return (
                f"suspended on all {len(self._coverage.days(code_range))} trading days of the range"
            )
        return "the terminal has no data of it in the range"

    def _learn_suspensions(self, empty: list[CodeRange]) -> None:
        """Ask the daily bars of codes without a row whether they were suspended."""
        asked = [
            code_range
            for code_range in empty
            if code_range.listing is not None
            and len(self._coverage.days(code_range))
            and not self._coverage.is_suspended(code_range)
        ]
        if asked and self._stored != "1d" and self._params.download == "auto":
            Coverage(self._session, "1d", self._now_ms).fetch_suspensions(asked, self._outlet)

    def _note_short(self, code_range: CodeRange, rows: pd.DataFrame) -> None:
        """Name an answer that is shorter than asked: nothing is left out in silence."""
        count = self._params.count
        if count is not None:
            if len(rows) < count:
                self._partial[code_range.code] = f"{len(rows)} of {count} rows exist"
            return
        if self._params.start_ms is None or self._params.period in DAILY_PERIODS[1:]:
            return
        expected = self._coverage.days(code_range)
        begins = day_number(int(rows["time"].iloc[0]))
        if len(expected) and begins > expected[0]:
            self._partial[code_range.code] = (
                f"begins {date_of(begins)}; the first trading day asked for is "
                f"{date_of(int(expected[0]))}"
            )


def _named(codes: list[str]) -> str:
    more = f" and {len(codes) - _NAMED} more" if len(codes) > _NAMED else ""
    return ", ".join(codes[:_NAMED]) + more
