"""Functions of a caller that are called back with data, gaps and progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from qmt_protocol.bars import Bar
from qmt_protocol.errors import Gap
from qmt_protocol.jobs import Progress
from qmt_protocol.ticks import Tick

__all__ = ["OnBars", "OnGap", "OnProgress", "OnTicks"]

OnTicks = Callable[[dict[str, list[Tick]]], Awaitable[None] | None]
OnBars = Callable[[dict[str, list[Bar]]], Awaitable[None] | None]
OnGap = Callable[[Gap], None]
OnProgress = Callable[[Progress], None]
