"""The incumbent's own environment, in a cache folder outside the project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["INCUMBENT", "cache_directory", "incumbent_python"]

INCUMBENT: Final = "qmt-bridge-pro[full]==2.11.5"
# msgpack: what the simulator's line is made of. pymongo: a C decoder of BSON, as xtquant has one
# on Windows and none here.
_REQUESTED: Final = (INCUMBENT, "xtquant==250807.1.2", "msgpack>=1.1,<2", "pymongo>=4.9,<5")
_INSTALL_S: Final = 900


def cache_directory() -> Path:
    """Return where environments are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qmt-benchmarks"


def incumbent_python() -> Path:
    """Return the Python that has the incumbent installed; the first call installs it."""
    folder = cache_directory() / "incumbent-2.11.5"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=_INSTALL_S)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *_REQUESTED], check=True, timeout=_INSTALL_S
        )
        done.touch()
    return python
