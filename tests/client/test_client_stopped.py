"""A reader whose process, or machine, stood still: it looks before it reads on."""

from __future__ import annotations

import asyncio

import redis
from waiting import wait_for

from qmt_protocol.keys import Keys
from qmt_reading.live.feed import FeedReader
from qmt_runtime.connections import connect_async
from qmt_standalone.redis_server import RedisServer

KEYS = Keys()
FEED = KEYS.feed("SH")


def added(streams: redis.Redis) -> str:
    return bytes(streams.xadd(FEED, {"b1": b"\x90"})).decode()


async def test_what_was_trimmed_while_an_answer_lay_unread_is_told(
    streams: redis.Redis, streams_server: RedisServer
) -> None:
    first = added(streams)
    async with connect_async(streams_server.url) as connection:
        reader = FeedReader(connection, KEYS, ["SH"], offsets={"SH": ("", "0-0")})
        assert [one.id for one in (await reader.read()).entries] == [first]
        waits = asyncio.create_task(reader.read())
        await asyncio.to_thread(
            wait_for, lambda: streams.info("clients")["blocked_clients"], "the reader waits"
        )
        answer = added(streams)
        # From here on nothing of the reader's runs, and Redis goes on.
        began_s = streams.time()[0]
        wait_for(lambda: streams.time()[0] > began_s + 1, "Redis' clock goes on")
        missed = added(streams)
        left = added(streams)
        streams.xtrim(FEED, minid=left, approximate=False)
        # It goes on.
        assert [one.id for one in (await waits).entries] == [answer]
        found = await reader.read()
    assert [one.id for one in found.entries] == [left], missed
    assert [(one.reason, one.after[1]) for one in found.breaks] == [("trimmed", answer)]
