"""What the doctor says of trading days: today's, how far they are known, the file about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qmt_protocol.errors import ConfigurationError
from qmt_terminal.calendar_file import read_days

from .doctor_lines import Line
from .words import CALENDAR_TODO, calendar_words

__all__ = ["look_at_calendar_file", "trading_day_line"]

_SOURCES: Final = {
    "file": ("本机的日历文件", "the calendar file here"),
    "terminal": ("终端", "the terminal"),
    "exchange_calendars": ("exchange_calendars 日历", "the library exchange_calendars"),
    "law": ("法定节日", "the law: a public holiday"),
    "weekday": ("仅按星期推测", "a guess by the weekday"),
}


def look_at_calendar_file(path: Path, *, named: bool) -> Line:
    """Look at the file in which people correct the calendar.

    Parameters
    ----------
    named
        Whether a setting names it: one that is not there is a mistake then.
    """
    facts: dict[str, Any] = {"path": str(path)}
    if not path.exists():
        return Line(
            "calendar_file",
            "warn" if named else "ok",
            f"没有日历文件 {path.name}",
            "there is no such file; it is needed only where holidays are not known or are wrong",
            ("请检查 calendar_file", "Look at calendar_file") if named else None,
            facts,
        )
    try:
        days = read_days(path)
    except ConfigurationError as error:
        return Line(
            "calendar_file",
            "fail",
            f"日历文件有误：{error.message}",
            "the calendar file is wrong and does not count",
            ("请改正，保存后自动重新读取", error.hint or "Mend it; it is read again by itself"),
            {**facts, "error": error.message},
        )
    facts |= {"years": sorted(days.years), "closed": len(days.closed), "open": len(days.opened)}
    years = ", ".join(map(str, sorted(days.years))) or "-"
    return Line(
        "calendar_file",
        "ok",
        f"日历文件：整年 {years}；休市 {len(days.closed)} 天，开市 {len(days.opened)} 天",
        f"the calendar file counts: whole years {years}",
        facts=facts,
    )


def trading_day_line(trading_day: Mapping[str, Any], reason: str = "") -> Line:
    """Say whether today is a trading day, and how far trading days are known.

    Parameters
    ----------
    told
        A heartbeat's ``trading_day``; empty where it could not be found out.
    reason
        Why not.
    """
    if not trading_day:
        return Line(
            "trading_day",
            "warn",
            "未能得知今天是否交易日",
            f"whether this is a trading day is not known: {reason}",
        )
    chinese, english = _SOURCES.get(
        trading_day["source"], (trading_day["source"], trading_day["source"])
    )
    trades = "交易日" if trading_day["trades"] else "休市"
    chinese = f"{trading_day['day']} {trades}（依据：{chinese}）"
    english = f"{'a' if trading_day['trades'] else 'no'} trading day, says {english}"
    if ending := calendar_words(trading_day):
        chinese, english = f"{chinese}；{ending[0]}", f"{english}; {ending[1]}"
    doubtful = bool(ending) or trading_day["source"] == "weekday"
    return Line(
        "trading_day",
        "warn" if doubtful else "ok",
        chinese,
        english,
        CALENDAR_TODO if doubtful else None,
        dict(trading_day),
    )
