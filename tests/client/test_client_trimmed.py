"""Whether a stream lost what lay behind an id, by what Redis tells of it."""

from __future__ import annotations

import pytest

from qmt_protocol.cursor.position import just_before
from qmt_protocol.ids import BEGINNING
from qmt_reading.stored.streams import _lost

DAY_MS = 86_400_000


def told(last: str, *, added: int = 9, length: int = 3, first: str = "7-0") -> dict[str, object]:
    entry = [first.encode(), {}] if length else None
    names = ("last-generated-id", "entries-added", "length", "first-entry")
    return dict(zip(names, (last.encode(), added, length, entry), strict=True))


@pytest.mark.parametrize(
    ("after", "behind", "stream", "lost"),
    [
        ("7-0", "7-0", told("9-0"), False),
        ("9-0", "", told("9-0", length=0), False),
        ("5-0", "7-0", told("9-0"), True),
        ("5-0", "", told("9-0", length=0), True),
        ("12-0", "", told("9-0"), False),  # Redis lost its end: nothing lies behind the id
        (BEGINNING, "7-0", told("9-0"), True),
        (BEGINNING, "7-0", told("9-0", added=3), False),
        (just_before(DAY_MS), f"{DAY_MS}-1", told(f"{DAY_MS}-1", first=f"{DAY_MS}-1"), False),
        (
            just_before(DAY_MS),
            f"{5 * DAY_MS}-1",
            told("9" * 12 + "-0", first=f"{5 * DAY_MS}-1"),
            True,
        ),
    ],
)
def test_a_stream_lost_what_lay_behind_an_id(
    after: str, behind: str, stream: dict[str, object], lost: bool
) -> None:
    assert _lost(after, behind, stream) is lost
