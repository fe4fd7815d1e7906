"""How terminals of different editions differ, by public recordings or by a probe's report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from qmt_simulator.market import Ticks

YEAR_DAYS: Final = 366


@dataclasses.dataclass(frozen=True)
class Profile:
    """One edition's manners."""

    name: str
    version: str
    download_version: int | None
    """What getapiversion answers; None: the function is missing."""
    not_realized: frozenset[str]
    depth_levels: int
    pvolume: str
    """'raw', 'lots' (equals volume) or 'lots*100'."""
    amount_factor: float
    counts_transactions: bool
    full_tick_has_time: bool
    full_tick_millis: bool
    """Whether a snapshot's `timetag` ends with milliseconds."""
    dividends_by_date: bool
    """What keys the rows of dividends: the date, or ms since the epoch."""
    pads_with_zero: bool
    """Padding of a period never downloaded: all zero instead of the last close."""
    unknown_code_is_empty: bool
    """An unknown code in a K-line answer: an empty frame, or no key at all."""
    history_days: Mapping[str, int]
    """How far back a download reaches, per stored period, in calendar days."""
    single_subscriptions: int

    def apply(self, ticks: Ticks) -> Ticks:
        """Return `ticks` as this edition shows them."""
        changes: dict[str, object] = {}
        if self.depth_levels < 5:
            for name in ("askPrice", "bidPrice", "askVol", "bidVol"):
                levels = getattr(ticks, name).copy()
                levels[:, self.depth_levels :] = 0
                changes[name] = levels
        if self.pvolume == "lots":
            changes["pvolume"] = ticks.volume
        elif self.pvolume == "lots*100":
            changes["pvolume"] = ticks.volume * 100
        if self.amount_factor != 1.0:
            changes["amount"] = ticks.amount * self.amount_factor
        if not self.counts_transactions:
            changes["transactionNum"] = np.zeros_like(ticks.transactionNum)
        return dataclasses.replace(ticks, **changes) if changes else ticks  # type: ignore[arg-type]

    @classmethod
    def from_report(cls, document: Mapping[str, Any]) -> Profile:
        """Return the profile of the terminal that a probe's report describes.

        What the report does not tell, and what no profile can vary, is as in the customary
        profile of the same kind of snapshot.

        Raises
        ------
        ValueError
            When the document is no report, or of another schema.
        """
        if document.get("kind") != "qmt-probe" or document.get("schema") != REPORT_SCHEMA:
            raise ValueError(f"no report of a probe of schema {REPORT_SCHEMA}")
        return _from_facts(document.get("terminal", {}), _Facts(document.get("answers", {})))


_ALWAYS = 20 * YEAR_DAYS
_BROKER_LACKS = frozenset({"getperiodlist", "downloadholidaydata", "getfullkline"})

PROFILES: Final = {
    "research": Profile(
        name="research",
        version="3.3.9.40000",
        download_version=1,
        not_realized=frozenset(),
        depth_levels=5,
        pvolume="raw",
        amount_factor=1.0,
        counts_transactions=True,
        full_tick_has_time=True,
        full_tick_millis=False,
        dividends_by_date=True,
        pads_with_zero=False,
        unknown_code_is_empty=True,
        history_days={"tick": YEAR_DAYS, "1m": 3 * YEAR_DAYS, "5m": 3 * YEAR_DAYS, "1d": _ALWAYS},
        single_subscriptions=300,
    ),
    "broker": Profile(
        name="broker",
        version="1.0.0.36000",
        download_version=1,
        not_realized=_BROKER_LACKS,
        depth_levels=1,
        pvolume="lots*100",
        amount_factor=1.0,
        counts_transactions=False,
        full_tick_has_time=False,
        full_tick_millis=False,
        dividends_by_date=False,
        pads_with_zero=True,
        unknown_code_is_empty=False,
        history_days={"tick": 31, "1m": YEAR_DAYS, "5m": YEAR_DAYS, "1d": _ALWAYS},
        single_subscriptions=100,
    ),
    "old": Profile(
        name="old",
        version="1.0.0.29000",
        download_version=None,
        not_realized=_BROKER_LACKS | {"getapiversion", "downloadhisstdata", "downloadmetadata"},
        depth_levels=5,
        pvolume="lots",
        amount_factor=100.0,
        counts_transactions=False,
        full_tick_has_time=False,
        full_tick_millis=True,
        dividends_by_date=False,
        pads_with_zero=True,
        unknown_code_is_empty=False,
        history_days={"tick": 31, "1m": YEAR_DAYS, "5m": YEAR_DAYS, "1d": _ALWAYS},
        single_subscriptions=100,
    ),
}

REPORT_SCHEMA: Final = 1

_QUESTION_OF: Final = {
    "getapiversion": "has_getapiversion",
    "getperiodlist": "has_get_period_list",
    "getfullkline": "has_get_full_kline",
    "downloadholidaydata": "has_download_holiday_data",
    "downloadhisstdata": "has_download_his_st_data",
    "getopenclosetradetimebystock": "has_get_trading_period",
    "getquoteserverstatus": "has_get_quote_server_status",
}
"""Which question tells of a native function whether the terminal has it."""
_PVOLUMES: Final = {
    ("1 x volume", "1 x volume"): "lots",
    ("100 x volume", "100 x volume"): "lots*100",
}
"""How pvolume of stocks and of bonds follows from volume; anything else is 'raw'."""
_REACHES_DAYS: Final = (31, YEAR_DAYS, 3 * YEAR_DAYS, _ALWAYS)
"""Customary limits: one that lies a little beyond the oldest age of a report is taken for it."""


class _Facts:
    """A report's answers; what was not answered is None."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers

    def get(self, question: str, fact: str) -> Any:
        return (self._answers.get(question, {}).get("facts") or {}).get(fact)


def _from_facts(terminal: Mapping[str, Any], facts: _Facts) -> Profile:
    has_time = facts.get("full_tick", "has_time")
    base = PROFILES["broker" if has_time is False else "research"]
    lacks = set(base.not_realized)
    for function, question in _QUESTION_OF.items():
        answer = facts.get(question, "answers")
        lacks -= {function} if answer == "yes" else set()
        lacks |= {function} if answer == "unsupported" else set()
    changes: dict[str, Any] = {
        "full_tick_has_time": has_time,
        "depth_levels": facts.get("values", "depth_levels"),
        "counts_transactions": facts.get("values", "counts_transactions"),
    }
    of_stocks = facts.get("values", "pvolume_of_stocks")
    if of_stocks is not None:
        of_bonds = facts.get("values", "pvolume_of_bonds") or of_stocks
        changes["pvolume"] = _PVOLUMES.get((of_stocks, of_bonds), "raw")
    amount_unit = facts.get("values", "amount_unit")
    changes["amount_factor"] = None if amount_unit is None else float(amount_unit)
    timetag, index = facts.get("full_tick", "timetag"), facts.get("dividends", "index")
    changes["full_tick_millis"] = None if timetag is None else "." in timetag
    changes["dividends_by_date"] = None if index is None else index == "YYYYMMDD"
    close, unknown = facts.get("no_data", "filled_close"), facts.get("asks_unknown_code", "answer")
    changes["pads_with_zero"] = None if close is None else close == "zero"
    changes["unknown_code_is_empty"] = None if unknown is None else "table" in unknown
    single = facts.get("single_limit", "subscriptions")
    changes["single_subscriptions"] = int(str(single).split()[0]) if single is not None else None
    reported_version = facts.get("has_getapiversion", "download_version")
    return dataclasses.replace(
        base,
        name=str(terminal.get("edition") or "report"),
        version=str(terminal.get("version") or base.version),
        download_version=base.download_version
        if reported_version is None
        else (None if reported_version == "none" else int(reported_version)),
        not_realized=frozenset(lacks),
        history_days={
            period: _reach(facts.get(f"reach_{period}", "ages_days"), days)
            for period, days in base.history_days.items()
        },
        **{name: value for name, value in changes.items() if value is not None},
    )


def _reach(ages_days: list[int] | None, usual_days: int) -> int:
    """Return how far back a download reaches where data of these ages could be had."""
    if ages_days is None:
        return usual_days
    if not ages_days:
        return -1  # not even today's
    oldest = max(ages_days)
    return next((days for days in _REACHES_DAYS if 0 <= days - oldest < min(30, oldest)), oldest)


def load_profile(name: str) -> Profile:
    """Return a profile by its name, or from the report in a file.

    Raises
    ------
    ValueError
        When it is neither.
    """
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if path.suffix != ".json":
        known = ", ".join(sorted(PROFILES))
        raise ValueError(f"invalid choice: {name!r} (choose from {known}, or a report's FILE.json)")
    try:
        return Profile.from_report(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
