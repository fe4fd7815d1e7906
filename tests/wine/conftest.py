"""Tests of the Windows half under Wine. `scripts/test-windows` runs them, nothing else does."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "crash")]

from wine_environment import WinePython, find_wine  # noqa: E402
from wine_rig import Bridge  # noqa: E402

VERSION = os.environ.get("QMT_WINE_PYTHON", "")
# What is inside runs in Windows' Python, by `test_wine_inside.py`.
collect_ignore_glob = ["inside/*"] if VERSION else ["test_*.py", "inside/*"]


@pytest.fixture(scope="session")
def windows() -> Iterator[WinePython]:
    """Windows CPython; at the end nothing runs on it any more."""
    wine = find_wine()
    assert wine is not None
    python = WinePython(VERSION, wine)
    yield python
    deadline = time.monotonic() + 5
    while left := python.running():
        if time.monotonic() > deadline:
            pytest.fail(f"still running: {left}")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def bridge(windows: WinePython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """Redis and a terminal on Linux, a producer and a worker on Windows, all of them well."""
    with Bridge(windows, tmp_path_factory.mktemp("bridge")) as running:
        running.start_producer()
        running.start_worker()
        running.wait_until_well()
        yield running
