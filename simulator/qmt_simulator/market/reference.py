"""Instrument documents, as the terminal's native layer hands them out."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from qmt_simulator.market.daily import DailyBars
from qmt_simulator.market.hashing import combine, unit16
from qmt_simulator.market.instruments import NEVER, Catalogue, Kind

NO_INT: Final = 2147483647
NO_FLOAT: Final = 1.7976931348623157e308
_TYPES: Final = ("stock", "index", "fund", "etf", "bond", "convertible_bond", "future", "option")


def instrument_types(kind: Kind) -> dict[str, bool]:
    """Which types a class of instruments belongs to."""
    own = {
        Kind.STOCK: {"stock"},
        Kind.INDEX: {"index"},
        Kind.ETF: {"fund", "etf"},
        Kind.BOND: {"bond", "convertible_bond"},
        Kind.FUTURE: {"future"},
        Kind.OPTION: {"option"},
    }[kind]
    return {name: name in own for name in _TYPES}


def share_capital(cat: Catalogue, number: int) -> tuple[float, float]:
    """Float and total volume: shares for a turnover of roughly one percent a day."""
    word = combine(cat.keys[number : number + 1], 71)
    total = cat.turnover[number] / cat.price[number] * (60.0 + 80.0 * float(unit16(word, 0)[0]))
    total = float(np.floor(total / 10000.0) * 10000.0)
    part = 0.55 + 0.45 * float(unit16(word, 1)[0])
    return float(np.floor(total * part / 100.0) * 100.0), total


def document(
    cat: Catalogue,
    number: int,
    day: DailyBars,
    limits: tuple[int, int],
    trading_day: int,
    main: bool,
) -> dict[str, Any]:
    """The native instrument document (27 keys, and ExtendInfo with the quotas and option terms).

    Parameters
    ----------
    day : DailyBars
        The one bar of the trading day the document tells of.
    limits : (int, int)
        Upper and lower price limit in price ticks.
    trading_day : int
        YYYYMMDD.
    main : bool
        Whether this is the main contract of its product.
    """
    row = cat.rows[number]
    kind, steps = row.kind, int(cat.steps[number])
    symbol, _, market = row.code.rpartition(".")
    derivative = kind in (Kind.FUTURE, Kind.OPTION)
    index = kind is Kind.INDEX
    floating, total = share_capital(cat, number)
    no_capital = index or derivative
    product = symbol.rstrip("0123456789") if kind is Kind.FUTURE else ""
    expire = row.expire_day if row.expire_day != NEVER else (0 if index else NEVER)
    margin = {Kind.FUTURE: 0.12}.get(kind, NO_FLOAT if not derivative else 0.0)
    name = row.name
    return {
        "ExchangeID": market,
        "InstrumentID": symbol,
        "InstrumentName": name,
        "ProductID": product or ("510300" if kind is Kind.OPTION else ""),
        "ProductName": name[:-4] if kind is Kind.FUTURE else "",
        "ProductType": {Kind.FUTURE: 1, Kind.OPTION: 2}.get(kind, NO_INT),
        "ExchangeCode": symbol,
        "UniCode": symbol,
        "CreateDate": row.open_day if derivative else 0,
        "OpenDate": row.open_day,
        "ExpireDate": expire,
        "TradingDay": trading_day,
        "PreClose": float(day.reference[0] / steps),
        "SettlementPrice": float(day.settlement_before[0] / steps),
        "UpStopPrice": NO_FLOAT if index else limits[0] / steps,
        "DownStopPrice": NO_FLOAT if index else limits[1] / steps,
        "FloatVolume": NO_FLOAT if no_capital else floating,
        "TotalVolume": NO_FLOAT if no_capital else total,
        "LongMarginRatio": margin,
        "ShortMarginRatio": margin,
        "PriceTick": 1.0 / steps,
        "VolumeMultiple": row.multiplier,
        "MainContract": int(main) if derivative else NO_INT,
        "LastVolume": int(day.interest_before[0]) if derivative else NO_INT,
        "InstrumentStatus": int(bool(day.suspended[0])),
        "IsTrading": not index and not bool(day.suspended[0]),
        "IsRecent": main,
        "ExtendInfo": {
            "ProductTradeQuota": NO_INT,
            "ContractTradeQuota": NO_INT,
            "ProductOpenInterestQuota": NO_INT,
            "ContractOpenInterestQuota": NO_INT,
            **(_option_terms(cat, number) if kind is Kind.OPTION else {}),
        },
    }


def _option_terms(cat: Catalogue, number: int) -> dict[str, Any]:
    row = cat.rows[number]
    return {
        "OptionType": 0 if row.call else 1,
        "OptUnit": row.multiplier,
        "MarginUnit": NO_FLOAT,
        "OptUndlCode": "510300",
        "OptUndlUniCode": "510300",
        "OptUndlMarket": "SH",
        "OptUndlCodeFull": "510300.SH",
        "OptExercisePrice": row.strike,
        "NeeqExeType": NO_INT,
        "OptUndlRiskFreeRate": NO_FLOAT,
        "OptUndlHistoryRate": NO_FLOAT,
        "EndDelivDate": row.expire_day,
    }
