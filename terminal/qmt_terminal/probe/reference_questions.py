"""Questions about reference data and about which functions this terminal has."""

from __future__ import annotations

import ntpath
import re
from collections.abc import Callable
from typing import Any, Final

from qmt_protocol.errors import TerminalUnsupported
from qmt_protocol.times import DAY_MS, day_of
from qmt_terminal.discovery import root_of
from qmt_terminal.failures import translate

from .question import EQUAL, Answer, Question
from .session import INDEX, STOCK, Session
from .shapes import kind_of, sentinel_of, shape_of

__all__ = ["FIRST_QUESTIONS", "REFERENCE_QUESTIONS"]


def _ask_identity(session: Session) -> Answer:
    """Say what is asked; nothing of it is compared."""
    tag = session.bson.decode(session.client.get_server_tag())
    return Answer(
        {},
        {
            # Their values may name an account.
            "tag_keys": sorted(tag),
            "folder": ntpath.basename(root_of(str(session.client.get_app_dir()))),
            "phase": session.phase,
            "market_day": day_of(session.now_ms()),
        },
    )


def _supports(name: str, call: Callable[[Session], Any]) -> Callable[[Session], Answer]:
    def ask(session: Session) -> Answer:
        try:
            answer = call(session)
        except AttributeError as error:
            absent = f"has no attribute '{name}'" in str(error)
            return Answer({"answers": "absent in this xtquant" if absent else "fails"})
        except Exception as error:  # noqa: BLE001 - how it fails is the answer
            failure = translate(error, name, connected=bool(session.client.is_connected()))
            refused = isinstance(failure, TerminalUnsupported)
            return Answer({"answers": "unsupported" if refused else "fails"}, {"text": str(error)})
        return Answer({"answers": "yes"}, {"answer": shape_of(answer)})

    return ask


def _common(name: str, **parameters: Any) -> Callable[[Session], Any]:
    def call(session: Session) -> Any:
        bson = session.bson
        return bson.decode(session.client.commonControl(name, bson.encode(parameters)))

    return call


def _function(name: str, *arguments: Any) -> Callable[[Session], Any]:
    return lambda session: getattr(session.xtdata, name)(*arguments)


def _support(name: str, call: Callable[[Session], Any], *, downloads: bool = False) -> Question:
    return Question(
        f"has_{name}",
        f"Does the terminal support {name}?",
        f"终端是否支持 {name}",
        _supports(name, call),
        {"answers": EQUAL},
        limit_s=60.0,
        downloads=downloads,
    )


def _calendar(session: Session) -> Any:
    year = day_of(session.now_ms()) // 10_000
    return session.xtdata.get_trading_calendar("SH", f"{year}0101", f"{year}1231")


def _ask_api_version(session: Session) -> Answer:
    try:
        answer = _common("getapiversion")(session)
    except Exception as error:
        failure = translate(error, "getapiversion", connected=bool(session.client.is_connected()))
        if isinstance(failure, TerminalUnsupported):
            return Answer({"answers": "unsupported", "download_version": "none"})
        raise
    version = answer.get("downloadversion")
    return Answer(
        {"answers": "yes", "download_version": "none" if version is None else int(version)},
        {"keys": sorted(answer)},
    )


def _ask_quote_server(session: Session) -> Answer:
    answer = _common("getquoteserverstatus")(session)
    # `info` holds the user's name and password at the quote server: only the keys are looked at.
    servers = [str(one.get("key", "")) for one in answer.get("result") or []]
    return Answer({"answers": "yes"}, {"servers": servers})


def _ask_dividends(session: Session) -> Answer:
    frame = session.xtdata.get_divid_factors(STOCK, "20150101", "")
    if not len(frame):
        return Answer(dict.fromkeys(("index", "columns", "types")))
    first = str(frame.index[0])
    kinds = {8: "YYYYMMDD", 13: "ms"}
    return Answer(
        {
            "index": kinds.get(len(first), re.sub(r"\d", "9", first)),
            "columns": [str(name) for name in frame.columns],
            "types": sorted({str(kind) for kind in frame.dtypes}),
        },
        {"rows": len(frame), "index_type": type(frame.index[0]).__name__},
    )


def _ask_instruments(session: Session) -> Answer:
    future = str(session.xtdata.get_main_contract("IF00.IF") or "")
    facts: dict[str, Any] = {}
    for name, code in (("stock", STOCK), ("index", INDEX), ("future", future)):
        known = bool(code.partition(".")[0])
        document = (session.xtdata.get_instrument_detail(code) if known else None) or {}
        facts[f"{name}_keys"] = sorted(document) or None
        facts[f"{name}_types"] = (
            {key: kind_of(document[key]) for key in sorted(document)} if document else None
        )
        facts[f"{name}_no_value"] = (
            {key: mark for key in sorted(document) if (mark := sentinel_of(document[key]))}
            if document
            else None
        )
    unknown = session.xtdata.get_instrument_detail("999999.SZ")
    return Answer({**facts, "unknown": shape_of(unknown)})


def _ask_days(session: Session) -> Answer:
    now_ms = session.now_ms()
    start, end = str(day_of(now_ms - 30 * DAY_MS)), str(day_of(now_ms + 30 * DAY_MS))
    days = [day_of(int(at_ms)) for at_ms in session.xtdata.get_trading_dates("SH", start, end, -1)]
    return Answer(
        {
            "lists_days_to_come": bool(days) and max(days) > day_of(now_ms) if days else None,
            "unknown_market": shape_of(session.xtdata.get_trading_dates("XX", start, end, -1)),
        },
        {"days": len(days), "newest": max(days, default=0)},
    )


def _ask_sectors(session: Session) -> Answer:
    sectors = session.xtdata.get_sector_list()
    return Answer(
        {
            "has_sectors": bool(sectors),
            "unknown": shape_of(session.xtdata.get_stock_list_in_sector("没有这个板块")),
        },
        {"sectors": len(sectors)},
    )


def _ask_trading_day(session: Session) -> Answer:
    failure = session.calendar.describe(session.calendar.of_day(day_of(session.now_ms())))
    failure.pop("file_error", None)  # its path may name a person; the doctor has a line for it
    return Answer({}, failure)


FIRST_QUESTIONS: Final = (
    Question("identity", "Which terminal is it?", "终端的版本与版型", _ask_identity, {}),
    Question("trading_day", "Is this a trading day?", "今天是否交易日", _ask_trading_day, {}, 90.0),
    Question(
        "has_getapiversion",
        "Does the terminal say which downloads it knows (getapiversion)?",
        "终端是否支持 getapiversion",
        _ask_api_version,
        {"answers": EQUAL, "download_version": EQUAL},
    ),
    _support("get_period_list", _function("get_period_list")),
    _support("get_full_kline", _function("get_full_kline", ["close"], [STOCK], "1m")),
    _support("download_holiday_data", _function("download_holiday_data"), downloads=True),
    _support("get_trading_calendar", _calendar, downloads=True),  # it downloads the holidays
    _support("get_trading_period", _function("get_trading_period", STOCK)),
    _support("download_his_st_data", _function("download_his_st_data"), downloads=True),
    Question(
        "has_get_quote_server_status",
        "Does the terminal tell its quote servers' state?",
        "终端是否提供行情服务器状态",
        _supports("get_quote_server_status", _ask_quote_server),
        {"answers": EQUAL},
    ),
)

REFERENCE_QUESTIONS: Final = (
    Question(
        "dividends",
        "The table of get_divid_factors: its index, columns and types",
        "get_divid_factors：索引、列与类型",
        _ask_dividends,
        {"index": EQUAL, "columns": EQUAL, "types": EQUAL},
    ),
    Question(
        "instruments",
        "An instrument's document for a stock, an index, a future: keys, types, marks for no value",
        "合约信息（股票、指数、期货）：字段、类型与无值标记",
        _ask_instruments,
        {
            **{
                f"{kind}_{what}": EQUAL
                for kind in ("stock", "index", "future")
                for what in ("keys", "types", "no_value")
            },
            "unknown": EQUAL,
        },
    ),
    Question(
        "trading_days",
        "The list of trading days: does it reach into the future, an unknown market",
        "交易日列表：是否包含未来日期、未知市场",
        _ask_days,
        {"lists_days_to_come": EQUAL, "unknown_market": EQUAL},
    ),
    Question(
        "sectors",
        "Sectors: are there any, an unknown one",
        "板块：是否已下载、未知板块",
        _ask_sectors,
        {"has_sectors": EQUAL, "unknown": EQUAL},
    ),
)
