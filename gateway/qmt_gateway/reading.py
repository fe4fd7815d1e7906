"""Reading what is stored, a few at a time: what is being decoded takes twice what then waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import pyarrow as pa

from qmt_client.stored_source import RedisStored, StoredWish
from qmt_client.transport import OnGap
from qmt_protocol.archive import Missing

__all__ = ["READING_BYTES", "Readings"]

READING_BYTES: Final = 32_000_000
"""What one reading holds while it waits for its caller, at most, as measured."""
_AT_ONCE: Final = 3


class Readings:
    """Archive and streams, read by many and for few at the same time."""

    def __init__(self, source: RedisStored) -> None:
        self._source = source
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def batches(
        self, wish: StoredWish, on_gap: OnGap
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """Yield rows as `RedisStored.batches` does; each batch waits its turn."""
        async with aclosing(self._source.batches(wish, on_gap)) as batches:
            while True:
                async with self._turns:
                    batch = await anext(batches, None)
                if batch is None:
                    return
                yield batch
                batch = None  # not held while the next one is read

    async def missing(self, wish: StoredWish) -> list[Missing]:
        """Return what is known to be absent."""
        return await self._source.missing(wish)

    async def markets(self) -> list[str]:
        """Return the markets that are archived."""
        return await self._source.markets()
