"""Live ticks and bars: the part of `AsyncQMTClient` that follows what is published."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, Literal, cast, overload

from qmt_protocol.bars import Bar
from qmt_protocol.codes import market_of, parse_codes
from qmt_protocol.cursor.batch import Batch
from qmt_protocol.cursor.gaps import unreadable
from qmt_protocol.cursor.position import Position
from qmt_protocol.errors import (
    CodecError,
    InstrumentNotFound,
    InvalidRequest,
    NoProducer,
    QMTError,
    Unavailable,
)
from qmt_protocol.periods import parse_period
from qmt_protocol.ticks import Tick
from qmt_protocol.times import day_of
from qmt_reading.arguments import Clock, Codes, parse_clock, parse_scope
from qmt_reading.callbacks import OnGap
from qmt_reading.requests import LiveRequest

from .answers import Latest, Ticks
from .connected import Connected
from .live import AsyncLive, bar_of, tick_of
from .types import OnBars, OnTicks, SavedPosition, TimeLike
from .user_warnings import warn, warn_absent, warn_gap

__all__ = ["AsyncTicks"]

_OnData = Callable[[dict[str, list[Any]]], Awaitable[None] | None]
_WATCH_EVERY_S: Final = 2.0


class AsyncTicks(Connected):
    """What `AsyncQMTClient` reads of the newest ticks and follows as they come."""

    async def full_tick(self, codes: Codes) -> Ticks:
        """Return the latest tick of each code, from Redis alone: no Windows machine is asked.

        Parameters
        ----------
        codes
            One code, a comma-separated string, or a list.

        Returns
        -------
        Ticks
            Code to tick, a dict with xtquant's keys (prices in yuan, volumes in lots); codes
            without one are named in ``absent`` with a `QMTWarning`. A warning also tells when
            the producer is away, so that the ticks are the last it published.

        Raises
        ------
        InstrumentNotFound
            One code was asked for, its market is published, and it has no tick.
        NoProducer
            None of the codes has a tick and nobody publishes; ``last_seen_ms`` tells since when.
        """
        requested = parse_codes(codes)
        found, status = await asyncio.gather(
            self.transport.latest(requested), self.transport.status()
        )
        absent = [code for code in requested if code not in found]
        try:
            status.require_producer(dict.fromkeys(market_of(code) for code in requested))
        except NoProducer as error:
            if not found:
                raise
            warn(f"{error.message} These are the last ticks it published.")
        if absent and len(requested) == 1:
            if found.unreadable:
                raise CodecError(found.unreadable[requested[0]], code=requested[0])
            raise InstrumentNotFound(
                f"No tick of {requested[0]} was published.",
                hint="Check the code; or it was not traded since the producer began.",
                codes=absent,
            )
        reasons = dict.fromkeys(absent, "no tick was published") | found.unreadable
        warn_absent({code: reasons[code] for code in absent}, "full_tick")
        return Ticks(found, absent, simulated=status.simulated)

    async def get_full_tick(self, stocks: Codes) -> Ticks:
        """Return the latest tick of each code; the same as `full_tick`."""
        return await self.full_tick(stocks)

    async def latest(self, codes: Codes | None = None, *, markets: Sequence[str] = ()) -> Latest:
        """Return the stored latest ticks of codes, or of whole markets, and nothing else.

        Unlike `full_tick` it asks nobody whether they are fresh, and codes without a tick are
        just not there. Codes whose tick cannot be read are named by ``unreadable``.
        """
        requested, markets = parse_scope(codes, markets)
        found = await self.transport.latest(requested, markets)
        return Latest(found, found.unreadable)

    def ticks(
        self,
        codes: Codes | None = None,
        *,
        markets: Sequence[str] = (),
        start: TimeLike | None = None,
        position: SavedPosition | None = None,
        snapshot: bool = False,
        conflate: bool = False,
        on_gap: OnGap | None = None,
    ) -> AsyncLive[Tick]:
        """Iterate over ticks as they are published, without end.

        Each tick comes once, in published order. Memory is bounded: nothing is read ahead of the
        loop but a few batches. A lost connection is taken up again for five minutes, behind the
        last tick delivered. What the live feed no longer holds by then is read from the codes'
        own streams; what can no longer be had at all is told to ``on_gap``.

        Parameters
        ----------
        codes
            One code, a comma-separated string, or a list.
        markets
            Whole markets, such as ``["SH", "SZ", "BJ"]``, in place of codes.
        start
            Begin with the ticks stored since this exchange time: ``'09:15'`` is that of the
            newest trading day stored, other values are as in `history`. Where they end and the
            live ones begin, `NOW_LIVE` comes once.
        position
            Go on behind a saved ``.position`` or ``.full_position`` of an earlier iteration.
        snapshot
            Begin with the latest stored tick of each code.
        conflate
            A loop that is slower than the market gets the latest tick of each code only.
        on_gap
            Called with a `Gap` when ticks can no longer be had: the loop was away for too long,
            Redis lost its data, or the producer names ticks that it lost. Unless given, a
            `QMTWarning` tells it. The iteration goes on behind the gap.

        Returns
        -------
        AsyncLive
            An iterator of `Tick` with ``.position``, ``.full_position`` and `aclose`.

        Raises
        ------
        InvalidRequest
            For arguments that do not go together.
        NoProducer
            At the first step, when nobody publishes one of the markets; see its hint.
        RedisUnavailable, GatewayUnavailable
            At the start at once, later after five minutes.
        """
        requested, markets = parse_scope(codes, markets)
        if position is not None and start is not None:
            raise InvalidRequest("Give start or position, not both.", field="start")
        request = LiveRequest(
            None if requested is None else tuple(requested),
            tuple(markets),
            position=None if position is None else Position.parse(position),
            snapshot=snapshot,
            conflate=conflate,
        )
        clock = parse_clock(start)
        report = on_gap or warn_gap
        live = AsyncLive(self._batches(request, clock, report), tick_of, request.position, report)
        return self._opened(live)

    def bars(
        self,
        codes: Codes,
        period: str = "1m",
        *,
        position: SavedPosition | None = None,
        snapshot: bool = False,
        on_gap: OnGap | None = None,
    ) -> AsyncLive[Bar]:
        """Iterate over bars as they form and close, without end.

        The producer subscribes to them while somebody wants them; that takes some seconds at
        first. Of the forming bar each change comes, then the closed bar with ``closed`` true.

        Parameters
        ----------
        codes
            One code, a comma-separated string, or a list.
        period
            ``1m``, ``5m``, ``1d`` and so on; see `history`.
        position, on_gap
            As in `ticks`.
        snapshot
            Begin with the last stored bar of each code that has one.

        Returns
        -------
        AsyncLive
            An iterator of `Bar`, a dict with xtquant's keys and ``closed``.

        Raises
        ------
        Unavailable
            When the producer refuses, with its reason.
        InvalidRequest, NoProducer, RedisUnavailable, GatewayUnavailable
            As in `ticks`.
        """
        request = LiveRequest(
            tuple(parse_codes(codes)),
            period=parse_period(period, bars_only=True),
            position=None if position is None else Position.parse(position),
            snapshot=snapshot,
        )
        report = on_gap or warn_gap
        live = AsyncLive(self._batches(request, None, report), bar_of, request.position, report)
        return self._opened(live)

    async def _batches(
        self, request: LiveRequest, start: Clock | int | None, on_gap: OnGap
    ) -> AsyncGenerator[Batch, None]:
        codes = request.codes
        markets = list(request.markets) or list(
            dict.fromkeys(market_of(code) for code in codes or ())
        )
        (await self.transport.status()).require_producer(markets)
        if codes is not None and request.period == "tick":
            known = await self.transport.latest(codes)
            unknown = {code: "no tick so far" for code in codes if code not in known}
            warn_absent(unknown, "ticks", left_out=False)
        if isinstance(start, Clock):
            newest = (await self.transport.latest(codes, request.markets)).values()
            day = max((day_of(int(tick.id.partition("-")[0])) for tick in newest), default=None)
            start = None if day is None else start.on(day)
            if start is None:  # nothing is stored
                start = 0
        watch = asyncio.create_task(self._watch_producer(markets))
        live = self.transport.live(replace(request, start_ms=start), on_gap)
        try:
            async with aclosing(live) as batches:
                async for batch in batches:
                    yield batch
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _watch_producer(self, markets: Sequence[str]) -> None:
        """Warn when a producer, or the way to it, goes away and when it is back.

        Silence must not look like a quiet market.
        """
        away = lost = False
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            try:
                status = await self.transport.status()
                if lost:
                    warn(f"{self.transport.address} answers again.")
                lost = False
                status.require_producer(markets)
                away = False
            except NoProducer as error:
                if not away:
                    warn(f"{error.message} No ticks come until it returns.")
                away = True
            except Unavailable as error:
                if not lost:
                    warn(f"{error.message} No ticks come until it answers again.")
                lost = True
            except QMTError:
                continue  # the reader meets it too, and raises it

    @overload
    async def subscribe_realtime(
        self, stocks: Codes, callback: OnTicks, period: Literal["tick"] = ...
    ) -> None: ...

    @overload
    async def subscribe_realtime(self, stocks: Codes, callback: OnBars, period: str) -> None: ...

    async def subscribe_realtime(
        self, stocks: Codes, callback: OnTicks | OnBars, period: str = "tick"
    ) -> None:
        """Call back with ticks as they come; a coroutine on both clients.

        It runs until its task is cancelled (Ctrl-C does that under ``asyncio.run``), or until the
        callback raises.

        Parameters
        ----------
        stocks
            One code, a comma-separated string, or a list.
        callback
            A function or coroutine function, called with ``{code: [tick, ...]}``. The first call
            has the latest stored tick of each code, then each new tick comes once. While it
            runs nothing more is read; what it raises ends the subscription and is raised here.
        period
            ``tick``, or a bar's period: then the callback gets ``{code: [bar, ...]}``.

        Raises
        ------
        NoProducer, RedisUnavailable, GatewayUnavailable, Unavailable
            See `ticks` and `bars`.
        """
        request = LiveRequest(
            tuple(parse_codes(stocks)), period=parse_period(period), snapshot=True
        )
        decode: Callable[[Any], Tick | Bar] = tick_of if request.period == "tick" else bar_of
        async with aclosing(self._batches(request, None, warn_gap)) as batches:
            async for batch in batches:
                data: dict[str, list[Any]] = {}
                for row in batch.rows or batch.bars:
                    try:
                        data.setdefault(row[0], []).append(decode(row))
                    except CodecError as error:
                        warn_gap(unreadable(error))
                if not data:
                    continue
                waiting = cast(_OnData, callback)(data)
                if inspect.isawaitable(waiting):
                    await waiting
