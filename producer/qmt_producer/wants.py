"""What readers want beyond the standing subscription: single codes and bars, shared by all.

A reader leases a want in Redis and renews it. It is subscribed once however many want it, and
given back some seconds after the last lease has run out. A want that cannot be served is refused
where every reader can see it, with the reason.
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
from qmt_protocol.errors import InvalidRequest, QMTError, RedisUnavailable, TerminalNotConnected
from qmt_protocol.keys import Keys, parse_want
from qmt_protocol.times import redis_ms
from qmt_terminal import Terminal

from .bar_maker import BarMaker
from .hours import TradingHours
from .intake import Rows
from .redis_link import connect, end_soon, reach

__all__ = ["Wants"]

log: Final = structlog.get_logger(__name__)

_EVERY_S: Final = 1.0
_LINGER_S: Final = 5.0
"""How long a subscription outlives its last lease: a reader that comes back finds it there."""
_AGAIN_S: Final = 30.0
"""How long a refusal by the terminal stands before it is asked again."""


@dataclass
class _Served:
    period: str
    code: str
    wanted_at: float
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
    told: bool = False


class _NoRoom(InvalidRequest):
    """Nothing is wrong with the want but their number."""


class Wants:
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
        self._served: dict[str, _Served] = {}
        self._refused: dict[str, _Refusal] = {}
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="wants", daemon=True)

    @property
    def served(self) -> list[str]:
        """What is subscribed, or pushed anyway, because it is wanted."""
        return sorted(self._served)

    @property
    def refused(self) -> dict[str, str]:
        """Want to the reason why it is not served."""
        return {member: refusal.reason for member, refusal in list(self._refused.items())}

    @property
    def _has_room(self) -> bool:
        return self.subscriptions < self._limit

    @property
    def subscriptions(self) -> int:
        """How many single subscriptions are held."""
        return sum(one.number >= 0 for one in list(self._served.values()))

    def stop(self) -> None:
        """End the thread; the subscriptions end with the connection."""
        self._stopping.set()
        end_soon(self.thread, self._redis)

    def _run(self) -> None:
        failure = ""
        while not self._stopping.is_set():
            try:
                members = reach(self._wanted)
                try:
                    self._serve(set(map(_text, members)))
                except TerminalNotConnected as error:
                    log.debug("wants wait for the terminal", error=error.message)
                reach(self._tell_refused)
            except RedisUnavailable as error:  # what is subscribed stays so
                if error.message != failure:  # the same each second is no news
                    log.warning("wants are not known", error=error.message)
                failure = error.message
            self._stopping.wait(_EVERY_S)

    def _wanted(self) -> list[Any]:
        """Remove what has expired by Redis time; return what is wanted."""
        self._redis.zremrangebyscore(self._keys.wanted, "-inf", redis_ms(self._redis.time()))
        return self._redis.zrange(self._keys.wanted, 0, -1)

    # -- serving ------------------------------------------------------------------------------

    def _serve(self, wanted: set[str]) -> None:
        now = time.monotonic()
        for member in self._refused.keys() - wanted:
            del self._refused[member]
        for member, served in list(self._served.items()):
            if member in wanted:
                served.wanted_at = now
            elif now - served.wanted_at > _LINGER_S:
                self._release(member, served)
        stamp = self._stamp()
        if stamp is None:
            return
        for member in sorted(wanted | self._served.keys()):
            if self._stopping.is_set():
                return
            served_one = self._served.get(member)
            refusal = self._refused.get(member)
            if served_one is not None and served_one.stamp == stamp:
                continue
            if refusal is None or (self._has_room if refusal.no_room else now >= refusal.retry_at):
                self._try(member, stamp, now)

    def _try(self, member: str, stamp: int, now: float) -> None:
        try:
            period, code = parse_want(member)
            served = self._served.get(member) or _Served(period, code, now)
            self._subscribe(served, stamp)
        except TerminalNotConnected:
            raise
        except QMTError as error:
            self._served.pop(member, None)
            refusal = _Refusal(error.message, now + _AGAIN_S, isinstance(error, _NoRoom))
            self._refuse(member, refusal)
            return
        self._served[member] = served
        self._refused.pop(member, None)

    def _subscribe(self, served: _Served, stamp: int) -> None:
        market, period, code = market_of(served.code), served.period, served.code
        anyway = period == "tick" and market in self._standing
        if not self._known(code):
            raise InvalidRequest(f"The terminal does not know {code}.")
        if not anyway and served.number < 0 and not self._has_room:
            raise _NoRoom(f"All {self._limit} single subscriptions are in use.")
        if not anyway:
            self._unsubscribe(served)  # or everything would be pushed twice
            served.number = -1
            if period != "tick":
                self._bars.expect(period, code, self._hours.close_s(code))
            self._on_market(market)
            put = partial(self._put_rows, period)
            served.connection, _ = self._terminal.generation
            served.number = self._terminal.subscribe_quote(code, period, callback=put)
        served.stamp = stamp

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

    def _release(self, member: str, served: _Served) -> None:
        del self._served[member]
        self._bars.forget(served.period, served.code)
        try:
            self._unsubscribe(served)
        except QMTError as error:
            log.warning("a subscription could not be ended", want=member, error=error.message)

    # -- refusing -----------------------------------------------------------------------------

    def _refuse(self, member: str, refusal: _Refusal) -> None:
        before = self._refused.get(member)
        refusal.told = before is not None and before.told and before.reason == refusal.reason
        self._refused[member] = refusal
        if not refusal.told:
            log.warning("a want is refused", want=member, reason=refusal.reason)

    def _tell_refused(self) -> None:
        """Write refusals where readers look, and remove what no longer holds."""
        at_ms = time.time_ns() // 1_000_000
        for member, refusal in self._refused.items():
            if refusal.told or not self._is_ours(_market(member)):
                continue
            document = json.dumps({"reason": refusal.reason, "at_ms": at_ms}, ensure_ascii=False)
            self._redis.hset(self._keys.refused, member, document)
            refusal.told = True
            self._on_event({"kind": "want refused", "want": member, "reason": refusal.reason})
        for member in map(_text, self._redis.hkeys(self._keys.refused)):
            if member not in self._refused and self._is_ours(_market(member)):
                self._redis.hdel(self._keys.refused, member)


def _text(raw: bytes | str) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw


def _market(member: str) -> str:
    return member.rpartition(".")[2]
