"""A simulated terminal as a process, and a door to it."""

import contextlib
import json
import subprocess
import sys
from typing import Any

from qmt_protocol.settings import TerminalSettings
from qmt_simulator.control import Control
from qmt_terminal import Terminal

MID_SESSION = ("--start", "2026-11-20 10:30:00", "--real-hours", "--cache-delay-s", "0.2,0.6")


class Simulated:
    """A running simulated terminal."""

    def __init__(self, *flags: str, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "qmt_simulator", "--exit-with-stdin"),
                *("--port", str(port), *(flags or MID_SESSION)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the simulator ended with {self.process.wait()}"
        self.ready: dict[str, Any] = json.loads(line)
        self.port: int = self.ready["port"]
        self.control = Control(self.port)

    def stop(self) -> None:
        """Kill it, as a terminal's death."""
        self.process.kill()
        self.process.wait(10)
        self.control.close()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def open_terminal(port: int) -> Terminal:
    """Return an unconnected door to the terminal at a port."""
    return Terminal(TerminalSettings(terminal_port=port, native_module="qmt_simulator.native"))
