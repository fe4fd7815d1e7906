"""Closing is done to its end: no connection stays open, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from client_archive import make_wires, publish_wires
from waiting import wait_for

from qmt_client import AsyncQMTClient, QMTClient
from qmt_runtime.connections import connect_async, to_its_end

CODES = ("600519.SH", "000001.SZ")


def named(streams: redis.Redis, name: str) -> int:
    return sum(one["name"] == name for one in streams.client_list())


async def test_closing_goes_on_where_its_caller_is_cancelled(
    streams: redis.Redis, target: dict[str, str]
) -> None:
    """A pool that is cancelled before its connections' own closing has begun closes none."""
    connection = connect_async(target["url"])
    await connection.client_setname("to-be-closed")
    assert named(streams, "to-be-closed") == 1
    closing = asyncio.create_task(to_its_end(connection.aclose()))
    for _ in range(2):
        await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    wait_for(lambda: not named(streams, "to-be-closed"), "the connection is closed")


async def test_a_clients_closing_too(
    streams: redis.Redis, target: dict[str, str], producer: Callable[[], None]
) -> None:
    client = AsyncQMTClient(**target)
    await client.status()
    transport: Any = client.transport
    await transport.streams.client_setname("a-clients")
    closing = asyncio.create_task(client.close())
    for _ in range(4):
        await asyncio.sleep(0)
    closing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    wait_for(lambda: not named(streams, "a-clients"), "the connection is closed")


@pytest.mark.filterwarnings("error")
def test_a_client_closes_what_was_left_open(
    streams: redis.Redis, both_ways: dict[str, str], producer: Callable[[], None]
) -> None:
    """Iterations left in their midst end with the client; nothing is told of tasks destroyed."""
    publish_wires(streams, make_wires(300, CODES))
    with QMTClient(**both_ways) as client:
        live = client.ticks(CODES, snapshot=True)
        next(live)
        pieces = client.stored_ticks(CODES, as_="batches")
        next(pieces)


def test_a_thread_that_waits_is_told(
    streams: redis.Redis, target: dict[str, str], producer: Callable[[], None]
) -> None:
    publish_wires(streams, make_wires(300, CODES))
    client = QMTClient(**target)
    live = client.ticks(CODES, snapshot=True)
    told: list[str] = []

    def follow() -> None:
        try:
            for _ in live:
                told.append("tick")
        except RuntimeError as error:
            told.append(str(error))

    thread = threading.Thread(target=follow)
    thread.start()
    wait_for(lambda: len(told) == len(CODES), "the snapshot was read")
    client.close()
    thread.join(30)
    assert not thread.is_alive()
    assert told[-1] == "This QMTClient is closed."
