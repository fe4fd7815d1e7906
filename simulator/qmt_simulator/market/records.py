"""What the market hands out: ticks and bars as columns, and dividends."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qmt_simulator.market.hashing import F64, I64

I32 = NDArray[np.int32]


@dataclass(slots=True)
class Ticks:
    """Ticks as columns of equal length n; depth columns are [n, 5].

    Prices and amounts in yuan, `volume` and depth volumes in lots, `pvolume` in shares, bonds or
    contracts, `time` in ms since the epoch. Volumes and amounts are cumulative for the day.
    """

    idx: I32
    time: I64
    lastPrice: F64  # noqa: N815 - the terminal's own field names
    open: F64
    high: F64
    low: F64
    lastClose: F64  # noqa: N815
    amount: F64
    volume: I64
    pvolume: I64
    stockStatus: I32  # noqa: N815
    openInt: I32  # noqa: N815
    transactionNum: I32  # noqa: N815
    lastSettlementPrice: F64  # noqa: N815
    settlementPrice: F64  # noqa: N815
    pe: F64
    askPrice: F64  # noqa: N815
    bidPrice: F64  # noqa: N815
    askVol: I32  # noqa: N815
    bidVol: I32  # noqa: N815
    volRatio: F64  # noqa: N815
    speed1Min: F64  # noqa: N815
    speed5Min: F64  # noqa: N815

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Ticks:
        """The chosen rows."""
        return Ticks(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def concat(parts: list[Ticks]) -> Ticks:
        """Rows of all parts, in order; at least one part."""
        names = [field.name for field in fields(Ticks)]
        return Ticks(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


@dataclass(slots=True)
class Bars:
    """Bars of one instrument as columns, oldest first.

    `time` is 00:00 China time of the day for 1d, and the label (end of the interval, or the last
    trading day of the week, month ...) otherwise. `volume` in lots, prices and `amount` in yuan.
    `as_of_ms` is the instant of which the answer tells. preClose of an intraday bar is the close of
    the bar before it, on the day's first bar the (ex-right) previous close.
    """

    time: I64
    open: F64
    high: F64
    low: F64
    close: F64
    volume: I64
    amount: F64
    settelementPrice: F64  # noqa: N815 - spelled as the terminal does
    openInterest: I64  # noqa: N815
    preClose: F64  # noqa: N815
    suspendFlag: I32  # noqa: N815
    period: str = "1d"
    as_of_ms: int = 0

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Bars:
        """The chosen rows."""
        return replace(self, **{name: getattr(self, name)[rows] for name in BAR_COLUMNS})

    @staticmethod
    def concat(parts: list[Bars]) -> Bars:
        """Rows of all parts, in order; at least one part."""
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in BAR_COLUMNS
        }
        return replace(parts[0], **columns)


BAR_COLUMNS: Final = tuple(
    field.name for field in fields(Bars) if field.name not in ("period", "as_of_ms")
)


@dataclass(frozen=True, slots=True)
class Dividend:
    """One ex-date (除权除息日), all quantities per share, money in yuan.

    `dr` is the previous close divided by the (unrounded) ex-right reference price.
    """

    ex_date: int
    interest: float
    stockBonus: float  # noqa: N815
    stockGift: float  # noqa: N815
    allotNum: float  # noqa: N815
    allotPrice: float  # noqa: N815
    gugai: float
    dr: float

    def ex_price(self, price: float) -> float:
        """The ex-right price of a price before this ex-date."""
        shares = 1.0 + self.stockBonus + self.stockGift + self.allotNum
        return (price - self.interest + self.allotNum * self.allotPrice) / shares
