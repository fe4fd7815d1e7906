"""A publisher that runs on, its streams some way behind its feed, and what Redis says it published.

The truth is read back from Redis with the msgpack package.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import redis
from gateway_bench import OPEN_MS, a_tick
from heartbeats import BEATS_ON_MS, write_heartbeat

from qmt_protocol.keys import Keys
from qmt_protocol.status import Heartbeat
from qmt_protocol.ticks import encode_tick

Seen = tuple[str, str]
"""Code and entry id."""
FILE = """
for i = 3, #KEYS do
  local at = 4 * (i - 3) + 2
  redis.call('XADD', KEYS[i], ARGV[at + 1], 't1', ARGV[at + 2])
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 3])
end
redis.call('SET', KEYS[2], ARGV[1])
"""
MOST_UNFILED = 8


class Market:
    """Publishes batches of one market; they are filed some batches later."""

    def __init__(self, streams: redis.Redis, name: str, codes: int = 8) -> None:
        self.streams = streams
        self.name = name
        self.keys = Keys()
        self.codes = [f"{600_000 + number}.{name}" for number in range(codes)]
        self.count = 0
        self._file = streams.register_script(FILE)
        self._unfiled: deque[tuple[list[str], list[Any]]] = deque()
        self._lock = threading.RLock()
        streams.set(self.keys.epoch(name), "first")

    def beat(self) -> None:
        """Write the heartbeat of a producer of this market."""
        beat = Heartbeat(role="producer", host=self.name, pid=1, markets=[self.name])
        write_heartbeat(self.streams, self.keys, beat, ahead_ms=BEATS_ON_MS)

    def publish(self, *codes: str) -> None:
        """Publish one batch with a tick of each code."""
        rows: list[Any] = []
        batch: list[Any] = []
        for code in codes:
            self.count += 1
            entry_id = f"{OPEN_MS + self.count}-0"
            t1 = encode_tick(a_tick(10.0, self.count, OPEN_MS + self.count))
            row = msgpack.unpackb(t1)
            rows += [code, entry_id, t1, msgpack.packb([entry_id, row])]
            batch.append([code, entry_id, row])
        name, keys = self.name, self.keys
        names = [keys.latest(name), keys.filed(name), *map(keys.tick, codes)]
        with self._lock:
            at = self.streams.xadd(keys.feed(name), {"b1": msgpack.packb(batch)})
            self._unfiled.append((names, [at, *rows]))
        if threading.current_thread() is threading.main_thread():
            self.file()  # a test that publishes by itself looks at once
        else:
            self.file(random.randrange(MOST_UNFILED))

    def file(self, left: int = 0) -> None:
        """File all but the last batches."""
        with self._lock:
            while len(self._unfiled) > left:
                names, args = self._unfiled[0]
                self._file(keys=names, args=args)
                self._unfiled.popleft()

    def publish_some(self) -> None:
        """Publish one batch of random codes."""
        self.publish(*random.sample(self.codes, random.randint(1, len(self.codes))))

    def published(self) -> list[Seen]:
        """Return all that the feed holds, in order."""
        return [
            (code, entry_id)
            for _, fields in self.streams.xrange(self.keys.feed(self.name))
            for code, entry_id, _ in msgpack.unpackb(fields[b"b1"])
        ]

    def stored(self) -> dict[str, list[str]]:
        """Return each code's entry ids."""
        return {
            code: [entry[0].decode() for entry in self.streams.xrange(self.keys.tick(code))]
            for code in self.codes
        }

    def trim_feed(self) -> None:
        with self._lock:
            self.file()  # what is not filed is not trimmed
            self.streams.xtrim(self.keys.feed(self.name), maxlen=0, approximate=False)


@contextmanager
def running(markets: list[Market], pause_s: float = 0.004) -> Iterator[None]:
    """Publish batches of the markets in turn until the block ends."""
    end = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            beaten = float("-inf")
            while not end.wait(pause_s * random.random() * 2):
                beats = time.monotonic() - beaten > 0.5
                for market in markets:
                    if beats:
                        market.beat()
                    market.publish_some()
                if beats:
                    beaten = time.monotonic()
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(60)
        for market in markets:
            market.file()
        assert not failed


def seen_of(ticks: list[Any]) -> list[Seen]:
    return [(tick.code, tick.id) for tick in ticks]


def of_market(seen: list[Seen], name: str) -> list[Seen]:
    return [one for one in seen if one[0].endswith(f".{name}")]


def between(truth: list[Seen], seen: list[Seen]) -> list[Seen]:
    """Return the part of the truth that begins and ends where what was seen does."""
    if not seen:
        return []
    return truth[truth.index(seen[0]) : truth.index(seen[-1]) + 1]
