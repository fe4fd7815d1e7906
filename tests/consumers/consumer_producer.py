"""A simulated market, its producer and its Redis, and what the simulator says it pushed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import redis
from waiting import wait_for

from qmt_simulator.oracle import read_push_log
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

if TYPE_CHECKING:
    from consumer_rig import Consumer


@dataclass
class Recorded:
    """A market that runs, then stands still."""

    url: str
    terminal: TerminalProcess
    log_path: Path
    streams: redis.Redis
    consumers: dict[str, Consumer] = field(default_factory=dict)
    log: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0))
    copied_prefix: str = "replay-7"
    copied_codes: tuple[str, ...] = ()

    def finish(self) -> None:
        """Let the terminal fall silent, wait until all is published, copy some codes."""
        self.terminal.control.set_fault("deaf")
        time.sleep(0.5)
        self.log = read_push_log(self.log_path)
        wait_for(lambda: self.published() >= len(self.log), f"{len(self.log)} are published")
        codes = sorted({code.decode() for code in self.log["code"].tolist()})
        self.copied_codes = tuple(codes[:: len(codes) // 12])
        for code in self.copied_codes:
            key = f":{code.rpartition('.')[2]}}}:tick:{code}"
            self.streams.copy(f"{{qmt{key}", f"{{{self.copied_prefix}{key}")

    def wait_for(self, consumer: Consumer, markets: tuple[str, ...]) -> None:
        """Wait until a consumer's stored position is the end of these markets' feeds."""
        ends = {}
        for feed in (f"{{qmt:{market}}}:feed" for market in markets):
            ends[feed] = self.streams.xinfo_stream(feed)["last-generated-id"].decode()
        wait_for(lambda: consumer.last_ids() == ends, f"{consumer.command} stands at {ends}")

    def published(self) -> int:
        told = (json.loads(one) for one in self.streams.hvals("qmt:status"))
        return sum(one.get("figures", {}).get("published", 0) for one in told)

    def log_of(self, markets: tuple[str, ...]) -> npt.NDArray[Any]:
        """Return the log of these markets, in the order pushed."""
        market = [code.decode().rpartition(".")[2] for code in self.log["code"].tolist()]
        return self.log[np.isin(market, markets)]


@contextmanager
def record(folder: Path) -> Iterator[Recorded]:
    """Start Redis, a simulated terminal with a push log, and a producer."""
    log_path = folder / "pushed"
    server = RedisServer(folder / "redis")
    server.start()
    try:
        with (
            redis.Redis.from_url(server.url) as streams,
            TerminalProcess("--push-log", str(log_path), "--interval-ms", "6000") as terminal,
        ):
            producer = subprocess.Popen(
                [sys.executable, "-m", "qmt_producer", "--exit-with-stdin"],
                stdin=subprocess.PIPE,
                env={
                    **os.environ,
                    "TZ": "CST-8",
                    "QMT_STREAMS_URL": server.url,
                    "QMT_TERMINAL_PORT": str(terminal.port),
                    "QMT_NATIVE_MODULE": "qmt_simulator.native",
                    "QMT_RING": str(folder / "ring.sqlite"),
                    "QMT_LOG_LEVEL": "error",
                },
            )
            with producer:
                try:
                    yield Recorded(server.url, terminal, log_path, streams)
                finally:
                    assert producer.stdin is not None
                    producer.stdin.close()
                    try:
                        producer.wait(60)
                    finally:
                        producer.kill()
    finally:
        server.stop()
