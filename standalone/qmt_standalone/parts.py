"""What runs: every part's command, environment and sign of health, in the order of starting."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qmt_protocol.jobs import DOWNLOAD_QUEUE, QUERY_QUEUE

from .child import Child
from .health import Probe
from .redis_server import RedisServer, find_server, free_port
from .settings import StandaloneSettings

__all__ = ["Part", "Stack"]

_CHINA_TZ: Final = "CST-8"
"""China Standard Time as both POSIX and Windows understand it."""
_READY: Final = '{"ready": true'
_MEGABYTE: Final = 2**20
_JOBS_MEMORY_MB: Final = 1024


@dataclass(frozen=True)
class Part:
    """One part of the bridge as a child process."""

    name: str
    command: Callable[[], list[str]]
    """Called before each start; it may write configuration."""
    environment: Callable[[], dict[str, str]]
    unwell: Callable[[Child], str]
    """``""`` when the part is healthy, else the reason why it is not."""
    awaited: bool = True
    """Whether the start waits until it is healthy."""
    move: Callable[[], None] | None = None
    """Takes another port, when the first start failed."""
    stop_s: float = 5.0


class Stack:
    """The addresses of one run, and the parts made from them.

    Parameters
    ----------
    settings
        What to run.
    data_dir
        Where data and logs go; made when missing.
    """

    def __init__(self, settings: StandaloneSettings, data_dir: Path) -> None:
        self.settings = settings
        self.data_dir = data_dir
        self.markets = [one.strip() for one in settings.markets.split(",") if one.strip()]
        self.simulated = not settings.terminal
        binary = find_server(settings.redis_server)
        self.streams = RedisServer(
            data_dir / "streams",
            binary=binary,
            max_memory_bytes=settings.streams_memory_mb * _MEGABYTE,
        )
        self.jobs = RedisServer(
            data_dir / "jobs",
            binary=binary,
            aof=False,
            max_memory_bytes=_JOBS_MEMORY_MB * _MEGABYTE,
        )
        self.http_port = free_port(settings.bridge_port)
        self.simulator_port = free_port()
        self.probe = self._new_probe()

    @property
    def archive_dir(self) -> Path:
        """Where the archive lies."""
        return self.data_dir / "archive"

    @property
    def http_url(self) -> str:
        """Where the gateway answers."""
        return f"http://127.0.0.1:{self.http_port}"

    def parts(self, child_of: Callable[[str], Child]) -> list[Part]:
        """Return the parts in the order in which they are started."""
        return [
            self._redis("streams-redis", self.streams),
            self._redis("jobs-redis", self.jobs),
            *([self._simulator()] if self.simulated else []),
            self._producer(),
            self._worker(),
            self._gateway(child_of),
            self._archive(),
        ]

    def _redis(self, name: str, server: RedisServer) -> Part:
        def move() -> None:
            server.port = free_port()
            self.probe.close()
            self.probe = self._new_probe()

        return Part(
            name,
            server.prepare,
            self._environment,
            lambda _: self.probe.ping(server.url),
            move=move,
            stop_s=10.0,
        )

    def _archive(self) -> Part:
        # Nobody waits for it: what it has not read yet is in the streams.
        return Part(
            "archive",
            lambda: _python("qmt_archive", "run", "--archive-url", str(self.archive_dir)),
            self._environment,
            lambda _: "",
            awaited=False,
            stop_s=10.0,
        )

    def _simulator(self) -> Part:
        settings = self.settings

        def command() -> list[str]:
            fixed = ("--start", settings.start, "--speed", str(settings.speed))
            return _python(
                "qmt_simulator",
                *("--port", str(self.simulator_port)),
                *("--profile", settings.profile),
                *("--seed", str(settings.seed)),
                *("--interval-ms", str(settings.interval_ms)),
                *(fixed if settings.start else ()),
            )

        def unwell(child: Child) -> str:
            return "" if _READY in child.new_log() else "not ready yet"

        def move() -> None:
            self.simulator_port = free_port()

        return Part("simulator", command, self._china_environment, unwell, move=move)

    def _producer(self) -> Part:
        return Part(
            "producer",
            lambda: _python("qmt_producer", "--ring", str(self.data_dir / "ring.sqlite")),
            self._china_environment,
            lambda child: self.probe.producer(child.started_ms),
            stop_s=8.0,
        )

    def _worker(self) -> Part:
        queues = (QUERY_QUEUE, DOWNLOAD_QUEUE)
        return Part(
            "worker",
            lambda: _python("qmt_worker"),
            lambda: {
                **self._china_environment(),
                "QMT_SUSPENSIONS_FILE": str(self.data_dir / "suspensions.sqlite"),
            },
            lambda child: self.probe.worker(child.started_ms, queues),
        )

    def _gateway(self, child_of: Callable[[str], Child]) -> Part:
        def command() -> list[str]:
            return _python("qmt_gateway", "--host", "127.0.0.1", "--port", str(self.http_port))

        def move() -> None:
            self.http_port = free_port(self.settings.bridge_port)
            self.probe.http_url = self.http_url

        return Part(
            "gateway",
            command,
            lambda: {
                **self._environment(),
                "QMT_ARCHIVE_URL": str(self.archive_dir),
                "QMT_BRIDGE_KEYS_FILE": str(self.data_dir / "gateway-keys.json"),
            },
            lambda _: self.probe.gateway(child_of("producer").pid),
            move=move,
        )

    def _new_probe(self) -> Probe:
        return Probe(self.streams.url, self.http_url, self.markets)

    def _environment(self) -> dict[str, str]:
        """Return this process's environment, with no setting of the bridge but this run's own."""
        inherited = {name: value for name, value in os.environ.items() if name[:4] != "QMT_"}
        return {
            **inherited,
            "PYTHONUTF8": "1",
            "PYTHONUNBUFFERED": "1",
            "QMT_STREAMS_URL": self.streams.url,
            "QMT_JOBS_URL": self.jobs.url,
            "QMT_MARKETS": ",".join(self.markets),
            "QMT_LOG_LEVEL": self.settings.log_level,
        }

    def _china_environment(self) -> dict[str, str]:
        """Return the environment of whatever lives beside a terminal."""
        environment = {**self._environment(), "TZ": _CHINA_TZ}
        if self.settings.calendar_file is not None:
            environment["QMT_CALENDAR_FILE"] = str(self.settings.calendar_file.resolve())
        if self.simulated:
            environment["QMT_NATIVE_MODULE"] = "qmt_simulator.native"
            environment["QMT_TERMINAL_HOST"] = "127.0.0.1"
            environment["QMT_TERMINAL_PORT"] = str(self.simulator_port)
        return environment


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments, "--exit-with-stdin"]
