"""Children that end with the run, and the processor time they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

__all__ = ["Child", "Meter", "child", "wait_until"]

ROOT: Final = Path(__file__).resolve().parent.parent
_END_S: Final = 15.0


@dataclass
class Child:
    """A running child: what it said when it was ready, and its standard streams."""

    process: subprocess.Popen[bytes]
    name: str
    """Its command without folders: what is told of it may be committed."""
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def line(self) -> dict[str, Any]:
        """Read one JSON line; `RuntimeError` when it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait(10)}")
        return dict(json.loads(line))

    def tell(self, line: str) -> None:
        """Write one line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()


@contextmanager
def child(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    log: Path,
    ready: bool = True,
) -> Iterator[Child]:
    """Run a child until the block ends; its standard input closes first.

    Parameters
    ----------
    command
        A module name alone stands for this Python with ``-m``.
    ready
        Whether it prints a JSON line when it is ready.
    """
    words = [str(word) for word in command]
    if len(words) and os.sep not in words[0]:
        words = [sys.executable, "-m", *words]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QMT_")}
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if ready else subprocess.DEVNULL,
            stderr=errors,
            cwd=ROOT,
            env={**clean, "TZ": "CST-8", **(env or {})},
        )
    try:
        running = Child(process, " ".join(Path(word).name for word in words))
        if ready:
            try:
                running.ready = running.line()
            except RuntimeError as error:
                tail = log.read_text("utf-8", "replace")[-2000:]
                raise RuntimeError(f"{error}\n{tail}") from error
        yield running
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_END_S)


class Meter:
    """Processor time and memory of some processes from the moment it is made."""

    def __init__(self, **pids: int) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._before = {name: _cpu_s(one) for name, one in self._processes.items()}
        self._began = time.monotonic()

    def cpu_s(self, name: str) -> float:
        """Seconds of processor time since the meter was made."""
        return _cpu_s(self._processes[name]) - self._before[name]

    def cpu_percent(self) -> dict[str, float]:
        """Percent of one core since the meter was made, by process."""
        wall = time.monotonic() - self._began
        return {name: round(100 * self.cpu_s(name) / wall, 1) for name in self._processes}

    def rss_bytes(self, name: str) -> int:
        """Resident memory now."""
        return int(self._processes[name].memory_info().rss)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def wait_until(condition: Any, what: str, within_s: float) -> None:
    """Wait for something; `TimeoutError` naming it."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)
