"""Every program at once beside two Redis servers that are away, go away, or hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from qmt_standalone.redis_server import RedisServer, free_port

State = Literal["absent", "hung", "gone", "hung later"]
"""Not there at the start; there but stopped; killed or stopped once the program works."""
Which = Literal["streams", "jobs", "both"]

REPLAYED: Final = ("--start", "2026-11-20", "--end", "2026-11-20", "--speed", "1")


@dataclass(frozen=True)
class Program:
    """A program, how it is started, and what it may answer.

    Attributes
    ----------
    codes
        Exit codes after a signal: of a service that ends in order, or of a command that is cut off.
    works
        What standard output or error holds once it works, with both servers there.
    needs
        Which servers it cannot go without: then it may have ended by itself with a message.
    """

    words: tuple[str, ...]
    works: str = ""
    needs: tuple[str, ...] = ()
    service: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


PROGRAMS: Final[dict[str, Program]] = {
    "archive run": Program(("qmt_archive", "run"), works='"ready": true'),
    "gateway": Program(("qmt_gateway", "--port", "0"), works='"ready": true'),
    "producer": Program(("qmt_producer",)),
    "producer replay": Program(
        ("qmt_producer", "replay", "--day", "2026-11-20"), needs=("streams",)
    ),
    "worker": Program(("qmt_worker",), works="worker serves"),
    "worker of a queue": Program(("qmt_worker", "--queue", "qmt-query"), works="worker serves"),
    "windows": Program(("qmt_windows", "run")),
    "qmt ticks --follow": Program(
        ("qmt_client", "ticks", "600519.SH", "--follow"), needs=("streams",), service=False
    ),
    "qmt replay": Program(
        ("qmt_client", "replay", "*", *REPLAYED), needs=("streams",), service=False
    ),
    "qmt history": Program(
        ("qmt_client", "history", "600519.SH"), needs=("streams", "jobs"), service=False
    ),
    "qmt status": Program(("qmt_client", "status"), needs=("streams",), service=False),
    "archive backfill": Program(
        ("qmt_archive", "backfill", "--day", "20261120", "--archive-url", "other"),
        needs=("streams", "jobs"),
        service=False,
    ),
}


class _Server(RedisServer):
    """One whose folder a test may change, to fill its disk."""

    def _config(self) -> str:
        return super()._config() + "enable-protected-configs yes\n"


class Servers:
    """The two servers, of which some are not well."""

    def __init__(self, folder: Path) -> None:
        self.streams = _Server(folder / "streams", password="s", port=free_port())
        self.jobs = _Server(folder / "jobs", password="j", port=free_port(), aof=False)

    def of(self, which: Which) -> list[RedisServer]:
        return [self.streams, self.jobs] if which == "both" else [getattr(self, which)]

    def start(self, state: State, which: Which) -> None:
        for server in self.of("both"):
            if state != "absent" or server not in self.of(which):
                server.start()
        if state == "hung":
            self.hang(which)

    def hang(self, which: Which) -> None:
        for server in self.of(which):
            assert server.process is not None
            server.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        for server in self.of("both"):
            server.kill()


@dataclass
class Run:
    """One start of a program."""

    name: str
    program: Program
    signal: signal.Signals
    process: subprocess.Popen[bytes]
    folder: Path
    began_s: float = 0.0
    took_s: float = 0.0
    code: int | None = None

    @property
    def told(self) -> str:
        return (self.folder / "output").read_text("utf-8", "replace")

    def hears(self) -> bool:
        """Whether it would not just be killed: a handler is there; commands have none."""
        if self.process.poll() is not None:
            return True
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught & 1 << self.signal - 1)


def start(
    name: str,
    program: Program,
    how: signal.Signals,
    folder: Path,
    servers: Servers,
    archive: Path,
) -> Run:
    folder.mkdir(parents=True)
    env = {one: value for one, value in os.environ.items() if not one.startswith("QMT_")}
    env |= {
        "TZ": "CST-8",
        "QMT_STREAMS_URL": servers.streams.url,
        "QMT_JOBS_URL": servers.jobs.url,
        "QMT_NATIVE_MODULE": "qmt_simulator.native",
        "QMT_TERMINAL_PORT": "1",
        "QMT_HOME": str(folder / "home"),
        **program.environment,
    }
    if "archive run" not in name:
        env["QMT_ARCHIVE_URL"] = str(archive)
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *program.words],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Run(name, program, how, process, folder)


@contextmanager
def running_gateway(servers: Servers, folder: Path) -> Iterator[str]:
    """Run a gateway; gives its address."""
    program = PROGRAMS["gateway"]
    run = start("gateway", program, signal.SIGTERM, folder / "gateway", servers, folder / "none")
    try:
        deadline = time.monotonic() + 60
        while program.works not in run.told:
            assert run.process.poll() is None, run.told
            assert time.monotonic() < deadline, run.told
            time.sleep(0.05)
        yield str(json.loads(run.told.partition("\n")[0])["url"])
    finally:
        run.process.terminate()
        run.process.wait(30)
        assert "Traceback" not in run.told
