"""What a reader says and is told of single codes and bars, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import redis
from waiting import WITHIN_S
from wanting import heard_on

import qmt_reading.live.demand
from qmt_protocol.errors import AccessDenied, QMTError
from qmt_protocol.keys import Keys
from qmt_reading.live.demand import Demand
from qmt_runtime.connections import connect_async
from qmt_standalone.redis_server import RedisServer

KEYS = Keys("w")
MINE, OTHER = "1m|600519.SH", "5m|600519.SH"


class Reader:
    def __init__(self, url: str) -> None:
        self._connection = connect_async(url)
        self.refused: list[tuple[str, QMTError]] = []
        self.wants = Demand(
            self._connection, KEYS, on_refused=lambda *told: self.refused.append(told)
        )

    async def close(self) -> None:
        await self.wants.close()
        await self._connection.aclose()

    async def until(self, condition: Any) -> None:
        for _ in range(int(WITHIN_S / 0.02)):
            if condition():
                return
            await asyncio.sleep(0.02)
        raise TimeoutError


@pytest_asyncio.fixture
async def reader(
    streams_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Reader]:
    for name in ("_LOOK_S", "_SETTLE_S", "_HEARD_S", "SAY_EVERY_S"):
        monkeypatch.setattr(qmt_reading.live.demand, name, 0.05)
    made = Reader(streams_server.url)
    yield made
    await made.close()


async def test_wants_are_said_at_once_and_again_though_nobody_listens(
    reader: Reader, streams: redis.Redis
) -> None:
    reader.wants.add([MINE])
    await reader.until(lambda: "publish" in str(streams.info("commandstats")))
    with heard_on(streams, KEYS.demand_channel) as heard:
        await reader.until(lambda: heard().count(MINE) >= 1)
        reader.wants.add([OTHER])
        await reader.until(lambda: OTHER in heard())
        reader.wants.remove([MINE])
        said = heard().count(OTHER)
        await reader.until(lambda: heard().count(OTHER) > said)
        assert heard()[-1] == OTHER
    assert reader.refused == []
    assert streams.keys("w:*") == [], "nothing is stored"


async def test_what_is_refused_by_name_and_what_with_all_others(
    reader: Reader, streams: redis.Redis
) -> None:
    no_room = json.dumps({"reason": "no room", "at_ms": 1})
    others = {"reason": "1,000 are wanted already", "known": [MINE, "1m|000001.SZ"]}
    streams.hset(KEYS.refused, MINE, no_room)
    streams.hset(KEYS.refused, "*.SH", json.dumps(others))
    reader.wants.add([MINE, OTHER, "1m|000001.SZ"])
    await reader.until(lambda: len(reader.refused) == 2)
    told = {series: error.message for series, error in reader.refused}
    assert told == {
        MINE: "1m bars of 600519.SH are refused: no room",
        OTHER: "5m bars of 600519.SH are refused: 1,000 are wanted already",
    }
    others["known"] = [OTHER]
    streams.hset(KEYS.refused, "*.SH", json.dumps(others))
    streams.hset(KEYS.refused, "1m|000001.SZ", no_room)
    await reader.until(lambda: len(reader.refused) == 3)
    assert reader.refused[-1][0] == "1m|000001.SZ"
    streams.delete(KEYS.refused)


@pytest.mark.parametrize(
    "document", [b"\xff\xfe", b"", b"[]", b'{"reason": 7}', b"[" * 50_000, b'{"known": {}}']
)
async def test_a_refusal_that_cannot_be_read_is_one(
    reader: Reader, streams: redis.Redis, document: bytes
) -> None:
    streams.hset(KEYS.refused, MINE, document)
    reader.wants.add([MINE])
    await reader.until(lambda: reader.refused)
    assert "cannot be read" in reader.refused[0][1].message
    streams.hset(KEYS.refused, MINE, json.dumps({"reason": "x" * 100_000}))
    await reader.until(lambda: len(reader.refused) == 2)
    assert len(reader.refused[1][1].message) < 400
    streams.delete(KEYS.refused)


async def test_another_type_of_key_hides_refusals_and_wants_are_said_on(
    reader: Reader, streams: redis.Redis
) -> None:
    streams.set(KEYS.refused, "x")
    with heard_on(streams, KEYS.demand_channel) as heard:
        reader.wants.add([MINE])
        await reader.until(lambda: heard().count(MINE) >= 3)
    streams.delete(KEYS.refused)
    streams.hset(KEYS.refused, MINE, json.dumps({"reason": "no room"}))
    await reader.until(lambda: reader.refused)
    streams.delete(KEYS.refused)


async def test_who_may_say_nothing_is_told_so(
    streams: redis.Redis, streams_server: RedisServer
) -> None:
    streams.acl_setuser(
        "mute",
        enabled=True,
        passwords=["+secret"],
        categories=["+@all"],
        commands=["-publish"],
        keys=["*"],
    )
    reader = Reader(f"redis://mute:secret@127.0.0.1:{streams_server.port}/0")
    try:
        reader.wants.add([MINE])
        await reader.until(lambda: reader.refused)
        assert isinstance(reader.refused[0][1], AccessDenied)
    finally:
        await reader.close()
        streams.acl_deluser("mute")


async def test_many_wants_change_while_they_are_said(reader: Reader, streams: redis.Redis) -> None:
    """Adding and removing while messages are on their way ends nothing."""
    codes = [f"1m|{number:06}.SH" for number in range(10_000)]
    with heard_on(streams, KEYS.demand_channel) as heard:
        for start in range(0, len(codes), 500):
            reader.wants.add(codes[start : start + 500])
            await asyncio.sleep(0.005)
            reader.wants.remove(codes[start : start + 250])
        await reader.until(lambda: set(reader.wants.held) <= set(heard()))
    assert len(reader.wants.held) == 5_000
