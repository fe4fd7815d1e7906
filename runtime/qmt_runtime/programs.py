"""The commands' entry points: each says which extra it needs where that is not installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = [
    "archive",
    "gateway",
    "producer",
    "qmt",
    "simulator",
    "standalone",
    "windows",
    "worker",
]


def _run(command: str, module: str, extra: str) -> Any:
    """Run a command's ``main``; what it lacks of its extra is told in a line."""
    try:
        main: Callable[[], Any] = importlib.import_module(module).main
        return main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing.startswith("qmt_"):
            raise  # a fault of ours
        sys.stderr.write(
            f"{command}: {missing} is not installed here. "
            f"Install what {command} needs: pip install 'qmt-redis-bridge[{extra}]', or in a clone "
            f"pip install '.[{extra}]'.\n"
        )
        return 2


qmt = partial(_run, "qmt", "qmt_client.cli", "client")
producer = partial(_run, "qmt-producer", "qmt_producer.__main__", "producer")
worker = partial(_run, "qmt-worker", "qmt_worker.__main__", "worker")
windows = partial(_run, "qmt-windows", "qmt_windows.__main__", "windows")
gateway = partial(_run, "qmt-gateway", "qmt_gateway.__main__", "gateway")
archive = partial(_run, "qmt-archive", "qmt_archive.__main__", "archive")
simulator = partial(_run, "qmt-simulator", "qmt_simulator.__main__", "simulator")
standalone = partial(_run, "qmt-standalone", "qmt_standalone.__main__", "standalone")
