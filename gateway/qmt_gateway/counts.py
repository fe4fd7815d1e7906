"""What happened in this process since it began, counted where it happens; `metrics` tells it."""

from __future__ import annotations

from collections import Counter
from typing import Final

__all__ = ["CLOSED", "PROBLEMS"]

PROBLEMS: Final[Counter[str]] = Counter()
"""Error answers by their kind: refusals of every limit are among them."""
CLOSED: Final[Counter[int]] = Counter()
"""WebSockets that the gateway ended, by close code."""
