"""The one way in which tests wait: for what is to happen, never for a time.

The time limit is a safety net and says nothing of the code under test: a machine that does ten
other things beside must not break it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["WITHIN_S", "wait_for"]

WITHIN_S: Final = 180.0
"""How long a test waits at most, for anything."""
_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.1

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T], what: str = "what the test waits for", within_s: float = WITHIN_S
) -> T:
    """Return the first answer of a condition that is true.

    Raises
    ------
    TimeoutError
        When it does not become true; the message says what did not happen.
    """
    began = time.monotonic()
    while not (answer := condition()):
        waited_s = time.monotonic() - began
        if waited_s > within_s:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S + waited_s / 20))
    return answer
