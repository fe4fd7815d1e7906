"""How long the scenarios run: the long versions and the short ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["LONG", "SHORT", "Scale"]


@dataclass(frozen=True)
class Scale:
    """Counts and times of the scenarios."""

    kills: int
    """Of each process."""
    pause_s: float
    """Longest time between two kills."""
    away_s: float
    """How long Redis is away."""
    times: int
    """How often what takes long is done: pauses, takeovers, restores."""
    rounds: int
    """Of what is done by turns."""
    cuts: int
    """Of each reader's connection."""
    ring_mb: int
    """Size of the ring that overflows."""
    pairs: int
    """Runs with and without a stalled reader."""
    run_s: float
    """Length of one such run."""


LONG: Final = Scale(
    kills=50,
    pause_s=1.0,
    away_s=60,
    times=5,
    rounds=20,
    cuts=1000,
    ring_mb=16,
    pairs=10,
    run_s=20,
)
SHORT: Final = Scale(
    kills=1,
    pause_s=0.2,
    away_s=3,
    times=1,
    rounds=1,
    cuts=15,
    ring_mb=4,
    pairs=1,
    run_s=3,
)
