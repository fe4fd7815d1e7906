"""The ring overflows; Redis loses its tail."""

from __future__ import annotations

from pathlib import Path

from crash_breaks import ring_overflow, tail_loss_within_lease
from crash_scale import SHORT
from crash_short import SEED, fail_on


def test_ring_overflow_is_named_exactly(tmp_path: Path) -> None:
    fail_on(ring_overflow(tmp_path / "rig", SEED, SHORT), tmp_path)


def test_tail_lost_while_the_lease_is_good(tmp_path: Path) -> None:
    fail_on(tail_loss_within_lease(tmp_path / "rig", SEED, SHORT), tmp_path)
