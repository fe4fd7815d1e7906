"""Waits between attempts: longer with each failure, anew after success, given up in the end."""

from __future__ import annotations

import asyncio

import pytest

from qmt_runtime import retry
from qmt_runtime.retry import Backoff, Retry


def test_waits_grow_to_the_last_and_begin_anew() -> None:
    backoff = Backoff((1.0, 2.0, 5.0))
    assert [backoff.failed() for _ in range(4)] == [1.0, 2.0, 5.0, 5.0]
    assert backoff.failures == 4
    backoff.reset()
    assert backoff.failed() == 1.0


def test_what_worked_long_enough_begins_anew() -> None:
    backoff = Backoff((1.0, 2.0, 5.0), steady_s=60.0)
    assert [backoff.failed(0.1), backoff.failed(60.0)] == [1.0, 2.0]
    assert backoff.failed(60.1) == 1.0


async def test_a_reader_gives_up_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    waits_s: list[float] = []

    async def sleep(seconds: float) -> None:
        waits_s.append(seconds)
        now_s[0] += 1.0

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(retry.time, "monotonic", lambda: now_s[0])
    attempts = Retry(3.0)
    error = ConnectionError("away")
    for _ in range(3):
        await attempts.wait(error)
    with pytest.raises(ConnectionError, match="away"):
        await attempts.wait(error)
    attempts.succeeded()
    await attempts.wait(error)
    for wait_s, most_s in zip(waits_s, (0.1, 0.2, 0.4, 0.1), strict=True):
        assert most_s / 2 <= wait_s <= most_s


async def test_without_a_time_it_never_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float) -> None:
        assert seconds <= 2.0

    monkeypatch.setattr(asyncio, "sleep", sleep)
    attempts = Retry(None)
    for _ in range(100):
        await attempts.wait(ConnectionError())
