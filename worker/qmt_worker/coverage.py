"""Which trading days a terminal's cache lacks, and fetching them until they can be read."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import numpy as np
import structlog

from qmt_protocol.codes import market_of
from qmt_protocol.errors import (
    DownloadIncomplete,
    QMTError,
    TerminalNotConnected,
    TerminalRefused,
)
from qmt_protocol.times import DAY_MS

from .days import (
    ESTIMATED_ROWS,
    FULL_DAY_ROWS,
    Days,
    Sessions,
    day_number,
    day_numbers,
    start_of,
)
from .session import MAX_SUBSCRIPTIONS, Listing, Session
from .suspensions import suspended_rows
from .tables import real_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CodeRange", "Coverage", "Outlet", "batches"]

_POLL_S: Final = 0.2
_TODAY_WAIT_S: Final = 2.0
_LANDED_S: Final = 1.5
"""Nothing more is expected when what had begun to land has not changed for so long."""
_EMPTY_S: Final = 5.0
"""The same where nothing landed at all: data may come seconds after a download returns."""
_SETTLE_LIMIT_S: Final = 60.0
_MAX_RANGES: Final = 8
_BEFORE_DAYS: Final = 120
"""How far before a range that begins with suspended days a day with trades is looked for."""
_REFRESH_S: Final = 2.5
"""A day that can be read already gives no sign when its newer bar has landed: time is given."""
_EDGE_S: Final = 300
"""A day's ticks are whole when they begin and end that close to its sessions."""
_LAG_S: Final = 5

_NO_DAYS: Final[Days] = np.empty(0, dtype=np.int64)
_log: Final = structlog.get_logger(__name__)
_T = TypeVar("_T")


class Outlet(Protocol):
    """Where a task tells how far it is and leaves its table."""

    def progress(self, finished: int, total: int, message: str = "") -> None:
        """Tell how far it is."""

    def chunk(self, data: bytes) -> None:
        """Hand over one Arrow IPC stream."""


@dataclasses.dataclass
class CodeRange:
    """The days wanted of one code, as day numbers, both included."""

    code: str
    listing: Listing | None
    first: int
    last: int


@dataclasses.dataclass
class _Landing:
    """How the missing days of one code shrink after a download."""

    missing: int
    first_missing: int
    changed_s: float
    begins_still: bool = False
    """Whether the first daily row says that there was no trading."""
    still: Days = dataclasses.field(default_factory=lambda: _NO_DAYS)
    """Days of such rows behind a day with trades."""

    def look(self, daily: pd.DataFrame | None) -> None:
        """Note what daily bars say of suspensions."""
        if daily is None or not len(daily):
            return
        days = day_numbers(daily["time"].to_numpy())
        still = suspended_rows(daily).to_numpy()
        traded = days[daily["volume"].to_numpy() > 0]
        self.begins_still = bool(still[0])
        self.still = days[still & (days > traded[0])] if len(traded) else _NO_DAYS

    def settled(self, now_s: float) -> bool:
        waited_s = now_s - self.changed_s
        return waited_s > (_EMPTY_S if self.missing == self.first_missing else _LANDED_S)


def batches(items: list[_T]) -> Iterator[list[_T]]:
    """Yield the items in groups that can all be subscribed at once."""
    for start in range(0, len(items), MAX_SUBSCRIPTIONS):
        yield items[start : start + MAX_SUBSCRIPTIONS]


class Coverage:
    """Compares one stored period of the terminal's cache with the trading calendar.

    Parameters
    ----------
    session
        The terminal and what is remembered of it.
    period
        A period that terminals store: ``tick``, ``1m``, ``5m`` or ``1d``.
    now_ms
        The market's time when the job began.
    """

    def __init__(self, session: Session, period: str, now_ms: int) -> None:
        self._session = session
        self._terminal = session.terminal
        self._period = period
        self._now_ms = now_ms
        self.today = day_number(now_ms)

    def days(self, code_range: CodeRange) -> Days:
        """Return the trading days wanted of a code within its listed life."""
        days = self._session.calendar.days(market_of(code_range.code), self._now_ms)
        listing = code_range.listing or Listing()
        first, last = max(code_range.first, listing.first), min(code_range.last, listing.last)
        return days[(days >= first) & (days <= last)]

    def rows(self, days: Iterable[Days]) -> int:
        """Return how many rows missing days are estimated to have."""
        return sum(len(some) for some in days) * ESTIMATED_ROWS[self._period]

    def read(self, code_ranges: list[CodeRange], adjust: str = "none") -> dict[str, pd.DataFrame]:
        """Read the wanted days of a few codes as the cache has them, without padding."""
        codes = [code_range.code for code_range in code_ranges]
        start_ms = start_of(min(code_range.first for code_range in code_ranges))
        end_ms = start_of(max(code_range.last for code_range in code_ranges) + 1) - 1
        if self._period == "tick":
            return self._terminal.history_ticks(codes, start_ms=start_ms, end_ms=end_ms, count=None)
        return self._terminal.bars(
            codes,
            self._period,
            start_ms=start_ms,
            end_ms=end_ms,
            count=None,
            adjust=adjust,
            fill=False,
        )

    # -- what is missing ------------------------------------------------------------------------

    def missing(
        self, code_range: CodeRange, frame: pd.DataFrame | None, *, downloaded: bool = False
    ) -> Days:
        """Return the wanted days that neither can be read whole nor are known not to exist."""
        requested = self.days(code_range)
        if not len(requested):
            return requested
        present = self._present(code_range.code, frame, downloaded=downloaded)
        lacking = requested[~np.isin(requested, present)]
        verified = self._session.verified(code_range.code, self._period)
        return np.array(
            [day for day in lacking.tolist() if not self._excused(code_range.code, day, verified)],
            dtype=np.int64,
        )

    def unsettled(self, code_range: CodeRange, frame: pd.DataFrame | None) -> Days:
        """Return the last day before today whose daily bar may be older than its close.

        A cache filled in mid-session keeps that day's forming bar, and nothing in it tells so. It
        is fetched again once, on the first request of its code; what lies farther back was
        fetched again the same way, or together with the days that followed it.
        """
        if self._period != "1d" or frame is None or not len(frame):
            return np.empty(0, dtype=np.int64)
        days = day_numbers(frame["time"].to_numpy())
        past = days[(days < self.today) & (days <= code_range.last)]
        verified = self._session.verified(code_range.code, self._period)
        kept: Days = past[-1:] if len(past) and int(past[-1]) not in verified else past[:0]
        return kept

    def _excused(self, code: str, day: int, verified: Any) -> bool:
        if day == self.today:
            return self._session.gave_up_today(code, self._period)
        return day in verified or day in self._session.suspended(code)

    def is_suspended(self, code_range: CodeRange) -> bool:
        """Whether the code is known to have been suspended on all past days wanted."""
        suspended = self._session.suspended(code_range.code)
        past = [day for day in self.days(code_range).tolist() if day < self.today]
        return bool(past) and all(day in suspended for day in past)

    def _present(self, code: str, frame: pd.DataFrame | None, *, downloaded: bool) -> Days:
        sessions = self._session.sessions(code)
        second = (self._now_ms - start_of(self.today)) // 1000 - _LAG_S
        rows_today = self._rows_expected(sessions, second)
        present: Days = np.empty(0, dtype=np.int64)
        if frame is not None and len(frame):
            if self._period == "tick":
                present = _whole_tick_days(frame["time"].to_numpy(), sessions, self.today)
            else:
                real = real_rows(frame, self._period, suspended=downloaded)
                days, counts = np.unique(day_numbers(real["time"].to_numpy()), return_counts=True)
                enough = np.where(days == self.today, rows_today, FULL_DAY_ROWS[self._period])
                present = days[counts >= enough]
        return np.append(present, self.today) if rows_today == 0 else present

    def _rows_expected(self, sessions: Sessions, second: int) -> int:
        """Return the fewest rows that today has by now; a few may be late."""
        if second < sessions.parts_s[0][0]:
            return 0
        if self._period in ("1d", "tick"):
            return 1
        return max(0, int(sessions.labels_until(self._period, second) * 0.9) - 2)

    # -- today ----------------------------------------------------------------------------------

    def follow_today(self, code_ranges: list[CodeRange]) -> list[CodeRange]:
        """Have the terminal keep today's part; returns whose part it has just begun to bring."""
        new: list[CodeRange] = []
        for code_range in code_ranges:
            if code_range.listing is None or self.today not in self.days(code_range):
                continue
            try:
                if self._session.subscribe(code_range.code, self._period):
                    new.append(code_range)
            except TerminalRefused:
                # No room at the terminal: today's part can still be downloaded.
                break
        return new

    def read_with_today(self, code_ranges: list[CodeRange], adjust: str) -> dict[str, pd.DataFrame]:
        """Read as `read` does, having given today's part a moment to come."""
        new = self.follow_today(code_ranges)
        frames = self.read(code_ranges, adjust)
        deadline_s = time.monotonic() + _TODAY_WAIT_S
        while True:
            new = [
                code_range
                for code_range in new
                if self._lacks_today(code_range, frames.get(code_range.code))
            ]
            if not new or time.monotonic() > deadline_s:
                return frames
            time.sleep(_POLL_S)
            frames |= self.read(new, adjust)

    def _lacks_today(self, code_range: CodeRange, frame: pd.DataFrame | None) -> bool:
        return self.today in self.missing(code_range, frame)

    # -- fetching -------------------------------------------------------------------------------

    def fetch(
        self,
        missing: dict[str, Days],
        code_ranges: dict[str, CodeRange],
        outlet: Outlet,
        *,
        refresh: bool = False,
    ) -> None:
        """Download missing days and wait until they can be read or nothing changes any more.

        What is still missing then does not exist, and is remembered so. With ``refresh`` some of
        the days can be read already, in an older state.
        """
        ranges: dict[tuple[int, int], list[str]] = {}
        for code, days in missing.items():
            ranges.setdefault((int(days.min()), int(days.max())), []).append(code)
        if len(ranges) > _MAX_RANGES:
            first, last = min(key[0] for key in ranges), max(key[1] for key in ranges)
            ranges = {(first, last): list(missing)}
        done = 0
        for (first, last), codes in ranges.items():

            def report(finished: int, _total: int, code: str, _text: str, done: int = done) -> None:
                outlet.progress(done + finished, len(missing), f"downloaded {code}")

            try:
                self._terminal.download(
                    codes,
                    self._period,
                    start_ms=start_of(first),
                    end_ms=start_of(last + 1) - 1,
                    on_progress=report,
                )
            except (DownloadIncomplete, TerminalRefused) as error:
                self._explain(error)
                raise
            done += len(codes)
        returned_s = time.monotonic()
        landed = self._settle(missing, code_ranges)
        if self._period == "1d":
            self._learn_suspensions(missing, code_ranges, landed)
        if refresh:
            time.sleep(max(0.0, returned_s + _REFRESH_S - time.monotonic()))

    def fetch_suspensions(self, code_ranges: list[CodeRange], outlet: Outlet) -> None:
        """Download the daily bars of all past days wanted, to learn of suspensions; or leave it."""
        past = {
            code_range.code: (days := self.days(code_range))[days < self.today]
            for code_range in code_ranges
        }
        missing = {code: days for code, days in past.items() if len(days)}
        try:
            self.fetch(missing, {code_range.code: code_range for code_range in code_ranges}, outlet)
        except (DownloadIncomplete, TerminalNotConnected, TerminalRefused) as error:
            _log.info("suspensions are not known", codes=len(missing), reason=error.message)

    def _explain(self, error: QMTError) -> None:
        """A download that fails without a quote server failed for want of it.

        It is tried all the same: what terminals tell of their quote servers is not proven.
        """
        if self._terminal.quote_server_up() is False:
            raise TerminalNotConnected(
                "The terminal is connected to no quote server, and its cache lacks what is asked: "
                f"{error.message}",
                hint="Look at the terminal's own connection to its quote server; what is in the "
                "cache can be read meanwhile.",
                state="quote_server_down",
            ) from error

    def _learn_suspensions(
        self,
        missing: dict[str, Days],
        code_ranges: dict[str, CodeRange],
        landed: dict[str, _Landing],
    ) -> None:
        """Remember suspended days of what was downloaded, those behind a day with trades.

        Before the first day with trades they may be rows that the terminal made up, as they are
        wherever it did not download.
        """
        downloaded = dict(missing)
        before = {
            code: dataclasses.replace(
                code_range, first=max(earliest, code_range.first - _BEFORE_DAYS)
            )
            for code, code_range in code_ranges.items()
            if code in missing
            and landed[code].begins_still
            and (earliest := (code_range.listing or Listing()).first) < code_range.first
        }
        if before:
            downloaded |= {code: self.days(code_range) for code, code_range in before.items()}
            landed = landed | self._download_before(downloaded, before)
        for code, days in downloaded.items():
            still = landed[code].still
            past = still[np.isin(still, days) & (still < self.today)]
            trading = self._session.calendar.days(market_of(code), self._now_ms)
            self._session.note_suspended(code, past, trading)

    def _download_before(
        self, days: dict[str, Days], code_ranges: dict[str, CodeRange]
    ) -> dict[str, _Landing]:
        try:
            self._terminal.download(
                list(code_ranges),
                self._period,
                start_ms=start_of(min(code_range.first for code_range in code_ranges.values())),
                end_ms=start_of(max(code_range.last for code_range in code_ranges.values()) + 1)
                - 1,
            )
        except (DownloadIncomplete, TerminalRefused) as error:
            # What was asked for is there; these days would only have told more of it.
            _log.info("the days before could not be fetched", reason=error.message)
            return {}
        return self._settle({code: days[code] for code in code_ranges}, code_ranges)

    def _settle(
        self, missing: dict[str, Days], code_ranges: dict[str, CodeRange]
    ) -> dict[str, _Landing]:
        """Wait until nothing more lands, and return what did."""
        began_s = time.monotonic()
        landings = {code: _Landing(len(days), len(days), began_s) for code, days in missing.items()}
        open_codes = list(missing)
        while open_codes and time.monotonic() - began_s < _SETTLE_LIMIT_S:
            for codes in batches(open_codes):
                frames = self.read([code_ranges[code] for code in codes])
                for code in codes:
                    if self._period == "1d":
                        landings[code].look(frames.get(code))
                    left = self.missing(code_ranges[code], frames.get(code), downloaded=True)
                    if len(left) != landings[code].missing:
                        landings[code].missing = len(left)
                        landings[code].changed_s = time.monotonic()
            now_s = time.monotonic()
            open_codes = [
                code
                for code in open_codes
                if landings[code].missing and not landings[code].settled(now_s)
            ]
            if open_codes:
                time.sleep(_POLL_S)
        for code, days in missing.items():
            self._remember(code, days, still=landings[code].missing)
        return landings

    def _remember(self, code: str, days: Days, *, still: int) -> None:
        first, last = int(days.min()), int(days.max())
        if last >= self.today:
            if still:
                self._session.give_up_today(code, self._period)
            last = self.today - 1
        if first <= last:
            self._session.verified(code, self._period).add(first, last)


def _whole_tick_days(times_ms: Days, sessions: Sessions, today: int) -> Days:
    days = day_numbers(times_ms)
    found, starts = np.unique(days, return_index=True)
    firsts = times_ms[starts]
    lasts = times_ms[np.append(starts[1:], len(times_ms)) - 1]
    midnights = found * DAY_MS - 8 * 3_600_000
    opens_s, closes_s = sessions.parts_s[0][0], sessions.close_s
    whole = (firsts <= midnights + (opens_s + _EDGE_S) * 1000) & (
        lasts >= midnights + (closes_s - _EDGE_S) * 1000
    )
    kept: Days = found[whole | (found == today)]
    return kept
