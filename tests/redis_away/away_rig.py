"""Every program at once beside two Redis servers that are away, go away, or hang."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from qmt_standalone.redis_server import RedisServer, free_port

State = Literal["absent", "hung", "gone", "hung later"]
"""Not there at the start; there but stopped; killed or stopped once the program works."""
Which = Literal["streams", "jobs", "both"]
ENDS_WITHIN_S: Final = 60.0
"""Some five seconds where the machine is not busy; a program that does not hear never ends."""

_STREAMS, _BOTH = ("streams",), ("streams", "jobs")


@dataclass(frozen=True)
class Program:
    """A program and how it is started.

    Attributes
    ----------
    works
        What it has said once it works, with both servers there; ``""``: it has connected.
    needs
        Servers without which it ends by itself, with a message; none: it waits for them.
    code
        Exit code where it ends in order; ``None``: a command, which is cut off.
    """

    words: tuple[str, ...]
    works: str = ""
    needs: tuple[str, ...] = ()
    code: int | None = None


_DAY: Final = ("--start", "2026-11-20", "--end", "2026-11-20", "--speed", "1")
PROGRAMS: Final[dict[str, Program]] = {
    "archive run": Program(
        ("qmt_archive", "run", "--archive-url", "new"), works='"ready": true', code=0
    ),
    "gateway": Program(("qmt_gateway", "--port", "0"), works='"ready": true', code=0),
    "producer": Program(("qmt_producer",), code=0),
    "producer replay": Program(
        ("qmt_producer", "replay", "--day", "2026-11-20"), needs=_STREAMS, code=130
    ),
    "worker of a queue": Program(
        ("qmt_worker", "--queue", "qmt-query"), works="worker serves", code=0
    ),
    "qmt ticks": Program(("qmt_client", "ticks", "600519.SH", "--follow"), needs=_STREAMS),
    "qmt replay": Program(("qmt_client", "replay", "*", *_DAY), needs=_STREAMS),
    "qmt history": Program(("qmt_client", "history", "600519.SH"), needs=_BOTH),
    "qmt status": Program(("qmt_client", "status"), needs=_STREAMS),
    "archive backfill": Program(
        ("qmt_archive", "backfill", "--day", "20261120", "--archive-url", "copy"), needs=_BOTH
    ),
}
SUPERVISORS: Final[dict[str, Program]] = {
    "worker": Program(("qmt_worker",), works="worker serves", code=0),
    "windows": Program(("qmt_windows", "run"), works="worker-download", code=0),
}
"""These start others, from nothing."""


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

    def spoil(self, state: State, which: Which) -> None:
        """Do what a program meets later."""
        if state == "gone":
            for server in self.of(which):
                server.kill()
        if state == "hung later":
            self.hang(which)

    def kill(self) -> None:
        for server in self.of("both"):
            server.kill()


@dataclass
class Run:
    """One start of a program."""

    program: Program
    number: signal.Signals
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def told(self) -> str:
        return (self.folder / "output").read_text("utf-8", "replace")

    @property
    def first_line(self) -> dict[str, Any]:
        """The JSON that it began with."""
        line = next(line for line in self.told.splitlines() if line.startswith('{"ready"'))
        return dict(json.loads(line))

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def is_at(self, state: State, servers: Servers) -> bool:
        """Whether it has come as far as it will with such servers."""
        if self.ended:
            return True
        if self.program.code is None:
            return self._is_connected(servers)
        if not self.hears():
            return False
        if state in ("absent", "hung"):
            return True
        works = self.program.works
        return works in self.told if works else self._is_connected(servers)

    def _is_connected(self, servers: Servers) -> bool:
        try:
            held = psutil.Process(self.process.pid).net_connections("tcp")
        except psutil.Error:
            return False
        ports = {server.port for server in servers.of("both")}
        return any(one.raddr and one.raddr.port in ports for one in held)

    def hears(self) -> bool:
        """Whether it has a handler for its signal."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return False
        caught = status.partition("SigCgt:")[2].split()
        return bool(caught) and bool(int(caught[0], 16) & 1 << self.number - 1)

    def tell(self) -> None:
        if not self.ended:
            self.process.send_signal(self.number)

    def wrong(self, told: bool) -> str:
        """Return what is wrong with how it ended; `told`: a signal was sent before."""
        code = self.process.returncode
        text = self.told
        if "Traceback" in text or "Exception" in text:
            return f"a traceback: {text}"
        if not told:
            well = self.program.needs and code in (0, 1, 2) and len(text.splitlines()) >= 1
            return "" if well else f"it ended by itself with {code}: {text}"
        if self.program.code is not None:
            return "" if code == self.program.code else f"exit code {code}: {text}"
        # It may have been about to end with a message when it was told to.
        cut_off = {-self.number, 128 + self.number, 1, 2}
        return "" if code in cut_off else f"exit code {code}: {text}"


def start(
    program: Program,
    number: signal.Signals,
    folder: Path,
    urls: Mapping[str, str],
    archive: Path | None = None,
) -> Run:
    """Start a program in a folder of its own; its archive's is not needed by all."""
    folder.mkdir(parents=True)
    env = {one: value for one, value in os.environ.items() if not one.startswith("QMT_")}
    env |= {
        "TZ": "CST-8",
        "QMT_STREAMS_URL": urls["streams"],
        "QMT_JOBS_URL": urls["jobs"],
        "QMT_NATIVE_MODULE": "qmt_simulator.native",
        "QMT_TERMINAL_PORT": "1",
        "QMT_TO_PREFIX": f"replay-{number.name}",
        "QMT_HOME": str(folder / "home"),
    }
    if archive is not None:
        env["QMT_ARCHIVE_URL"] = str(archive)
    if "copy" in program.words and archive is not None:
        shutil.copytree(archive, folder / "copy")
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *program.words],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Run(program, number, process, folder)
