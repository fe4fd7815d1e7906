"""One client's place in the hub: frames while it keeps up, else the latest rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from qmt_protocol.live import CloseCode, FromGateway, Skipped

from .wires import Row, Wire

if TYPE_CHECKING:
    from .hub import Group

__all__ = ["Frame", "Sink", "Subscriber", "Wants"]

_ROWS_PER_FRAME: Final = 1_000
_REASON_BYTES: Final = 120


class Sink(Protocol):
    """A client's connection."""

    @property
    def paused(self) -> bool:
        """Whether the connection takes no more for now; `on_drained` is called when it does."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes that it has not taken yet."""

    def push(self, frame: bytes) -> None:
        """Send one complete frame."""

    def on_drained(self, call: Callable[[], None]) -> None:
        """Have a function called whenever little is left waiting."""

    async def drain(self) -> None:
        """Wait until little is left waiting, or the client is gone."""

    @property
    def gone(self) -> bool:
        """Whether nothing can be sent any more."""

    def abandon(self, code: int, reason: str) -> None:
        """Close without waiting for room to write."""


class Frame(NamedTuple):
    """One encoded frame and what is in it, shared by all clients that get it."""

    data: bytes
    rows: Sequence[Row]
    marks: dict[str, tuple[str, str]]


@dataclass
class Wants:
    """What a client gets.

    Attributes
    ----------
    codes, bars : set
        Codes whose ticks are wanted; keys (see `qmt_protocol.keys.want`) of bars.
    markets : set
        Markets wanted whole.
    everything : bool
        Whether markets that appear are wanted too.
    """

    codes: set[str] = field(default_factory=set)
    bars: set[str] = field(default_factory=set)
    markets: set[str] = field(default_factory=set)
    everything: bool = False

    @property
    def count(self) -> int:
        """How many codes, bars and markets are wanted."""
        return len(self.codes) + len(self.bars) + len(self.markets)

    def names(self) -> set[str]:
        """Return the markets that something is wanted of."""
        of_keys = (key.rpartition(".")[2] for of in (self.codes, self.bars) for key in of)
        return self.markets.union(of_keys)

    def in_market(self, market: str) -> bool:
        """Whether something of a market is wanted."""
        return market in self.markets or any(
            key.endswith(f".{market}") for of in (self.codes, self.bars) for key in of
        )

    def holds(self, code: str) -> bool:
        """Whether ticks or bars of a code are wanted."""
        return (
            code in self.codes
            or code.rpartition(".")[2] in self.markets
            or any(key.endswith(f"|{code}") for key in self.bars)
        )

    def takes(self, row: Row) -> bool:
        """Whether a row is wanted."""
        if row.period:
            return row.key in self.bars
        return row.code in self.codes or row.code.rpartition(".")[2] in self.markets


class Subscriber:
    """One client of the hub.

    Up to `max_bytes` wait in its connection. Beyond that it is conflated: of each code only the
    newest row is kept, and it is told what was left out as soon as it reads on.
    """

    def __init__(self, sink: Sink, wire: Wire, max_bytes: int) -> None:
        self.sink = sink
        self.wire = wire
        self.wants = Wants()
        self.conflate = False
        self.groups: set[Group] = set()
        self.sent_at = time.monotonic()
        self.closed = False
        self._max_bytes = max_bytes
        self._kept: dict[str, Row] = {}
        self._marks: dict[str, tuple[str, str]] = {}
        self._skipped: Counter[str] = Counter()
        self._from_ms = self._to_ms = 0
        self._pushed_bytes = 0
        self._taken_bytes = 0
        self._taken_at = time.monotonic()
        sink.on_drained(self._drained)

    @property
    def is_behind(self) -> bool:
        """Whether rows wait that did not fit into its connection."""
        return bool(self._kept)

    def push(self, frame: Frame) -> None:
        """Send a frame; keep the latest rows of it where too much waits."""
        # Only behind a connection that has stopped taking: it alone tells when it goes on.
        full = self.sink.paused and self.sink.waiting_bytes + len(frame.data) > self._max_bytes
        if self._kept or full:
            self._keep(frame)
        elif frame.data:
            self._send(frame.data)

    def tell(self, message: FromGateway) -> None:
        """Send another message, whatever waits."""
        data = self.wire.message(message)
        if data:
            self._send(data)

    def send_rows(self, kind: str, marks: dict[str, tuple[str, str]], rows: Sequence[Row]) -> None:
        """Send rows to this client alone; the last frame has the position.

        A snapshot without rows is one empty frame.
        """
        least = 1 if kind == "snapshot" else 0
        for start in range(0, max(least, len(rows)), _ROWS_PER_FRAME):
            some = rows[start : start + _ROWS_PER_FRAME]
            last = start + _ROWS_PER_FRAME >= len(rows)
            data = self.wire.live(kind, marks if last else {}, some)
            if data:
                self._send(data)

    def _send(self, data: bytes) -> None:
        self._pushed_bytes += len(data)
        self.sent_at = time.monotonic()
        self.sink.push(data)

    def _keep(self, frame: Frame) -> None:
        kept = self._kept
        for row in frame.rows:
            before = kept.pop(row.key, None)  # the order is that of the latest
            if before is not None:
                self._skipped[row.key] += 1
                self._from_ms = min(self._from_ms or before.at_ms, before.at_ms)
                self._to_ms = max(self._to_ms, before.at_ms)
            kept[row.key] = row
        self._marks.update(frame.marks)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop kept rows that are no longer wanted."""
        for key in keys:
            self._kept.pop(key, None)

    def _drained(self) -> None:
        """Send what was kept, and first what was left out."""
        if not self._kept or self.closed:
            return
        kept, self._kept = self._kept, {}
        marks, self._marks = self._marks, {}
        skipped, self._skipped = self._skipped, Counter()
        if skipped:
            self.tell(
                Skipped(
                    ticks=skipped.total(),
                    codes=dict(skipped),
                    from_ms=self._from_ms,
                    to_ms=self._to_ms,
                )
            )
        self._from_ms = self._to_ms = 0
        self.send_rows("live", marks, list(kept.values()))

    def stalled_s(self, now: float) -> float:
        """Return for how long the client has taken nothing of what waits for it."""
        waiting = self.sink.waiting_bytes
        taken = self._pushed_bytes - waiting
        if not waiting or taken > self._taken_bytes:
            self._taken_bytes, self._taken_at = taken, now
        return now - self._taken_at

    def close(self, code: CloseCode, reason: str) -> None:
        """End the connection, behind what was sent to it."""
        self.closed = True
        number = self.wire.close_codes.get(int(code), int(code))
        self.sink.abandon(number, reason.encode()[:_REASON_BYTES].decode(errors="ignore"))
