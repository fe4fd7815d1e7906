"""Which trading day a moment belongs to, when a day is over, and what a table for people shows."""

from __future__ import annotations

import datetime as dt

import pytest

from qmt_archive.listing import day_rows, missing_rows, show
from qmt_archive.maintenance import groups_due
from qmt_protocol.archive import ArchivedFile, ArchivedMarket, Manifest, Missing
from qmt_protocol.times import CHINA, trading_day

MINUTE_MS = 60_000


def ms(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=CHINA).timestamp() * 1000)


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        ("2026-11-20 09:30", 20261120),  # a Friday
        ("2026-11-20 17:59:59", 20261120),
        ("2026-11-20 18:00", 20261123),
        ("2026-11-21 02:30", 20261123),
        ("2026-11-21 10:00", 20261121),  # daytime stays where it is, on Saturdays too
        ("2026-11-22 23:00", 20261123),
        ("2026-11-24 05:59:59", 20261124),
        ("2026-11-24 06:00", 20261124),
        ("2026-12-31 21:00", 20270101),
    ],
)
def test_night_sessions_belong_to_the_next_trading_day(moment: str, day: int) -> None:
    assert trading_day(ms(moment)) == day


def test_a_calendar_may_be_given() -> None:
    assert trading_day(ms("2026-12-31 21:00"), lambda day: day > 20270103) == 20270104
    assert trading_day(ms("2026-12-31 21:00"), lambda day: False) > 20270101  # it ends


def tick_file(day: int, at: str, *, final: bool = False, market: str = "SH") -> ArchivedFile:
    return ArchivedFile(
        path=f"{market}{day}{at}{final}",
        kind="tick",
        market=market,
        day=day,
        rows=10,
        size_bytes=400,
        first_ms=ms(at),
        last_ms=ms(at),
        final=final,
    )


def test_a_day_is_over_when_a_newer_one_has_begun_or_all_is_silent() -> None:
    old, new = tick_file(20261119, "2026-11-19 10:00"), tick_file(20261120, "2026-11-20 14:59")
    quiet_since = ms("2026-11-20 15:31")
    held = Manifest(
        files=[old, new, tick_file(20261118, "2026-11-18 10:00", final=True)],
        markets={"SH": ArchivedMarket(epoch="e", position=f"{quiet_since}-0")},
    )

    def due(moment: str) -> list[int]:
        return [group.day for group in groups_due(held, ms(moment), 10 * MINUTE_MS)]

    assert due("2026-11-20 14:59") == [20261119]
    assert due("2026-11-20 15:40") == [20261119]
    assert due("2026-11-20 15:41") == [20261119, 20261120]
    assert due("2026-11-23 09:00") == [20261119, 20261120]


def test_tables_line_up() -> None:
    held = Manifest(
        files=[tick_file(20261120, "2026-11-20 14:59"), tick_file(20261120, "2026-11-20 15:00")],
        missing=[Missing(market="SH", from_ms=ms("2026-11-20 09:31"), to_ms=0, reason="ring full")],
    )
    lines = show(day_rows(held)).splitlines()
    assert lines[0].split()[:6] == ["day", "market", "period", "rows", "bytes", "bytes_per_row"]
    assert lines[1].split()[:6] == ["20261120", "SH", "tick", "20", "800", "40.0"]
    assert lines[0].index("sources") == lines[1].index("live")
    assert missing_rows(held)[0]["from"] == "2026-11-20 09:31:00"
    assert missing_rows(held)[0]["codes"] == "any"
