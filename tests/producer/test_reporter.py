"""What the reporter says of itself while Redis refuses it."""

from __future__ import annotations

from pathlib import Path

import redis
from publisher_bench import KEYS
from structlog.testing import capture_logs
from waiting import wait_for

from qmt_producer.reporter import Reporter
from qmt_producer.ring import Ring
from qmt_protocol.status import new_heartbeat
from qmt_protocol.times import redis_ms
from qmt_standalone.redis_server import RedisServer


def test_the_same_refusal_of_each_heartbeat_is_told_once(
    tmp_path: Path, streams: redis.Redis, streams_server: RedisServer
) -> None:
    ring = Ring(tmp_path / "ring.sqlite", 10_000_000)
    beat = new_heartbeat("producer", 1)
    reporter = Reporter(ring, keys=KEYS, url=streams_server.url, heartbeat=lambda: beat)
    reporter._report(whole=False)
    streams.config_set("maxmemory", 1)
    try:
        with capture_logs() as logs:
            for _ in range(2):
                reporter._report(whole=False)
                reported_ms = redis_ms(streams.time())
                wait_for(lambda reported_ms=reported_ms: redis_ms(streams.time()) > reported_ms)
    finally:
        streams.config_set("maxmemory", 0)
        reporter._redis.close()
        ring.close()
    (told,) = [one for one in logs if one["event"] == "Redis is not told"]
    assert told["what"] == "heartbeat"
    assert "maxmemory" in told["error"]
