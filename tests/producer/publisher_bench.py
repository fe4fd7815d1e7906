"""A ring with a publisher on it, against a real server, read back by the msgpack package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgpack
import redis
from waiting import wait_for

from qmt_producer.candidates import Entry, Kind
from qmt_producer.publisher import Publisher
from qmt_producer.ring import Ring
from qmt_protocol.keys import Keys
from qmt_protocol.ticks import encode_tick

KEYS = Keys("t")
CODE = "600519.SH"
NOON_MS = 1_763_697_600_000
LATE, CLAMPED = 1, 2


def tick(at_ms: int, price: float, volume: int = 100, **more: Any) -> dict[str, Any]:
    return {"time": at_ms, "lastPrice": price, "volume": volume, "bidPrice": [price, 0.0], **more}


def entry(at_ms: int, price: float, code: str = CODE, **more: Any) -> Entry:
    return code, at_ms, encode_tick(tick(at_ms, price, **more))


class Bench:
    """A ring and the publishers made on it."""

    def __init__(
        self, path: Path, url: str, ring_bytes: int = 50_000_000, lease_ms: int = 1000
    ) -> None:
        self.path, self.url = path, url
        self.lease_ms = lease_ms
        self.ring = Ring(path, ring_bytes)
        self.events: list[dict[str, Any]] = []
        self.publisher = self._publisher()

    def _publisher(self) -> Publisher:
        publisher = Publisher(
            self.ring,
            ["SH", "SZ"],
            keys=KEYS,
            url=self.url,
            lease_ms=self.lease_ms,
            feed_keep_ms=60_000,
            future_ms=10_000,
            ring_keep_ms=60_000,
            listening=lambda: True,
            on_event=self.events.append,
        )
        publisher.thread.start()
        return publisher

    @property
    def done(self) -> bool:
        return self.publisher.left == 0

    def publish(self, *entries: Entry, market: str = "SH", kind: Kind = "tick") -> None:
        self.ring.append([(market, kind, now_ms(), list(entries))])
        self.publisher.more.set()
        wait_for(lambda: self.done)

    def close(self) -> None:
        self.publisher.stop(1.0)
        self.ring.close()


def now_ms() -> int:
    """When a batch is received: a taker of a lease that ran out under load begins by it."""
    return time.time_ns() // 1_000_000


def stored(streams: redis.Redis, code: str = CODE) -> list[tuple[str, list[Any]]]:
    """Read a tick stream with the msgpack package alone."""
    return [
        (entry_id.decode(), msgpack.unpackb(fields[b"t1"]))
        for entry_id, fields in streams.xrange(KEYS.tick(code))
    ]


def fed(streams: redis.Redis, market: str = "SH") -> list[list[Any]]:
    return [
        one
        for _, fields in streams.xrange(KEYS.feed(market))
        for one in msgpack.unpackb(fields[b"b1"])
    ]


def latest(streams: redis.Redis, code: str = CODE) -> list[Any]:
    value = streams.hget(KEYS.latest("SH"), code)
    assert value is not None
    return list(msgpack.unpackb(value))
