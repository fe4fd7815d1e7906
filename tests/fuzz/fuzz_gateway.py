"""A gateway with all that it asks, for targets that talk to it: Redis, a worker, a producer."""

from __future__ import annotations

import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "gateway")]

import pyarrow as pa  # noqa: E402
import redis  # noqa: E402
from gateway_bench import OPEN_MS, GatewayProcess, Producer, Worker, a_tick, bars, gateway  # noqa: E402
from redis_servers import default_server  # noqa: E402

from qmt_standalone.redis_server import RedisServer  # noqa: E402

__all__ = ["CODES", "OPEN_MS", "GatewayRig", "Misbehaved"]

CODES: Final = ("600519.SH", "601318.SH", "000001.SZ")
_BEAT_S: Final = 1.0
_TICKS: Final = 200

NO_LIMITS = "requests_per_s=0,jobs_per_s=0"
"""One address asks all the time."""


class Misbehaved(AssertionError):
    """The gateway did what it never may."""


class GatewayRig:
    """One gateway process; everything that it needs is there and answers."""

    def __init__(self, **settings: str) -> None:
        self._stack = ExitStack()
        try:
            self._start(settings)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, settings: dict[str, str]) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
        connections: list[Any] = []
        urls: list[str] = []
        for name, aof in (("streams", True), ("jobs", False)):
            server = RedisServer(folder / name, aof=aof, binary=default_server())
            server.directory.mkdir()
            server.start()
            self._stack.callback(server.stop)
            urls.append(server.url)
            connections.append(self._stack.enter_context(redis.Redis.from_url(server.url)))
        streams, jobs = connections
        self._producer = Producer(streams)
        self._producer.beat()
        for number in range(_TICKS):
            tick = a_tick(10.0, number, OPEN_MS + 3_000 * number)
            self._producer.publish(*((code, tick) for code in CODES if code.endswith(".SH")))
            self._producer.publish(("000001.SZ", tick))
        worker = Worker(streams, jobs)
        worker.answers = {
            "history": _history,
            "download": lambda params: {code: {"rows": 3} for code in params["codes"]},
            "full_tick": lambda params: {code: {"time": OPEN_MS} for code in params["codes"]},
            "sector_stocks": lambda params: list(CODES),
            "instrument_detail": lambda params: {code: {"Name": code} for code in params["codes"]},
        }
        self._stack.enter_context(worker)
        self._end = threading.Event()
        beats = threading.Thread(target=self._beat)
        beats.start()
        self._stack.callback(beats.join)
        self._stack.callback(self._end.set)
        self.process: GatewayProcess = self._stack.enter_context(
            gateway(*urls, folder, **{"ws_stall_s": "3600", "limits": NO_LIMITS, **settings})
        )
        self._log_at = 0

    def _beat(self) -> None:
        while not self._end.wait(_BEAT_S):
            self._producer.beat()

    @property
    def url(self) -> str:
        """Address of the gateway."""
        return self.process.url

    def check(self) -> None:
        """Look at the process and what it logged since the last look.

        Raises
        ------
        Misbehaved
            When it has ended, or an error came that nobody caught.
        """
        code = self.process.process.poll()
        if code is not None:
            raise Misbehaved(f"the gateway ended with {code}: {self.process.log()[-3000:]}")
        with open(self.process.log_path, encoding="utf-8") as log:
            log.seek(self._log_at)
            news = log.read()
            self._log_at = log.tell()
        if "Traceback" in news:
            raise Misbehaved(f"it logged: {news[-3000:]}")

    def close(self) -> None:
        """End everything."""
        self._stack.close()


def _history(params: dict[str, Any]) -> pa.Table:
    return bars({**params, "codes": params["codes"][:20]}, rows=2)
