"""Stored ticks and bars through the gateway: an Arrow IPC stream, decoded as it comes."""

from __future__ import annotations

import asyncio
import io
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final

import msgspec
import pyarrow as pa

from qmt_protocol.archive import Missing
from qmt_protocol.codes import market_of
from qmt_protocol.errors import CodecError
from qmt_protocol.times import to_datetime

from .ordering import conform, where_code
from .stored_source import StoredWish, finished
from .transport import OnGap

__all__ = ["GatewayStored"]

_AHEAD_CHUNKS: Final = 16
_CODES_PER_URL: Final = 500
_BUFFER_BYTES: Final = 1 << 18
_BROKE_WITHIN_S: Final = 1.0

Open = Callable[[str, dict[str, str]], AbstractAsyncContextManager[AsyncIterator[bytes]]]
Ask = Callable[[str, dict[str, str]], Any]


class GatewayStored:
    """Reads what a gateway has stored.

    Parameters
    ----------
    stream
        Opens a GET request: path and query to an iterator of its body.
    ask
        Coroutine function: path and query to the document answered.
    """

    def __init__(self, stream: Open, ask: Ask) -> None:
        self._stream = stream
        self._ask = ask

    async def batches(
        self, wish: StoredWish, on_gap: OnGap
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """Yield stored rows; see `StoredSource`.

        Raises
        ------
        GatewayUnavailable
            Also when the answer breaks off.
        QMTError
            Whatever the gateway answers with.
        """
        if not (wish.codes or wish.markets):
            return
        path = f"/api/v1/stored/{'ticks' if wish.period == 'tick' else 'bars'}"
        query = {**_query(wish), "format": "arrow"}
        if wish.columns is not None:
            query["fields"] = ",".join(wish.columns)
        async with (
            self._stream(path, query) as body,
            aclosing(_decoded(body)) as batches,
        ):
            async for batch in batches:
                table = conform(pa.Table.from_batches([batch]), wish.schema)
                if wish.codes is not None and len(wish.codes) > _CODES_PER_URL:
                    wanted = pa.array(wish.codes, pa.string())
                    table = table.take(where_code(table.column("code"), wanted))
                for one in table.combine_chunks().to_batches():
                    yield one

    async def missing(self, wish: StoredWish) -> list[Missing]:
        """Return what is known to be absent; see `StoredSource`."""
        if wish.period != "tick":
            return []
        told = await self._ask("/api/v1/archive", {})
        try:
            found = msgspec.convert(told.get("missing") or [], list[Missing])
        except (msgspec.ValidationError, AttributeError) as error:
            raise CodecError(f"/api/v1/archive did not answer with an archive: {error}.") from error
        return wish.concerned(found)

    async def markets(self) -> list[str]:
        """Return the markets that are archived."""
        told = await self._ask("/api/v1/archive", {})
        return sorted(told.get("markets") or [])


def _query(wish: StoredWish) -> dict[str, str]:
    query = {}
    markets = wish.markets
    if wish.codes is not None and len(wish.codes) <= _CODES_PER_URL:
        query["codes"] = ",".join(wish.codes)
    elif wish.codes is not None:  # too many for a URL: all of their markets, sorted out here
        markets = tuple(sorted({market_of(code) for code in wish.codes}))
    if markets:
        query["markets"] = ",".join(markets)
    if wish.period != "tick":
        query["period"] = wish.period
    for name, at_ms in (("start", wish.start_ms), ("end", wish.end_ms)):
        if at_ms is not None:
            query[name] = to_datetime(at_ms).isoformat(timespec="milliseconds")
    return query


async def _decoded(body: AsyncIterator[bytes]) -> AsyncGenerator[pa.RecordBatch, None]:
    """Decode an Arrow IPC stream; what is read ahead is bounded."""
    pipe = _Pipe()

    async def pump() -> None:
        try:
            async for data in body:
                await pipe.put(data)
        finally:
            pipe.end()

    pumping = asyncio.ensure_future(pump())
    try:
        reader = await finished(_opened, pipe)
        while (batch := await finished(_next, reader)) is not None:
            yield batch
        await pumping
    except (pa.ArrowException, OSError) as error:
        done, _ = await asyncio.wait([pumping], timeout=_BROKE_WITHIN_S)
        for one in done:
            one.result()  # when the connection broke, that is the reason
        raise CodecError(f"The gateway's answer is not an Arrow stream: {error}.") from error
    finally:
        pipe.close()
        pumping.cancel()
        await asyncio.wait([pumping])


def _opened(pipe: _Pipe) -> Any:
    return pa.ipc.open_stream(io.BufferedReader(pipe, _BUFFER_BYTES))


def _next(reader: Any) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None


class _Pipe(io.RawIOBase):
    """A file that a thread reads while the event loop fills it; what waits is bounded."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = memoryview(b"")
        self._room = asyncio.Semaphore(_AHEAD_CHUNKS)
        self._loop = asyncio.get_running_loop()
        self._over = False

    async def put(self, data: bytes) -> None:
        if data:
            await self._room.acquire()
            self._chunks.put(data)

    def end(self) -> None:
        """Tell the reader that nothing more comes."""
        self._chunks.put(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and not self._over:
            data = self._chunks.get()
            if not data:
                self._over = True
                break
            self._rest = memoryview(data)
            self._loop.call_soon_threadsafe(self._room.release)
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
