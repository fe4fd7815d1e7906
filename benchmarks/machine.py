"""The machine and the versions that a result belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from qmt_standalone.redis_server import find_server

__all__ = ["describe", "load_now"]

_PACKAGES: Final = (
    "qmt-redis-bridge",
    "redis",
    "hiredis",
    "msgspec",
    "msgpack",
    "numpy",
    "fastapi",
    "uvicorn",
    "websockets",
    "xtquant",
)
ROOT: Final = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """Return processor, memory, system, versions and the project's commit."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "redis_server": _redis_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def load_now() -> dict[str, float]:
    """Return the load average and what share of all cores others use at this moment."""
    own = psutil.Process()
    before = own.cpu_times()
    busy = psutil.cpu_percent(interval=0.5)
    after = own.cpu_times()
    mine = (after.user + after.system - before.user - before.system) / 0.5
    return {
        "at": round(time.time()),
        "load_1_min": round(os.getloadavg()[0], 2),
        "busy_percent": round(max(0.0, busy - 100 * mine / (os.cpu_count() or 1)), 1),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _redis_version() -> str:
    shown = subprocess.run(
        [find_server(), "--version"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    facts = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    return f"{shown.split()[0]} {facts.get('v', '?')} (malloc: {facts.get('malloc', '?')})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return done.stdout.strip() or "unknown"


if sys.platform == "win32":
    raise ImportError("the benchmarks run on Linux and Mac: the servers they measure live there")
