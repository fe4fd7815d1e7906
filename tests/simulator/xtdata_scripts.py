"""Scripts in processes of their own, with the real xtdata.py over the native stub."""

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

from warm_start import WARM_SCRIPT

from qmt_simulator.process import TerminalProcess

# Puts the native stub under the unmodified xtdata.py, without running the package's __init__.
PRELUDE = (
    WARM_SCRIPT
    + """
import importlib.util, json, os, sys, time, types, warnings
warnings.filterwarnings("ignore", category=DeprecationWarning)
package = types.ModuleType("xtquant")
package.__path__ = importlib.util.find_spec("xtquant").submodule_search_locations
sys.modules["xtquant"] = package
from qmt_simulator import native
sys.modules["xtquant.datacenter"] = native
package.datacenter = native
from xtquant import xtdata
xtdata.enable_hello = False
PORT = int(os.environ["TERMINAL_PORT"])
xtdata.connect(port=PORT)
def wait_for(condition, timeout_s=120.0):
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("condition did not come true")
        time.sleep(0.02)
def tell(value):
    def plain(item):
        return item.tolist() if hasattr(item, "tolist") else str(item)
    print("RESULT " + json.dumps(value, default=plain), flush=True)
"""
)

MIDSESSION = (
    "--start", "2026-11-20 10:30:20", "--speed", "0", "--real-hours", "--cache-delay-s", "0.1,0.2",
)  # fmt: skip
"""Flags of a terminal whose clock stands at 10:30:20 of an ordinary trading day."""


class ScriptedTerminal(TerminalProcess):
    """A terminal that can run scripts against itself."""

    def run(self, script: str, *, timeout_s: float = 180.0) -> Any:
        """Run `script` after the prelude; returns what it passed to `tell`."""
        output, errors = self.output(script, timeout_s=timeout_s)
        results = [line[7:] for line in output.splitlines() if line.startswith("RESULT ")]
        assert results, f"no result\n{output}\n{errors}"
        return json.loads(results[-1])

    def output(self, script: str, *, timeout_s: float = 180.0) -> tuple[str, str]:
        """Run `script` after the prelude; returns its standard output and error."""
        return self.start(script).communicate(timeout=timeout_s)

    def start(self, script: str, role: str = "test") -> "subprocess.Popen[str]":
        """Start `script` after the prelude and return its process."""
        environment = {
            **os.environ,
            "TZ": "Asia/Shanghai",
            "PYTHONIOENCODING": "utf-8",
            "TERMINAL_PORT": str(self.port),
            "QMT_SIMULATOR_ROLE": role,
        }
        return subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
        )
