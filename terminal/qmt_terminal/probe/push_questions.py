"""Questions about pushes: what the first holds, how its numbers are meant, who calls and when."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Final

from .question import EQUAL, Answer, Question
from .session import INDEX, STOCK, Session
from .shapes import kind_of

__all__ = ["PUSH_QUESTIONS"]

MARKETS: Final = ["SH", "SZ"]
_FIRST_PUSH_S: Final = 15.0
_CALLBACKS: Final = 100
_QUIET_LISTEN_S: Final = 5.0
_SETTLED_TICKS: Final = 3
"""So many ticks of a code make its cadence known."""
_STOCK_HEADS: Final = ("60", "68", "00", "30")
_BOND_HEADS: Final = ("110", "113", "118", "123", "127", "128")
"""Convertible bonds: ten to the lot."""


@contextlib.contextmanager
def _subscribed(session: Session, codes: list[str], callback: Any) -> Iterator[None]:
    number = session.xtdata.subscribe_whole_quote(codes, callback)
    try:
        yield
    finally:
        session.xtdata.unsubscribe_quote(number)


def _first_push(session: Session) -> dict[str, dict[str, Any]]:
    if not session.first_push:
        pushes: list[dict[str, dict[str, Any]]] = []
        with _subscribed(session, MARKETS, pushes.append):
            session.wait_until(lambda: bool(pushes), _FIRST_PUSH_S)
        session.first_push = pushes[0] if pushes else {}
    return session.first_push


def is_stock(code: str) -> bool:
    """Whether a code of Shanghai or Shenzhen is an A-share's."""
    name, _, market = code.partition(".")
    return code.startswith(_STOCK_HEADS) and (market == "SH") == name.startswith("6")


def _ask_first_push(session: Session) -> Answer:
    push = _first_push(session)
    if not push:
        return Answer(dict.fromkeys(("keys", "types", "holds_both_markets", "newest_is_of_today")))
    tick = push.get(STOCK) or next(iter(push.values()))
    codes = list(push)
    newest_ms = max(int(one.get("time") or 0) for one in push.values())
    age_s = (session.now_ms() - newest_ms) / 1000
    return Answer(
        {
            "keys": list(tick),
            "types": {key: kind_of(value) for key, value in tick.items()},
            "holds_both_markets": {code.rpartition(".")[2] for code in codes} == set(MARKETS),
            "newest_is_of_today": age_s < 600 if session.continuous else None,
        },
        {
            "codes": len(codes),
            "order": codes[:20],
            "sorted": codes == sorted(codes),
            "age_s": round(age_s, 1),
            "keys_of_all": sorted({key for one in push.values() for key in one}),
        },
    )


def _ask_values(session: Session) -> Answer:
    push = _first_push(session)
    stocks = {
        code: tick
        for code, tick in push.items()
        if is_stock(code) and tick.get("volume") and tick.get("lastPrice")
    }
    bonds = [tick for code, tick in push.items() if code.startswith(_BOND_HEADS)]
    index = push.get(INDEX, {})
    levels = max(
        (
            place
            for tick in stocks.values()
            for name in ("askPrice", "bidPrice", "askVol", "bidVol")
            for place, value in enumerate(tick.get(name) or (), 1)
            if value
        ),
        default=0,
    )
    ratios = [
        tick["amount"] / (tick["volume"] * 100 * tick["lastPrice"])
        for tick in stocks.values()
        if tick.get("amount")
    ]
    ratio = statistics.median(ratios) if ratios else 0.0
    return Answer(
        {
            "depth_levels": levels or None,
            "pvolume_of_stocks": _pvolume(list(stocks.values())),
            "pvolume_of_bonds": _pvolume(bonds),
            "counts_transactions": any(tick.get("transactionNum") for tick in stocks.values())
            if stocks
            else None,
            "amount_unit": 10.0 ** round(math.log10(ratio)) if ratio > 0 else None,
            "index_has_depth": any(index["askPrice"] + index["bidPrice"])
            if index.get("askPrice") is not None and index.get("bidPrice") is not None
            else None,
        },
        {
            "stocks": len(stocks),
            "amount_by_volume_and_price": round(ratio, 4),
            "open_int": dict(Counter(str(tick.get("openInt")) for tick in stocks.values())),
            "stock_status": dict(Counter(str(tick.get("stockStatus")) for tick in stocks.values())),
        },
    )


def _pvolume(ticks: list[dict[str, Any]]) -> str | None:
    """Return how pvolume follows from volume, which counts lots and leaves odd ones out."""
    pairs = [
        (int(one["volume"]), int(one["pvolume"]))
        for one in ticks
        if "pvolume" in one and one.get("volume")
    ]
    if not pairs:
        return None
    for lot in (1, 10, 100):
        if all(lots == raw // lot for lots, raw in pairs):
            odd = any(raw % lot for _lots, raw in pairs)
            return f"{lot} x volume{' and odd lots' if odd else ''}"
    return "something else"


class _Listener:
    """Counts callbacks and what their ticks' times do."""

    def __init__(self) -> None:
        self.threads: Counter[int] = Counter()
        self.at_s: list[float] = []
        self.times: dict[str, list[int]] = defaultdict(list)

    def __call__(self, push: dict[str, dict[str, Any]]) -> None:
        self.threads[threading.get_ident()] += 1
        self.at_s.append(time.monotonic())
        for code, tick in push.items():
            self.times[code].append(int(tick.get("time") or 0))

    @property
    def settled(self) -> bool:
        ticks = self.times.get(STOCK, ())
        return len(self.at_s) >= _CALLBACKS and len(ticks) >= _SETTLED_TICKS

    def steps(self) -> list[int]:
        """Return the times between two ticks of one code, over all codes; snapshots left out."""
        return [
            later - earlier
            for times in self.times.values()
            for earlier, later in itertools.pairwise(times[1:])
        ]


def _ask_callbacks(session: Session) -> Answer:
    listener = _Listener()
    listen_s = float(session.options["listen_s"]) if session.continuous else _QUIET_LISTEN_S
    with _subscribed(session, MARKETS, listener):
        session.wait_until(lambda: listener.settled, listen_s)
        time.sleep(0.1)
    steps = listener.steps()
    known = len(listener.at_s) >= _CALLBACKS and session.continuous
    moving = [step for step in steps if step > 0]
    gaps = [later - earlier for earlier, later in itertools.pairwise(listener.at_s)]
    return Answer(
        {
            "threads": len(listener.threads) if known else None,
            "on_callers_thread": threading.get_ident() in listener.threads
            if listener.threads
            else None,
            "time_goes_back": any(step < 0 for step in steps) if known else None,
            "cadence_ms": float(statistics.median(moving)) if known and moving else None,
        },
        {
            "callbacks": len(listener.at_s),
            "per_thread": sorted(listener.threads.values(), reverse=True),
            "steps": len(steps),
            "steps_back": sum(step < 0 for step in steps),
            "steps_repeated": sum(step == 0 for step in steps),
            "longest_gap_s": round(max(gaps, default=0.0), 3),
        },
    )


PUSH_QUESTIONS: Final = (
    Question(
        "first_push",
        "The first push of a whole-market subscription: its keys and their types",
        "全推订阅的第一次推送：字段与类型",
        _ask_first_push,
        {
            "keys": EQUAL,
            "types": EQUAL,
            "holds_both_markets": EQUAL,
            "newest_is_of_today": EQUAL,
        },
        limit_s=60.0,
    ),
    Question(
        "values",
        "What the numbers of a tick mean: levels of depth, pvolume, amount, number of trades",
        "行情数值的含义：盘口档数、pvolume、成交额单位、成交笔数",
        _ask_values,
        {
            "depth_levels": EQUAL,
            "pvolume_of_stocks": EQUAL,
            "pvolume_of_bonds": EQUAL,
            "counts_transactions": EQUAL,
            "amount_unit": EQUAL,
            "index_has_depth": EQUAL,
        },
        limit_s=60.0,
    ),
    Question(
        "callbacks",
        "A hundred callbacks: on how many threads, in which order, how often",
        "一百次回调：线程数、时间顺序、推送间隔",
        _ask_callbacks,
        {
            "threads": EQUAL,
            "on_callers_thread": EQUAL,
            "time_goes_back": EQUAL,
            "cadence_ms": 1.5,
        },
        limit_s=240.0,
    ),
)
