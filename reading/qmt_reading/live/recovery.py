"""Giving from the codes' own streams what the feeds no longer hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import redis.asyncio

from qmt_protocol.cursor.batch import Batch
from qmt_protocol.cursor.cursor import Cursor
from qmt_protocol.keys import Keys
from qmt_reading.stored.streams import read_stored

from .feed import FeedReader

__all__ = ["recover"]


async def recover(
    connection: redis.asyncio.Redis, keys: Keys, address: str, reader: FeedReader, cursor: Cursor
) -> AsyncGenerator[Batch, None]:
    """Yield what the streams of the markets in `Cursor.recovery` hold, then go on in their feeds.

    Raises
    ------
    RedisUnavailable
        When the server does not answer; the same may be done again.
    """
    markets = list(cursor.recovering)
    # The feeds' ends first: what is published while the streams are read is in both.
    snapshot = await reader.begin({market: cursor.scope.codes_of(market) for market in markets})
    async for rows in read_stored(
        connection,
        keys,
        cursor.recover(snapshot),
        on_trimmed=cursor.trim,
        on_unreadable=cursor.leave_out,
        address=address,
    ):
        yield cursor.take_stored(rows)
    yield cursor.recovered(await reader.filed(markets))
