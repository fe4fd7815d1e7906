"""`QMTClient`: the same names without ``await``, over an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from qmt_protocol.bars import Bar
from qmt_protocol.errors import WrongProcess
from qmt_protocol.ticks import Tick

from .answers import HistoryFrames, Latest, Ticks
from .arguments import Codes
from .async_client import AsyncQMTClient
from .async_stored import Form
from .async_ticks import OnData
from .connected import Maker
from .live import Live, Run
from .processes import Status
from .progress import ShowProgress
from .replay import Replay
from .telling import Waiting
from .transport import OnGap

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Self

__all__ = ["QMTClient"]

_T = TypeVar("_T")
_SLICE_S: Final = 0.2
_END_WITHIN_S: Final = 5.0
_CLOSED: Final = "This QMTClient is closed."


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._maker = Maker()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="qmt-client", daemon=True
        )
        self._thread.start()
        self._ends = False
        self._warnings = Waiting()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end; an interrupt cancels it first, and waits for that."""
        try:
            self._maker.check()
        except WrongProcess:
            work.close()
            raise
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("QMTClient cannot be called from its own callbacks.")
        done: concurrent.futures.Future[_T] = concurrent.futures.Future()
        task = _Running(self._loop, work, done, self._warnings.context)
        try:
            # In slices: on Windows a plain wait would not see Ctrl-C.
            while not concurrent.futures.wait([done], timeout=_SLICE_S).done:
                self._warnings.tell()
            self._warnings.tell()
        except BaseException:
            task.cancel()
            concurrent.futures.wait([done], timeout=_END_WITHIN_S)
            raise
        try:
            return done.result()
        except concurrent.futures.CancelledError:
            if self._ends:
                raise RuntimeError(_CLOSED) from None
            raise

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what still runs, run a last coroutine, and end the thread."""
        if self._loop.is_closed() or not self._maker.is_here:
            return
        self._ends = True
        self.run(self._end(last()))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_WITHIN_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=_END_WITHIN_S)
        await last
        await self._loop.shutdown_asyncgens()


class _Running:
    """One coroutine on the loop; unlike asyncio's own bridge, cancelling can be waited for."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, _T],
        done: concurrent.futures.Future[_T],
        context: contextvars.Context,
    ) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        loop.call_soon_threadsafe(self._start, work, done, context=context)

    def _start(self, work: Coroutine[Any, Any, _T], done: concurrent.futures.Future[_T]) -> None:
        def ended(task: asyncio.Task[_T]) -> None:
            if task.cancelled():
                done.set_exception(concurrent.futures.CancelledError())
            elif (error := task.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(task.result())

        self._task = self._loop.create_task(work)
        self._task.add_done_callback(ended)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())


def _stop(loop: _Loop, client: AsyncQMTClient) -> None:
    loop.stop(client.close)


def _stepped(source: AsyncGenerator[_T, None], run: Run, end: Run) -> Iterator[_T]:
    nothing_more = object()

    async def step() -> Any:
        return await anext(source, nothing_more)

    try:
        while (item := run(step())) is not nothing_more:
            yield item
    finally:
        end(source.aclose())


class QMTClient:
    __doc__ = (AsyncQMTClient.__doc__ or "").replace(
        "Every method has the same name and arguments on `QMTClient`. Use it as ``async with``, "
        "or call\n    `close`.",
        "Every method has the same name and arguments on `AsyncQMTClient`. It may be used from "
        "scripts,\n    notebooks and several threads. Use it as ``with``, or call `close`; at "
        "the end of the program\n    it closes by itself.",
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        jobs_url: str | None = None,
        prefix: str | None = None,
        api_key: str | None = None,
        archive_url: str | None = None,
        tz: str | None = "Asia/Shanghai",
        timeout_s: float = 60.0,
        progress: ShowProgress = None,
    ) -> None:
        def make() -> AsyncQMTClient:
            return AsyncQMTClient(
                url,
                host=host,
                port=port,
                jobs_url=jobs_url,
                prefix=prefix,
                api_key=api_key,
                archive_url=archive_url,
                tz=tz,
                timeout_s=timeout_s,
                progress=progress,
            )

        self._make = make
        self._client = make()
        self._loop = _Loop()
        self._finalizer = weakref.finalize(self, _stop, self._loop, self._client)

    def __repr__(self) -> str:
        return repr(self._client).replace("Async", "", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        self._finalizer()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        if not self._finalizer.alive:
            work.close()
            raise RuntimeError(_CLOSED)
        return self._loop.run(work)

    def _end(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run what ends something; a closed client and a forked child have nothing left of it."""
        if not self._finalizer.alive:
            work.close()
            return
        with suppress(WrongProcess):
            self._loop.run(work)

    def history(
        self,
        codes: Codes,
        period: str = "1d",
        *,
        start: Any = None,
        end: Any = None,
        count: int | None = None,
        fields: Codes | None = None,
        adjust: str | None = "none",
        download: Literal["auto", "never"] = "auto",
        fill: bool = False,
        layout: Literal["long", "wide"] | None = None,
        progress: ShowProgress = None,
        timeout_s: float | None = None,
    ) -> Any:
        return self._run(
            self._client.history(
                codes,
                period,
                start=start,
                end=end,
                count=count,
                fields=fields,
                adjust=adjust,
                download=download,
                fill=fill,
                layout=layout,
                progress=progress,
                timeout_s=timeout_s,
            )
        )

    def get_history(
        self,
        stock: str,
        period: str = "1d",
        count: int = 100,
        fields: Codes | None = None,
        *,
        start: Any = None,
        end: Any = None,
        adjust: str | None = "none",
    ) -> pd.DataFrame:
        return self._run(
            self._client.get_history(
                stock, period, count, fields, start=start, end=end, adjust=adjust
            )
        )

    def get_batch_history(
        self,
        stocks: Codes,
        period: str = "1d",
        count: int = 100,
        fields: Codes | None = None,
        *,
        start: Any = None,
        end: Any = None,
        adjust: str | None = "none",
    ) -> HistoryFrames:
        return self._run(
            self._client.get_batch_history(
                stocks, period, count, fields, start=start, end=end, adjust=adjust
            )
        )

    def download(
        self,
        codes: Codes | None = None,
        period: str = "1d",
        start: Any = None,
        end: Any = None,
        *,
        stock: str | None = None,
        stocks: Codes | None = None,
        progress: ShowProgress = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        return self._run(
            self._client.download(
                codes,
                period,
                start,
                end,
                stock=stock,
                stocks=stocks,
                progress=progress,
                timeout_s=timeout_s,
            )
        )

    def sector_stocks(self, sector: str) -> list[str]:
        return self._run(self._client.sector_stocks(sector))

    def get_sector_stocks(self, sector: str) -> list[str]:
        return self._run(self._client.get_sector_stocks(sector))

    def instrument_detail(self, codes: Codes) -> dict[str, Any]:
        return self._run(self._client.instrument_detail(codes))

    def get_instrument_detail(self, stock: str) -> dict[str, Any]:
        return self._run(self._client.get_instrument_detail(stock))

    def full_tick(self, codes: Codes) -> Ticks:
        return self._run(self._client.full_tick(codes))

    def get_full_tick(self, stocks: Codes) -> Ticks:
        return self._run(self._client.get_full_tick(stocks))

    def latest(self, codes: Codes | None = None, *, markets: Sequence[str] = ()) -> Latest[Tick]:
        return self._run(self._client.latest(codes, markets=markets))

    def ticks(
        self,
        codes: Codes | None = None,
        *,
        markets: Sequence[str] = (),
        start: Any = None,
        position: Mapping[str, Any] | None = None,
        snapshot: bool = False,
        conflate: bool = False,
        on_gap: OnGap | None = None,
    ) -> Live[Tick]:
        live = self._client.ticks(
            codes,
            markets=markets,
            start=start,
            position=position,
            snapshot=snapshot,
            conflate=conflate,
            on_gap=on_gap,
        )
        return Live(live, self._run, self._end)

    def bars(
        self,
        codes: Codes,
        period: str = "1m",
        *,
        position: Mapping[str, Any] | None = None,
        snapshot: bool = False,
        on_gap: OnGap | None = None,
    ) -> Live[Bar]:
        live = self._client.bars(codes, period, position=position, snapshot=snapshot, on_gap=on_gap)
        return Live(live, self._run, self._end)

    async def subscribe_realtime(
        self, stocks: Codes, callback: OnData, period: str = "tick"
    ) -> None:
        # On the caller's own loop, where the callback belongs.
        async with self._make() as client:
            await client.subscribe_realtime(stocks, callback, period)

    def stored_ticks(
        self,
        codes: Codes | None = None,
        start: Any = None,
        end: Any = None,
        *,
        markets: Sequence[str] = (),
        sectors: Sequence[str] = (),
        fields: Codes | None = None,
        as_: Form = "frame",
    ) -> Any:
        return self._stepped(
            self._run(
                self._client.stored_ticks(
                    codes, start, end, markets=markets, sectors=sectors, fields=fields, as_=as_
                )
            )
        )

    def stored_bars(
        self,
        codes: Codes | None = None,
        period: str = "1m",
        start: Any = None,
        end: Any = None,
        *,
        markets: Sequence[str] = (),
        sectors: Sequence[str] = (),
        fields: Codes | None = None,
        as_: Form = "frame",
    ) -> Any:
        return self._stepped(
            self._run(
                self._client.stored_bars(
                    codes,
                    period,
                    start,
                    end,
                    markets=markets,
                    sectors=sectors,
                    fields=fields,
                    as_=as_,
                )
            )
        )

    def replay(
        self,
        codes: Codes | None = None,
        start: Any = None,
        end: Any = None,
        speed: float | Literal["max"] = 1.0,
        *,
        markets: Sequence[str] = (),
        sectors: Sequence[str] = (),
        period: str = "tick",
        skip_idle_s: float | None = 1800.0,
        on_gap: OnGap | None = None,
    ) -> Replay[Any]:
        replay = self._client.replay(
            codes,
            start,
            end,
            speed,
            markets=markets,
            sectors=sectors,
            period=period,
            skip_idle_s=skip_idle_s,
            on_gap=on_gap,
        )
        return Replay(replay, self._run, self._end)

    def _stepped(self, answer: Any) -> Any:
        """Make an iterator of an answer that has to be awaited bit by bit."""
        if not isinstance(answer, AsyncGenerator):
            return answer
        return _stepped(answer, self._run, self._end)

    def status(self) -> Status:
        return self._run(self._client.status())


for _name, _method in vars(QMTClient).items():
    if not _name.startswith("_") and not _method.__doc__:
        _method.__doc__ = getattr(AsyncQMTClient, _name).__doc__
