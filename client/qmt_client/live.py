"""The iterators over live data that the clients hand out, and where they stand."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from qmt_protocol.bars import Bar, decode_bar
from qmt_protocol.cursor.batch import BarRow, Batch, Row
from qmt_protocol.cursor.gaps import unreadable
from qmt_protocol.cursor.position import Position
from qmt_protocol.cursor.progress import Progress
from qmt_protocol.errors import CodecError
from qmt_protocol.ticks import Tick, decode_tick
from qmt_reading.callbacks import OnGap
from qmt_runtime.fork_guard import ForkGuard

from .user_warnings import warn

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NOW_LIVE", "AsyncLive", "Live", "NowLive", "bar_of", "tick_of"]

Item = TypeVar("Item")
Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""How a client without ``await`` has a coroutine run to its end."""


class NowLive(Tick):
    """The offset between stored and live ticks: an empty tick of no code."""

    __slots__ = ()


NOW_LIVE: Final = NowLive({}, "", "", 0)
"""What ``ticks(start=...)`` yields once, where the stored ticks end and the live ones begin."""


class AsyncLive(Generic[Item]):
    """Iterates over live ticks or bars, each once and in order, without end.

    It reads on only as the loop takes, so memory stays bounded.

    Close it with `aclose` (or `contextlib.aclosing`) when the loop is left early.
    """

    def __init__(
        self,
        batches: AsyncGenerator[Batch, None],
        decode: Callable[[Any], Item],
        position: Position | None,
        on_gap: OnGap,
    ) -> None:
        self._batches = batches
        self._decode = decode
        self._on_gap = on_gap
        self._progress = Progress(position)
        self._rows: deque[Any] = deque()
        self._guard = ForkGuard()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while (item := self._pop()) is None:
            if not await self._fill():
                raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the iteration and let its connections go."""
        if self._guard.is_here:
            await self._batches.aclose()

    @property
    def position(self) -> dict[str, object]:
        """Where the loop stands: JSON-able, to be passed as ``position=`` after a restart.

        Market to ``[epoch, feed entry id]``, some 60 bytes each, and, within a batch, the last
        entry id of the codes already taken from it. It is good for as long as the feed is kept
        (half an hour unless set otherwise).
        """
        return self._position_now(with_codes=False)

    @property
    def full_position(self) -> dict[str, object]:
        """The same with the last entry id of every code, some 40 bytes each.

        With it the loop goes on also where the feed no longer reaches back: from the codes' own
        streams, which are kept for days. An iteration that itself went on from a short `position`
        does not know them: it gives the short form and says so by a `QMTWarning`.
        """
        if not self._progress.knows_all:
            warn(
                "full_position is the short form here: this iteration went on from a short one, or "
                "has not begun. Save full_position from the first run on."
            )
        return self._position_now(with_codes=True)

    def _position_now(self, *, with_codes: bool) -> dict[str, object]:
        if not self._rows:
            self._progress.leave()
        return self._progress.position(with_codes=with_codes).to_dict()

    async def _fill(self) -> bool:
        """Take up the next batch; false when there is none."""
        self._guard.check()
        batch = await anext(self._batches, None)
        if batch is None:
            return False
        self._progress.enter(batch)
        self._rows.extend(batch.bars)
        self._rows.extend(batch.rows)
        if batch.kind == "now":
            self._rows.append(NOW_LIVE)
        return True

    def _pop(self) -> Item | None:
        """Return the next item of the batch; ``None`` when it has no more."""
        while self._rows:
            row = self._rows.popleft()
            if row is NOW_LIVE:
                return cast(Item, NOW_LIVE)
            try:
                item = self._decode(row)
            except CodecError as error:
                self._on_gap(unreadable(error))
                continue
            self._progress.take(row)
            return item
        return None


class Live(Generic[Item]):
    """The same without ``await``; close it with `close`, or by leaving its ``with`` block.

    See `AsyncLive`.
    """

    def __init__(self, live: AsyncLive[Item], run: Run, end: Run) -> None:
        self._live = live
        self._run = run
        self._end = end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        live = self._live
        while (item := live._pop()) is None:
            if not self._run(live._fill()):
                raise StopIteration
        return item

    def close(self) -> None:
        """End the iteration and let its connections go."""
        self._end(self._live.aclose())

    @property
    def position(self) -> dict[str, object]:
        """See `AsyncLive.position`."""
        return self._live.position

    @property
    def full_position(self) -> dict[str, object]:
        """See `AsyncLive.full_position`."""
        return self._live.full_position


def tick_of(row: Row) -> Tick:
    """Decode one row of ticks."""
    code, entry_id, t1 = row
    return decode_tick(t1, code, entry_id)


def bar_of(row: BarRow) -> Bar:
    """Decode one row of bars."""
    code, period, entry_id, k1 = row
    return decode_bar(k1, code, period, entry_id)
