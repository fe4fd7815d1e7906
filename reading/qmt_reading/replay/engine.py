"""Stored ticks given again at the pace at which they were made, or at any other.

The schedule is absolute: a moment of market time is due at one moment of the machine's clock, so
waiting adds up to no drift, and what a slow loop is late is caught up.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast

import numpy as np

from qmt_protocol.amounts import parse_count, parse_seconds, parse_speed
from qmt_protocol.codes import parse_codes
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.times import day_of
from qmt_reading.arguments import Clock, Codes, is_all, parse_clock
from qmt_reading.stored.gaps import gap_of
from qmt_runtime.fork_guard import ForkGuard

from .clock import MarketClock
from .rows import Piece, Read, RowsAhead

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import Self

    from qmt_protocol.archive import Missing
    from qmt_reading.callbacks import OnBars, OnGap, OnTicks

__all__ = ["AsyncReplay", "Replay", "Speed"]

Item = TypeVar("Item")
Speed = float | Literal["max"]

_PIECE_AT_MAX: Final = 512
_PIECE: Final = 128
_SPARE_S: Final = 0.004
"""With less time left until something is due, nothing is decoded ahead."""


class AsyncReplay(Generic[Item]):
    """Iterates over stored ticks (or closed bars) in time order, at a speed.

    The order is by ``id_ms`` over all codes and markets; equal times by code, then by number.
    What is due at one moment is given at once. A loop that takes longer than there is time gets
    what follows late (see `late_ms`) and without a pause, until it has caught up.

    Close it with `aclose` when the loop is left early.
    """

    def __init__(
        self,
        read: Read,
        decode: Callable[[pa.RecordBatch], list[Item]],
        *,
        speed: object,
        skip_idle_s: float | None,
        period: str = "tick",
        codes: tuple[str, ...] | None = None,
        missing: Callable[[], Coroutine[Any, Any, list[Missing]]] | None = None,
        is_simulated: Callable[[], Coroutine[Any, Any, bool]] | None = None,
        on_gap: OnGap | None = None,
        on_open: Callable[[AsyncReplay[Any]], None] | None = None,
        on_close: Callable[[AsyncReplay[Any]], None] | None = None,
    ) -> None:
        self._clock = MarketClock(parse_speed(speed))
        self._skip_ms = _parse_skip(skip_idle_s)
        self._rows = RowsAhead(read, decode, self._skip_ms, self._wake)
        self._period = period
        self._codes = codes
        self._find_missing = missing
        self._is_simulated = is_simulated
        self._simulated: bool | None = None
        self._on_gap = on_gap
        self._on_open = on_open
        self._on_close = on_close
        self._gaps: deque[Missing] = deque()
        self._due: deque[Any] = deque()
        self._raw: bool | None = None
        self._closed = False
        self._steps = 0
        self._seek_ms: int | None = None
        self._changed = asyncio.Event()
        self._last_ms: int | None = None
        self._late_s = 0.0
        self._guard = ForkGuard()

    # Iterating

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while not self._may_pop():
            if not await self._fill(raw=False):
                raise StopAsyncIteration
        item: Item = self._due.popleft()
        return item

    async def batches(self) -> AsyncIterator[pa.RecordBatch]:
        """Iterate over Arrow record batches instead: each holds what is due at one moment.

        Columns are those of the archive. At ``max`` a batch has up to some hundred thousand rows.
        """
        while True:
            while not self._may_pop():
                if not await self._fill(raw=True):
                    return
            yield self._due.popleft()

    async def subscribe_realtime(
        self, stocks: Codes, callback: OnTicks | OnBars, period: str = "tick"
    ) -> None:
        """Call back as `AsyncQMTClient.subscribe_realtime` does, until the replay has ended.

        Parameters
        ----------
        stocks
            Codes of this replay.
        callback
            A function or coroutine function, called with ``{code: [tick, ...]}``: all that is due.
        period
            As the replay's own.

        Raises
        ------
        InvalidRequest
            When the replay has other codes, or another period.
        """
        requested = self._requested(stocks, period)
        while (data := await self._next_data(requested)) is not None:
            waiting = cast("Any", callback)(data)
            if inspect.isawaitable(waiting):
                await waiting

    def _requested(self, stocks: Codes, period: str) -> frozenset[str] | None:
        if period != self._period:
            raise InvalidRequest(
                f"This is a replay of period {self._period!r}, not {period!r}.", field="period"
            )
        if is_all(stocks):
            return None
        requested = parse_codes(stocks)
        foreign = [] if self._codes is None else sorted(set(requested) - set(self._codes))
        if foreign:
            raise InvalidRequest(
                f"{', '.join(foreign[:5])}: not among the codes of this replay.",
                hint="Name them in replay(...).",
                field="stocks",
            )
        return frozenset(requested)

    async def _next_data(self, requested: frozenset[str] | None) -> dict[str, list[Item]] | None:
        """Return what is due next, by code; ``None`` at the end."""
        data: dict[str, list[Item]] = {}
        while not data:
            if not await self._fill(raw=False):
                return None
            while self._may_pop():
                item: Any = self._due.popleft()
                if requested is None or item.code in requested:
                    data.setdefault(item.code, []).append(item)
        return data

    async def aclose(self) -> None:
        """End the replay and let its files and connections go."""
        if not self._guard.is_here:
            return
        self._closed = True
        self._due.clear()
        self._wake()
        await self._rows.stop()
        if self._on_close is not None:
            self._on_close(self)

    # Steering

    def pause(self) -> None:
        """Hold the market's clock; the loop waits."""
        if not self._clock.paused:
            self._steps = 0
            self._clock.pause(self._last_ms, self._rows.next_ms)
            self._wake()

    def resume(self) -> None:
        """Let the clock go on from where it was held."""
        if self._clock.paused:
            self._clock.resume(self._last_ms)
            self._wake()

    def step(self, n: int = 1) -> None:
        """Pause, and let the next ``n`` ticks (of `batches`: rows) through at once.

        Raises
        ------
        InvalidRequest
            When ``n`` is no number above 0, or above a million.
        """
        count = parse_count(n, "n")
        self.pause()
        self._steps += count
        self._wake()

    def seek(self, to: Any) -> None:
        """Go to a time, forward or back, also after the end; what follows begins there.

        Parameters
        ----------
        to
            As ``start`` of the replay; ``'10:30'`` is that of the day where the replay stands.

        Raises
        ------
        InvalidRequest
            When it is no time.
        """
        at = parse_clock(to)
        if isinstance(at, Clock):
            if self._last_ms is None:
                raise InvalidRequest(
                    "The replay has not begun: the day is not known.",
                    hint="Give the day too: '2026-11-20 10:30'.",
                    field="to",
                )
            at = at.on(day_of(self._last_ms))
        if at is None:
            raise InvalidRequest("Say where to go.", hint="seek('2026-11-20 10:30')", field="to")
        self._seek_ms = at
        self._due.clear()
        self._wake()

    @property
    def speed(self) -> Speed:
        """How fast the market's clock goes, a number or ``'max'``; may be set while it runs."""
        return "max" if self._clock.speed == math.inf else self._clock.speed

    @speed.setter
    def speed(self, speed: Speed) -> None:
        self._clock.change(parse_speed(speed), self._last_ms, self._rows.next_ms)
        self._wake()

    @property
    def paused(self) -> bool:
        """Whether the clock is held."""
        return self._clock.paused

    @property
    def time_ms(self) -> int | None:
        """Market time that the replay has reached; ``None`` before the first row."""
        return self._last_ms

    @property
    def simulated(self) -> bool | None:
        """Whether the simulator invented rows; ``None`` before the first one."""
        return self._simulated

    @property
    def late_ms(self) -> float:
        """How late the last row was given, since the loop had no time for it earlier."""
        return self._late_s * 1000

    # Within

    def _wake(self) -> None:
        self._changed.set()

    def _may_pop(self) -> bool:
        """Whether the loop may take what is due; a step is used up."""
        if not self._due or self._seek_ms is not None:
            return False
        if self._clock.paused:
            if self._steps < 1:
                return False
            self._steps -= 1
        return True

    async def _fill(self, *, raw: bool) -> bool:
        """Wait until something is due; false at the end."""
        self._guard.check()
        if raw is not self._raw is not None:
            raise InvalidRequest("Iterate over ticks or over batches, not both.")
        self._raw = raw
        most = None if raw else _PIECE_AT_MAX if self._clock.speed == math.inf else _PIECE
        while not self._closed:
            self._changed.clear()
            if self._seek_ms is not None or not self._rows.begun:
                await self._begin()
            elif self._clock.paused and self._steps < 1:
                await self._changed.wait()
            elif self._due:
                return True
            elif (piece := self._rows.first(most)) is None:
                if self._rows.ended:
                    return False
                await self._changed.wait()
            elif (wait_s := self._wait_s(piece)) <= 0:
                self._give(piece)
                if self._clock.speed == math.inf:
                    await asyncio.sleep(0)  # others' turn
            elif not raw and wait_s > _SPARE_S and self._rows.decode_ahead(_PIECE):
                await asyncio.sleep(0)
            else:
                await self._sleep(wait_s)
        return False

    async def _begin(self) -> None:
        """Read from the start, or from the time sought."""
        to_ms = self._seek_ms
        await self._rows.stop()
        gaps = [] if self._find_missing is None else await self._find_missing()
        if self._simulated is None and self._is_simulated is not None:
            self._simulated = await self._is_simulated()
        self._gaps = deque(gap for gap in gaps if to_ms is None or gap.to_ms >= to_ms)
        self._due.clear()
        self._late_s = 0.0
        if to_ms is not None:
            self._last_ms = to_ms
            self._clock.set(to_ms)
        if not self._closed:
            self._rows.start(to_ms)
            if self._on_open is not None:
                self._on_open(self)
        if self._seek_ms == to_ms:
            self._seek_ms = None

    async def _sleep(self, wait_s: float) -> None:
        alarm = asyncio.get_running_loop().call_later(wait_s, self._wake)
        try:
            await self._changed.wait()
        finally:
            alarm.cancel()

    def _wait_s(self, piece: Piece) -> float:
        next_ms = int(piece.ids[piece.at])
        if not piece.is_on_clock:
            if not self._raw:
                self._rows.items_of(piece)  # not at the expense of the schedule
            self._clock.set_out(self._last_ms, next_ms, self._skip_ms)
            piece.is_on_clock = True
        return -self._clock.late_s(next_ms)

    def _give(self, piece: Piece) -> None:
        """Move what is due to where the loop takes it."""
        start, end = piece.at, len(piece.ids)
        self._late_s = self._clock.late_s(int(piece.ids[start]))
        if self._clock.paused:
            end = min(end, start + self._steps)
        elif self._clock.speed < math.inf:
            end = int(np.searchsorted(piece.ids, self._clock.now_ms(), "right"))
            end = max(end, start + 1)
        self._last_ms = int(piece.ids[end - 1])
        while self._gaps and self._gaps[0].from_ms <= self._last_ms:
            gap = self._gaps.popleft()
            if self._on_gap is not None:
                self._on_gap(gap_of(gap))
        if self._raw:
            self._due.append(piece.batch.slice(start, end - start))
            self._steps -= end - start - 1 if self._clock.paused else 0
        else:
            self._due.extend(self._rows.items_of(piece)[start:end])
        self._rows.taken(piece, end)


def _parse_skip(skip_idle_s: float | None) -> float:
    return math.inf if skip_idle_s is None else parse_seconds(skip_idle_s, "skip_idle_s") * 1000


class Replay(Generic[Item]):
    """The same without ``await``; close it with `close`, or by leaving its ``with`` block.

    `pause`, `resume`, `seek`, `step` and ``speed`` may be called from the loop and from other
    threads. See `AsyncReplay`.
    """

    def __init__(
        self,
        replay: AsyncReplay[Item],
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        end: Callable[[Coroutine[Any, Any, Any]], Any],
    ) -> None:
        self._replay = replay
        self._run = run
        self._end = end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        replay = self._replay
        while True:
            while not replay._may_pop():
                if not self._run(replay._fill(raw=False)):
                    raise StopIteration
            try:
                item: Item = replay._due.popleft()
            except IndexError:  # another thread has sought
                continue
            return item

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See `AsyncReplay.batches`."""
        replay = self._replay
        while True:
            while not replay._may_pop():
                if not self._run(replay._fill(raw=True)):
                    return
            yield replay._due.popleft()

    async def subscribe_realtime(
        self, stocks: Codes, callback: OnTicks | OnBars, period: str = "tick"
    ) -> None:
        """See `AsyncReplay.subscribe_realtime`; a coroutine here too, on the caller's own loop."""
        replay = self._replay
        requested = replay._requested(stocks, period)

        def take() -> Any:
            return self._run(replay._next_data(requested))

        while True:
            taking = asyncio.ensure_future(asyncio.to_thread(take))
            try:
                data = await asyncio.shield(taking)
            except asyncio.CancelledError:
                await asyncio.to_thread(self.close)
                await asyncio.wait([taking])
                raise
            if data is None:
                return
            waiting = callback(data)
            if inspect.isawaitable(waiting):
                await waiting

    def close(self) -> None:
        """End the replay and let its files and connections go."""
        self._end(self._replay.aclose())

    def pause(self) -> None:
        """See `AsyncReplay.pause`."""
        self._call(self._replay.pause)

    def resume(self) -> None:
        """See `AsyncReplay.resume`."""
        self._call(self._replay.resume)

    def step(self, n: int = 1) -> None:
        """See `AsyncReplay.step`."""
        self._call(self._replay.step, n)

    def seek(self, to: Any) -> None:
        """See `AsyncReplay.seek`."""
        self._call(self._replay.seek, to)

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        async def call() -> None:
            method(*arguments)

        self._run(call())

    @property
    def speed(self) -> Speed:
        """See `AsyncReplay.speed`."""
        return self._replay.speed

    @speed.setter
    def speed(self, speed: Speed) -> None:
        def change() -> None:
            self._replay.speed = speed

        self._call(change)

    @property
    def paused(self) -> bool:
        """See `AsyncReplay.paused`."""
        return self._replay.paused

    @property
    def time_ms(self) -> int | None:
        """See `AsyncReplay.time_ms`."""
        return self._replay.time_ms

    @property
    def simulated(self) -> bool | None:
        """See `AsyncReplay.simulated`."""
        return self._replay.simulated

    @property
    def late_ms(self) -> float:
        """See `AsyncReplay.late_ms`."""
        return self._replay.late_ms
