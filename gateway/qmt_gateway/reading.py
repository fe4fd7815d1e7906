"""Reading what is stored: one batch at a time, and not all the time while several wait.

What is being decoded takes twice the memory of what then waits for its caller, and the processor
from everybody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import pyarrow as pa

from qmt_protocol.archive import Missing
from qmt_reading.callbacks import OnGap
from qmt_reading.requests import StoredRequest
from qmt_reading.stored.source import RedisStored

__all__ = ["READING_BYTES", "Readings"]

READING_BYTES: Final = 32_000_000
"""What one reading holds while it waits for its caller, at most, as measured."""
_REST_S: Final = 0.25
"""Longest pause behind a batch that others wait for."""


class Readings:
    """Archive and streams, read by many and for few at the same time."""

    def __init__(self, source: RedisStored) -> None:
        self._source = source
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def batches(
        self, request: StoredRequest, on_gap: OnGap
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """Yield rows as `RedisStored.batches` does; each batch waits its turn."""
        async with aclosing(self._source.batches(request, on_gap)) as batches:
            while True:
                batch = await self._next(batches)
                if batch is None:
                    return
                yield batch
                batch = None  # not held while the next one is read

    async def _next(self, batches: AsyncGenerator[pa.RecordBatch, None]) -> pa.RecordBatch | None:
        self._waiting += 1
        try:
            async with self._turn:
                began = time.monotonic()
                batch = await anext(batches, None)
                if self._waiting > 1:  # as long again belongs to those who ask for little
                    await asyncio.sleep(min(_REST_S, time.monotonic() - began))
                return batch
        finally:
            self._waiting -= 1

    async def missing(self, request: StoredRequest) -> list[Missing]:
        """Return what is known to be absent."""
        return await self._source.missing(request)

    async def markets(self) -> list[str]:
        """Return the markets that are archived."""
        return await self._source.markets()

    async def simulated(self, request: StoredRequest) -> bool:
        """Whether rows of a request may be the simulator's."""
        return request.concerns(await self._source.simulated_markets())

    async def simulated_markets(self) -> frozenset[str]:
        """Return the markets of which rows were invented by the simulator."""
        return await self._source.simulated_markets()
