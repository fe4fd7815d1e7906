"""The demo as somebody starts it in January 2027, behind the end of what the library knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis
from shifted_clock import shifted
from standalone_runs import Demo
from waiting import wait_for

from qmt_protocol.keys import Keys


@pytest.mark.long
@pytest.mark.parametrize("day", [20270101, 20270104])  # New Year's Day, and the Monday after it
def test_the_demo_in_january_2027(make_demo: Callable[..., Demo], tmp_path: Path, day: int) -> None:
    text = f"{day // 10_000}-{day // 100 % 100:02d}-{day % 100:02d}"
    demo = make_demo(env=shifted(tmp_path, f"{text} 10:00:00")).start().wait_until_ready()
    with httpx.Client(base_url=demo.run["http_url"], timeout=120, trust_env=False) as http:

        def told() -> dict[str, object]:
            processes = http.get("/api/v1/status").json()["processes"]
            producer = next(one for one in processes if one["role"] == "producer")
            return dict(producer["terminal"].get("trading_day") or {})

        # It trades around the clock, as on any day; its terminal knows all of its holidays.
        known = {"day": day, "trades": True, "source": "terminal", "known_until": 20351231}
        assert wait_for(told, "the producer knows the day") == known
        question = {"stock": "000001.SZ", "period": "1d", "count": 60}
        answer = http.get("/api/history", params=question)
        assert answer.status_code == 200, answer.text
        days = [int(bar["date"].replace("-", "")) for bar in answer.json()["data"]]
    assert len(days) == 60
    assert days[-3:] == [20261230, 20261231, day], "New Year's Day is none but while it trades"
    with redis.Redis.from_url(demo.run["streams_url"]) as streams:
        events = [json.loads(fields[b"e"]) for _, fields in streams.xrange(Keys().events)]
    assert [one for one in events if one["kind"] in ("gap", "deaf")] == []
