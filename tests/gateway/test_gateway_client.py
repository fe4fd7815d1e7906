"""The project's own client over HTTP against the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import pandas as pd
import pytest
from gateway_bench import FIRST_DAY_MS, OPEN_MS, GatewayProcess, Producer, Worker, a_tick, bars

from qmt_client.async_client import AsyncQMTClient
from qmt_protocol.errors import InstrumentNotFound, InvalidCode, NoWorker


async def test_history_latest_and_live_ticks(
    gateway_process: GatewayProcess, producer: Producer, worker: Worker
) -> None:
    worker.answers["history"] = bars
    tick = a_tick(10.5, 1, OPEN_MS)
    producer.beat(markets=("CL",))
    producer.publish(("000001.CL", tick))
    async with AsyncQMTClient(gateway_process.url) as client:
        frame = await client.history("000001.SZ", count=3)
        assert isinstance(frame.index, pd.DatetimeIndex)
        assert frame.index[0].value == FIRST_DAY_MS * 1_000_000
        assert frame["volume"].tolist() == [100, 101, 102]
        assert frame["close"].isna().tolist() == [False, True, False]
        assert frame.attrs["simulated"] is True
        assert dict((await client.full_tick(["000001.CL"]))["000001.CL"]) == tick

        seen: list[dict[str, Any]] = []

        async def follow() -> None:
            async for one in client.ticks(["000001.CL"]):
                seen.append(dict(one))
                if len(seen) == 3:
                    return

        following = asyncio.create_task(follow())
        for number in range(2, 200):
            await asyncio.sleep(0.05)
            if following.done():
                break
            producer.beat(markets=("CL",))
            producer.publish(("000001.CL", a_tick(10.5, number, OPEN_MS + number)))
        await asyncio.wait_for(following, 120)
        volumes = [one["volume"] for one in seen]
        assert volumes == list(range(volumes[0], volumes[0] + 3))


async def test_errors_keep_their_kind(gateway_process: GatewayProcess, producer: Producer) -> None:
    async with AsyncQMTClient(gateway_process.url) as client:
        with pytest.raises(NoWorker):
            await client.history("000001.SZ")
        with pytest.raises(InvalidCode):
            await client.history("000001")
        producer.beat(markets=("SH",))
        with pytest.raises(InstrumentNotFound):
            await client.full_tick("999999.SH")
