"""Giving memory back: allocators keep what was let go, and the process would stay as large."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import sys
import time
from collections.abc import Callable
from typing import Final

import pyarrow as pa

from .budget import Budget

__all__ = ["Trimmer"]

_EVERY_S: Final = 5.0
_WORTH_BYTES: Final = 8_000_000


class Trimmer:
    """Returns memory to the system some seconds after callers let much of it go.

    Parameters
    ----------
    budget
        Tells how much that was.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._owed_bytes = 0
        self._at = time.monotonic()

    async def look(self) -> None:
        """Give back what is due."""
        self._owed_bytes += self._budget.take_released()
        now = time.monotonic()
        if self._owed_bytes >= _WORTH_BYTES and now - self._at >= _EVERY_S:
            self._owed_bytes, self._at = 0, now
            await asyncio.to_thread(_give_back)


def _give_back() -> None:
    pa.default_memory_pool().release_unused()
    if _trim is not None:
        _trim(0)


def _find_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim
    except (OSError, AttributeError):  # musl has none, and keeps less
        return None
    return trim


_trim: Final = _find_trim()
