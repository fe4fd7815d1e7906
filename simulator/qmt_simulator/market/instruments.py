"""The catalogue: which instruments exist, with the numbers their classes trade by."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmt_simulator.market import names
from qmt_simulator.market.calendar import LAST_DAY, to_ordinal
from qmt_simulator.market.hashing import F64, I64, U64, text_keys, unit16

NEVER: Final = 99999999


class Kind(IntEnum):
    """Instrument classes."""

    STOCK = 0
    INDEX = 1
    ETF = 2
    BOND = 3
    FUTURE = 4
    OPTION = 5


class Class(NamedTuple):
    """Rules of one instrument class: price steps per yuan, units per lot, multiplier."""

    steps: int
    lot: int
    multiplier: int
    limit: float


CLASSES: Final = {
    Kind.STOCK: Class(100, 100, 1, 0.10),
    Kind.INDEX: Class(100, 100, 1, 0.0),
    Kind.ETF: Class(1000, 100, 1, 0.10),
    Kind.BOND: Class(1000, 10, 1, 0.20),
    Kind.FUTURE: Class(5, 1, 300, 0.10),
    Kind.OPTION: Class(10000, 1, 10000, 0.0),
}

# code: name, price around 2026, turnover in yuan a day, first day
KNOWN_STOCKS: Final = {
    "600519.SH": ("贵州茅台", 1430.0, 4.5e9, 20010827),
    "600000.SH": ("浦发银行", 11.5, 7e8, 19991110),
    "000001.SZ": ("平安银行", 11.6, 1.1e9, 19910403),
    "300750.SZ": ("宁德时代", 365.0, 9e9, 20180611),
    "688981.SH": ("中芯国际", 118.0, 6e9, 20200716),
    "601318.SH": ("中国平安", 60.0, 3.5e9, 20070301),
    "600036.SH": ("招商银行", 42.0, 2.5e9, 20020409),
    "601398.SH": ("工商银行", 7.8, 2e9, 20061027),
    "000002.SZ": ("万科A", 6.2, 1e9, 19910129),
    "000858.SZ": ("五粮液", 118.0, 2.4e9, 19980427),
    "000333.SZ": ("美的集团", 78.0, 2e9, 20130918),
    "002594.SZ": ("比亚迪", 98.0, 5e9, 20110630),
    "300059.SZ": ("东方财富", 24.0, 8e9, 20100319),
    "688111.SH": ("金山办公", 310.0, 1.6e9, 20191118),
    "430047.BJ": ("诺思兰德", 21.0, 6e7, 20211115),
    "835185.BJ": ("贝特瑞", 29.0, 3e8, 20211115),
    "920002.BJ": ("万达轴承", 88.0, 5e7, 20240530),
}
KNOWN_INDICES: Final = {
    "000001.SH": ("上证指数", 3900.0, 7e11),
    "000016.SH": ("上证50", 3020.0, 1.2e11),
    "000300.SH": ("沪深300", 4600.0, 4e11),
    "000905.SH": ("中证500", 7300.0, 3e11),
    "000852.SH": ("中证1000", 7500.0, 3.5e11),
    "000688.SH": ("科创50", 1400.0, 8e10),
    "000906.SH": ("中证800", 5000.0, 6e11),
    "399001.SZ": ("深证成指", 13200.0, 9e11),
    "399006.SZ": ("创业板指", 3100.0, 4e11),
    "399005.SZ": ("中小100", 8000.0, 2e11),
    "399300.SZ": ("沪深300", 4600.0, 4e11),
    "399330.SZ": ("深证100", 5600.0, 3e11),
    "399673.SZ": ("创业板50", 3000.0, 2e11),
    "899050.BJ": ("北证50", 1480.0, 2e10),
}
KNOWN_ETFS: Final = {
    "510300.SH": ("沪深300ETF", 4.7, 3e9, 20120528, "000300.SH"),
    "510050.SH": ("上证50ETF", 3.1, 2e9, 20050223, "000016.SH"),
    "510500.SH": ("中证500ETF", 7.4, 2e9, 20130315, "000905.SH"),
    "588000.SH": ("科创50ETF", 1.45, 3e9, 20201116, "000688.SH"),
    "159915.SZ": ("创业板ETF", 3.1, 2.5e9, 20111209, "399006.SZ"),
    "159919.SZ": ("沪深300ETF", 4.8, 1e9, 20120528, "000300.SH"),
}
FUTURES: Final = {  # product: name, index, multiplier
    "IF": ("沪深300股指", "000300.SH", 300),
    "IH": ("上证50股指", "000016.SH", 300),
    "IC": ("中证500股指", "000905.SH", 200),
    "IM": ("中证1000股指", "000852.SH", 200),
}
# Two codes that no longer trade, so that a suspended one is at hand on every day.
LONG_SUSPENDED: Final = {"600145.SH": 20200106, "002260.SZ": 20200106}

# Of expiry; as far as the calendar reaches, and what is listed ahead then.
_AFTER_LAST: Final = LAST_DAY // 10_000 + 2
_FUTURE_YEARS: Final = range(2015, _AFTER_LAST)
_OPTION_YEARS: Final = range(2024, _AFTER_LAST)
_STRIKES: Final = (3.6, 4.0, 4.4, 4.6, 4.8, 5.2, 5.6)

# prefix, market, how many of the range's numbers, first number, last, earliest and latest listing
_STOCK_RANGES: Final = (
    ("600", "SH", 760, 4, 999, 19950101, 20141201),
    ("601", "SH", 230, 6, 999, 20060101, 20240601),
    ("603", "SH", 560, 0, 999, 20110101, 20250901),
    ("605", "SH", 140, 0, 599, 20200601, 20250901),
    ("688", "SH", 590, 1, 800, 20190722, 20260601),
    ("000", "SZ", 390, 4, 999, 19920101, 20101201),
    ("001", "SZ", 60, 201, 399, 20200101, 20260601),
    ("002", "SZ", 930, 1, 999, 20040625, 20201201),
    ("003", "SZ", 42, 0, 99, 20200601, 20220601),
    ("300", "SZ", 940, 1, 999, 20091030, 20210601),
    ("301", "SZ", 440, 1, 699, 20210601, 20260801),
    ("920", "BJ", 180, 1, 999, 20240401, 20260801),
    ("83", "BJ", 90, 0, 9999, 20211115, 20240301),
    ("87", "BJ", 60, 0, 9999, 20211115, 20240301),
    ("43", "BJ", 14, 17, 999, 20211115, 20240301),
)
_OTHER_RANGES: Final = (
    (Kind.ETF, "51", "SH", 180, 1000, 9999, 20130101, 20260601),
    (Kind.ETF, "56", "SH", 120, 0, 3999, 20210101, 20260601),
    (Kind.ETF, "588", "SH", 20, 10, 999, 20201201, 20260601),
    (Kind.ETF, "159", "SZ", 220, 1, 999, 20120101, 20260601),
    (Kind.BOND, "110", "SH", 50, 59, 99, 20210101, 20260601),
    (Kind.BOND, "113", "SH", 90, 30, 699, 20210101, 20260601),
    (Kind.BOND, "118", "SH", 50, 0, 99, 20210101, 20260601),
    (Kind.BOND, "123", "SZ", 110, 60, 299, 20210101, 20260601),
    (Kind.BOND, "127", "SZ", 60, 20, 119, 20210101, 20260601),
    (Kind.BOND, "128", "SZ", 20, 100, 149, 20210101, 20260601),
    (Kind.INDEX, "000", "SH", 40, 2, 999, 20050101, 20121201),
    (Kind.INDEX, "399", "SZ", 40, 2, 999, 20050101, 20121201),
)


class Row(NamedTuple):
    """One instrument while the catalogue is being drawn up."""

    code: str
    name: str
    kind: Kind
    price: float
    turnover: float
    open_day: int
    expire_day: int = NEVER
    limit: float = 0.0
    follows: str = ""
    strike: float = 0.0
    call: bool = False
    multiplier: int = 1
    special: bool = False


@dataclass(frozen=True)
class Catalogue:
    """All instruments as columns; position in a column is the instrument number.

    `steps` are price ticks per yuan, `lot` raw units per lot, `worth` yuan per lot and price
    tick, `follows` the number of the instrument whose price path is used (usually its own).
    """

    rows: list[Row]
    codes: list[str]
    index: dict[str, int]
    keys: U64
    kind: NDArray[np.int8]
    steps: I64
    lot: I64
    worth: F64
    limit: F64
    price: F64
    turnover: F64
    open_ordinal: I64
    expire_ordinal: I64
    follows: I64
    strike: F64
    call: NDArray[np.bool_]

    def of_kind(self, *kinds: Kind) -> list[int]:
        """Numbers of all instruments of these classes."""
        return [i for i, row in enumerate(self.rows) if row.kind in kinds]


def third_friday(year: int, month: int) -> int:
    """Last trading day of an index future, YYYYMMDD."""
    first = dt.date(year, month, 1)
    day = 15 + (4 - first.weekday()) % 7
    return year * 10000 + month * 100 + day


def _range(
    seed: int, prefix: str, market: str, count: int, low: int, high: int, listed: tuple[int, int]
) -> Iterator[tuple[str, int, F64]]:
    """Codes of one range with listing day and four uniforms each, ordered by number."""
    width = 6 - len(prefix)
    numbers = [n for n in range(low, high + 1) if n < 10**width]
    texts = [f"{prefix}{n:0{width}d}.{market}" for n in numbers]
    keys = text_keys(seed ^ 0x5EED, texts)
    chosen = np.sort(np.argsort(keys, kind="stable")[:count])
    lanes = np.stack([unit16(text_keys(seed ^ 0xFACE, texts), lane) for lane in range(4)], axis=1)
    first, last = to_ordinal(listed[0]), to_ordinal(listed[1])
    for at in chosen.tolist():
        # Numbers are given out in the order of listing, more or less.
        place = at / len(numbers)
        yield texts[at], int(first + (last - first) * place), lanes[at]


def _stock_limit(code: str, special: bool) -> float:
    if code.endswith(".BJ"):
        return 0.30
    if code.startswith(("688", "300", "301")):
        return 0.20
    return 0.05 if special else 0.10


def _stocks(seed: int, day_of: Callable[[int], int]) -> Iterator[Row]:
    number = 0
    taken = set(KNOWN_STOCKS)
    for code, (name, price, turnover, opened) in KNOWN_STOCKS.items():
        yield Row(code, name, Kind.STOCK, price, turnover, opened, limit=_stock_limit(code, False))
    for code in LONG_SUSPENDED:
        taken.add(code)
        yield Row(code, "*ST" + names.company(30000 + number)[:2], Kind.STOCK, 4.0, 5e7, 20050110,
                  limit=0.05, special=True)  # fmt: skip
        number += 1
    for prefix, market, count, low, high, first, last in _STOCK_RANGES:
        for code, ordinal, lanes in _range(seed, prefix, market, count, low, high, (first, last)):
            if code in taken:
                continue
            number += 1
            main = prefix in ("600", "601", "603", "605", "000", "001", "002", "003")
            special = main and lanes[0] < 0.025
            name = names.company(number)
            if special:
                name = ("*ST" if lanes[1] < 0.4 else "ST") + name[:2]
            price = 3.5 if special else 4.0
            price += float(round(70.0 * lanes[2] ** 3, 2))
            turnover = float(4e7 * 60.0 ** lanes[3]) * (0.3 if market == "BJ" else 1.0)
            yield Row(code, name, Kind.STOCK, price, turnover, day_of(ordinal),
                      limit=_stock_limit(code, special), special=special)  # fmt: skip


def _others(seed: int, day_of: Callable[[int], int]) -> Iterator[Row]:
    for code, (name, price, turnover) in KNOWN_INDICES.items():
        yield Row(code, name, Kind.INDEX, price, turnover, 20050104)
    for code, (name, price, turnover, opened, follows) in KNOWN_ETFS.items():
        yield Row(code, name, Kind.ETF, price, turnover, opened, limit=0.10, follows=follows)
    taken = {*KNOWN_INDICES, *KNOWN_ETFS}
    number = 0
    for kind, prefix, market, count, low, high, first, last in _OTHER_RANGES:
        for code, ordinal, lanes in _range(seed, prefix, market, count, low, high, (first, last)):
            if code in taken:
                continue
            number += 1
            opened, wide = day_of(ordinal), float(lanes[2])
            if kind is Kind.ETF:
                turnover = float(2e7 * 40.0 ** lanes[3])
                yield Row(code, names.fund(number), kind, 0.7 + 2.5 * wide, turnover, opened,
                          limit=0.10)  # fmt: skip
            elif kind is Kind.BOND:
                name = names.company(20000 + number)[:2] + "转债"
                turnover = float(4e7 * 20.0 ** lanes[3])
                yield Row(code, name, kind, 102.0 + 40.0 * wide, turnover, opened,
                          expire_day=opened // 100 * 100 + 60028, limit=0.20)  # fmt: skip
            else:
                name = names.company(25000 + number)[2:] + "指数"
                yield Row(code, name, kind, 1500.0 + 6000.0 * wide, 1e11, opened)


def _derivatives() -> Iterator[Row]:
    prices = {code: price for code, (_, price, _) in KNOWN_INDICES.items()}
    for product, (name, follows, multiplier) in FUTURES.items():
        for year in _FUTURE_YEARS:
            for month in range(1, 13):
                short = f"{year % 100:02d}{month:02d}"
                # Quarter months are listed eight months ahead, the others two.
                ahead = 8 if month % 3 == 0 else 2
                y, m = divmod(year * 12 + month - 1 - ahead, 12)
                opened = third_friday(y, m + 1) + 3
                turnover = 6e10 if ahead == 8 else 3e10
                yield Row(
                    f"{product}{short}.IF", f"{name}{short}", Kind.FUTURE,
                    prices[follows] * (1.0 - 0.001 * (month % 3)), turnover, opened,
                    third_friday(year, month), limit=0.10, follows=follows, multiplier=multiplier,
                )  # fmt: skip
    number = 10009001
    for year in _OPTION_YEARS:
        for month in range(1, 13):
            y, m = divmod(year * 12 + month - 1 - 2, 12)
            opened, expires = third_friday(y, m + 1) + 6, third_friday(year, month) + 5
            for strike in _STRIKES:
                for call in (True, False):
                    name = f"300ETF{'购' if call else '沽'}{month}月{int(strike * 1000)}"
                    yield Row(f"{number}.SHO", name, Kind.OPTION, 4.7, 3e7, opened, expires,
                              limit=0.10, follows="510300.SH", strike=strike, call=call,
                              multiplier=10000)  # fmt: skip
                    number += 1


def catalogue(seed: int, day_of: Callable[[int], int]) -> Catalogue:
    """Draw up all instruments of a seed; `day_of` turns an ordinal into YYYYMMDD."""
    rows = [*_stocks(seed, day_of), *_others(seed, day_of), *_derivatives()]
    rows.sort(key=lambda row: (row.code.rpartition(".")[2] not in ("SH", "SZ", "BJ"), row.code))
    codes = [row.code for row in rows]
    index = {code: i for i, code in enumerate(codes)}
    kind = np.array([row.kind for row in rows], dtype=np.int8)
    steps = np.array([CLASSES[row.kind].steps for row in rows], dtype=np.int64)
    lot = np.array([CLASSES[row.kind].lot for row in rows], dtype=np.int64)
    multiplier = np.array([row.multiplier for row in rows], dtype=np.float64)
    price = np.array([row.price for row in rows], dtype=np.float64)
    # An index's turnover is that of its stocks, some 12 yuan a share, whatever its points are.
    worth = np.where(kind == Kind.INDEX, 1200.0 / (price * steps), lot * multiplier / steps)
    follows = [index[row.follows] if row.follows else i for i, row in enumerate(rows)]
    # ETFs that copy an index copy it directly, so that what follows them does as well.
    follows = [follows[i] for i in follows]
    return Catalogue(
        rows=rows,
        codes=codes,
        index=index,
        keys=text_keys(seed, codes),
        kind=kind,
        steps=steps,
        lot=lot,
        worth=worth,
        limit=np.array([row.limit for row in rows], dtype=np.float64),
        price=price,
        turnover=np.array([row.turnover for row in rows], dtype=np.float64),
        open_ordinal=np.array([_ordinal(row.open_day) for row in rows], dtype=np.int64),
        expire_ordinal=np.array([_ordinal(row.expire_day) for row in rows], dtype=np.int64),
        follows=np.array(follows, dtype=np.int64),
        strike=np.array([row.strike for row in rows], dtype=np.float64),
        call=np.array([row.call for row in rows], dtype=np.bool_),
    )


def _ordinal(day: int) -> int:
    return 2**31 if day == NEVER else to_ordinal(day)
