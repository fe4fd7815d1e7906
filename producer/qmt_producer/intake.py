"""From the callback to the ring: a bounded queue, and the thread that encodes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog

from qmt_protocol.codes import market_of
from qmt_protocol.errors import EncodeError, InvalidCode
from qmt_protocol.keys import series_of

from .bar_maker import BarMaker, MadeBar
from .candidates import Entry, Kind
from .clocks import ExchangeClock
from .losses import Losses
from .push_codec import DecodeBson, Encoded, PushCodec, encode_one
from .ring import NewBatch, Ring, RingUnwritable

__all__ = ["Intake", "Rows"]

log: Final = structlog.get_logger(__name__)

Rows = dict[str, list[dict[str, Any]]]
"""What a subscription of a single code pushes."""

_ROW_BYTES: Final = 1000  # about what a decoded tick takes in memory
_LOOK_S: Final = 0.2
_PART_BATCHES: Final = 2
"""A large push is encoded in parts of so many batches: while one is published, the next is made."""

_ByMarket = dict[str, list[Entry]]


@dataclass(frozen=True)
class _Push:
    received_ms: int
    size_bytes: int
    body: bytes | Rows
    period: str = "tick"

    @property
    def kind(self) -> Kind:
        return "tick" if self.period == "tick" else "bar"


class Intake:
    """Takes pushes from the terminal's callback threads and writes them to the ring.

    Parameters
    ----------
    ring
        Where encoded batches go.
    markets
        Markets that are published in whole; other codes of a whole push are left out.
    bars
        Tells forming and closed bars.
    batch_ticks
        Most ticks in a batch.
    queue_bytes
        Most bytes of pushes that wait to be encoded; a push beyond it is lost, and named as a gap.
    decode_bson
        xtdata's own decoder, for what the fast way does not know.
    """

    def __init__(
        self,
        ring: Ring,
        markets: list[str],
        *,
        bars: BarMaker,
        batch_ticks: int,
        queue_bytes: int,
        decode_bson: DecodeBson,
    ) -> None:
        self._ring = ring
        self._codec = PushCodec(decode_bson)
        self._bars = bars
        self._markets = frozenset(markets)
        self._batch_ticks = batch_ticks
        self._part_ticks = _PART_BATCHES * batch_ticks
        self._queue_bytes = queue_bytes
        self._pushes: deque[_Push] = deque()
        self._waiting_bytes = 0
        self._arrived = threading.Condition()
        self._stopping = False
        self._idle = True
        self._market_of: dict[str, str | None] = {}
        self.losses = Losses()
        self.received_ticks = 0
        self.received_bars = 0
        self.last_push_ms = 0
        """When the standing subscription pushed last, by the wall clock; 0: not yet."""
        self.exchange_clock = ExchangeClock()
        self.on_stored: threading.Event = threading.Event()
        self.thread = threading.Thread(target=self._run, name="intake")

    @property
    def waiting_bytes(self) -> int:
        """Bytes of pushes received and not yet in the ring."""
        return self._waiting_bytes

    @property
    def waiting_pushes(self) -> int:
        """Pushes received and not yet looked at."""
        return len(self._pushes)

    @property
    def idle(self) -> bool:
        """Whether everything received is in the ring."""
        with self._arrived:
            return self._idle and not self._pushes

    def put(self, push: bytes) -> None:
        """Take one push; called by the terminal's threads, never blocks on I/O, never raises."""
        self._take(len(push), push, standing=True)

    def put_rows(self, period: str, rows: Rows) -> None:
        """Take what a single code's subscription pushes: ticks, or bars of a period."""
        self._take(sum(map(len, rows.values())) * _ROW_BYTES, rows, period)

    def _take(
        self, size_bytes: int, body: bytes | Rows, period: str = "tick", *, standing: bool = False
    ) -> None:
        with self._arrived:  # stamped in here: the order of receipt is the order of the queue
            push = _Push(time.time_ns() // 1_000_000, size_bytes, body, period)
            if standing:
                self.last_push_ms = push.received_ms
            full = self._stopping or self._waiting_bytes + push.size_bytes > self._queue_bytes
            if not full:
                self._pushes.append(push)
                self._waiting_bytes += push.size_bytes
                self._arrived.notify()
        if full:
            self._refuse(push)

    def _refuse(self, push: _Push) -> None:
        reason = "stopping" if self._stopping else "queue full"
        if isinstance(push.body, bytes):
            try:
                lost = self._codec.glance(push.body, push.received_ms)
            except ValueError:
                lost = [("?", push.received_ms)]
        else:
            lost = [
                (
                    code if push.period == "tick" else series_of(push.period, code),
                    int(row.get("time") or push.received_ms),
                )
                for code, rows in push.body.items()
                for row in rows
            ]
        self.losses.add(reason, lost)

    def stop(self) -> None:
        """Take nothing more, encode what waits, end the thread."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        self.thread.join()

    def _run(self) -> None:
        while True:
            with self._arrived:
                self._idle = not self._pushes
                if self._idle and not self._stopping:
                    self._arrived.wait(_LOOK_S)
                self._idle = not self._pushes
                if not self._pushes and self._stopping:
                    return
                pushes = list(self._pushes)
                self._pushes.clear()
            for push in pushes:
                for by_market in self._encoded(push):
                    self._store(push.kind, push.received_ms, by_market)
            self._store("bar", time.time_ns() // 1_000_000, self._closed_bars())
            with self._arrived:
                self._waiting_bytes -= sum(push.size_bytes for push in pushes)

    def _encoded(self, push: _Push) -> Iterator[_ByMarket]:
        """Yield a push's entries by market, part by part, each market in the push's order."""
        if not isinstance(push.body, bytes):
            encode = self._ticks if push.kind == "tick" else self._made_bars
            yield encode(push.period, push.body, push.received_ms)
            return
        try:
            for market, part in self._codec.parts(
                push.body, push.received_ms, self._part_ticks, self._market
            ):
                self.received_ticks += len(part)
                self.exchange_clock.note(push.received_ms, (at_ms for _, at_ms, _ in part))
                yield {market: self._sound(part)}
        except ValueError as error:
            size_bytes = len(push.body)
            log.error("a push could not be read", error=str(error), push_bytes=size_bytes)
            self.losses.add(f"unreadable push: {error}", [("?", push.received_ms)])

    def _ticks(self, _period: str, rows: Rows, received_ms: int) -> _ByMarket:
        done: _ByMarket = {}
        for code, ticks in rows.items():
            part = [encode_one(code, tick, received_ms) for tick in ticks]
            self.received_ticks += len(part)
            done.setdefault(market_of(code), []).extend(self._sound(part))
        return done

    def _sound(self, encoded: list[Encoded]) -> list[Entry]:
        """Return what could be encoded; the rest is lost, and named."""
        kept: list[Entry] = []
        for code, at_ms, t1 in encoded:
            if isinstance(t1, EncodeError):
                self.losses.add(f"rejected: {t1.message}", [(code, at_ms)])
            else:
                kept.append((code, at_ms, t1))
        return kept

    def _made_bars(self, period: str, rows: Rows, _received_ms: int) -> _ByMarket:
        done: _ByMarket = {}
        for code, bars in rows.items():
            self.received_bars += len(bars)
            made = self._bars.take(period, code, bars)
            self._add_bars(done, period, code, made)
        return done

    def _closed_bars(self) -> _ByMarket:
        done: _ByMarket = {}
        if self._bars.busy:
            for period, code, made in self._bars.due():
                self._add_bars(done, period, code, [made])
        return done

    def _add_bars(self, done: _ByMarket, period: str, code: str, made: list[MadeBar]) -> None:
        encoded = [(series_of(period, code), label_ms, k1) for label_ms, k1 in made]
        done.setdefault(market_of(code), []).extend(self._sound(encoded))

    def _store(self, kind: Kind, received_ms: int, by_market: _ByMarket) -> None:
        step = self._batch_ticks
        batches: list[NewBatch] = [
            (market, kind, received_ms, entries[at : at + step])
            for market, entries in by_market.items()
            for at in range(0, len(entries), step)
        ]
        if not batches:
            return
        try:
            self._ring.append(batches)
        except RingUnwritable as error:
            log.error("ticks could not be kept", error=str(error))
            for *_, entries in batches:
                self.losses.add(error.message, _times(entries))
        self.on_stored.set()

    def _market(self, code: str) -> str | None:
        """Return the market of a code; ``None`` for one that is not published here."""
        try:
            return self._market_of[code]
        except KeyError:
            pass
        try:
            market = market_of(code)
        except InvalidCode:
            log.warning("a pushed code has no market", code=code)
            market = ""
        self._market_of[code] = market if market in self._markets else None
        return self._market_of[code]


def _times(entries: list[Entry]) -> list[tuple[str, int | str]]:
    return [(code, at) for code, at, _ in entries]
