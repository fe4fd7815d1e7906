"""What `QMTClient` runs on: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from qmt_protocol.errors import WrongProcess
from qmt_runtime.fork_guard import ForkGuard

from .async_client import AsyncQMTClient
from .live import Run
from .progress import ShowProgress
from .user_warnings import Waiting

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SyncBase"]

_T = TypeVar("_T")
_SLICE_S: Final = 0.2
_END_WITHIN_S: Final = 5.0
_CLOSED: Final = "This QMTClient is closed."


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._guard = ForkGuard()
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
            self._guard.check()
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
                self._warnings.show()
            self._warnings.show()
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
        if self._loop.is_closed() or not self._guard.is_here:
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


class SyncBase:
    """An `AsyncQMTClient` on a loop of its own, and how its coroutines are run to their end."""

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
        """End the iterations that are still open, close all connections and end the loop.

        A job that still runs for a waiting caller is not touched.
        """
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

    @overload
    def _stepped(self, answer: AsyncGenerator[_T, None]) -> Iterator[_T]: ...

    @overload
    def _stepped(self, answer: _T) -> _T: ...

    def _stepped(self, answer: Any) -> Any:
        """Make an iterator of an answer that has to be awaited bit by bit."""
        if not isinstance(answer, AsyncGenerator):
            return answer
        return _stepped(answer, self._run, self._end)
