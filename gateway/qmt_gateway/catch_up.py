"""Bringing one client from its position to where the hub stands, at the client's own pace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from typing import Final

from qmt_protocol.cursor.position import Offset, Position
from qmt_protocol.cursor.scope import Scope
from qmt_protocol.errors import Gap
from qmt_protocol.ids import BEGINNING
from qmt_reading.live.follower import Follower

from .hub import Hub, notice_of
from .market import Recent
from .subscriber import Part, Subscriber, Subscription
from .wires import rows_of

__all__ = ["CatchUp"]

_PAUSE_S: Final = 0.01
_ROWS: Final = 1_000
"""What is sent before the client must have taken it."""


class CatchUp:
    """Sends a subscriber what it missed, then lets it join the hub, market by market.

    What the hub still has in memory is sent from there. The rest is read from the feed, never
    beyond the hub's own position, or from the codes' streams; as nothing is awaited between the
    last look at the hub's position and joining it, nothing is left out and nothing comes twice.

    Parameters
    ----------
    subscription
        What it asked for; its markets are held.
    position
        Where it stands; ``None`` with ``start_ms``.
    start_ms
        Begin with the ticks stored since this exchange time.
    """

    def __init__(
        self,
        hub: Hub,
        subscriber: Subscriber,
        subscription: Subscription,
        position: Position | None,
        start_ms: int | None = None,
    ) -> None:
        self._hub = hub
        self._subscriber = subscriber
        self._subscription = subscription
        self._position = position or Position()
        self._start_ms = start_ms
        self._at: dict[str, Offset] = dict(self._position.offsets) if start_ms is None else {}

    async def run(self) -> None:
        """Come to an end with the subscriber joined, or gone.

        Raises
        ------
        RedisUnavailable
        """
        subscription = self._subscription
        left = self._join(sorted(subscription.names()))
        whole = [name for name in left if name in subscription.markets]
        if whole:
            await self._follow(Scope(tuple(whole)))
        codes = [code for code in subscription.codes if code.rpartition(".")[2] in left]
        if codes:
            await self._follow(Scope.of(sorted(codes), ()))
        bars = [key.partition("|")[::2] for key in subscription.bars]
        bars = [(period, code) for period, code in bars if code.rpartition(".")[2] in left]
        if bars:
            names = tuple(dict.fromkeys(code.rpartition(".")[2] for _, code in bars))
            of_code = frozenset((code, period) for period, code in bars)
            await self._follow(Scope(names, frozenset(), of_code))

    async def _follow(self, scope: Scope) -> None:
        offsets = {name: self._at.get(name, ("", BEGINNING)) for name in scope.markets}
        follower: Follower = self._hub.transport.follower(
            scope,
            position=Position(offsets if self._start_ms is None else {}, self._position.codes),
            start_ms=self._start_ms,
            on_gap=self._report_gap,
            events=False,
            check=lambda: self._set_limits(follower),
        )
        subscriber = self._subscriber
        async with aclosing(follower.batches(block=False)) as batches:
            async for batch in batches:
                if subscriber.closed or subscriber.sink.gone:
                    return
                rows = [
                    row
                    for row in rows_of(batch.rows, batch.bars)
                    if row.code.rpartition(".")[2] in follower.reader.markets
                ]
                kind = "stored" if batch.kind == "stored" else "missed"
                for start in range(0, len(rows), _ROWS):
                    last = start + _ROWS >= len(rows)
                    offsets = dict(batch.offsets) if last else {}
                    subscriber.send_rows(kind, offsets, rows[start : start + _ROWS])
                    await subscriber.drain()
                if batch.kind in ("begin", "stored"):
                    continue
                self._at |= batch.offsets
                follower.reader.markets[:] = self._join(follower.reader.markets)
                if not follower.reader.markets:
                    return
                if not rows:
                    await asyncio.sleep(_PAUSE_S)

    def _set_limits(self, follower: Follower) -> None:
        reader = follower.reader
        for name in reader.markets:
            reader.positions[name].limit = self._hub.market(name).offset[1]

    def _join(self, names: Iterable[str]) -> list[str]:
        """Join the markets that the hub's memory leads on from; return the others."""
        left: list[str] = []
        subscription, hub, subscriber = self._subscription, self._hub, self._subscriber
        for name in names:
            at = self._at.get(name)
            batches = None if at is None else hub.market(name).after(at)
            if batches is None:
                left.append(name)
                continue
            # The rows are made when they are taken: until then nothing is held but the batches.
            count = sum(len(ticks) + len(bars) for _, _, ticks, bars in batches)
            subscriber.send_parts("missed", _missed(name, batches, subscription), count)
            hub.join(
                subscriber,
                codes=[code for code in subscription.codes if code.endswith(f".{name}")],
                bars=[key for key in subscription.bars if key.endswith(f".{name}")],
                markets=[name] if name in subscription.markets else (),
            )
        return left

    def _report_gap(self, gap: Gap) -> None:
        self._subscriber.send(notice_of(gap, str(gap.data.get("market", ""))))


def _missed(name: str, batches: list[Recent], subscription: Subscription) -> Iterator[Part]:
    for _, offset, ticks, bars in batches:
        yield {name: offset}, [row for row in (*rows_of(ticks), *bars) if subscription.takes(row)]
