"""From the callback to the ring: a bounded queue, and the thread that encodes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import structlog

from qmt_protocol.codes import market_of
from qmt_protocol.errors import EncodeError, InvalidCode
from qmt_protocol.ticks import encode_ticks, exchange_ms

from .losses import Losses
from .ring import Entry, Ring, RingUnwritable

__all__ = ["Intake"]

log: Final = structlog.get_logger(__name__)

Push = tuple[int, Mapping[str, Mapping[str, Any]]]
"""Time of receipt in ms, and {code: tick} as the terminal pushed it."""


class Intake:
    """Takes pushes from the terminal's callback threads and writes them to the ring.

    Parameters
    ----------
    ring
        Where encoded batches go.
    markets
        Markets that are published; codes of others are counted and left out.
    batch_ticks
        Most ticks in a batch.
    queue_ticks
        Most ticks that wait to be encoded; a push beyond it is lost, and named as a gap.
    """

    def __init__(self, ring: Ring, markets: list[str], batch_ticks: int, queue_ticks: int) -> None:
        self._ring = ring
        self._markets = frozenset(markets)
        self._batch_ticks = batch_ticks
        self._queue_ticks = queue_ticks
        self._pushes: deque[Push] = deque()
        self._waiting_ticks = 0
        self._arrived = threading.Condition()
        self._stopping = False
        self._market_of: dict[str, str | None] = {}
        self.losses = Losses()
        self.received_ticks = 0
        self.last_push_monotonic = 0.0
        self.on_stored: threading.Event = threading.Event()
        self.thread = threading.Thread(target=self._run, name="intake")

    @property
    def waiting_ticks(self) -> int:
        """Ticks received and not yet in the ring."""
        return self._waiting_ticks

    def put(self, push: Mapping[str, Mapping[str, Any]]) -> None:
        """Take one push; called by the terminal's threads, never blocks on I/O."""
        received_ms = time.time_ns() // 1_000_000
        with self._arrived:
            self.received_ticks += len(push)
            self.last_push_monotonic = time.monotonic()
            if self._stopping or self._waiting_ticks + len(push) > self._queue_ticks:
                full = True
            else:
                full = False
                self._pushes.append((received_ms, push))
                self._waiting_ticks += len(push)
                self._arrived.notify()
        if full:
            self.losses.add_push("queue full", received_ms, push)

    def stop(self) -> None:
        """Take nothing more, encode what waits, end the thread."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        self.thread.join()

    def _run(self) -> None:
        while True:
            with self._arrived:
                while not self._pushes and not self._stopping:
                    self._arrived.wait()
                if not self._pushes:
                    return
                pushes = list(self._pushes)
                self._pushes.clear()
            self._store(pushes)
            with self._arrived:
                self._waiting_ticks -= sum(len(push) for _, push in pushes)
            self.on_stored.set()

    def _store(self, pushes: list[Push]) -> None:
        batches: list[tuple[str, int, list[Entry]]] = []
        for received_ms, push in pushes:
            for market, entries in self._by_market(received_ms, push).items():
                step = self._batch_ticks
                batches += [
                    (market, received_ms, entries[at : at + step])
                    for at in range(0, len(entries), step)
                ]
        try:
            for lost in self._ring.append(batches):
                self.losses.add_entries("ring full", lost.entries)
        except RingUnwritable as error:
            log.error("ticks could not be kept", error=str(error))
            for _, _, entries in batches:
                self.losses.add_entries(error.message, entries)

    def _by_market(
        self, received_ms: int, push: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, list[Entry]]:
        """Encode one push, in its own order, split by market."""
        codes = [code for code in push if self._market(code) is not None]
        ticks = [push[code] for code in codes]
        done: dict[str, list[Entry]] = {}
        for code, tick, t1 in zip(codes, ticks, encode_ticks(ticks), strict=True):
            if isinstance(t1, EncodeError):
                self.losses.add_push(f"rejected: {t1.message}", received_ms, {code: tick})
                continue
            at_ms, flags = exchange_ms(tick, received_ms)
            body = t1[:-1] + bytes([flags]) if flags else t1
            market = self._market_of[code]
            if market is not None:
                done.setdefault(market, []).append((code, at_ms, body))
        return done

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
