"""Sectors (板块) and index weights."""

from __future__ import annotations

from typing import Final

import numpy as np

from qmt_simulator.market.hashing import combine, unit
from qmt_simulator.market.instruments import LONG_SUSPENDED, Catalogue, Kind
from qmt_simulator.market.names import INDUSTRIES

# sector, its index, size
INDEX_SECTORS: Final = (
    ("上证50", "000016.SH", 50),
    ("沪深300", "000300.SH", 300),
    ("中证500", "000905.SH", 500),
    ("中证1000", "000852.SH", 1000),
    ("科创50", "000688.SH", 50),
    ("创业板指", "399006.SZ", 100),
    ("北证50", "899050.BJ", 50),
)
_INDUSTRY_OF: Final = {
    "600519.SH": "食品饮料", "000858.SZ": "食品饮料", "600000.SH": "银行", "000001.SZ": "银行",
    "600036.SH": "银行", "601398.SH": "银行", "300750.SZ": "电力设备", "688981.SH": "电子",
    "601318.SH": "非银金融", "300059.SZ": "非银金融", "000002.SZ": "房地产", "002594.SZ": "汽车",
    "000333.SZ": "家用电器", "688111.SH": "计算机",
}  # fmt: skip
_CUT_DAY: Final = 20055  # 2024-11-28: members of indices were listed before


class Sectors:
    """Sector lists of a catalogue. Every list is in the order of codes.

    These name everything that is ever listed; `Market.sectors` picks what is listed at a time and
    adds the futures and options.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._cat = cat = catalogue
        rows = cat.rows
        stocks = [row.code for row in rows if row.kind is Kind.STOCK]
        sh = [code for code in stocks if code.endswith(".SH")]
        sz = [code for code in stocks if code.endswith(".SZ")]
        bj = [code for code in stocks if code.endswith(".BJ")]
        out: dict[str, list[str]] = {
            "沪深A股": [*sh, *sz],
            "上证A股": sh,
            "深证A股": sz,
            "京市A股": bj,
            "沪深京A股": [*sh, *sz, *bj],
            "科创板": [code for code in sh if code.startswith("688")],
            "创业板": [code for code in sz if code.startswith(("300", "301"))],
        }
        for kind, full, shanghai, shenzhen in (
            (Kind.ETF, "沪深ETF", "沪市ETF", "深市ETF"),
            (Kind.INDEX, "沪深指数", "沪市指数", "深市指数"),
            (Kind.BOND, "沪深转债", "上证转债", "深证转债"),
        ):
            codes = [row.code for row in rows if row.kind is kind]
            out[shanghai] = [code for code in codes if code.endswith(".SH")]
            out[shenzhen] = [code for code in codes if code.endswith(".SZ")]
            out[full] = [*out[shanghai], *out[shenzhen]]
        out["沪深基金"] = list(out["沪深ETF"])
        self._weights: dict[str, dict[str, float]] = {}
        self._indices(stocks, out)
        industries: dict[str, list[str]] = {f"SW1{name}": [] for name in INDUSTRIES}
        draw = unit(combine(cat.keys, 61))
        for code in stocks:
            name = INDUSTRIES[int(draw[cat.index[code]] * len(INDUSTRIES))]
            industries[f"SW1{_INDUSTRY_OF.get(code, name)}"].append(code)
        out.update(industries)
        self.static = out

    def _indices(self, stocks: list[str], out: dict[str, list[str]]) -> None:
        cat = self._cat
        market_value = {code: float(cat.turnover[cat.index[code]]) for code in stocks}
        old = [
            code
            for code in stocks
            if cat.open_ordinal[cat.index[code]] < _CUT_DAY
            and not cat.rows[cat.index[code]].special
            and code not in LONG_SUSPENDED
        ]
        ranked = sorted(old, key=lambda code: (-market_value[code], code))
        main = [code for code in ranked if not code.endswith(".BJ")]
        pools = {
            "上证50": [code for code in main[:300] if code.endswith(".SH")],
            "沪深300": main[:300],
            "中证500": main[300:800],
            "中证1000": main[800:1800],
            "科创50": [code for code in ranked if code.startswith("688")],
            "创业板指": [code for code in ranked if code.startswith(("300", "301"))],
            "北证50": [code for code in ranked if code.endswith(".BJ")],
        }
        for sector, index, size in INDEX_SECTORS:
            members = sorted(pools[sector][:size])
            out[sector] = members
            values = np.sqrt(np.array([market_value[code] for code in members]))
            weights = np.round(values / values.sum() * 100.0, 3)
            self._weights[index] = dict(zip(members, weights.tolist(), strict=True))

    def weights(self, index: str) -> dict[str, float]:
        """Members of an index with their weights in percent; empty if it has none."""
        return dict(self._weights.get(index, {}))
