"""The tables that history answers have: columns, dtypes, units and null rules, in one place.

Every asset class has the same columns, so frames of different codes can be put together; what a
class does not have follows the null rule. docs/tables.md is written from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .codes import asset_class

__all__ = ["BAR_TABLE", "BOOKS", "TICK_TABLE", "Column", "bar_nulls", "table_of"]


@dataclass(frozen=True)
class Column:
    """One column of a history table."""

    name: str
    dtype: str
    """numpy dtype name."""
    unit: str
    null: str = "never null"
    """What stands where the terminal has no value."""


_LOTS: Final = "lots (stock, ETF, index: 100; convertible bond: 10; future, option: 1 contract)"
_NAN: Final = "NaN where the terminal has none"

BAR_TABLE: Final[tuple[Column, ...]] = (
    Column("open", "float64", "yuan (index: points)", _NAN),
    Column("high", "float64", "yuan (index: points)", _NAN),
    Column("low", "float64", "yuan (index: points)", _NAN),
    Column("close", "float64", "yuan (index: points)", _NAN),
    Column("volume", "int64", _LOTS),
    Column("amount", "float64", "yuan", _NAN),
    Column(
        "settelementPrice",
        "float64",
        "yuan; spelled as xtquant does",
        "NaN but in futures, options",
    ),
    Column("openInterest", "int64", "contracts", "0 but in futures and options"),
    Column("preClose", "float64", "yuan (index: points); the day's reference price", _NAN),
    Column("suspendFlag", "int32", "0 normal, 1 suspended, -1 resumed that day"),
    Column("closed", "bool", "False while the bar still forms"),
)
"""Bars of every period. The index is the bar's label: 00:00 of its day for ``1d``, the end of the
bar for intraday; a day's first 1m bar, 09:30, is the opening auction. ``1w`` and longer keep the
terminal's own label (simulator: 00:00 of the last trading day they hold so far)."""

BOOKS: Final = ("askPrice", "bidPrice", "askVol", "bidVol")
"""Fields of a tick that list five levels; its table has a column for each."""

_LEVELS: Final = tuple(
    Column(f"{side}{what}{level}", dtype, unit, null)
    for side in ("ask", "bid")
    for what, dtype, unit, null in (
        ("Price", "float64", "yuan", "0 where the level is empty, NaN where not sent"),
        ("Vol", "int64", "lots", "0 where the level is empty or not sent"),
    )
    for level in range(1, 6)
)

TICK_TABLE: Final[tuple[Column, ...]] = (
    Column("lastPrice", "float64", "yuan (index: points)", _NAN),
    Column("open", "float64", "yuan (index: points)", _NAN),
    Column("high", "float64", "yuan (index: points)", _NAN),
    Column("low", "float64", "yuan (index: points)", _NAN),
    Column("lastClose", "float64", "yuan (index: points)", _NAN),
    Column("amount", "float64", "yuan, cumulative of the day", _NAN),
    Column("volume", "int64", f"{_LOTS}, cumulative of the day", "0 where not sent"),
    Column("pvolume", "int64", "shares on most terminals, cumulative", "0 where not sent"),
    Column("stockStatus", "int64", "obsolete", "0 where not sent"),
    Column("openInt", "int64", "trading phase, or open interest", "0 where not sent"),
    Column("transactionNum", "int64", "trades of the day", "0 where not sent"),
    Column("lastSettlementPrice", "float64", "yuan", _NAN),
    Column("settlementPrice", "float64", "yuan", _NAN),
    Column("pe", "float64", "ratio", _NAN),
    *_LEVELS,
)
"""Ticks of history. The index is the exchange time to the ms; it may repeat."""


_OF_DERIVATIVES: Final = {"settelementPrice": math.nan, "openInterest": 0}


def bar_nulls(code: str) -> Mapping[str, float]:
    """Return what stands in the columns that bars of the code's asset class do not have.

    Terminals fill them with anything: 0, the close, a phase code.
    """
    return {} if asset_class(code) in ("future", "option") else _OF_DERIVATIVES


def table_of(period: str) -> tuple[Column, ...]:
    """Return the columns of a period's table, the index left out."""
    return TICK_TABLE if period == "tick" else BAR_TABLE
