"""A client made before a fork: in the child everything raises at once, the parent goes on."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis
from client_archive import make_wires, publish_wires

from qmt_client import AsyncQMTClient, QMTClient
from qmt_protocol.errors import QMTError, WrongProcess

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
WITHIN_S = 30.0
CODES = ("600519.SH", "000001.SZ")


def in_a_fork(work: Callable[[], Any]) -> Any:
    """Return what a forked child answers; it fails when it does not within `WITHIN_S`."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        try:
            theirs.send(work())
        except QMTError as error:
            theirs.send(error)

    process = context.Process(target=child)
    process.start()
    try:
        assert ours.poll(WITHIN_S), "the child hangs"
        answer = ours.recv()
        process.join(WITHIN_S)
        assert process.exitcode == 0
        return answer
    finally:
        process.kill()
        process.join()


@pytest.fixture
def url(both_ways: dict[str, str], streams: redis.Redis) -> dict[str, str]:
    publish_wires(streams, make_wires(300, CODES))
    return both_ways


def refused(uses: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """Return, of each use, the name of what it raises."""
    told = {}
    for name, use in uses.items():
        try:
            use()
            told[name] = "nothing"
        except Exception as error:  # noqa: BLE001  # whatever it is, it is compared
            told[name] = type(error).__name__
    return told


def test_every_use_of_a_client_in_the_child_is_refused(
    url: dict[str, str], producer: Callable[[], None]
) -> None:
    with QMTClient(**url) as client:
        client.status()
        live = client.ticks(CODES, snapshot=True)
        next(live)
        replay = client.replay(CODES, "2026-11-20", speed="max")
        next(replay)
        pieces = client.stored_ticks(CODES, as_="batches")
        uses: dict[str, Callable[[], Any]] = {
            "status": client.status,
            "history": lambda: client.history("600519.SH"),
            "full_tick": lambda: client.full_tick(CODES),
            "stored": lambda: client.stored_ticks(CODES),
            "ticks": lambda: next(client.ticks(CODES)),
            "live": lambda: [next(live) for _ in range(3)],
            "replay": lambda: [next(replay) for _ in range(2_000)],
            "pieces": lambda: list(pieces),
            "pause": replay.pause,
        }
        told = in_a_fork(lambda: refused(uses))
        assert told == dict.fromkeys(uses, "WrongProcess")
        # The parent's own is as it was.
        assert client.full_tick("600519.SH")
        assert sum(1 for _ in replay) == 299
        assert sum(len(batch) for batch in pieces) == 300
        live.close()


def test_the_child_may_close_and_forget_what_it_was_given(
    url: dict[str, str], producer: Callable[[], None]
) -> None:
    client = QMTClient(**url)
    live, replay = client.ticks(CODES, snapshot=True), client.replay(CODES, "2026-11-20")
    next(live), next(replay)

    def leave() -> str:
        nonlocal client, live, replay
        live.close()
        replay.close()
        client.close()
        del client, live, replay
        gc.collect()
        return "left"

    assert in_a_fork(leave) == "left"
    assert client.status().processes
    client.close()


def test_a_client_made_in_the_child_works(
    url: dict[str, str], producer: Callable[[], None]
) -> None:
    def work() -> list[str]:
        with QMTClient(**url) as mine:
            return sorted(mine.full_tick(CODES))

    with QMTClient(**url) as client:
        client.status()
        assert in_a_fork(work) == sorted(CODES)


def test_the_error_says_what_to_do_and_pickles(
    producer: Callable[[], None], client: QMTClient
) -> None:
    error = in_a_fork(client.status)
    assert isinstance(error, WrongProcess)
    assert error.made_in == os.getpid()
    assert "in the child" in error.hint


def test_the_end_of_a_forked_child_is_not_the_clients(
    client: QMTClient, producer: Callable[[], None]
) -> None:
    """At the end of a program the client closes itself, and `os.fork`'s child runs that too."""
    client.status()
    child = os.fork()
    if not child:
        client._finalizer()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert client.status()


async def test_the_same_without_a_loop_of_its_own(
    url: dict[str, str], producer: Callable[[], None]
) -> None:
    async with AsyncQMTClient(**url) as client:
        live = client.ticks(CODES, snapshot=True)
        await anext(live)
        pieces = await client.stored_ticks(CODES, as_="batches")
        await anext(pieces)
        replay = client.replay(CODES, "2026-11-20", speed="max")
        await anext(replay)

        async def drain(source: Any) -> None:
            async for _ in source:
                pass

        uses: dict[str, Callable[[], Any]] = {
            "status": lambda: asyncio.run(client.status()),
            "stored": lambda: asyncio.run(client.stored_ticks(CODES)),
            "live": lambda: asyncio.run(drain(live)),
            "pieces": lambda: asyncio.run(drain(pieces)),
            "replay": lambda: asyncio.run(drain(replay)),
        }

        def work() -> dict[str, str]:
            told = refused(uses)
            asyncio.run(live.aclose())
            asyncio.run(replay.aclose())
            asyncio.run(client.close())
            return told

        told = in_a_fork(work)
        assert told == dict.fromkeys(uses, "WrongProcess")
        assert (await client.full_tick("600519.SH"))["600519.SH"].code == "600519.SH"
        await live.aclose()
        await replay.aclose()
        with suppress(StopAsyncIteration):
            while True:
                await anext(pieces)
