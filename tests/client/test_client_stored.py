"""Stored ticks and bars from archive and streams: no seam, no repeat, errors that say it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import redis
from client_archive import (
    CODES,
    T0,
    Archive,
    Wire,
    key_of,
    make_wires,
    publish_wires,
    rows,
    trim,
)
from client_gateway import running_gateway
from fake_worker import beat

from qmt_client import AsyncQMTClient, QMTClient, QMTWarning
from qmt_protocol.archive import Missing
from qmt_protocol.bars import Bar, encode_bar
from qmt_protocol.columns import BAR_COLUMNS, TICK_COLUMNS, bars_table, rows_from, ticks_table
from qmt_protocol.errors import (
    ArchiveDamaged,
    ArchiveUnavailable,
    Gap,
    GatewayUnavailable,
    InvalidCode,
    InvalidRequest,
    QMTError,
)
from qmt_protocol.keys import Keys
from qmt_protocol.tables import BAR_TABLE, TICK_TABLE
from qmt_standalone.redis_server import RedisServer

pytestmark = pytest.mark.filterwarnings("error")
FIRST, LAST = "2026-11-20", "2026-11-20"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture(params=["redis", "gateway"])
def reader(
    request: pytest.FixtureRequest,
    streams: redis.Redis,
    jobs: redis.Redis,
    target: dict[str, str],
    archive: Archive,
) -> Iterator[QMTClient]:
    """A client of archive and streams, over Redis and over a gateway."""
    beat(streams, "producer", markets=["SH", "SZ", "BJ"])
    if request.param == "redis":
        with QMTClient(**target, archive_url=archive.url) as client:
            yield client
    else:
        with (
            running_gateway(target, QMT_ARCHIVE_URL=archive.url) as gateway,
            QMTClient(gateway.url) as client,
        ):
            yield client


@pytest.fixture
def without_archive(client: QMTClient, producer: Callable[[], None]) -> QMTClient:
    return client


def ordered(wires: list[Wire]) -> list[tuple[str, str, Any]]:
    """Return ticks as they are to be read."""
    return rows(sorted(wires, key=key_of))


def same(table: pa.Table, wires: list[Wire]) -> bool:
    """Whether a table says exactly what was published; by text, since NaN equals nothing."""
    found = [row for batch in table.to_batches() for row in rows_from(batch)]
    return repr([(code, at, tuple(row)) for code, at, row in found]) == repr(ordered(wires))


# The seam


def test_archive_and_streams_are_one(
    reader: QMTClient, archive: Archive, streams: redis.Redis
) -> None:
    """Half in the archive, half in the streams, some in both."""
    wires = make_wires(3_000)
    for at in range(0, 2_000, 400):
        archive.add(wires[at : at + 400])
    publish_wires(streams, wires)
    trim(streams, key_of(wires[1_200])[0])
    table = reader.stored_ticks(CODES, as_="arrow")
    assert table.schema.equals(TICK_COLUMNS)
    assert same(table, wires)
    everything = reader.stored_ticks("*", FIRST, LAST, as_="arrow")
    assert same(everything, wires)
    of_markets = reader.stored_ticks(markets=["SH", "BJ"], as_="arrow")
    assert same(of_markets, [wire for wire in wires if not wire[0].endswith("SZ")])
    one = reader.stored_ticks("600519.SH", "2026-11-20 09:32", "2026-11-20 09:40", as_="arrow")
    ids = one.column("id_ms").to_pylist()
    assert same(
        one,
        [w for w in wires if w[0] == "600519.SH" and T0 + 120_000 <= key_of(w)[0] <= T0 + 600_000],
    )
    assert ids
    batches = reader.stored_ticks(CODES, as_="batches")
    assert same(pa.Table.from_batches(batches), wires)


def test_only_one_of_them_has_data(
    reader: QMTClient, archive: Archive, streams: redis.Redis
) -> None:
    wires = make_wires(600)
    archive.add(wires)
    assert same(reader.stored_ticks(CODES, as_="arrow"), wires)
    publish_wires(streams, wires)
    archive.commit(archive.manifest.__class__(generation=archive.manifest.generation))
    assert same(reader.stored_ticks(CODES, as_="arrow"), wires)


async def test_trimming_and_compaction_while_it_is_read(
    make_async: Callable[..., AsyncQMTClient],
    archive: Archive,
    streams: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the streams lose between two batches is in the archive by then."""
    monkeypatch.setattr("qmt_reading.stored.streams._MOST", 250)
    wires = make_wires(5_000, step=1, strange=False)
    archive.add(wires[:1_000])
    publish_wires(streams, wires)
    async with make_async(archive_url=archive.url) as client:
        batches = await client.stored_ticks(CODES, as_="batches")
        found = [await anext(batches)]
        for at in range(1_000, 5_000, 1_000):
            archive.add(wires[at : at + 1_000])
            trim(streams, key_of(wires[at + 750])[0])
            found.append(await anext(batches))
            archive.compact(wires[: at + 1_000])
            trim(streams, key_of(wires[at + 999])[0])
        found += [batch async for batch in batches]
    assert same(pa.Table.from_batches(found), wires)


def test_an_entry_of_another_version_is_told_and_passed_over(
    without_archive: QMTClient, streams: redis.Redis
) -> None:
    wires = make_wires(20, ["600519.SH"])
    publish_wires(streams, wires[:10])
    streams.xadd(Keys().tick("600519.SH"), {"t1": b"\x91\x01"}, id=f"{key_of(wires[9])[0]}-99")
    publish_wires(streams, [wire for wire in wires[10:] if key_of(wire)[0] > key_of(wires[9])[0]])
    left = [w for w in wires[10:] if key_of(w)[0] > key_of(wires[9])[0]]
    with pytest.warns(QMTWarning, match="not a t1 tick"):
        table = without_archive.stored_ticks("600519.SH", as_="arrow")
    assert same(table, [*wires[:10], *left])


# Frames


def test_a_frame_has_the_tables_columns(
    reader: QMTClient, archive: Archive, streams: redis.Redis
) -> None:
    wires = make_wires(500)
    archive.add(wires[:300])
    publish_wires(streams, wires[200:])
    frame = reader.stored_ticks(CODES)
    columns = {column.name: column.dtype for column in TICK_TABLE}
    assert list(frame.columns) == ["code", *columns]
    assert {name: str(frame[name].dtype) for name in columns} == columns
    assert str(frame.index.dtype) == "datetime64[ns, Asia/Shanghai]"
    assert frame.index.is_monotonic_increasing
    of_all = ordered(wires)
    assert frame["code"].tolist() == [code for code, _, _ in of_all]
    full = [at for at, (_, _, row) in enumerate(of_all) if row[1] is not None and row[15]]
    assert frame["lastPrice"].iloc[full].tolist() == [of_all[at][2][1] / 10_000 for at in full]
    assert frame["askPrice1"].iloc[full].tolist() == [of_all[at][2][15][0] / 10_000 for at in full]
    times = (frame.index.tz_convert("UTC").tz_localize(None) - pd.Timestamp(0)) // pd.Timedelta(
        "1ms"
    )
    assert times.tolist() == [int(at.partition("-")[0]) for _, at, _ in of_all]
    few = reader.stored_ticks(CODES, fields="volume,lastPrice")
    assert list(few.columns) == ["code", "volume", "lastPrice"]
    pd.testing.assert_series_equal(few["volume"], frame["volume"])


def test_a_day_without_data(reader: QMTClient, archive: Archive) -> None:
    archive.add(make_wires(50))
    with pytest.warns(QMTWarning, match=r"600519\.SH: nothing is stored in the range"):
        empty = reader.stored_ticks(["600519.SH"], "2026-11-21", "2026-11-21")
    assert len(empty) == 0
    filled = reader.stored_ticks(["600519.SH"], FIRST, LAST)
    assert len(filled)
    assert empty.dtypes.drop("code").equals(filled.dtypes.drop("code"))
    assert empty.index.dtype == filled.index.dtype
    assert empty.attrs["absent"] == {"600519.SH": "nothing is stored in the range"}
    assert reader.stored_ticks("*", "2026-11-21", as_="arrow").schema.equals(TICK_COLUMNS)


def test_codes_without_a_tick_are_named(reader: QMTClient, archive: Archive) -> None:
    archive.add(make_wires(50))
    with pytest.warns(QMTWarning, match=r"600518\.SH"):
        frame = reader.stored_ticks(["600519.SH", "600518.SH"])
    assert list(frame.attrs["absent"]) == ["600518.SH"]


def test_what_is_known_to_be_missing_is_told(reader: QMTClient, archive: Archive) -> None:
    archive.add(make_wires(50))
    archive.miss(
        Missing(market="SH", from_ms=T0, to_ms=T0 + 5, reason="no producer"),
        Missing(market="SZ", from_ms=T0, to_ms=T0 + 5, reason="elsewhere"),
        Missing(market="SH", from_ms=T0, to_ms=T0 + 5, reason="found again", state="filled"),
        Missing(market="SH", from_ms=T0 - 9, to_ms=T0 - 1, reason="earlier"),
        Missing(market="SH", from_ms=T0, to_ms=T0 + 5, reason="of another", codes=["600518.SH"]),
    )
    with pytest.warns(QMTWarning, match="no producer") as told:
        frame = reader.stored_ticks(["600519.SH"], "2026-11-20 09:30")
    assert len(told) == 1
    assert [one["reason"] for one in frame.attrs["missing"]] == ["no producer"]


# Bars


def test_that_rows_begin_later_or_end_earlier_than_asked_is_told(
    reader: QMTClient, archive: Archive, streams: redis.Redis
) -> None:
    """Whoever asks for a month and gets a day is told so, of each market."""
    wires = make_wires(300)
    archive.add(wires[:200])
    publish_wires(streams, wires[150:])
    with pytest.warns(QMTWarning) as told:
        frame = reader.stored_ticks(CODES, "2026-11-02", "2026-11-27")
    assert len(frame) == 300
    missing = [(one["market"], one["from_ms"] < T0) for one in frame.attrs["missing"]]
    of_each = [("BJ", True), ("SH", True), ("SZ", True)]
    assert sorted(missing, key=lambda one: (not one[1], one[0])) == [
        *of_each,
        *((market, False) for market, _ in of_each),
    ]
    assert {one["reason"] for one in frame.attrs["missing"]} == {"nothing is stored"}
    words = " ".join(str(one.message) for one in told)
    assert "Of SH nothing is stored before 2026-11-20; asked for was also 2026-11-02 to" in words
    assert "Of SZ nothing is stored behind 2026-11-20" in words


def test_a_weekend_is_nothing_that_is_missing(reader: QMTClient, archive: Archive) -> None:
    archive.add(make_wires(100))  # of a Friday
    for start, end in (
        ("2026-11-19 15:30", None),  # the evening before
        ("2026-11-20", "2026-11-22"),
        ("2026-11-20 09:30", "2026-11-20 15:00"),
    ):
        frame = reader.stored_ticks("600519.SH", start, end)
        assert len(frame)
        assert frame.attrs["missing"] == []


def test_the_ends_of_a_replay_and_of_batches(reader: QMTClient, archive: Archive) -> None:
    archive.add(make_wires(100))
    gaps: list[Gap] = []
    replay = reader.replay("600519.SH", "2026-11-16", "2026-11-27", "max", on_gap=gaps.append)
    assert list(replay)
    assert [gap.reason for gap in gaps] == ["nothing is stored"] * 2
    with pytest.warns(QMTWarning, match="before 2026-11-20"):
        list(reader.stored_ticks("600519.SH", "2026-11-16", as_="batches"))


def make_bars(count: int, codes: tuple[str, ...] = ("600519.SH", "000001.SZ")) -> list[Bar]:
    return [
        Bar(
            {
                "time": T0 + 60_000 * at,
                **dict.fromkeys(("open", "high", "low", "close"), round(10 + at / 100, 2)),
                "volume": at,
                "amount": at * 10.5,
                "suspendFlag": 0,
                "closed": True,
            },
            code,
            "1m",
            f"{T0 + 60_000 * at}-7",
        )
        for at in range(count)
        for code in sorted(codes)
    ]


def publish_bars(streams: redis.Redis, bars: list[Bar]) -> None:
    for bar in bars:
        forming = encode_bar({**bar, "closed": False})
        key = Keys().bar("1m", bar.code)
        streams.xadd(key, {"k1": forming}, id=f"{bar['time']}-1")
        streams.xadd(key, {"k1": encode_bar(bar)}, id=bar.id)


def test_closed_bars_of_both(reader: QMTClient, archive: Archive, streams: redis.Redis) -> None:
    bars = make_bars(300)
    later = [
        Bar({**bar, "volume": 99}, bar.code, "1m", f"{bar['time']}-9") for bar in bars[400:410]
    ]
    archive.add_bars(bars[:200])
    archive.add_bars(bars[150:450])
    publish_bars(streams, bars[300:])
    for bar in later:  # closed a second time
        streams.delete(Keys().bar("1m", bar.code))
    publish_bars(streams, [*bars[300:400], *later, *bars[410:]])
    expected = bars_table([*bars[:400], *later, *bars[410:]])
    table = reader.stored_bars(["600519.SH", "000001.SZ"], "1m", as_="arrow")
    assert table.schema.equals(BAR_COLUMNS)
    assert table.to_pylist() == expected.to_pylist()
    frame = reader.stored_bars("600519.SH", "1m", "2026-11-20 09:40", "2026-11-20 09:50")
    assert list(frame.columns) == ["code", *(column.name for column in BAR_TABLE)]
    assert frame["volume"].tolist() == list(range(10, 21))
    assert {str(frame[column.name].dtype) == column.dtype for column in BAR_TABLE} == {True}
    with pytest.warns(QMTWarning, match="nothing is stored"):
        assert len(reader.stored_bars("600519.SH", "5m")) == 0


def test_more_bars_than_are_read_at_once(
    reader: QMTClient, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A month is read in several turns, each in order."""
    monkeypatch.setattr("qmt_reading.stored.archive._BAR_ROWS", 100)
    bars = make_bars(400)
    archive.add_bars(bars)
    batches = list(reader.stored_bars("*", "1m", as_="batches"))
    assert pa.Table.from_batches(batches).to_pylist() == bars_table(bars).to_pylist()


# Errors


def test_arguments(reader: QMTClient) -> None:
    with pytest.raises(InvalidRequest, match="before the start"):
        reader.stored_ticks("600519.SH", "2026-11-20", "2026-11-19")
    with pytest.raises(InvalidCode, match="600519"):
        reader.stored_ticks("600519")
    with pytest.raises(InvalidRequest, match="codes, markets"):
        reader.stored_ticks()
    with pytest.raises(InvalidRequest, match="not both"):
        reader.stored_ticks("600519.SH", markets=["SH"])
    with pytest.raises(InvalidRequest, match="colour"):
        reader.stored_ticks("600519.SH", fields="colour")
    with pytest.raises(InvalidRequest, match="as_"):
        reader.stored_ticks("600519.SH", as_="list")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="period"):
        reader.stored_bars("600519.SH", "tick")


def test_no_archive_and_streams_that_begin_later(
    without_archive: QMTClient, streams: redis.Redis
) -> None:
    wires = make_wires(400, ["600519.SH"])
    publish_wires(streams, wires)
    with pytest.warns(QMTWarning, match="before 2026-11-20"):
        whole = without_archive.stored_ticks("600519.SH", "2026-11-10", as_="arrow")
    assert same(whole, wires)
    trim(streams, key_of(wires[100])[0], ["600519.SH"])
    left = [wire for wire in wires if key_of(wire)[0] >= key_of(wires[100])[0]]
    with pytest.raises(Gap, match="2026-11-20") as caught:
        without_archive.stored_ticks("600519.SH", "2026-11-10")
    assert caught.value.from_day == 20261120
    assert "QMT_ARCHIVE_URL" in caught.value.hint
    assert same(without_archive.stored_ticks("600519.SH", as_="arrow"), left)


def test_damage_and_absence_of_the_archive(reader: QMTClient, archive: Archive) -> None:
    archive.add(make_wires(500))
    file = archive.manifest.ticks("SH")[0]
    (archive.root / file.path).write_bytes(b"PAR1")
    with pytest.raises(ArchiveDamaged, match=re.escape(file.path)) as caught:
        reader.stored_ticks("600519.SH")
    assert caught.value.path == file.path
    (archive.root / "manifest.json").unlink()
    with pytest.raises(ArchiveUnavailable, match=re.escape(archive.url)):
        reader.stored_ticks("600519.SH")


def test_damage_behind_the_first_batch_breaks_the_answer_off(
    reader: QMTClient, archive: Archive
) -> None:
    """What was read before is no whole answer, and nobody is told that it is."""
    wires = make_wires(36_000, step=1, strange=False)
    archive.add(wires[:34_000], group=10_000)
    archive.add(wires[34_000:], group=2_000)
    for file in archive.manifest.files[3:]:
        (archive.root / file.path).write_bytes(b"PAR1")
    with pytest.raises(QMTError) as caught:
        reader.stored_ticks("*")
    assert isinstance(caught.value, (ArchiveDamaged, GatewayUnavailable))


async def test_leaving_early_lets_the_files_go(
    make_async: Callable[..., AsyncQMTClient], archive: Archive, streams: redis.Redis
) -> None:
    archive.add(make_wires(2_000))
    async with make_async(archive_url=archive.url) as client:
        batches = await client.stored_ticks(CODES, as_="batches")
        await anext(batches)
        await batches.aclose()
        reading = asyncio.ensure_future(client.stored_ticks(CODES))
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


def test_an_interrupted_sync_iteration(
    streams_server: RedisServer, streams: redis.Redis, archive: Archive
) -> None:
    wires = make_wires(1_000)
    archive.add(wires)
    with QMTClient(streams_server.url, archive_url=archive.url) as client:
        for batch in client.stored_ticks(CODES, as_="batches"):
            assert len(batch)
            break
        assert same(pa.Table.from_batches(client.stored_ticks(CODES, as_="batches")), wires)


def test_the_rig_says_what_the_columns_say() -> None:
    """The judge itself: rows to columns and back."""
    wires = make_wires(100)
    assert same(ticks_table(ordered(wires)), wires)
