"""The one reader of all markets and events: what ends it is told, and it begins again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import redis
from test_gateway_subscriber import FakeSink
from waiting import WITHIN_S, wait_for

from qmt_gateway.budget import Budget
from qmt_gateway.hub import Hub
from qmt_gateway.subscriber import Subscriber
from qmt_gateway.wires import JSON
from qmt_reading.live.feed import FeedReader
from qmt_reading.redis_transport import RedisTransport
from qmt_standalone.redis_server import RedisServer

GAP = {"kind": "gap", "reason": "x", "market": "SH", "at_ms": 1}


async def test_events_are_followed_anew_after_an_error_that_nobody_foresaw(
    streams: redis.Redis, streams_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failed = FeedReader.read, asyncio.Event()

    async def fails_once(self: FeedReader, **options: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise ValueError("nobody foresaw this")
        return await read(self, **options)

    monkeypatch.setattr(FeedReader, "read", fails_once)
    transport = RedisTransport(streams_server.url)
    hub = Hub(transport, flush_s=0.01, max_bytes=1_000_000, budget=Budget(10_000_000))
    try:
        hub.open(Subscriber(FakeSink(reads=True), JSON, 1_000_000, hub.budget))
        await asyncio.wait_for(failed.wait(), WITHIN_S)
        told = streams.xadd("qmt:events", {"e": json.dumps(GAP)}).decode()
        await asyncio.to_thread(wait_for, lambda: hub.events_id == told, "the gap is heard of")
    finally:
        await hub.close()
        await transport.close()
