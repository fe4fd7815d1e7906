"""How terminals of different editions differ, as far as public recordings tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

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
        pads_with_zero=True,
        unknown_code_is_empty=False,
        history_days={"tick": 31, "1m": YEAR_DAYS, "5m": YEAR_DAYS, "1d": _ALWAYS},
        single_subscriptions=100,
    ),
}
