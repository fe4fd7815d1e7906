"""Replay: the very ticks that were live, in one order, at their time, and steered while it runs."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from client_archive import CODES, T0, Archive, Wire, key_of, make_wires, publish_wires, rows, trim
from client_gateway import running_gateway
from fake_worker import beat

from qmt_client import AsyncQMTClient, AsyncReplay, QMTClient, QMTWarning, Tick
from qmt_protocol.archive import Missing
from qmt_protocol.bars import Bar
from qmt_protocol.columns import rows_from
from qmt_protocol.errors import ArchiveDamaged, Gap, InvalidCode, InvalidRequest
from qmt_protocol.ticks import decode_tick

COUNT = 400
MINUTE = 60_000


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
def wires(archive: Archive, streams: redis.Redis) -> list[Wire]:
    """Ticks of some minutes, the older half in the archive, the newer in the streams."""
    made = make_wires(COUNT)
    archive.add(made[:250])
    publish_wires(streams, made)
    trim(streams, key_of(made[200])[0])
    beat(streams, "producer", markets=["SH", "SZ", "BJ"])
    return sorted(made, key=key_of)


@pytest.fixture
async def reader(
    make_async: Callable[..., AsyncQMTClient], archive: Archive
) -> AsyncIterator[AsyncQMTClient]:
    async with make_async(archive_url=archive.url) as client:
        yield client


@pytest.fixture
def sync_reader(
    streams: redis.Redis, target: dict[str, str], archive: Archive
) -> Iterator[QMTClient]:
    with QMTClient(**target, archive_url=archive.url) as client:
        yield client


def text_of(tick: Tick) -> str:
    """Return all that a tick is; by text, since NaN equals nothing."""
    return repr((tick.code, tick.id, int(tick.flags), sorted(tick.items())))


def texts(wires: list[Wire]) -> list[str]:
    return [text_of(decode_tick(t1, code, at)) for code, at, t1 in wires]


def ids(ticks: list[Any]) -> list[tuple[str, str]]:
    return [(tick.code, tick.id) for tick in ticks]


def names(wires: list[Wire]) -> list[tuple[str, str]]:
    return [(code, at) for code, at, _ in wires]


async def take(replay: AsyncReplay[Any], count: int) -> list[Any]:
    return [await anext(replay) for _ in range(count)]


# What it gives


async def test_it_gives_what_live_reading_gave(reader: AsyncQMTClient, wires: list[Wire]) -> None:
    replay = reader.replay(CODES, "2026-11-20", "2026-11-20", "max")
    ticks = [tick async for tick in replay]
    assert all(type(tick) is Tick for tick in ticks)
    assert [text_of(tick) for tick in ticks] == texts(wires)
    everything = [tick async for tick in reader.replay("*", speed="max")]
    assert ids(everything) == names(wires)
    of_market = [tick async for tick in reader.replay(markets=["SZ"], speed="max")]
    assert ids(of_market) == [name for name in names(wires) if name[0].endswith("SZ")]
    part = [t async for t in reader.replay("600519.SH", "2026-11-20 09:31", speed="max")]
    assert ids(part) == [
        (code, at)
        for code, at, _ in wires
        if code == "600519.SH" and int(at.split("-")[0]) >= T0 + MINUTE
    ]


async def test_batches_are_the_same_rows(reader: AsyncQMTClient, wires: list[Wire]) -> None:
    batches = [batch async for batch in reader.replay(CODES, speed="max").batches()]
    assert all(isinstance(batch, pa.RecordBatch) for batch in batches)
    found = [row for batch in batches for row in rows_from(batch)]
    assert repr([(c, i, tuple(r)) for c, i, r in found]) == repr(rows(wires))


def test_without_await(sync_reader: QMTClient, wires: list[Wire]) -> None:
    with sync_reader.replay(CODES, speed="max") as replay:
        assert [text_of(tick) for tick in replay] == texts(wires)
        assert list(replay) == []
        replay.seek("2026-11-20 09:31")
        assert ids(list(replay)) == [n for n in names(wires) if int(n[1][:13]) >= T0 + MINUTE]
    with sync_reader.replay(CODES, speed="max") as replay:
        assert sum(len(batch) for batch in replay.batches()) == COUNT


async def test_through_the_gateway(
    target: dict[str, str], archive: Archive, wires: list[Wire]
) -> None:
    with running_gateway(target, QMT_ARCHIVE_URL=archive.url) as gateway:
        async with AsyncQMTClient(gateway.url) as client:
            ticks = [tick async for tick in client.replay(CODES, speed="max")]
            assert [text_of(tick) for tick in ticks] == texts(wires)
            replay = client.replay("*", "2026-11-20", speed="max")
            assert ids(await take(replay, 3)) == names(wires[:3])
            replay.seek("2026-11-20 09:31")
            rest = [tick async for tick in replay]
            assert ids(rest) == [n for n in names(wires) if int(n[1][:13]) >= T0 + MINUTE]


async def test_bars_come_at_their_label(
    reader: AsyncQMTClient, archive: Archive, streams: redis.Redis
) -> None:
    bars = [
        Bar(
            {"time": T0 + MINUTE * at, "open": 1.5, "closed": True},
            "600519.SH",
            "1m",
            f"{T0 + MINUTE * at}-0",
        )
        for at in range(5)
    ]
    archive.add_bars(bars)
    begun = time.monotonic()
    found = [bar async for bar in reader.replay("600519.SH", speed=600, period="1m")]
    assert found == bars
    assert time.monotonic() - begun >= 4 * 60 / 600


# At its time


async def test_nothing_comes_early_and_equal_times_together(
    reader: AsyncQMTClient, wires: list[Wire]
) -> None:
    speed = 100.0
    replay = reader.replay(CODES, speed=speed)
    first: float | None = None
    earliest_ms = []
    async for tick in replay:
        at = time.monotonic()
        first = at if first is None else first
        due = (int(tick.id.partition("-")[0]) - int(wires[0][1].partition("-")[0])) / speed
        # The first tick itself is some microseconds behind the schedule that begins with it.
        earliest_ms.append((at - first) * 1000 - due + replay.late_ms)
    assert len(earliest_ms) == COUNT
    assert min(earliest_ms) > -50
    assert first is not None
    span = int(wires[-1][1].partition("-")[0]) - int(wires[0][1].partition("-")[0])
    assert time.monotonic() - first >= span / 1000 / speed - 0.05


async def test_a_slow_loop_gets_everything_late(reader: AsyncQMTClient, wires: list[Wire]) -> None:
    replay = reader.replay(CODES, speed=1000)
    first = await take(replay, 1)
    await asyncio.sleep(0.5)
    rest = [tick async for tick in replay]
    assert ids(first + rest) == names(wires)
    replay = reader.replay(CODES, speed=1000)
    await take(replay, 1)
    await asyncio.sleep(0.3)
    late = 0.0
    async for _ in replay:
        late = max(late, replay.late_ms)
    assert late > 100


async def test_pauses_take_no_time_unless_wanted(
    reader: AsyncQMTClient, archive: Archive, streams: redis.Redis
) -> None:
    morning = make_wires(20, step=5)
    noon = make_wires(20, step=5, start_ms=T0 + 40 * MINUTE, seed=3)
    later = make_wires(20, step=5, start_ms=T0 + 40 * MINUTE + 3_000, seed=4)
    archive.add([*morning, *noon, *later])
    begun = time.monotonic()
    ticks = [tick async for tick in reader.replay(CODES, speed=1)]
    assert len(ticks) == 60
    assert 2.5 < time.monotonic() - begun < 60  # the three seconds are kept, the 40 minutes not
    begun = time.monotonic()
    ticks = [tick async for tick in reader.replay(CODES, speed=1, skip_idle_s=1)]
    assert len(ticks) == 60
    replay = reader.replay(CODES, speed=2400, skip_idle_s=None)
    begun = time.monotonic()
    assert len([tick async for tick in replay]) == 60
    assert time.monotonic() - begun > 0.9


# Steered


async def test_pause_and_step(reader: AsyncQMTClient, wires: list[Wire]) -> None:
    replay = reader.replay(CODES, speed="max")
    replay.pause()
    assert replay.paused
    waiting = asyncio.ensure_future(anext(replay))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    replay.step(3)
    found = [await waiting, *await take(replay, 2)]
    waiting = asyncio.ensure_future(anext(replay))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    replay.resume()
    found.append(await waiting)
    found += await take(replay, 5)
    replay.pause()
    waiting = asyncio.ensure_future(anext(replay))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    replay.resume()
    found.append(await waiting)
    found += [tick async for tick in replay]
    assert ids(found) == names(wires)
    with pytest.raises(InvalidRequest):
        replay.step(0)


async def test_a_pause_holds_the_clock(reader: AsyncQMTClient, wires: list[Wire]) -> None:
    replay = reader.replay(CODES, speed=100)
    await take(replay, 100)
    replay.pause()
    await asyncio.sleep(0.5)
    replay.resume()
    await take(replay, 200)
    assert replay.late_ms < 400  # the half second is no lateness


async def test_steps_of_batches(reader: AsyncQMTClient, wires: list[Wire]) -> None:
    replay = reader.replay(CODES, speed="max")
    replay.step(7)
    batches = replay.batches()
    found = 0
    while found < 7:
        found += len(await anext(batches))
    assert found == 7
    replay.step(2)
    assert len(await anext(batches)) in (1, 2)


async def test_seek(reader: AsyncQMTClient, wires: list[Wire]) -> None:
    replay = reader.replay(CODES, speed="max")
    with pytest.raises(InvalidRequest, match="day"):
        replay.seek("10:30")
    await take(replay, 50)
    replay.seek("09:30")
    again = await take(replay, 50)
    assert ids(again) == names(wires[:50])
    replay.seek("2026-11-20 09:31")
    rest = [tick async for tick in replay]
    assert ids(rest) == [n for n in names(wires) if int(n[1][:13]) >= T0 + MINUTE]
    replay.seek("2026-11-20")  # after the end
    assert ids([tick async for tick in replay]) == names(wires)
    replay.seek("2026-11-21")
    assert [tick async for tick in replay] == []
    with pytest.raises(InvalidRequest):
        replay.seek("soon")
    await replay.aclose()


async def test_a_seek_wakes_a_loop_that_waits(reader: AsyncQMTClient, wires: list[Wire]) -> None:
    replay = reader.replay(CODES, speed=0.001)
    await take(replay, 1)
    waiting = asyncio.ensure_future(take(replay, 5))
    await asyncio.sleep(0.1)
    replay.seek("2026-11-20 09:30")
    replay.speed = "max"
    assert replay.speed == "max"
    assert len(await asyncio.wait_for(waiting, 120)) == 5
    replay.speed = 20
    assert replay.speed == 20
    await replay.aclose()


async def test_the_speed_changes_while_it_waits(reader: AsyncQMTClient, wires: list[Wire]) -> None:
    replay = reader.replay(CODES, speed=0.0001)
    found = await take(replay, 1)
    waiting = asyncio.ensure_future(take(replay, 20))
    await asyncio.sleep(0.1)
    replay.speed = 500
    found += await asyncio.wait_for(waiting, 120)
    replay.speed = "max"
    found += [tick async for tick in replay]
    assert ids(found) == names(wires)


def test_steered_from_another_thread(sync_reader: QMTClient, wires: list[Wire]) -> None:
    import threading

    with sync_reader.replay(CODES, speed=0.0001) as replay:
        found = [next(replay)]

        def steer() -> None:
            time.sleep(0.2)
            replay.pause()
            replay.step(2)
            time.sleep(0.2)
            replay.speed = "max"
            replay.resume()

        thread = threading.Thread(target=steer)
        thread.start()
        found += list(replay)
        thread.join()
    assert ids(found) == names(wires)


async def test_the_gateway_is_started_again_in_the_midst(
    target: dict[str, str], archive: Archive, streams: redis.Redis
) -> None:
    """A replay that waited for long goes on behind its last tick."""
    wires = make_wires(40_000, step=1, strange=False)
    archive.add(wires, group=5_000)
    beat(streams, "producer", markets=["SH", "SZ", "BJ"])
    with running_gateway(target, QMT_ARCHIVE_URL=archive.url) as gateway:
        client = AsyncQMTClient(gateway.url)
        replay = client.replay("*", speed="max")
        found = await take(replay, 100)
        replay.pause()
        gateway.process.kill()
        gateway.process.wait(60)
    port = int(gateway.url.rpartition(":")[2])
    replay.resume()
    rest = asyncio.ensure_future(take(replay, 39_900))
    await asyncio.sleep(0.3)
    with running_gateway(target, port, QMT_ARCHIVE_URL=archive.url):
        found += await asyncio.wait_for(rest, 120)
        await client.close()
    assert ids(found) == names(sorted(wires, key=key_of))


# The callback form


async def test_the_callback_has_subscribe_realtimes_signature(
    reader: AsyncQMTClient, wires: list[Wire]
) -> None:
    import inspect

    live = inspect.signature(AsyncQMTClient.subscribe_realtime)
    assert inspect.signature(AsyncReplay.subscribe_realtime) == live
    got: list[Tick] = []

    async def on_ticks(data: dict[str, list[Tick]]) -> None:
        for code, ticks in data.items():
            assert {tick.code for tick in ticks} == {code}
            got.extend(ticks)

    await reader.replay(CODES, speed="max").subscribe_realtime(CODES, on_ticks)
    assert sorted(ids(got)) == sorted(names(wires))
    got.clear()
    replay = reader.replay("*", speed=500)
    await replay.subscribe_realtime("600519.SH", lambda data: got.extend(data["600519.SH"]))
    assert ids(got) == [name for name in names(wires) if name[0] == "600519.SH"]
    with pytest.raises(InvalidRequest, match="among the codes"):
        await reader.replay("600519.SH").subscribe_realtime("000001.SZ", print)
    with pytest.raises(InvalidRequest, match="period"):
        await reader.replay("600519.SH").subscribe_realtime("600519.SH", print, "1m")


async def test_the_callback_form_of_the_sync_client(
    sync_reader: QMTClient, wires: list[Wire]
) -> None:
    got: list[Tick] = []

    def on_ticks(data: dict[str, list[Tick]]) -> None:
        for ticks in data.values():
            got.extend(ticks)

    await sync_reader.replay(CODES, speed="max").subscribe_realtime(CODES, on_ticks)
    assert sorted(ids(got)) == sorted(names(wires))
    slow = sync_reader.replay(CODES, speed=0.0001)
    task = asyncio.ensure_future(slow.subscribe_realtime(CODES, lambda data: None))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Errors and ends


async def test_gaps_are_told_where_they_are(
    reader: AsyncQMTClient, archive: Archive, wires: list[Wire]
) -> None:
    at_ms = key_of(wires[200])[0]
    archive.miss(Missing(market="SH", from_ms=at_ms, to_ms=at_ms + 5, reason="no producer"))
    told: list[Gap] = []
    replay = reader.replay(CODES, speed=1000, on_gap=told.append)
    before = 0
    async for tick in replay:
        if not told:
            before += 1
            assert int(tick.id.partition("-")[0]) < at_ms
    assert [gap.reason for gap in told] == ["no producer"]
    assert 0 < before <= 200
    with pytest.warns(QMTWarning, match="no producer"):
        assert len([tick async for tick in reader.replay(CODES, speed="max")]) == COUNT


async def test_arguments(reader: AsyncQMTClient) -> None:
    for arguments in (
        {"speed": 0},
        {"speed": "fast"},
        {"speed": float("nan")},
        {"speed": True},
        {"speed": "１"},
        {"skip_idle_s": -1},
        {"skip_idle_s": float("nan")},
        {"start": "0001-01-02"},
        {"markets": ["ＳＨ"]},
        {"sectors": ["a\0"]},
        {"start": "2026-11-20", "end": "2026-11-19"},
        {"period": "2m"},
        {"markets": ["SH"]},
    ):
        with pytest.raises(InvalidRequest):
            reader.replay("600519.SH", **arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidCode):
        reader.replay("600519")
    with pytest.raises(InvalidRequest):
        reader.replay()
    replay = reader.replay("600519.SH", speed="max")
    assert [tick async for tick in replay] == []
    with pytest.raises(InvalidRequest, match="not both"):
        await anext(replay.batches())  # type: ignore[call-overload]


async def test_damage_is_raised_where_it_is_met(
    reader: AsyncQMTClient, archive: Archive, wires: list[Wire]
) -> None:
    file = archive.manifest.files[0]
    (archive.root / file.path).write_bytes(b"PAR1")
    with pytest.raises(ArchiveDamaged, match=file.path):
        await take(reader.replay("*", speed="max"), 300)


async def test_left_early_and_closed_with_the_client(
    make_async: Callable[..., AsyncQMTClient], archive: Archive, wires: list[Wire]
) -> None:
    async with make_async(archive_url=archive.url) as client:
        replay = client.replay(CODES, speed=1)
        await take(replay, 2)
        await replay.aclose()
        assert [tick async for tick in replay] == []
        await take(client.replay(CODES, speed=1), 2)
        waiting = asyncio.ensure_future(take(client.replay(CODES, speed=0.0001), 2))
        await asyncio.sleep(0.1)
    with pytest.raises(StopAsyncIteration):
        await waiting
    gc.collect()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
