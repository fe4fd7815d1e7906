"""All scenarios by name, in the order in which they are run and reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from crash_answers import late_calls, lost_answers
from crash_breaks import (
    holder_paused,
    older_copy,
    redis_away,
    redis_paused,
    redis_wiped,
    ring_overflow,
    tail_loss_within_lease,
    takeover_while_away,
)
from crash_clock import clock_steps
from crash_cuts import beyond_the_feed, cut_gateway, cut_redis
from crash_damage import bad_entries
from crash_healing import healing_unfiled
from crash_kills import kill_alone, kill_client, kill_gateway, kill_holder, kill_redis, kill_standby
from crash_rig import Result
from crash_scale import Scale
from crash_stalled import stalled_reader
from crash_unfiled import kill_unfiled, kill_unfiled_alone, out_of_memory, repeat_takeover

__all__ = ["SCENARIOS"]

SCENARIOS: Final[dict[str, Callable[[Path, int, Scale], Result]]] = {
    scenario.__name__: scenario
    for scenario in (
        kill_redis,
        kill_holder,
        kill_alone,
        kill_standby,
        kill_gateway,
        kill_client,
        redis_away,
        redis_paused,
        ring_overflow,
        holder_paused,
        takeover_while_away,
        older_copy,
        tail_loss_within_lease,
        redis_wiped,
        cut_redis,
        cut_gateway,
        beyond_the_feed,
        stalled_reader,
        kill_unfiled,
        kill_unfiled_alone,
        lost_answers,
        out_of_memory,
        late_calls,
        healing_unfiled,
        repeat_takeover,
        bad_entries,
        clock_steps,
    )
}
