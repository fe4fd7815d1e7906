"""Instruments, sectors, days and dividends through the real xtdata.py."""

from collections.abc import Callable
from typing import Any

import pytest
from xtdata_scripts import MIDSESSION, ScriptedTerminal


@pytest.fixture(scope="module")
def facts(midsession: ScriptedTerminal) -> dict[str, Any]:
    result: dict[str, Any] = midsession.run("""
        sectors = xtdata.get_sector_list()
        factors = xtdata.get_divid_factors("600519.SH")
        tell({
            "sectors": {name: len(xtdata.get_stock_list_in_sector(name)) for name in sectors},
            "no_sector": xtdata.get_stock_list_in_sector("no such"),
            "detail": xtdata.get_instrument_detail("600519.SH"),
            "complete": xtdata.get_instrument_detail("600519.SH", True),
            "index": xtdata.get_instrument_detail("000001.SH"),
            "unknown": xtdata.get_instrument_detail("999999.SH"),
            "types": [xtdata.get_instrument_type(code) for code in ("600519.SH", "510300.SH", "x")],
            "dates": xtdata.get_trading_dates("SH", "20260925", "20261015"),
            "counted": xtdata.get_trading_dates("SZ", count=2),
            "no_market": xtdata.get_trading_dates("XX"),
            "calendar": xtdata.get_trading_calendar("SH", "20261001", "20261015"),
            "holidays": xtdata.get_holidays(),
            "factors": [list(factors.index), list(factors.columns)],
            "no_factors": list(xtdata.get_divid_factors("000001.SH").shape),
            "weights": xtdata.get_index_weight("000300.SH"),
            "main": [xtdata.get_main_contract(code) for code in ("IF00.IF", "XX00.IF")],
            "periods": [item["name"] for item in xtdata.get_period_list()],
            "sessions": xtdata.get_trading_period("600519.SH")["tradings"],
            "finance": {code: list(tables) for code, tables in
                        xtdata.get_financial_data(["600519.SH"], ["Balance"]).items()},
            "ipos": xtdata.get_ipo_info("20200101", "20261231"),
            "clock": xtdata._BSON_call_common(
                xtdata.get_client().commonControl, "simulatorclock", {}),
            "tag": xtdata._BSON_.BSON.decode(xtdata.get_client().get_server_tag()),
            "downloads": [xtdata.download_sector_data(), xtdata.download_index_weight(),
                          xtdata.download_cb_data(), xtdata.download_etf_info(),
                          xtdata.get_etf_info()],
            "bond": xtdata.get_cb_info(xtdata.get_stock_list_in_sector("沪深转债")[0]),
            "option": xtdata.get_option_detail_data(
                xtdata.get_stock_list_in_sector("上证期权")[0]),
        })
    """)
    return result


def test_sectors(facts: dict[str, Any]) -> None:
    assert facts["sectors"]["沪深A股"] > 5000
    assert facts["sectors"]["沪深300"] == 300
    assert facts["no_sector"] == []


def test_instruments(facts: dict[str, Any]) -> None:
    detail = facts["detail"]
    assert len(detail) == 31
    assert (detail["InstrumentName"], detail["PriceTick"]) == ("贵州茅台", 0.01)
    assert detail["DownStopPrice"] < detail["PreClose"] < detail["UpStopPrice"]
    assert isinstance(detail["OpenDate"], str)
    assert "ExtendInfo" not in facts["complete"]
    assert facts["index"]["IsTrading"] is False
    assert facts["unknown"] is None
    assert facts["types"][0].get("stock") is True
    assert facts["types"][1].get("etf") is True
    assert facts["types"][2] == {}
    assert facts["bond"]["bondParValue"] == 100.0
    assert facts["option"]["optType"] in ("CALL", "PUT")


def test_trading_days_and_calendar(facts: dict[str, Any]) -> None:
    # 1 to 7 October is the National Day holiday.
    assert facts["calendar"] == [f"202610{day:02}" for day in (8, 9, 12, 13, 14, 15)]
    assert len(facts["dates"]) == len(set(facts["dates"])) >= 8
    assert facts["counted"][-1] == 1_795_104_000_000
    assert facts["no_market"] == []
    assert "20261001" in facts["holidays"]
    assert [item["time"][1][0] for item in facts["sessions"]] == [91500, 93000, 130000, 145700]


def test_dividends_weights_and_contracts(facts: dict[str, Any]) -> None:
    index, columns = facts["factors"]
    assert len(index) >= 5
    assert all(len(key) == 8 for key in index)
    assert columns[:4] == ["time", "interest", "stockBonus", "stockGift"]
    assert facts["no_factors"] == [0, 0]
    assert sum(facts["weights"].values()) == pytest.approx(100, abs=0.5)
    assert facts["main"][0].startswith("IF26")
    assert facts["main"][1] == ".IF"


def test_the_rest(facts: dict[str, Any]) -> None:
    assert {"tick", "1m", "1d"} <= set(facts["periods"])
    assert facts["finance"] == {"600519.SH": []}
    assert all(len(item) == 18 for item in facts["ipos"])
    assert facts["downloads"] == [None, None, None, None, {}]
    assert facts["tag"]["simulated"] is True
    assert facts["tag"]["tag"] == "sim-research"
    assert (facts["clock"]["now_ms"], facts["clock"]["speed"]) == (1_795_141_820_000, 0.0)


def test_what_a_broker_build_lacks(start_terminal: Callable[..., ScriptedTerminal]) -> None:
    texts = start_terminal(*MIDSESSION, "--profile", "broker").run("""
        texts = []
        for call in (xtdata.get_period_list, lambda: xtdata.get_trading_calendar("SH"),
                     lambda: xtdata.get_full_kline([], ["600519.SH"]), xtdata.get_all_sub_info):
            try:
                call()
            except RuntimeError as error:
                texts.append(str(error).partition("func:")[2])
        tell(texts)
    """)
    names = ("getperiodlist", "downloadholidaydata", "getfullkline", "getallsubinfo")
    assert texts == [f"{name}, error:function not realize" for name in names]
