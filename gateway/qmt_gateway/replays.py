"""The replays of one live connection: stored ticks among the live ones, at the client's pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from qmt_protocol.columns import rows_from, ticks_from
from qmt_protocol.errors import Gap, InvalidRequest, NotFound, Overloaded, QMTError
from qmt_protocol.live import (
    Failure,
    GapNotice,
    Live,
    Replay,
    ReplayCommand,
    ReplayEnded,
    ReplayPause,
    ReplayResume,
    ReplaySeek,
    ReplaySpeed,
    ReplayState,
    ReplayStep,
)
from qmt_protocol.texts import shown
from qmt_protocol.times import DAY_MS, day_of, day_start_ms, to_datetime
from qmt_reading.replay.engine import AsyncReplay
from qmt_reading.requests import StoredRequest

from .budget import Budget
from .reading import READING_BYTES, Readings
from .streaming import Held
from .subscriber import Subscriber
from .wires import MSGPACK

__all__ = ["Replays"]

_FRAME_ROWS: Final = 500
_SKIP_IDLE_S: Final = 1800.0


class Replays:
    """Starts, steers and ends the replays of one client.

    Parameters
    ----------
    limit
        How many it may have at a time.
    """

    def __init__(
        self, subscriber: Subscriber, source: Readings, limit: int, budget: Budget
    ) -> None:
        self._subscriber = subscriber
        self._source = source
        self._limit = limit
        self._budget = budget
        self._running: dict[str, _Running] = {}

    def start(self, message: Replay, codes: list[str] | None, markets: list[str]) -> None:
        """Begin a replay of codes or whole markets.

        Raises
        ------
        InvalidRequest
            When the message is wrong, or the client has too many.
        Overloaded
            When there is no memory for it.
        """
        if not message.id or message.id in self._running:
            raise InvalidRequest(
                f"{shown(message.id)} cannot name a replay.",
                hint="Give it an id that none of this connection's replays has.",
                field="id",
            )
        if len(self._running) >= self._limit:
            raise InvalidRequest(
                f"A connection may have {self._limit} replays at a time.",
                hint="Stop one of them first.",
                limit=self._limit,
            )
        end_ms = message.end_ms
        if end_ms is None:
            end_ms = day_start_ms(day_of(message.start_ms)) + DAY_MS - 1
        if end_ms < message.start_ms:
            raise InvalidRequest("The end lies before the start.", field="end_ms")
        request = StoredRequest(
            None if codes is None else tuple(codes),
            tuple(markets),
            start_ms=message.start_ms,
            end_ms=end_ms,
        )
        held = Held(self._budget, READING_BYTES)
        started = _Running(self._subscriber, self._source, message, request, held)
        self._running[message.id] = started
        started.begin(lambda: self._running.pop(message.id))

    async def steer(self, message: ReplayCommand) -> None:
        """Do as a client says.

        Raises
        ------
        NotFound
            When it has no such replay (any more).
        InvalidRequest
        """
        running = self._running.get(message.id)
        if running is None:
            raise NotFound(
                f"There is no replay {shown(message.id)}.", hint="It has ended, or never began."
            )
        if isinstance(message, (ReplayPause, ReplayResume, ReplaySeek, ReplaySpeed, ReplayStep)):
            running.steer(message)
        else:
            await running.stop()

    async def close(self) -> None:
        """End all of them: the client is gone."""
        for running in list(self._running.values()):
            await running.stop()


class _Running:
    """One replay."""

    def __init__(
        self,
        subscriber: Subscriber,
        source: Readings,
        message: Replay,
        request: StoredRequest,
        held: Held,
    ) -> None:
        self._held = held
        held.on_cut = self._cut_off
        self._cut: Overloaded | None = None
        self._subscriber = subscriber
        self._source = source
        self._id = message.id
        self._request = request
        skip_idle_s = _SKIP_IDLE_S if message.skip_idle_s is None else message.skip_idle_s
        self._replay: AsyncReplay[Any] = AsyncReplay(
            self._read,
            rows_from,
            speed=message.speed,
            skip_idle_s=skip_idle_s,
            missing=lambda: source.missing(request),
            is_simulated=lambda: source.simulated(request),
            on_gap=self._report_gap,
        )
        if message.paused:
            self._replay.pause()
        self._is_packed = subscriber.wire is MSGPACK
        self._at_ms = request.start_ms or 0
        self._ticks = 0
        self._to_step = 0
        self._task: asyncio.Task[None] | None = None

    def begin(self, on_end: Callable[[], object]) -> None:
        """Begin to send."""
        self._report_state()
        self._task = asyncio.create_task(self._run(on_end), name=f"replay {self._id}")

    async def stop(self) -> None:
        """End it, if it has not ended."""
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])

    def steer(
        self, message: ReplayPause | ReplayResume | ReplaySeek | ReplaySpeed | ReplayStep
    ) -> None:
        """Change its course, and tell how it stands then.

        Raises
        ------
        InvalidRequest
        """
        replay = self._replay
        if isinstance(message, ReplayStep):
            if not replay.paused:
                raise InvalidRequest(
                    f"The replay {self._id!r} is running.", hint="Pause it first.", field="id"
                )
            replay.step(message.count)
            self._to_step += message.count
            return  # told when they are sent
        if isinstance(message, ReplayPause):
            replay.pause()
        elif isinstance(message, ReplayResume):
            self._to_step = 0
            replay.resume()
        elif isinstance(message, ReplaySpeed):
            replay.speed = message.speed
        else:
            first_ms, last_ms = self._request.start_ms or 0, self._request.end_ms or 0
            self._at_ms = min(max(message.at_ms, first_ms), last_ms)
            replay.seek(to_datetime(self._at_ms))
        self._report_state()

    async def _run(self, on_end: Callable[[], object]) -> None:
        reason = "failed"
        try:
            await self._send_all()
            reason = "end"
        except asyncio.CancelledError:
            reason = "stopped"
            if self._cut is not None:
                reason = "failed"
                self._subscriber.send(Failure(id=self._id, error=self._cut.to_dict()))
        except QMTError as error:
            self._subscriber.send(Failure(id=self._id, error=error.to_dict()))
        finally:
            self._held.let_go()
            on_end()
            await self._replay.aclose()
            if not self._subscriber.closed:
                self._subscriber.send(ReplayEnded(id=self._id, reason=reason, ticks=self._ticks))

    def _cut_off(self, reason: str) -> None:
        self._cut = Overloaded(reason, hint="Begin it again where it ended.")
        if self._task is not None:
            self._task.cancel()

    async def _send_all(self) -> None:
        batches = self._replay.batches()
        while True:
            # Waited for before and not behind: what is due is sent in the same breath, so that
            # nothing of it follows an answer to a pause or a seek.
            await self._subscriber.drain()
            batch = await anext(batches, None)
            if batch is None:
                return
            self._send(batch)
            await asyncio.sleep(0)

    def _send(self, batch: pa.RecordBatch) -> None:
        ticks: list[Any]
        if self._is_packed:
            ticks = rows_from(batch)
        else:
            ticks = [(tick.code, tick.id, int(tick.flags), tick) for tick in ticks_from(batch)]
        self._ticks += len(ticks)
        self._at_ms = int(batch.column("id_ms")[-1].as_py())
        live = Live(kind="replay", position={}, replay=self._id, ticks=ticks)
        self._subscriber.send(live, paced=True)
        self._held.taken()
        if self._to_step:
            self._to_step = max(0, self._to_step - len(ticks))
            if not self._to_step:
                self._report_state()

    async def _read(self, start_ms: int | None) -> AsyncGenerator[pa.RecordBatch, None]:
        request = self._request if start_ms is None else replace(self._request, start_ms=start_ms)
        async with aclosing(self._source.batches(request, self._report_gap)) as batches:
            async for batch in batches:
                for at in range(0, len(batch), _FRAME_ROWS):
                    yield batch.slice(at, _FRAME_ROWS)

    def _report_gap(self, gap: Gap) -> None:
        facts = gap.data
        from_ms, to_ms = facts.get("from_ms", 0), facts.get("to_ms", 0)
        self._subscriber.send(
            GapNotice(
                market=facts.get("market", ""),
                reason=facts.get("reason", "unknown"),
                message=gap.message,
                replay=self._id,
                from_ms=from_ms,
                to_ms=to_ms,
                codes={code: [from_ms, to_ms, 0] for code in facts.get("codes") or ()},
            )
        )

    def _report_state(self) -> None:
        replay = self._replay
        self._subscriber.send(
            ReplayState(
                id=self._id,
                state="paused" if replay.paused else "running",
                at_ms=self._at_ms,
                speed=replay.speed,
                late_ms=int(replay.late_ms),
                simulated=replay.simulated,
            )
        )
