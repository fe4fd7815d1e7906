"""Questions about reads: the snapshot's shape, and what an impossible request brings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from qmt_protocol.times import DAY_MS, xt_time

from .question import EQUAL, Answer, Question
from .session import INDEX, STOCK, UNKNOWN, Session
from .shapes import kind_of, shape_of

__all__ = ["READ_QUESTIONS", "attempt"]

_CANDIDATES: Final = 40
"""So many stocks are looked at for one that this terminal has no data of."""
_SECTOR: Final = "沪深A股"


def attempt(session: Session, call: str, *arguments: Any) -> tuple[str, Any, str]:
    """Call xtdata; return the answer's shape, the answer and, where it failed, the text."""
    try:
        answer = getattr(session.xtdata, call)(*arguments)
    except AttributeError as error:
        return (
            ("absent in this xtquant", None, str(error))
            if not hasattr(session.xtdata, call)
            else ("raises AttributeError", None, str(error))
        )
    except Exception as error:  # noqa: BLE001 - how it fails is the answer
        return f"raises {type(error).__name__}: {session.failure(error, call)}", None, str(error)
    return shape_of(answer), answer, ""


def _ask_full_tick(session: Session) -> Answer:
    requested = [STOCK, INDEX, "600519.SH"]
    ticks = session.xtdata.get_full_tick([*requested, UNKNOWN])
    tick = ticks.get(STOCK) or {}
    floats = [tick.get(name) for name in ("lastPrice", "open", "lastClose", "settlementPrice")]
    whole_market, _, text = attempt(session, "get_full_tick", ["SZ"])
    return Answer(
        {
            "keys": list(tick) or None,
            "has_time": "time" in tick if tick else None,
            "timetag": re.sub(r"\d", "9", str(tick["timetag"])) if "timetag" in tick else None,
            "whole_floats_are_int": any(isinstance(value, int) for value in floats)
            if tick
            else None,
            "unknown_code": shape_of(ticks[UNKNOWN]) if UNKNOWN in ticks else "absent",
            "never_subscribed": [code in ticks for code in requested],
            "takes_markets": whole_market,
        },
        {"types": {key: kind_of(value) for key, value in tick.items()}, "text": text},
    )


def _history(
    period: str,
    codes: list[str],
    *,
    start: str = "",
    end: str = "",
    count: int = 5,
    dividend: str = "none",
    fill: bool = False,
) -> Callable[[Session], Answer]:
    def ask(session: Session) -> Answer:
        arguments: tuple[Any, ...] = ([], codes, period, start, end, count, dividend, fill)
        shape, answer, text = attempt(session, "get_market_data_ex", *arguments)
        keys = sorted(answer) if isinstance(answer, dict) else []
        return Answer({"answer": shape}, {"text": text, "keys": keys})

    return ask


def _ask_no_data(session: Session) -> Answer:
    """Find a code and days that are not on this disk; ask for them with and without filling."""
    now_ms = session.now_ms()
    start, end = xt_time(now_ms - 14 * DAY_MS)[:8], xt_time(now_ms - 2 * DAY_MS)[:8]
    names = list(session.xtdata.get_stock_list_in_sector(_SECTOR))[-_CANDIDATES:]
    for code in [*names, STOCK]:
        shape, answer, _ = attempt(
            session, "get_market_data_ex", [], [code], "1m", start, end, -1, "none", False
        )
        frame = answer.get(code) if isinstance(answer, dict) else None
        if frame is None or not len(frame):
            break
    else:
        return Answer(dict.fromkeys(("unfilled", "filled", "filled_close", "filled_flag")))
    filled_shape, answer, text = attempt(
        session, "get_market_data_ex", [], [code], "1m", start, end, -1, "none", True
    )
    frame = answer.get(code) if isinstance(answer, dict) else None
    close, flags = None, None
    if frame is not None and len(frame):
        close = "zero" if not frame["close"].any() else "a price"
        flags = sorted({int(flag) for flag in frame["suspendFlag"]})
    return Answer(
        {
            "unfilled": shape,
            "filled": filled_shape,
            "filled_close": close,
            "filled_flag": flags,
        },
        {"rows": 0 if frame is None else len(frame), "text": text},
    )


def _bad(name: str, english: str, chinese: str, ask: Callable[[Session], Answer]) -> Question:
    return Question(f"asks_{name}", english, chinese, ask, {"answer": EQUAL})


_BAD_START: Final = "2026-01-05"

READ_QUESTIONS: Final = (
    Question(
        "full_tick",
        "The snapshot of get_full_tick: its keys, its time, codes it does not know",
        "get_full_tick 快照：字段、时间格式、未知代码",
        _ask_full_tick,
        {
            "keys": EQUAL,
            "has_time": EQUAL,
            "timetag": EQUAL,
            "whole_floats_are_int": EQUAL,
            "unknown_code": EQUAL,
            "never_subscribed": EQUAL,
            "takes_markets": EQUAL,
        },
    ),
    _bad(
        "bad_start",
        "Bars from a start that is no time",
        "K线：无法识别的开始时间",
        _history("1d", [STOCK], start=_BAD_START),
    ),
    _bad(
        "bad_tick_start",
        "Ticks from a start that is no time",
        "分笔：无法识别的开始时间",
        _history("tick", [STOCK], start=_BAD_START),
    ),
    _bad("bad_period", "Bars of a period that is none", "不存在的周期", _history("7x", [STOCK])),
    _bad(
        "bad_dividend",
        "Bars of an adjustment that is none",
        "不存在的复权方式",
        _history("1d", [STOCK], dividend="sideways"),
    ),
    _bad("unknown_code", "Bars of an unknown code", "未知代码的K线", _history("1d", [UNKNOWN])),
    _bad(
        "unknown_code_ticks",
        "Ticks of an unknown code",
        "未知代码的分笔",
        _history("tick", [UNKNOWN]),
    ),
    _bad("malformed_code", "Bars of what is no code", "格式错误的代码", _history("1d", ["000001"])),
    _bad(
        "count_zero", "No bars at all: count=0", "count=0 的K线", _history("1d", [STOCK], count=0)
    ),
    Question(
        "no_data",
        "Bars that are not on this disk, without and with fill_data",
        "本地没有的K线：不填充与填充",
        _ask_no_data,
        {"unfilled": EQUAL, "filled": EQUAL, "filled_close": EQUAL, "filled_flag": EQUAL},
        limit_s=60.0,
    ),
)
