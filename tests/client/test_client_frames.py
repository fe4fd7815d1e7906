"""Frames in other layouts, and warnings that come every time and at the user's own line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import redis
from client_archive import T0, make_wires, publish_wires
from client_gateway import running_gateway
from fake_worker import FakeWorker, beat, make_tick, publish, table
from waiting import wait_for

from qmt_client import NOW_LIVE, AsyncQMTClient, QMTClient, QMTWarning, to_frame
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.tables import TICK_TABLE
from qmt_protocol.ticks import decode_tick
from qmt_standalone.redis_server import RedisServer

CODE, OTHER = "600519.SH", "000001.SZ"
LABELS = [1_767_542_400_000, 1_767_628_800_000]
MakeWorker = Callable[..., FakeWorker]


def uneven(params: dict[str, Any]) -> Any:
    """Give the second code a row less."""
    rows = {code: LABELS[at:] for at, code in enumerate(params["codes"])}
    return table(params["period"], rows, params["fields"])


def test_wide_has_a_column_for_each_code(client: QMTClient, make_worker: MakeWorker) -> None:
    with make_worker(history=uneven):
        close = client.history([CODE, OTHER], layout="wide", fields="close")
        both = client.history([CODE, OTHER], layout="wide", fields=["close", "volume"])
        long = client.history([CODE, OTHER], layout="long", fields="close")
    assert list(close.columns) == [CODE, OTHER]
    assert close.index.name == "time"
    assert str(close.index.dtype) == "datetime64[ns, Asia/Shanghai]"
    for code in (CODE, OTHER):
        expected = long[long["code"] == code]["close"]
        pd.testing.assert_series_equal(close[code].dropna(), expected, check_names=False)
    assert np.isnan(close[OTHER].iloc[0])
    assert list(both.columns) == [
        *(("close", code) for code in (CODE, OTHER)),
        *(("volume", code) for code in (CODE, OTHER)),
    ]
    assert close.attrs["simulated"] is True
    with pytest.raises(InvalidRequest, match="wide"):
        client.history([CODE], "tick", layout="wide")
    with pytest.raises(InvalidRequest, match="layout='tall'"):
        client.history([CODE], layout="tall")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("adjust", "name", "method"),
    [
        ("none", "none", ""),
        ("qfq", "front", "additive"),
        ("hfq", "back", "additive"),
        ("front_ratio", "front_ratio", "ratio"),
    ],
)
def test_attrs_say_how_a_frame_is_adjusted(
    client: QMTClient, make_worker: MakeWorker, adjust: str, name: str, method: str
) -> None:
    with make_worker(history=uneven):
        frame = client.history(CODE, adjust=adjust)
    assert (frame.attrs["adjust"], frame.attrs["adjust_method"]) == (name, method)


def test_a_request_may_have_its_own_time_and_a_client_says_where_it_reads(
    client: QMTClient, make_worker: MakeWorker, streams_server: RedisServer
) -> None:
    with make_worker(history=uneven):
        client.history(CODE, timeout_s=30.0)
    address = streams_server.url.rpartition("@")[2].removesuffix("/0")
    assert repr(client) == f"QMTClient(Redis at {address})"
    with QMTClient("http://user:secret@10.0.0.1:8000") as other:
        assert repr(other) == "QMTClient(the gateway at 10.0.0.1:8000)"


def test_live_and_stored_ticks_have_one_layout(
    client: QMTClient, streams: redis.Redis, producer: Callable[[], None]
) -> None:
    wires = make_wires(200, [CODE, OTHER], strange=False)
    publish_wires(streams, wires)
    ticks = [decode_tick(t1, code, at) for code, at, t1 in wires]
    live = to_frame([*ticks, NOW_LIVE])
    stored = client.stored_ticks([CODE, OTHER])
    assert list(live.columns) == list(stored.columns) == ["code", *(c.name for c in TICK_TABLE)]
    assert live.index.dtype == stored.index.dtype
    by_time = [frame.assign(code=frame["code"].astype(str)) for frame in (live, stored)]
    by_time = [one.sort_values(["time", "code", "volume"], kind="stable") for one in by_time]
    pd.testing.assert_frame_equal(*by_time)
    latest = client.full_tick([CODE, OTHER]).to_frame()
    assert latest["code"].tolist() == [CODE, OTHER]
    assert latest.attrs["simulated"] is True
    assert client.latest(markets=["SH"]).to_frame()["code"].tolist() == [CODE]
    assert list(to_frame([]).columns) == list(live.columns)
    assert to_frame(ticks, tz=None).index.tz is None
    with pytest.raises(InvalidRequest, match="ticks, or bars"):
        to_frame([ticks[0], {"lastPrice": 1.0}])  # type: ignore[list-item]


THREE_TIMES = """
import sys
from qmt_client import QMTClient
with QMTClient({url!r}) as client:
    for _ in range(3):
        client.full_tick(["600519.SH", "600518.SH"])  # line 5
"""


def test_left_out_codes_are_told_every_time_at_the_users_line(
    streams: redis.Redis, target: dict[str, str], producer: Callable[[], None]
) -> None:
    """With the filters that Python has by itself."""
    publish(streams, "SH", [(CODE, make_tick(T0))])
    done = subprocess.run(
        [sys.executable, "-c", THREE_TIMES.format(url=target["url"])],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = [line for line in done.stderr.splitlines() if "600518.SH" in line]
    assert len(told) == 3
    assert all(line.startswith("<string>:6: QMTWarning") for line in told), told


async def test_of_a_coroutine_too(
    streams: redis.Redis, target: dict[str, str], producer: Callable[[], None]
) -> None:
    publish(streams, "SH", [(CODE, make_tick(T0))])
    async with AsyncQMTClient(**target) as client:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            await client.full_tick([CODE, "600518.SH"])
    assert [one.filename for one in told if one.category is QMTWarning] == [__file__]


def test_a_users_own_filter_counts(
    client: QMTClient, streams: redis.Redis, producer: Callable[[], None]
) -> None:
    publish(streams, "SH", [(CODE, make_tick(T0))])
    with warnings.catch_warnings():
        warnings.simplefilter("error", QMTWarning)
        with pytest.raises(QMTWarning, match="600518"):
            client.full_tick([CODE, "600518.SH"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore", QMTWarning)
        client.full_tick([CODE, "600518.SH"])
    assert told == []


async def test_a_gateway_that_goes_is_told_within_seconds_and_when_it_is_back(
    streams: redis.Redis, target: dict[str, str]
) -> None:
    beat(streams, "producer", markets=["SH"])
    publish(streams, "SH", [(CODE, make_tick(T0))])
    with running_gateway(target) as gateway:
        url, port = gateway.url, int(gateway.url.rpartition(":")[2])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")

            def words() -> str:
                return " ".join(str(one.message) for one in told)

            async with AsyncQMTClient(url) as client:
                live = client.ticks(CODE, snapshot=True)
                await anext(live)
                waiting = asyncio.create_task(anext(live))
                gateway.process.kill()
                await asyncio.to_thread(gateway.process.wait, 60)
                await asyncio.to_thread(
                    wait_for,
                    lambda: "No ticks come until it answers again" in words(),
                    "that it is gone is told",
                )
                with running_gateway(target, port):
                    await asyncio.to_thread(
                        wait_for, lambda: "answers again." in words(), "that it is back is told"
                    )
                waiting.cancel()
                await asyncio.wait([waiting])


def test_a_full_position_that_is_none_says_so(
    client: QMTClient, streams: redis.Redis, producer: Callable[[], None]
) -> None:
    publish(streams, "SH", [(CODE, make_tick(T0, 1.0, 1))])
    with client.ticks(CODE, snapshot=True) as live:
        next(live)
        short, full = live.position, live.full_position
    assert "codes" in json.loads(json.dumps(full))
    assert "codes" not in short
    publish(streams, "SH", [(CODE, make_tick(T0 + 10**6, 1.0, 7))])
    for position, is_full in ((full, True), (short, False)):
        with client.ticks(CODE, position=position) as live:
            next(live)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                again = live.full_position
        assert ("codes" in again) is is_full
        assert len(told) == (0 if is_full else 1)
