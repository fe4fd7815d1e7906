"""How long to wait before what failed is tried again."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from typing import Final

__all__ = ["Backoff", "Retry"]

_WAITS_S: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)
_SPREAD: Final = (0.5, 1.0)
"""Of a wait, so that a crowd that lost one server does not come back all at once."""


class Backoff:
    """Waits that get longer with each failure in a row, up to the last.

    Parameters
    ----------
    waits_s
        Seconds to wait after the first failure, the second, and so on.
    steady_s
        What worked for so long before it failed begins anew.
    """

    def __init__(self, waits_s: Sequence[float], *, steady_s: float = math.inf) -> None:
        self._waits_s = waits_s
        self._steady_s = steady_s
        self.failures = 0
        """Failures in a row."""

    def failed(self, after_s: float = 0.0) -> float:
        """Count a failure, and return the seconds to wait.

        Parameters
        ----------
        after_s
            How long it worked before it failed.
        """
        if after_s > self._steady_s:
            self.failures = 0
        self.failures += 1
        return self._waits_s[min(self.failures, len(self._waits_s)) - 1]

    def reset(self) -> None:
        """Begin anew: it works."""
        self.failures = 0


class Retry:
    """A reader's way back to a server that went away; gives up in the end.

    Parameters
    ----------
    give_up_after_s
        How long after the first failure in a row the last one is raised; ``None``: never.
    """

    def __init__(self, give_up_after_s: float | None) -> None:
        self._give_up_after_s = give_up_after_s
        self._failing_since_s: float | None = None
        self._backoff = Backoff(_WAITS_S)

    async def wait(self, error: Exception) -> None:
        """Wait before the next attempt, or raise the error where it is time to give up."""
        now_s = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        failing_s = now_s - self._failing_since_s
        if self._give_up_after_s is not None and failing_s >= self._give_up_after_s:
            raise error
        await asyncio.sleep(self._backoff.failed() * random.uniform(*_SPREAD))

    def succeeded(self) -> None:
        """Begin anew: the server gave something."""
        self._failing_since_s = None
        self._backoff.reset()
