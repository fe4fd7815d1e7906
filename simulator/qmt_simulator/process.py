"""Starts a simulated terminal as a child process: for tests, benchmarks and demos."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from types import TracebackType
from typing import IO, Any

from qmt_simulator.control import Control
from qmt_simulator.oracle import Oracle

__all__ = ["TerminalProcess"]


class TerminalProcess:
    """A running `qmt-simulator` that ends with this process, however that ends.

    Use it as a context manager or call `stop`.

    Parameters
    ----------
    *flags : str
        Command line flags. Without `--port` it takes a free one.
    stderr : file, optional
        Where its log lines go; default: this process's standard error.

    Attributes
    ----------
    port : int
        Where native stubs and controllers connect.
    ready : dict
        What it said when it was ready: port, control_port, pid, profile, simulated, and
        wall_start_ms, with which another process can go on with its clock.

    Raises
    ------
    RuntimeError
        If it ends before it is ready.
    """

    def __init__(self, *flags: str, stderr: int | IO[Any] | None = None) -> None:
        if "--port" not in flags:
            flags = ("--port", "0", *flags)
        self._open = contextlib.ExitStack()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qmt_simulator", "--exit-with-stdin", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError(f"terminal ended at once with {self.process.returncode}")
        self.ready: dict[str, Any] = json.loads(line)
        self.port = int(self.ready["port"])

    def __enter__(self) -> TerminalProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @functools.cached_property
    def control(self) -> Control:
        """Its control channel, open until `stop`."""
        return self._open.enter_context(Control(self.port))

    @functools.cached_property
    def oracle(self) -> Oracle:
        """What is true in its market, open until `stop`."""
        return self._open.enter_context(contextlib.closing(Oracle(self.port)))

    def stop(self) -> None:
        """Kill it as a crash would, and wait until it is gone."""
        self.process.kill()
        self.process.wait(10)
        self._open.close()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
