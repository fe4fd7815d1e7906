"""A replay's prefix behind an unmodified gateway: the client reads the day through it, live."""

from __future__ import annotations

import json
from pathlib import Path

import redis
from archive_maker import ArchiveMaker
from live_processes import process
from waiting import wait_for

from qmt_client import NOW_LIVE, QMTClient
from qmt_protocol.keys import Keys
from qmt_protocol.ticks import encode_tick
from qmt_protocol.times import day_start_ms, to_datetime
from qmt_standalone.redis_server import RedisServer

DAY = 20261120
OPEN_MS = day_start_ms(DAY) + (9 * 60 + 30) * 60_000
CODES = [f"{600_000 + n}.SH" for n in range(4)]
ROUNDS = 200


def test_a_gateway_serves_a_replayed_day(
    streams: redis.Redis, streams_server: RedisServer, jobs_server: RedisServer, tmp_path: Path
) -> None:
    keys, to = Keys(), Keys("replay-20261120")
    for number in range(ROUNDS):
        at_ms = OPEN_MS + number * 200
        for code in CODES:
            t1 = encode_tick({"time": at_ms, "lastPrice": 10.0 + number, "volume": number})
            streams.xadd(keys.tick(code), {"t1": t1}, id=f"{at_ms}-0")
    maker = ArchiveMaker(tmp_path / "archive", streams)
    maker.ticks(CODES, DAY)
    streams.flushall()  # the archive alone has it
    env = {"QMT_STREAMS_URL": streams_server.url, "QMT_JOBS_URL": jobs_server.url}
    day = ["--day", str(DAY), "--speed", "10", "--archive-url", maker.url]
    with (
        process("qmt_producer.replay", *day, **env) as (replay, _),
        process("qmt_gateway", "--port", "0", "--prefix", to.prefix, **env) as (_, out),
    ):
        url = json.loads(out.readline())["url"]
        wait_for(lambda: bool(streams.exists(to.latest("SH"))), "the replay begins")
        seen: dict[str, list[float]] = {code: [] for code in CODES}
        left, joined = ROUNDS * len(CODES), False
        with (
            QMTClient(url) as client,
            client.ticks(markets=["SH"], start=to_datetime(OPEN_MS)) as ticks,
        ):
            for tick in ticks:
                if tick is NOW_LIVE:
                    joined = True
                else:
                    assert tick.id == f"{OPEN_MS + len(seen[tick.code]) * 200}-0"
                    seen[tick.code].append(tick["lastPrice"])
                    left -= 1
                if not left and joined:
                    break
            assert client.latest(CODES[0])[CODES[0]]["volume"] == ROUNDS - 1
        assert replay.wait(60) == 0
    prices = [10.0 + number for number in range(ROUNDS)]
    assert all(of_code == prices for of_code in seen.values())
