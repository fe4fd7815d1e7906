"""Questions about downloads: how long, what comes back, how far back, what a table looks like."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Final

from qmt_protocol.times import DAY_MS, day_of, xt_time

from .question import EQUAL, Answer, Question
from .session import STOCK, Session
from .shapes import shape_of

__all__ = ["DOWNLOAD_QUESTIONS", "REACH_AGES_DAYS", "REACH_WINDOW_DAYS"]

_YEAR_DAYS: Final = 365
_READABLE_S: Final = 60.0

REACH_AGES_DAYS: Final = {
    "tick": (5, 20, 75, 200, 340, 700),
    "1m": (20, 340, 700, 1080, 1800),
    "5m": (20, 340, 700, 1080, 1800),
    "1d": (340, 1080, 3600, 7200),
}
"""How many days ago history is looked for, per stored period."""
REACH_WINDOW_DAYS: Final = 12
"""So many days from each age on are downloaded: no holiday of the exchanges is that long."""


def _read(session: Session, period: str, start: str, end: str, count: int = -1) -> Any:
    frames = session.xtdata.get_market_data_ex(
        [], [STOCK], period, start, end, count, "none", False
    )
    return frames.get(STOCK) if frames else None


def _rows(session: Session, period: str, start: str, end: str, count: int = -1) -> int:
    try:
        frame = _read(session, period, start, end, count)
    except KeyError:  # xtdata's way to read ticks where there are none
        return 0
    return 0 if frame is None else len(frame)


def _ask_year(session: Session) -> Answer:
    now_ms = session.now_ms()
    start = xt_time(now_ms - _YEAR_DAYS * DAY_MS)[:8]
    end = xt_time(now_ms - DAY_MS)[:8]
    before = _rows(session, "1m", start, end)
    began = time.monotonic()
    answer = session.xtdata.download_history_data(STOCK, "1m", start, end)
    took_s = time.monotonic() - began
    at_once = rows = _rows(session, "1m", start, end)
    changed, last_s = time.monotonic(), time.monotonic() + _READABLE_S
    lag_s = float(session.options["lag_s"])
    # Until there is something and it grows no more.
    while time.monotonic() < (min(changed + lag_s, last_s) if rows else last_s):
        time.sleep(lag_s / 2)
        found = _rows(session, "1m", start, end)
        if found != rows:
            rows, changed = found, time.monotonic()
    frame = _read(session, "1m", start, end)
    per_day = Counter(day_of(int(at)) for at in frame["time"]) if rows else Counter[int]()
    return Answer(
        {
            "returns": shape_of(answer),
            "rows": rows or None,
            "rows_per_day": Counter(per_day.values()).most_common(1)[0][0] if rows else None,
        },
        {
            "took_s": round(took_s, 3),
            "rows_before": before,
            "rows_at_once": at_once,
            "readable_after_s": round(max(0.0, changed - began - took_s), 3),
            "days": len(per_day),
        },
    )


def _ask_tables(session: Session) -> Answer:
    now_ms = session.now_ms()
    start, end = xt_time(now_ms - REACH_WINDOW_DAYS * DAY_MS)[:8], xt_time(now_ms)[:8]
    facts: dict[str, Any] = {}
    for period in ("1m", "1d", "tick"):
        session.xtdata.download_history_data(STOCK, period, start, end)
        session.wait_until(
            lambda period=period: _rows(session, period, start, end, 1) > 0,  # type: ignore[misc]
            _READABLE_S / 3,
        )
        frame = _read(session, period, start, end, 3)
        known = frame is not None and len(frame)
        facts[f"{period}_columns"] = (
            {str(name): _kind(frame[name]) for name in frame.columns} if known else None
        )
        facts[f"{period}_index"] = f"{len(str(frame.index[0]))} digits" if known else None
    return Answer(facts)


def _kind(column: Any) -> str:
    kind = str(column.dtype)
    return "list" if kind == "object" and isinstance(column.iloc[0], (list, tuple)) else kind


def _reach(period: str) -> Question:
    ages = REACH_AGES_DAYS[period]

    def ask(session: Session) -> Answer:
        now_ms = session.now_ms()
        spans = []
        for age in ages:
            from_ms = now_ms - age * DAY_MS
            start, end = xt_time(from_ms)[:8], xt_time(from_ms + REACH_WINDOW_DAYS * DAY_MS)[:8]
            spans.append((start, min(end, xt_time(now_ms)[:8])))
            session.xtdata.download_history_data(STOCK, period, *spans[-1])
        found = [False] * len(ages)

        def look() -> bool:
            for place, (start, end) in enumerate(spans):
                found[place] = found[place] or _rows(session, period, start, end, 1) > 0
            return all(found)

        session.wait_until(look, float(session.options["lag_s"]))
        return Answer({"ages_days": [age for age, there in zip(ages, found, strict=True) if there]})

    return Question(
        f"reach_{period}",
        f"How far back {period} data can be had; days ago: {', '.join(map(str, ages))}",
        f"{period} 数据可下载到多久以前",
        ask,
        {"ages_days": EQUAL},
        limit_s=300.0,
        downloads=True,
    )


DOWNLOAD_QUESTIONS: Final = (
    Question(
        "download_year",
        "A year of one stock's 1m bars: what the call returns, how long, when readable",
        "下载一只股票一年的1分钟线：返回值、耗时、何时可读",
        _ask_year,
        {"returns": EQUAL, "rows": 1.2, "rows_per_day": EQUAL},
        limit_s=300.0,
        downloads=True,
    ),
    Question(
        "tables",
        "Tables of bars and ticks: columns, types, index",
        "K线与分笔数据表：列、类型、索引",
        _ask_tables,
        {
            f"{period}_{what}": EQUAL
            for period in ("1m", "1d", "tick")
            for what in ("columns", "index")
        },
        limit_s=180.0,
        downloads=True,
    ),
    *(_reach(period) for period in REACH_AGES_DAYS),
)
