"""Which bars are closed, at which moment."""

import datetime as dt

import numpy as np
import pytest

from qmt_protocol.times import CHINA
from qmt_worker.days import Sessions
from qmt_worker.tables import closed

STOCK = Sessions(((9 * 3600 + 1800, 11 * 3600 + 1800), (13 * 3600, 15 * 3600)))


def ms(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=CHINA).timestamp() * 1000)


@pytest.mark.parametrize(
    ("period", "label", "now", "is_closed"),
    [
        ("1m", "2026-11-20 10:30", "2026-11-20 10:29:59", False),
        ("1m", "2026-11-20 10:30", "2026-11-20 10:31", True),
        ("1d", "2026-11-20", "2026-11-20 14:59", False),
        ("1d", "2026-11-20", "2026-11-20 15:30", True),
        ("1w", "2026-11-19", "2026-11-19 16:00", False),  # Friday is to come
        ("1w", "2026-11-20", "2026-11-20 16:00", True),
        ("1w", "2026-11-20", "2026-11-22 12:00", True),
        # The simulator also trades on a Sunday: that week's bar goes on until its close.
        ("1w", "2026-11-22", "2026-11-22 12:00", False),
        ("1mon", "2026-11-20", "2026-11-22 12:00", False),
        ("1mon", "2026-10-30", "2026-11-22 12:00", True),
    ],
)
def test_closed(period: str, label: str, now: str, is_closed: bool) -> None:
    times = np.array([ms(label)], dtype=np.int64)
    assert closed(times, period, ms(now), STOCK).tolist() == [is_closed]


@pytest.mark.parametrize(
    ("period", "labels", "now"),
    [
        ("1m", ("2026-11-20 10:29", "2026-11-20 10:30"), "2026-11-20 10:29:01"),
        ("1w", ("2026-11-20", "2026-11-26"), "2026-11-26 10:00"),
    ],
)
def test_a_bar_with_a_newer_one_behind_it_is_closed_at_once(
    period: str, labels: tuple[str, str], now: str
) -> None:
    """As live bars are: for three seconds of each minute two rows were told as forming."""
    times = np.array([ms(label) for label in labels], dtype=np.int64)
    newest = int(times[-1])
    assert closed(times, period, ms(now), STOCK, newest).tolist() == [True, False]
    assert closed(times[:1], period, ms(now), STOCK, newest).tolist() == [True]  # cut by an end
