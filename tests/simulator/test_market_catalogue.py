"""Instruments, their documents, sectors and index weights."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import pytest

from qmt_simulator.market import Market
from qmt_simulator.market.calendar import LAST_DAY, midnight_ms, to_ordinal

CHINA = dt.timezone(dt.timedelta(hours=8))
NOW = int(dt.datetime(2026, 11, 19, 10, 30, tzinfo=CHINA).timestamp() * 1000)


@lru_cache
def market() -> Market:
    return Market()


def test_there_are_5400_shares_in_three_markets() -> None:
    m = market()
    sectors = m.sectors(NOW)
    assert len(set(m.codes)) == len(m.codes)
    assert [m.index[code] for code in m.codes] == list(range(len(m.codes)))
    everything = sectors["沪深京A股"]
    assert len(everything) == len(set(everything)) >= 5400
    assert set(everything) == {*sectors["上证A股"], *sectors["深证A股"], *sectors["京市A股"]}
    assert sectors["沪深A股"] == [*sectors["上证A股"], *sectors["深证A股"]]
    assert all(code.endswith(".BJ") for code in sectors["京市A股"])
    assert len(sectors["京市A股"]) > 250
    assert all(code.startswith("688") for code in sectors["科创板"])
    assert {code[:3] for code in sectors["创业板"]} == {"300", "301"}


@pytest.mark.parametrize(
    ("sector", "size"), [("沪深300", 300), ("上证50", 50), ("中证500", 500), ("中证1000", 1000)]
)
def test_index_sectors_have_their_sizes(sector: str, size: int) -> None:
    sectors = market().sectors(NOW)
    members = sectors[sector]
    assert len(members) == len(set(members)) == size
    assert set(members) <= set(sectors["沪深A股"])


@pytest.mark.parametrize("day", [20270104, 20290104, 20310110, LAST_DAY])
def test_futures_and_options_are_listed_as_long_as_the_calendar_reaches(day: int) -> None:
    at_ms = midnight_ms(to_ordinal(day)) + 36_000_000
    sectors = market().sectors(at_ms)
    assert len(sectors["中金所"]) == 16, "four products, of four months each"
    assert len(sectors["上证期权"]) in (14, 28)
    main = market().main_contract("IF", at_ms)
    assert main in sectors["中金所"]
    assert main in (f"IF{day // 100 % 10_000}.IF", f"IF{_month_after(day) % 10_000}.IF")


def _month_after(day: int) -> int:
    year, month = divmod(day // 10_000 * 12 + day // 100 % 100, 12)
    return year * 100 + month + 1


def test_sectors_hang_together() -> None:
    sectors = market().sectors(NOW)
    assert set(sectors["上证50"]) <= set(sectors["沪深300"])
    assert not set(sectors["沪深300"]) & set(sectors["中证500"])
    assert {"510300.SH", "159915.SZ"} <= set(sectors["沪深ETF"])
    assert {"000001.SH", "000300.SH", "399001.SZ", "399006.SZ"} <= set(sectors["沪深指数"])
    assert len(sectors["沪深转债"]) > 200
    industries = [name for name in sectors if name.startswith("SW1")]
    members = [code for name in industries for code in sectors[name]]
    assert sorted(members) == sorted(sectors["沪深京A股"])
    assert "600000.SH" in sectors["SW1银行"]
    assert "IF2612.IF" in sectors["中金所"]
    assert "IF2610.IF" in sectors["过期中金所"]
    assert "IF2611.IF" in sectors["中金所"]


def test_index_weights_are_percents_of_the_members() -> None:
    m = market()
    weights = m.index_weights("000300.SH")
    assert sorted(weights) == sorted(m.sectors(NOW)["沪深300"])
    assert sum(weights.values()) == pytest.approx(100.0, abs=0.2)
    assert min(weights.values()) > 0
    assert m.index_weights("600519.SH") == {}


NAMES = {
    "600519.SH": "贵州茅台",
    "600000.SH": "浦发银行",
    "000001.SZ": "平安银行",
    "300750.SZ": "宁德时代",
    "000001.SH": "上证指数",
    "000300.SH": "沪深300",
    "399001.SZ": "深证成指",
    "399006.SZ": "创业板指",
}


@pytest.mark.parametrize(("code", "name"), NAMES.items())
def test_the_well_known_are_there(code: str, name: str) -> None:
    document = market().detail(code, NOW)
    assert document is not None
    assert document["InstrumentName"] == name
    assert document["InstrumentID"] + "." + document["ExchangeID"] == code


KEYS = """
    ExchangeID InstrumentID InstrumentName ProductID ProductName ProductType ExchangeCode UniCode
    CreateDate OpenDate ExpireDate TradingDay PreClose SettlementPrice UpStopPrice DownStopPrice
    FloatVolume TotalVolume LongMarginRatio ShortMarginRatio PriceTick VolumeMultiple MainContract
    LastVolume InstrumentStatus IsTrading IsRecent ExtendInfo
"""


@pytest.mark.parametrize(
    ("code", "tick", "up", "multiple"),
    [
        ("600519.SH", 0.01, 0.10, 1),
        ("300750.SZ", 0.01, 0.20, 1),
        ("688981.SH", 0.01, 0.20, 1),
        ("920002.BJ", 0.01, 0.30, 1),
        ("510300.SH", 0.001, 0.10, 1),
        ("IF2612.IF", 0.2, 0.10, 300),
    ],
)
def test_documents_carry_ticks_and_limits(code: str, tick: float, up: float, multiple: int) -> None:
    document = market().detail(code, NOW)
    assert document is not None
    assert set(document) == set(KEYS.split())
    assert document["PriceTick"] == tick
    assert document["VolumeMultiple"] == multiple
    assert document["TradingDay"] == 20261119
    before = document["PreClose"]
    assert document["UpStopPrice"] == pytest.approx(before * (1 + up), abs=tick * 0.51)
    assert document["DownStopPrice"] == pytest.approx(before * (1 - up), abs=tick * 0.51)
    assert document["IsTrading"] is True
    assert all(isinstance(document[k], int) for k in ("OpenDate", "ExpireDate", "CreateDate"))
    quotas = document["ExtendInfo"]
    assert len([k for k in quotas if k.endswith("Quota")]) == 4


def test_an_index_has_no_limits_and_no_shares() -> None:
    document = market().detail("000300.SH", NOW)
    assert document is not None
    none = 1.7976931348623157e308
    for key in ("UpStopPrice", "DownStopPrice", "TotalVolume", "FloatVolume"):
        assert document[key] == none
    assert document["IsTrading"] is False


def test_types_name_the_class() -> None:
    m = market()
    assert {k for k, v in m.types("600519.SH").items() if v} == {"stock"}
    assert {k for k, v in m.types("510300.SH").items() if v} == {"fund", "etf"}
    assert {k for k, v in m.types("000001.SH").items() if v} == {"index"}
    assert m.types("999999.SH") == {}
    assert m.detail("999999.SH", NOW) is None


def test_contracts_roll() -> None:
    m = market()
    assert m.main_contract("IF", NOW) == "IF2611.IF"
    later = NOW + 5 * 86_400_000
    assert m.main_contract("IF", later) == "IF2612.IF"
    live = [code for code in m.sectors(NOW)["中金所"] if code.startswith("IF")]
    assert live == ["IF2611.IF", "IF2612.IF", "IF2703.IF", "IF2706.IF"]
    option = m.sectors(NOW)["上证期权"][0]
    document = m.detail(option, NOW)
    assert document is not None
    assert document["ExtendInfo"]["OptUndlCodeFull"] == "510300.SH"
    assert document["PriceTick"] == 0.0001
