"""From the callback to the ring: a bounded queue, and the thread that encodes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from qmt_protocol.codes import market_of
from qmt_protocol.errors import EncodeError, InvalidCode

from .losses import Losses
from .push_codec import DecodeBson, PushCodec
from .ring import Batch, Entry, Ring, RingUnwritable

__all__ = ["Intake"]

log: Final = structlog.get_logger(__name__)


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
        batch_ticks: int,
        queue_bytes: int,
        decode_bson: DecodeBson,
    ) -> None:
        self._ring = ring
        self._codec = PushCodec(decode_bson)
        self._markets = frozenset(markets)
        self._batch_ticks = batch_ticks
        self._queue_bytes = queue_bytes
        self._pushes: deque[tuple[int, bytes]] = deque()
        self._waiting_bytes = 0
        self._arrived = threading.Condition()
        self._stopping = False
        self._market_of: dict[str, str | None] = {}
        self.losses = Losses()
        self.received_ticks = 0
        self.last_push_monotonic = 0.0
        self.is_ours: Callable[[str], bool] = lambda market: True
        self.on_stored: threading.Event = threading.Event()
        self.thread = threading.Thread(target=self._run, name="intake")

    @property
    def waiting_bytes(self) -> int:
        """Bytes of pushes received and not yet in the ring."""
        return self._waiting_bytes

    def put(self, push: bytes) -> None:
        """Take one push; called by the terminal's threads, never blocks on I/O, never raises."""
        received_ms = time.time_ns() // 1_000_000
        with self._arrived:
            self.last_push_monotonic = time.monotonic()
            full = self._stopping or self._waiting_bytes + len(push) > self._queue_bytes
            if not full:
                self._pushes.append((received_ms, push))
                self._waiting_bytes += len(push)
                self._arrived.notify()
        if full:
            self._refuse(push, received_ms)

    def _refuse(self, push: bytes, received_ms: int) -> None:
        reason = "stopping" if self._stopping else "queue full"
        try:
            ticks = self._codec.glance(push, received_ms)
        except ValueError:
            ticks = [("?", received_ms)]
        self.losses.add(reason, ticks)

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
                self._waiting_bytes -= sum(len(push) for _, push in pushes)
            self.on_stored.set()

    def _store(self, pushes: list[tuple[int, bytes]]) -> None:
        batches: list[tuple[str, int, list[Entry]]] = []
        for received_ms, push in pushes:
            for market, entries in self._by_market(push, received_ms).items():
                step = self._batch_ticks
                batches += [
                    (market, received_ms, entries[at : at + step])
                    for at in range(0, len(entries), step)
                ]
        try:
            for lost in self._ring.append(batches):
                self._given_up(lost)
        except RingUnwritable as error:
            log.error("ticks could not be kept", error=str(error))
            for _, _, entries in batches:
                self.losses.add(error.message, _times(entries))

    def _given_up(self, lost: Batch) -> None:
        if self.is_ours(lost.market):
            self.losses.add("ring full", _times(lost.entries))
        else:  # the holder has them; should we take over, they are what we did not hear
            self._ring.add_silence(lost.received_ms, lost.received_ms + 1)

    def _by_market(self, push: bytes, received_ms: int) -> dict[str, list[Entry]]:
        """Encode one push, in its own order, split by market."""
        try:
            encoded = self._codec.encode(push, received_ms)
        except ValueError as error:
            log.error("a push could not be read", error=str(error), push_bytes=len(push))
            self.losses.add(f"unreadable push: {error}", [("?", received_ms)])
            return {}
        self.received_ticks += len(encoded)
        done: dict[str, list[Entry]] = {}
        for code, at_ms, t1 in encoded:
            market = self._market(code)
            if isinstance(t1, EncodeError):
                self.losses.add(f"rejected: {t1.message}", [(code, at_ms)])
            elif market is not None:
                done.setdefault(market, []).append((code, at_ms, t1))
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


def _times(entries: list[Entry]) -> list[tuple[str, int]]:
    return [(code, at_ms) for code, at_ms, _ in entries]
