"""One client's place in the hub: frames while it keeps up, else the latest rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from qmt_protocol.live import CloseCode, FromGateway

from .conflation import Kept
from .counts import CLOSED
from .frame import Frame, Sink
from .outbox import Outbox
from .wires import Row, Wire

if TYPE_CHECKING:
    from .budget import Budget

__all__ = ["Part", "Subscriber", "Subscription"]

_ROWS_PER_FRAME: Final = 1_000
_REASON_BYTES: Final = 120
_MESSAGES_BYTES: Final = 1_000_000
"""What may wait beyond a client's bound: what cannot be conflated."""
_LATER_BYTES: Final = 64
"""What a row takes whose frame is not made yet: rows are shared."""


class Keeper(Protocol):
    """Who keeps rows for those who fall behind: a group."""

    def let_go(self, kept: Kept) -> None:
        """Note that one less gets what is kept."""


Part = tuple[dict[str, tuple[str, str]], Sequence[Row]]
"""Rows, and the position of who has taken them."""


def _frames(wire: Wire, kind: str, parts: Iterable[Part]) -> Iterator[bytes]:
    least = 1 if kind == "snapshot" else 0
    for offsets, rows in parts:
        for start in range(0, max(least, len(rows)), _ROWS_PER_FRAME):
            last = start + _ROWS_PER_FRAME >= len(rows)
            some = rows[start : start + _ROWS_PER_FRAME]
            data = wire.live(kind, offsets if last else {}, some)
            if data:
                yield data


@dataclass
class Subscription:
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

    Up to `max_bytes` wait for it. Beyond that it is conflated: of each code only the newest row is
    kept, and it is told what was left out as soon as it reads on.
    """

    def __init__(self, sink: Sink, wire: Wire, max_bytes: int, budget: Budget) -> None:
        self.sink = sink
        self.wire = wire
        self.subscription = Subscription()
        self.conflate = False
        self.sent_at = time.monotonic()
        self.closed = False
        self._max_bytes = max_bytes
        self._outbox = Outbox(sink, budget)
        self._behind: dict[Keeper, Kept] = {}
        self._kept: Kept | None = None
        """What was kept for it in groups that it has left since."""
        self._taken_bytes = 0
        self.taken_at = time.monotonic()
        sink.on_drained(self._drained)

    @property
    def is_behind(self) -> bool:
        """Whether rows wait that did not fit into its bound."""
        return bool(self._behind) or self._kept is not None

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for it."""
        kept_bytes = sum(one.size_bytes for one in self._conflations())
        return self._outbox.waiting_bytes + kept_bytes + self.sink.incoming_bytes

    @property
    def own_bytes(self) -> int:
        """What of that is held for it alone."""
        kept_bytes = 0 if self._kept is None else self._kept.size_bytes
        return self._outbox.own_bytes + kept_bytes + self.sink.incoming_bytes

    def _conflations(self) -> list[Kept]:
        kept = [] if self._kept is None else [self._kept]
        return [*kept, *self._behind.values()]

    def push(self, frame: Frame) -> bool:
        """Send a frame; ``False``: too much waits, its rows are to be kept."""
        if self.closed:
            return True
        # Only behind a connection that has stopped taking: it alone tells when it goes on.
        if self.is_behind or (not self._outbox.is_empty and self._has_no_room(len(frame.data))):
            return False
        if frame.data:
            self._send(frame.data)
        return True

    def _has_no_room(self, size_bytes: int) -> bool:
        return self._outbox.waiting_bytes + size_bytes > self._max_bytes

    def fall_behind(self, group: Keeper, kept: Kept) -> None:
        """Get from now on what is kept for a group, until it has taken what waits."""
        self._behind[group] = kept
        kept.users += 1

    def keeps_of(self, group: Keeper) -> bool:
        """Whether rows of a group are kept for it."""
        return group in self._behind

    def leave_groups(self) -> None:
        """Take what was kept for it out of its groups, which it leaves."""
        for group, kept in self._behind.items():
            self._kept = self._kept or Kept()
            self._kept.take_over(kept)
            group.let_go(kept)
        self._behind.clear()

    def forget(self, keys: Iterable[str]) -> None:
        """Drop kept rows that are no longer wanted; its groups were left before."""
        if self._kept is not None:
            self._kept.forget(keys)

    def send(self, message: FromGateway, *, paced: bool = False) -> None:
        """Send another message, whatever waits.

        Messages cannot be conflated: who leaves too many of them unread is cut off, and comes back
        with the position that it had before them.

        Parameters
        ----------
        paced
            Whether the sender waits with `drain` before each.
        """
        data = self.wire.message(message)
        if not data or self.closed:
            return
        if self._outbox.is_empty or paced or not self._has_no_room(len(data) - _MESSAGES_BYTES):
            self._send(data)
        else:
            self.cut(f"{self._outbox.waiting_bytes} bytes were not read.")

    def send_rows(
        self, kind: str, offsets: dict[str, tuple[str, str]], rows: Sequence[Row]
    ) -> None:
        """Send rows to this client alone, made as it takes them; the last frame has the position.

        A snapshot without rows is one empty frame.
        """
        self.send_parts(kind, ((offsets, rows),), len(rows))

    def send_parts(self, kind: str, parts: Iterable[Part], count: int) -> None:
        """Do as `send_rows` for each part; ``count``: how many rows they have in all."""
        if not self.closed:
            self.sent_at = time.monotonic()
            self._outbox.put_later(_frames(self.wire, kind, parts), _LATER_BYTES * count)

    def _send(self, data: bytes) -> None:
        self.sent_at = time.monotonic()
        self._outbox.put(data)

    async def drain(self) -> None:
        """Wait until most of what was sent has been taken, or the client is gone."""
        await self._outbox.drain()

    def _drained(self) -> None:
        """Send what waits; then what was kept, and before it what was left out."""
        if self.closed:
            return
        self._outbox.flow()
        if self.is_behind and self._outbox.is_empty:
            self._catch_up()

    def _catch_up(self) -> None:
        self.leave_groups()
        kept, self._kept = self._kept, None
        assert kept is not None
        skipped = kept.skipped()
        if skipped is not None:
            self.send(skipped)
        self.send_rows("live", kept.offsets, list(kept.rows.values()))

    def stalled_s(self, now: float) -> float:
        """Return for how long the client has taken nothing of what waits for it."""
        taken = self._outbox.given_bytes - self.sink.waiting_bytes
        if not self._outbox.waiting_bytes or taken > self._taken_bytes:
            self._taken_bytes, self.taken_at = taken, now
        return now - self.taken_at

    def cut(self, reason: str) -> None:
        """End the connection because too much waits for it."""
        self.close(CloseCode.OVERLOADED, reason)

    def close(self, code: CloseCode, reason: str) -> None:
        """End the connection; what it was not given yet is forgotten."""
        if self.closed:
            return
        self.closed = True
        self.let_go()
        number = self.wire.close_codes.get(int(code), int(code))
        CLOSED[number] += 1
        self.sink.abandon(number, reason.encode()[:_REASON_BYTES].decode(errors="ignore"))

    def let_go(self) -> None:
        """Forget all that waits."""
        self._outbox.clear()
        for group, kept in self._behind.items():
            group.let_go(kept)
        self._behind.clear()
        self._kept = None
