"""The catalogue's jobs as functions over a session: what the child runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from qmt_protocol.errors import DownloadIncomplete, InstrumentNotFound
from qmt_protocol.jobs import (
    DownloadParams,
    FullTickParams,
    InstrumentDetailParams,
    SectorStocksParams,
)
from qmt_protocol.periods import stored_period
from qmt_protocol.ticks import exchange_ms

from .coverage import CodeRange, Coverage, Outlet, batches
from .days import Days, day_number, day_numbers
from .history import Outcome, earliest_day, history, meta_of
from .session import Session

__all__ = ["TASKS", "Task"]

Task = Callable[[Session, Any, Outlet], Outcome]

_NO_TIMES: Final[Days] = np.empty(0, dtype=np.int64)
NO_SUCH: Final = "no such instrument"


def full_tick(session: Session, params: FullTickParams, outlet: Outlet) -> Outcome:
    """Current ticks straight from the terminal."""
    now_ms = session.refresh()
    found = session.terminal.full_tick(params.codes)
    ticks: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for code in params.codes:
        tick = found.get(code)
        if tick is None:
            known = session.listing(code) is not None
            absent[code] = "the terminal has no tick of it" if known else NO_SUCH
            continue
        if not tick.get("time"):
            tick = {"time": exchange_ms(tick, now_ms)[0], **tick}
        ticks[code] = tick
    _refuse_unknown(params.codes, absent)
    return Outcome(document=_plain(ticks), meta=meta_of(session, absent))


def sector_stocks(session: Session, params: SectorStocksParams, outlet: Outlet) -> Outcome:
    """Codes of a sector."""
    session.refresh()
    codes = session.terminal.sector_stocks(params.sector)
    return Outcome(document=codes, meta=meta_of(session, {}))


def instrument_detail(session: Session, params: InstrumentDetailParams, outlet: Outlet) -> Outcome:
    """What the terminal knows about instruments."""
    session.refresh()
    documents: dict[str, Any] = {}
    for done, code in enumerate(params.codes):
        documents[code] = session.terminal.instrument_detail(code)
        outlet.progress(done + 1, len(params.codes), code)
    absent = {code: NO_SUCH for code, document in documents.items() if document is None}
    _refuse_unknown(params.codes, absent)
    return Outcome(document=_plain(documents), meta=meta_of(session, absent))


def download(session: Session, params: DownloadParams, outlet: Outlet) -> Outcome:
    """Fetch history into the terminal's cache and read it back."""
    now_ms = session.refresh()
    period = stored_period(params.period)
    coverage = Coverage(session, period, now_ms)
    last = coverage.today if params.end_ms is None else day_number(params.end_ms)
    ranges: dict[str, CodeRange] = {}
    absent: dict[str, str] = {}
    for code in params.codes:
        listing = session.listing(code)
        if listing is None:
            absent[code] = NO_SUCH
            continue
        first = (
            earliest_day(period, listing, coverage.today)
            if params.start_ms is None
            else day_number(params.start_ms)
        )
        ranges[code] = CodeRange(code, listing, first, min(last, coverage.today))
    _refuse_unknown(params.codes, absent)
    expected = {code: coverage.days(code_range) for code, code_range in ranges.items()}
    fetched = {code: days for code, days in expected.items() if len(days)}
    if fetched:
        coverage.fetch(fetched, ranges, outlet)
    document = _read_back(coverage, ranges)
    empty = [code for code in fetched if not document[code]["rows"]]
    if empty and period != "1d":
        Coverage(session, "1d", now_ms).fetch_suspensions([ranges[code] for code in empty], outlet)
    suspended = [code for code in empty if coverage.is_suspended(ranges[code])]
    for code in suspended:
        absent[code] = f"suspended on all {len(fetched[code])} trading days of the range"
        empty.remove(code)
    if empty and len(empty) + len(suspended) == len(fetched):
        raise DownloadIncomplete(
            f"The terminal downloaded {', '.join(empty[:5])}"
            f"{' ...' if len(empty) > 5 else ''}, but no {period} row can be read back.",
            hint="It may not have been traded then (its daily bars tell), or the account's edition "
            "does not reach so far back: try a later start.",
            codes=empty,
            period=period,
        )
    for code in empty:
        absent[code] = "downloaded, but no row can be read back"
    for code in set(ranges) - set(fetched):
        absent[code] = "not listed in the range"
    return Outcome(document=document, meta=meta_of(session, absent))


def _read_back(coverage: Coverage, ranges: dict[str, CodeRange]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for group in batches(list(ranges.values())):
        frames = coverage.read(group)
        for code_range in group:
            frame = frames.get(code_range.code)
            times: Days = _NO_TIMES if frame is None else frame["time"].to_numpy()
            document[code_range.code] = {
                "rows": len(times),
                "first_ms": int(times[0]) if len(times) else None,
                "last_ms": int(times[-1]) if len(times) else None,
                "days": len(np.unique(day_numbers(times))),
                "expected_days": len(coverage.days(code_range)),
            }
    return document


def _refuse_unknown(codes: list[str], absent: dict[str, str]) -> None:
    unknown = [code for code, reason in absent.items() if reason == NO_SUCH]
    if len(unknown) == len(codes):
        raise InstrumentNotFound(
            f"The terminal knows no instrument {', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''}.",
            hint="Look the code up with sector_stocks, for example of 沪深A股.",
            codes=unknown,
        )


def _plain(value: Any) -> Any:
    """Return a document without NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


TASKS: Final[dict[str, Task]] = {
    "history": history,
    "full_tick": full_tick,
    "sector_stocks": sector_stocks,
    "instrument_detail": instrument_detail,
    "download": download,
}
