"""What readers want beyond the standing subscription: single codes and bars, shared by all.

It is subscribed once however many want it, and given back some seconds after it was wanted last. A
want that cannot be served is refused where every reader can see it, with the reason. Who was served
first keeps the place: of readers who want more than there are subscriptions the last are refused.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from qmt_protocol.codes import market_of
from qmt_protocol.demand import others_of
from qmt_protocol.errors import InvalidRequest, QMTError, RedisUnavailable, TerminalNotConnected
from qmt_protocol.keys import Keys, parse_series
from qmt_terminal import Terminal

from .bar_maker import BarMaker
from .demand_listener import DemandListener
from .hours import TradingHours
from .intake import Rows
from .redis_link import KeyRefused, ask_redis, connect, end_soon

__all__ = ["OnDemand"]

log: Final = structlog.get_logger(__name__)

_EVERY_S: Final = 1.0
_LINGER_S: Final = 5.0
"""How long a subscription outlives its last want: a reader that comes back finds it there."""
_AGAIN_S: Final = 30.0
"""How long a refusal by the terminal stands before it is asked again."""
_BESIDE: Final = 500
"""So many wants are known beside those that have a place, to be refused by name."""
_MOST_MARKETS: Final = 32
"""Markets published at once: what a series of another one would begin does not end with it."""
_TRY_S: Final = 1.0
"""How long the terminal is asked in one look; the rest comes with the next."""
_MISSED_ROWS: Final = 2_000
"""Most bars that are read back of the time without a subscription: eight days of 1m."""
_NEWS_EVERY_S: Final = 10.0
_NAMED: Final = 20
"""Refusals told by name as events and in the log, so often; others are counted."""


@dataclass
class _Served:
    period: str
    code: str
    demanded_at: float
    number: int = -1
    """The subscription's number; -1 where the standing subscription serves it."""
    stamp: int = -1
    """Which standing subscription it was made beside."""
    connection: int = -1
    """Which connection's number it is: another's may mean another subscription."""


@dataclass
class _Refusal:
    reason: str
    retry_at: float
    no_room: bool
    is_named: bool = False


class _NoRoom(InvalidRequest):
    """Nothing is wrong with the want but their number."""


class OnDemand:
    """A thread that reads what is wanted each second and keeps the subscriptions to it.

    Parameters
    ----------
    standing
        Markets whose ticks are pushed anyway.
    limit
        Most subscriptions at once.
    stamp
        Changes whenever the terminal was subscribed anew: single subscriptions are stale then.
        ``None`` while there is no terminal.
    is_ours
        Tells whether no other producer holds a market: only one tells what is refused.
    on_market
        Called with a market before anything of it can be pushed.
    """

    def __init__(
        self,
        terminal: Terminal,
        bars: BarMaker,
        hours: TradingHours,
        *,
        keys: Keys,
        url: str,
        standing: list[str],
        limit: int,
        stamp: Callable[[], int | None],
        put_rows: Callable[[str, Rows], None],
        is_ours: Callable[[str], bool],
        on_market: Callable[[str], None],
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._terminal = terminal
        self._bars = bars
        self._hours = hours
        self._keys = keys
        self._standing = frozenset(standing)
        self._limit = limit
        self._stamp = stamp
        self._put_rows = put_rows
        self._is_ours = is_ours
        self._on_market = on_market
        self._on_event = on_event
        self._redis = connect(url)
        self._listener = DemandListener(self._redis, keys, standing, limit + _BESIDE)
        self._lock = threading.Lock()
        """Over `_served` and `_refused`: this thread changes them, the reporter's reads them."""
        self._served: dict[str, _Served] = {}
        self._refused: dict[str, _Refusal] = {}
        self._markets = set(standing)
        self._too_many = (
            f"{self._listener.most} codes and bars are wanted already, and no more are looked at."
        )
        self._others: dict[str, str] = {}
        self._news: list[tuple[str, str]] = []
        self._more_news = 0
        self._next_news = 0.0
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="demand", daemon=True)

    @property
    def served(self) -> list[str]:
        """What is subscribed, or pushed anyway, because it is wanted."""
        with self._lock:
            return sorted(self._served)

    @property
    def refused(self) -> dict[str, str]:
        """Want to the reason why it is not served."""
        with self._lock:
            return {series: refusal.reason for series, refusal in self._refused.items()}

    @property
    def subscriptions(self) -> int:
        """How many single subscriptions are held."""
        with self._lock:
            return sum(one.number >= 0 for one in self._served.values())

    @property
    def _has_room(self) -> bool:
        return self.subscriptions < self._limit

    def stop(self) -> None:
        """End the thread; the subscriptions end with the connection."""
        self._stopping.set()
        end_soon(self.thread, self._redis)

    def _run(self) -> None:
        failure = ""
        while not self._stopping.is_set():
            try:
                demanded = ask_redis(self._listener.look)
                try:
                    self._serve(demanded)
                except TerminalNotConnected as error:
                    log.debug("demand waits for the terminal", error=error.message)
                self._report_refused(demanded)
                self._report_news()
                failure = ""
            except RedisUnavailable as error:  # what is subscribed stays so
                if error.message != failure:  # the same each second is no news
                    log.warning("demand is not known", error=error.message)
                failure = error.message
            self._stopping.wait(_EVERY_S)
        self._listener.close()

    # -- serving ------------------------------------------------------------------------------

    def _serve(self, demanded: list[str]) -> None:
        now, still = time.monotonic(), frozenset(demanded)
        with self._lock:
            self._refused = {
                series: is_named for series, is_named in self._refused.items() if series in still
            }
        for series, served in list(self._served.items()):
            if series in still:
                served.demanded_at = now
            elif now - served.demanded_at > _LINGER_S:
                self._release(series, served)
        stamp = self._stamp()
        if stamp is None:
            return
        # Who has a place keeps it, also over a new connection; then what nothing was said of yet.
        due = [*self._served, *demanded]
        ends = now + _TRY_S
        for series in dict.fromkeys(sorted(due, key=self._refused.__contains__)):
            if self._stopping.is_set() or time.monotonic() > ends:
                return
            served_one, refusal = self._served.get(series), self._refused.get(series)
            if served_one is not None and served_one.stamp == stamp:
                continue
            if refusal is None or (self._has_room if refusal.no_room else now >= refusal.retry_at):
                self._try(series, stamp, now)

    def _try(self, series: str, stamp: int, now: float) -> None:
        served = self._served.get(series) or _Served(*parse_series(series), now)
        try:
            self._subscribe(served, stamp)
        except TerminalNotConnected:
            raise
        except QMTError as error:
            refusal = _Refusal(error.message, now + _AGAIN_S, isinstance(error, _NoRoom))
            self._refuse(series, refusal)
            return
        with self._lock:
            self._served[series] = served
            self._refused.pop(series, None)

    def _subscribe(self, served: _Served, stamp: int) -> None:
        market, period, code = market_of(served.code), served.period, served.code
        anyway = period == "tick" and market in self._standing
        if not self._known(code):
            raise InvalidRequest(f"The terminal does not know {code}.")
        if not anyway and served.number < 0 and not self._has_room:
            raise _NoRoom(f"All {self._limit} single subscriptions are in use.")
        if market not in self._markets and len(self._markets) >= _MOST_MARKETS:
            raise InvalidRequest(f"{_MOST_MARKETS} markets are published, and {market} is another.")
        if not anyway:
            self._unsubscribe(served)  # or everything would be pushed twice
            served.number = -1
            last_ms = 0
            if period != "tick":
                last_ms = self._bars.expect(period, code, self._hours.close_s(code))
            self._markets.add(market)
            self._on_market(market)
            put = partial(self._put_rows, period)
            served.connection, _ = self._terminal.generation
            served.number = self._terminal.subscribe_quote(code, period, callback=put)
            if period != "tick":
                missed = self._bars_from(period, code, last_ms) if last_ms else []
                self._bars.resume(period, code, stamp, missed)
        served.stamp = stamp

    def _bars_from(self, period: str, code: str, label_ms: int) -> list[dict[str, Any]]:
        """Return what the terminal has from a label on: the end of the bar that was seen last."""
        span: dict[str, Any] = {"start_ms": label_ms, "end_ms": None, "count": None}
        try:
            frames = self._terminal.bars([code], period, **span, adjust="none", fill=False)
        except TerminalNotConnected:
            raise
        except QMTError as error:  # the bar is closed as it was seen
            log.warning("missed bars cannot be read", code=code, error=error.message)
            return []
        rows: list[Any] = [row for frame in frames.values() for row in frame.to_dict("records")]
        return rows[-_MISSED_ROWS:]

    def _unsubscribe(self, served: _Served) -> None:
        if served.number >= 0 and served.connection == self._terminal.generation[0]:
            self._terminal.unsubscribe(served.number)

    def _known(self, code: str) -> bool:
        try:
            return self._terminal.instrument_detail(code) is not None
        except TerminalNotConnected:
            raise
        except QMTError as error:  # what it cannot tell it may still push
            log.info("an instrument cannot be looked up", code=code, error=error.message)
            return True

    def _release(self, series: str, served: _Served) -> None:
        with self._lock:
            del self._served[series]
        self._bars.forget(served.period, served.code)
        try:
            self._unsubscribe(served)
        except QMTError as error:
            log.warning("a subscription could not be ended", series=series, error=error.message)

    # -- refusing -----------------------------------------------------------------------------

    def _refuse(self, series: str, refusal: _Refusal) -> None:
        before = self._refused.get(series)
        refusal.is_named = (
            before is not None and before.is_named and before.reason == refusal.reason
        )
        with self._lock:
            served = self._served.pop(series, None)
            self._refused[series] = refusal
        if served is not None:
            self._bars.forget(served.period, served.code)
        if before is None or before.reason != refusal.reason:
            self._note(series, refusal.reason)

    def _note(self, series: str, reason: str) -> None:
        if len(self._news) < _NAMED:
            self._news.append((series, reason))
        else:
            self._more_news += 1

    def _report_news(self) -> None:
        """Tell what was refused since the last time: some by name, and how many more."""
        now = time.monotonic()
        if not self._news or now < self._next_news:
            return
        for series, reason in self._news:
            if self._is_ours(_market(series)):
                log.warning("a series is refused", series=series, reason=reason)
                self._on_event({"kind": "demand refused", "series": series, "reason": reason})
        if self._more_news:
            log.warning("more demand is refused", count=self._more_news)
            self._on_event({"kind": "demand refused", "more": self._more_news})
        self._news, self._more_news = [], 0
        self._next_news = now + _NEWS_EVERY_S

    def _report_refused(self, demanded: list[str]) -> None:
        """Write refusals where readers look, and remove what no longer holds."""
        try:
            ask_redis(partial(self._write_refused, demanded))
        except KeyRefused as error:
            log.error("the key of refusals is no hash: it is removed", error=error.message)
            ask_redis(partial(self._redis.unlink, self._keys.refused))

    def _write_refused(self, demanded: list[str]) -> None:
        at_ms = time.time_ns() // 1_000_000
        held = {_text(raw): raw for raw in self._redis.hkeys(self._keys.refused)}
        others = self._turned_away(demanded)
        new: dict[Any, Any] = {
            field: is_named
            for field, is_named in others.items()
            if is_named != self._others.get(field) or field not in held
        }
        begun = [(field, self._too_many) for field in others if field not in self._others]
        self._news = begun + self._news
        is_named = [
            (series, refusal)
            for series, refusal in self._refused.items()
            if not (refusal.is_named and series in held) and self._is_ours(_market(series))
        ]
        new |= {series: _shown(refusal.reason, at_ms) for series, refusal in is_named}
        if new:
            self._redis.hset(self._keys.refused, mapping=new)
        for _, refusal in is_named:
            refusal.is_named = True
        self._others = others
        gone = [raw for field, raw in held.items() if not self._stands(field)]
        if gone:
            self._redis.hdel(self._keys.refused, *gone)

    def _stands(self, field: str) -> bool:
        known = field in self._refused or field in self._others
        return known or not self._is_ours(_market(field))

    def _turned_away(self, demanded: list[str]) -> dict[str, str]:
        """Return what concerns all wants of a market but those that are known, by its field."""
        return {
            others_of(market): json.dumps(
                {
                    "reason": self._too_many,
                    "known": [series for series in demanded if _market(series) == market],
                }
            )
            for market in self._listener.turned_away
            if self._is_ours(market)
        }


def _shown(reason: str, at_ms: int) -> str:
    return json.dumps({"reason": reason, "at_ms": at_ms}, ensure_ascii=False)


def _text(raw: bytes | str) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw


def _market(series: str) -> str:
    return series.rpartition(".")[2]
