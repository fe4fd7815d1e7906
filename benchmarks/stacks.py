"""The whole way, ours and the incumbent's, as real processes over one simulated terminal."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qmt_simulator.control import Control
from qmt_simulator.oracle import read_push_log
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer, free_port

from .processes import ROOT, child, wait_until
from .venvs import incumbent_python

__all__ = ["Stack", "Terminal", "gateway", "incumbent", "ours", "stamps_of", "terminal"]

_START_S = 60.0


@dataclass
class Terminal:
    """A simulated terminal with a log of what it pushed."""

    port: int
    pid: int
    control: Control
    log: Path

    def pushed(self) -> npt.NDArray[Any]:
        """Return every tick pushed so far."""
        return read_push_log(self.log)


@dataclass
class Stack:
    """One side's running processes."""

    url: str
    """``host:port`` of its gateway."""
    pids: dict[str, int]
    stamps: Path
    streams: str = ""
    """URL of the streams server, ours only."""


_NO_LIMITS: Final = ",".join(
    f"{name}=0" for name in ("requests_per_s", "jobs_per_s", "jobs_at_once", "connections", "codes")
)
"""One address is the whole load here."""


@contextmanager
def terminal(directory: Path, *flags: str) -> Iterator[Terminal]:
    """Run a simulated terminal."""
    log = directory / f"pushed-{free_port()}"
    with (
        open(directory / "terminal.log", "ab") as errors,
        TerminalProcess("--push-log", str(log), *flags, stderr=errors) as process,
        contextlib.closing(Control(process.port)) as control,
    ):
        yield Terminal(process.port, process.process.pid, control, log)


@contextmanager
def gateway(directory: Path, streams: str, **settings: str) -> Iterator[tuple[str, int]]:
    """Run our gateway on a free port; yield ``host:port`` and its process id."""
    env = {
        "QMT_STREAMS_URL": streams,
        "QMT_JOBS_URL": streams,
        "QMT_LOG_LEVEL": "warning",
        "QMT_BRIDGE_LIMITS": _NO_LIMITS,
        **{f"QMT_BRIDGE_{name.upper()}": value for name, value in settings.items()},
    }
    command = ["qmt_gateway", "--port", "0", "--exit-with-stdin"]
    with child(command, env=env, log=directory / "gateway.log") as running:
        yield str(running.ready["url"]).partition("://")[2], running.pid


@contextmanager
def ours(directory: Path, source: Terminal, **settings: str) -> Iterator[Stack]:
    """Run Redis, producer and gateway over a terminal."""
    number = free_port()
    server = RedisServer(directory / f"redis-{number}", password="")
    stamps = directory / f"stamps-{number}"
    stamps.touch()
    env = {
        "QMT_STREAMS_URL": server.url,
        "QMT_TERMINAL_PORT": str(source.port),
        "QMT_NATIVE_MODULE": "benchmarks.stamped_native",
        "QMT_BENCH_STAMPS": str(stamps),
        "QMT_RING": str(directory / f"ring-{number}.sqlite"),
        "QMT_LOG_LEVEL": "warning",
    }
    server.start()
    assert server.process is not None
    try:
        with ExitStack() as stack:
            producer = stack.enter_context(
                child(
                    ["qmt_producer", "--exit-with-stdin"],
                    env=env,
                    log=directory / "producer.log",
                    ready=False,
                )
            )
            wait_until(stamps.stat, "the producer runs", _START_S)
            _wait_for_pushes(source, stamps)
            address, pid = stack.enter_context(gateway(directory, server.url, **settings))
            pids = {"redis": server.process.pid, "producer": producer.pid, "gateway": pid}
            yield Stack(address, {"terminal": source.pid, **pids}, stamps, server.url)
    finally:
        server.stop()


def _wait_for_pushes(source: Terminal, stamps: Path) -> None:
    wait_until(
        lambda: source.control.status()["whole_subscriptions"] and stamps.stat().st_size,
        "the producer gets pushes",
        _START_S,
    )


@contextmanager
def incumbent(directory: Path, source: Terminal) -> Iterator[Stack]:
    """Run the incumbent's server over a terminal."""
    port = free_port()
    stamps = directory / f"stamps-{port}"
    stamps.touch()
    command: list[str | Path] = [
        incumbent_python(),
        Path(__file__).with_name("incumbent_server.py"),
        ROOT,
        str(source.port),
        str(port),
    ]
    env = {"QMT_BENCH_STAMPS": str(stamps), "PYTHONPATH": ""}
    log = directory / "incumbent.log"
    with child(command, env=env, log=log, ready=False) as running:
        wait_until(lambda: _answers(port), "the incumbent answers", _START_S)
        pids = {"terminal": source.pid, "incumbent": running.pid}
        yield Stack(f"127.0.0.1:{port}", pids, stamps)


def _answers(port: int) -> bool:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        line.request("GET", "/api/meta/version")
        return line.getresponse().status == 200
    except OSError:
        return False
    finally:
        line.close()


def stamps_of(path: Path) -> npt.NDArray[np.int64]:
    """Return the stamps so far: rows of what, ns, size."""
    raw = path.read_bytes()
    whole = len(raw) - len(raw) % 24
    return np.frombuffer(raw[:whole], np.int64).reshape(-1, 3)
