"""Stored ticks and bars through the gateway: an Arrow IPC stream, decoded as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Final

import numpy as np
import pyarrow as pa

from qmt_protocol.archive import Missing
from qmt_protocol.arrow_stream import ArrowStream
from qmt_protocol.codes import market_of
from qmt_protocol.errors import CodecError
from qmt_protocol.times import to_datetime
from qmt_reading.callbacks import OnGap
from qmt_reading.requests import StoredRequest
from qmt_reading.stored.ordering import ids_of, where_code
from qmt_reading.stored.source import finished

from .gateway_answers import Archive

__all__ = ["GatewayStored"]

_CODES_PER_URL: Final = 500
_FED_BYTES: Final = 1 << 18
"""What is decoded at once, in a thread."""

Open = Callable[[str, dict[str, str]], AbstractAsyncContextManager[AsyncIterator[bytes]]]


class GatewayStored:
    """Reads what a gateway has stored.

    Parameters
    ----------
    stream
        Opens a GET request: path and query to an iterator of its body.
    archive
        Coroutine function: what the archive holds.
    whose
        The gateway, for messages.
    """

    def __init__(self, stream: Open, archive: Callable[[], Awaitable[Archive]], whose: str) -> None:
        self._stream = stream
        self._archive = archive
        self._whose = whose

    async def batches(
        self, request: StoredRequest, on_gap: OnGap
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """Yield stored rows; see `StoredSource`.

        Raises
        ------
        GatewayUnavailable
            Also when the connection breaks.
        CodecError
            When the answer is not what was asked for, or has no end.
        QMTError
            Whatever the gateway answers with.
        """
        if not (request.codes or request.markets):
            return
        path = f"/api/v1/stored/{'ticks' if request.period == 'tick' else 'bars'}"
        query = {**_query(request), "format": "arrow"}
        if request.columns is not None:
            query["fields"] = ",".join(request.columns)
        what = f"The answer of {self._whose} to {path}"
        stream = ArrowStream(request.schema.equals, what, most_bytes=None)
        last_ms = 0
        async with (
            self._stream(path, query) as body,
            aclosing(_decoded(body, stream)) as batches,
        ):
            async for batch in batches:
                last_ms = _check_order(batch, last_ms, what)
                if request.codes is None or len(request.codes) <= _CODES_PER_URL:
                    yield batch
                    continue
                requested = pa.array(request.codes, pa.string())
                table = pa.Table.from_batches([batch])
                table = table.take(where_code(table.column("code"), requested))
                for one in table.combine_chunks().to_batches():
                    yield one

    async def missing(self, request: StoredRequest) -> list[Missing]:
        """Return what is known to be absent; see `StoredSource`."""
        if request.period != "tick":
            return []
        return request.concerned((await self._archive()).missing)

    async def markets(self) -> list[str]:
        """Return the markets that are archived."""
        return sorted((await self._archive()).markets)

    async def simulated_markets(self) -> frozenset[str]:
        """Return the simulator's markets; see `StoredSource`."""
        return frozenset((await self._archive()).simulated_markets)


def _check_order(batch: pa.RecordBatch, last_ms: int, what: str) -> int:
    """Make sure that no row lies before the one before it; return where the last one lies."""
    ids = ids_of(batch)
    if not len(ids):
        return last_ms
    if ids[0] < last_ms or np.any(ids[1:] < ids[:-1]):
        raise CodecError(f"{what} is not in the order of time.")
    return int(ids[-1])


def _query(request: StoredRequest) -> dict[str, str]:
    query = {}
    markets = request.markets
    if request.codes is not None and len(request.codes) <= _CODES_PER_URL:
        query["codes"] = ",".join(request.codes)
    elif request.codes is not None:  # too many for a URL: all of their markets, sorted out here
        markets = tuple(sorted({market_of(code) for code in request.codes}))
    if markets:
        query["markets"] = ",".join(markets)
    if request.period != "tick":
        query["period"] = request.period
    for name, at_ms in (("start", request.start_ms), ("end", request.end_ms)):
        if at_ms is not None:
            query[name] = to_datetime(at_ms).isoformat(timespec="milliseconds")
    return query


async def _decoded(
    body: AsyncIterator[bytes], stream: ArrowStream
) -> AsyncGenerator[pa.RecordBatch, None]:
    """Decode an Arrow IPC stream as it comes; a message of it is held, no more."""
    waiting = bytearray()
    async for data in body:
        waiting += data
        if len(waiting) >= _FED_BYTES:
            for batch in await finished(stream.feed, bytes(waiting)):
                yield batch
            waiting.clear()
    for batch in await finished(stream.feed, bytes(waiting)):
        yield batch
    stream.end()
