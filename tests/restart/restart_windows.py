"""The Windows box of the restart tests: a ring with the producer's publisher on it, a process.

It makes ticks of its own, writes each down before the ring gets it, and goes on until it is killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

from qmt_producer.publisher import Publisher
from qmt_producer.reporter import Reporter
from qmt_producer.ring import Ring
from qmt_protocol.keys import Keys
from qmt_protocol.status import new_heartbeat
from qmt_protocol.ticks import encode_tick

MARKETS = ("SH", "SZ")
CODES = 10
EVERY_S = 0.05


class Maker:
    """Makes ticks and hands them to the ring, batch by batch."""

    def __init__(self, ring: Ring, publisher: Publisher, log: TextIO, seed: int) -> None:
        self._ring = ring
        self._publisher = publisher
        self._log = log
        self._random = random.Random(seed)
        self._at_ms = 0
        self._volume = 0

    def push(self) -> None:
        """Make one batch of each market, one tick of some codes."""
        self._at_ms = now_ms = max(time.time_ns() // 1_000_000, self._at_ms + 1)
        batches = []
        for market in MARKETS:
            entries = []
            for number in self._random.sample(range(CODES), self._random.randint(1, CODES)):
                self._volume += 1
                code, price = f"{600_000 + number}.{market}", self._random.randrange(1, 9999) / 100
                tick = {"time": now_ms, "lastPrice": price, "volume": self._volume}
                tick["bidPrice"] = [price - level / 100 for level in range(5)]
                entries.append((code, now_ms, encode_tick(tick)))
            self._log.writelines(f"push {code} {at} {t1.hex()}\n" for code, at, t1 in entries)
            batches.append((market, "tick", now_ms, entries))
        self._log.flush()
        self._ring.append(batches)  # type: ignore[arg-type]
        self._log.write("kept\n")
        self._log.flush()
        self._publisher.more.set()


def run(url: str, folder: Path, seed: int, orders: Connection) -> None:
    """Push until killed, or until the other end of `orders` goes.

    `pause` is answered by `paused`, with nothing pushed from then on, and ended by `go`.
    """
    # What the producer's parts log goes to a file of the box, as its streams would.
    sys.stdout = sys.stderr = (folder / "box.log").open("a", encoding="utf-8", buffering=1)
    keys, started_ms = Keys(), time.time_ns() // 1_000_000
    ring = Ring(folder / "ring.sqlite", 200_000_000)
    reporter = Reporter(
        ring,
        keys=keys,
        url=url,
        heartbeat=lambda: new_heartbeat("producer", started_ms, markets=list(MARKETS)),
    )
    publisher = Publisher(
        ring,
        list(MARKETS),
        keys=keys,
        url=url,
        lease_ms=1000,
        feed_keep_ms=3_600_000,
        future_ms=10_000,
        ring_keep_ms=900_000,
        listening=lambda: True,
        on_event=reporter.event,
    )
    publisher.thread.start()
    reporter.thread.start()
    with (folder / "pushed").open("a", encoding="utf-8") as log:
        log.write("\nbegin\n")
        maker = Maker(ring, publisher, log, seed)
        orders.send("ready")
        try:
            while True:
                if orders.poll(EVERY_S):
                    if orders.recv() == "pause":
                        orders.send("paused")
                        orders.recv()
                else:
                    maker.push()
        except EOFError:
            os.kill(os.getpid(), signal.SIGKILL)
