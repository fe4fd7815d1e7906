"""What the look at the streams server says of one that refuses."""

from __future__ import annotations

import redis
from structlog.testing import capture_logs
from waiting import wait_for

from qmt_protocol.keys import Keys
from qmt_protocol.status import new_heartbeat
from qmt_protocol.times import redis_ms
from qmt_standalone.redis_server import RedisServer
from qmt_windows.watch import Watch


def test_the_same_refusal_of_each_heartbeat_is_told_once(
    streams: redis.Redis, streams_server: RedisServer
) -> None:
    beat = new_heartbeat("windows", 1)
    watch = Watch(streams_server.url, Keys(), lambda: beat)
    watch._look()
    assert watch.heard.beats == {("windows", beat.pid): beat}
    streams.config_set("maxmemory", 1)
    try:
        with capture_logs() as logs:
            for _ in range(2):
                watch._look()
                reported_ms = redis_ms(streams.time())
                wait_for(lambda reported_ms=reported_ms: redis_ms(streams.time()) > reported_ms)
    finally:
        streams.config_set("maxmemory", 0)
        watch._redis.close()
    (told,) = logs
    assert "maxmemory" in told["error"]
    assert watch.heard.error == told["error"]
