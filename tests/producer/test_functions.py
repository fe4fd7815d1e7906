"""The function library: who loads it, what a producer says without it, when its name changes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import redis
from publisher_bench import KEYS, NOON_MS, Bench, entry, now_ms, stored, wait_for

from qmt_producer.functions import Functions
from qmt_protocol.errors import RedisUnavailable
from qmt_protocol.redis_users import FUNCTIONS, LIBRARY
from qmt_standalone.redis_server import RedisServer

CODE = files("qmt_producer").joinpath("functions.lua").read_text("utf-8")
DIGESTS = {
    "qmt1": "ce3bf15d4715d139fabfd215efe9f7236d5fb30e49bd74b40dcf2a021f54477c",
    "qmt2": "794e5ae7206412c9b6bfebcc1bcd2549dd9d96e2ef19b7555da16414dff4e136",
    "qmt3": "213d67f5a90de64c95ca7d382c8bdc77c2cec6787f48fce5d0d478990c9cc350",
}
"""Library to the digest of its code. A name that was given out is never given to other code: take
the next number, here and in `redis_users`."""


def test_other_code_has_another_name() -> None:
    assert DIGESTS[LIBRARY] == hashlib.sha256(CODE.encode()).hexdigest()
    assert CODE.startswith(f"#!lua name={LIBRARY}\n")
    assert set(re.findall(r"register_function\('(\w+)'", CODE)) == {
        f"{LIBRARY}_{name}" for name in FUNCTIONS
    }


@pytest.fixture
def limited(streams: redis.Redis, streams_server: RedisServer) -> Iterator[str]:
    """URL of a user who may call the functions and not load them, on a server without them."""
    streams.function_flush()
    streams.acl_setuser(
        "limited",
        enabled=True,
        passwords=["+secret"],
        categories=["+@all"],
        commands=["-function|load"],
        keys=["*"],
    )
    yield f"redis://limited:secret@127.0.0.1:{streams_server.port}/0"
    streams.acl_deluser("limited")


def test_who_may_not_load_it_says_what_is_missing(limited: str) -> None:
    with redis.Redis.from_url(limited) as connection, pytest.raises(RedisUnavailable) as caught:
        Functions(connection).ensure()
    assert LIBRARY in caught.value.message
    assert "docker/redis/start.sh" in caught.value.message


def test_ticks_wait_for_the_library_and_go_out_when_an_admin_loads_it(
    tmp_path: Path, streams: redis.Redis, limited: str
) -> None:
    bench = Bench(tmp_path / "ring.sqlite", limited)
    try:
        bench.ring.append([("SH", "tick", now_ms(), [entry(NOON_MS, 10.0)])])
        bench.publisher.more.set()
        wait_for(lambda: LIBRARY in bench.publisher.figures.redis_away)
        assert not streams.exists(KEYS.tick("600000.SH"))
        streams.function_load(CODE)
        wait_for(lambda: bench.done)
        assert [row[0] for _, row in stored(streams)] == [NOON_MS]
        wait_for(lambda: bench.publisher.figures.redis_away == "")
    finally:
        bench.close()


def test_who_may_load_it_does_so_once(streams: redis.Redis) -> None:
    streams.function_flush()
    functions = Functions(streams)
    functions.ensure()
    loads = streams.info("commandstats")["cmdstat_function|load"]["calls"]
    functions.ensure()
    assert streams.info("commandstats")["cmdstat_function|load"]["calls"] == loads
