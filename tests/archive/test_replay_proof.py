"""Some seconds of what `scripts/replay-proof` does with a whole day."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
import redis
from recorded_day import recorded_day
from replay_proof import TO, compare


def test_pushed_archived_and_replayed_are_equal(tmp_path: Path) -> None:
    with recorded_day(tmp_path, 500, "09:30:00", 30, 10.0) as day:
        day.replay(TO)
        assert len(day.log) > 2500
        assert len(np.unique(day.log["code"])) == 500
        assert compare(day) == {}
        # The comparison is one: what is changed is found.
        changed = day.log.copy()
        changed["askVol"][7, 3] += 1
        code = changed["code"][7].decode()
        found = compare(dataclasses.replace(day, log=changed))
        assert found == {f"archive {code}: askVol": 1, f"streams {code}: askVol": 1}
        _forget_one(day.streams, code)
        found = compare(day)
        assert {name.partition(": ")[0] for name in found} == {f"streams {code}", code}


def _forget_one(streams: redis.Redis, code: str) -> None:
    key = f"{{{TO}:{code.rpartition('.')[2]}}}:tick:{code}"
    _, (second, _) = cast("list[tuple[bytes, object]]", streams.xrange(key, count=2))
    streams.xdel(key, second)
