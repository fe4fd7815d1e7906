"""Following feeds into files: each tick once and equal, whatever lies between."""

from __future__ import annotations

import glob
import json
from pathlib import Path

import duckdb
import polars
import pyarrow.parquet as pq
import pytest
import redis
from archive_rig import (
    DAY,
    FRIDAY_MS,
    KEYS,
    Publisher,
    archive_process,
    archived_bars,
    archived_count,
    archived_rows,
    assert_same,
    events,
    manifest_of,
    run_archive,
    stream_rows,
    wait_archived,
)
from waiting import wait_for

from qmt_standalone.redis_server import RedisServer


def test_what_is_published_is_archived_once_and_equal(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    publisher = Publisher(streams)
    now = publisher.steps(5)  # before the archive ever ran
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 200)
        now = publisher.steps(5, now)
        publisher.minute(FRIDAY_MS + 60_000)
        publisher.minute(FRIDAY_MS + 120_000)
        wait_archived(folder, 400)
        wait_for(
            lambda: (
                streams.get(KEYS.archived("SH"))
                == streams.xinfo_stream(KEYS.feed("SH"))["last-generated-id"]
            ),
            "the mark is published",
        )
    publisher.steps(5, now)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 600)
    assert_same(archived_rows(folder), publisher.expected())
    assert_same(archived_rows(folder), stream_rows(streams, publisher.codes))
    bars = archived_bars(folder)
    assert [(code, label) for code, _, label, *_ in bars] == [
        (f"{n:06}.SH", FRIDAY_MS + minute * 60_000) for n in range(3) for minute in (1, 2)
    ]
    assert {bar[5:] for bar in bars} == {(101, True)}
    manifest = manifest_of(folder)
    assert manifest["missing"] == []
    assert {one["day"] for one in manifest["files"] if one["kind"] == "tick"} == {DAY}
    listed = run_archive(folder, "ls", "--json")
    days = [one for one in json.loads(listed.stdout)["files"] if one["period"] == "tick"]
    assert [(one["market"], one["rows"]) for one in days] == [("SH", 300), ("SZ", 300)]
    assert run_archive(folder, "verify", str(DAY)).returncode == 0


def test_compaction_makes_one_sorted_file(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    publisher = Publisher(streams)
    now = FRIDAY_MS
    with archive_process(folder, streams_server.url):
        for part in range(1, 5):
            now = publisher.steps(3, now)
            publisher.minute(FRIDAY_MS + part * 60_000)
            wait_archived(folder, part * 120)
        busy = run_archive(folder, "compact")
        assert busy.returncode == 2
        assert "is being written by another qmt-archive" in busy.stderr
    before = archived_rows(folder)
    done = run_archive(folder, "compact", str(DAY), "--json")
    assert done.returncode == 0, done.stderr
    assert {one["repeats"] for one in json.loads(done.stdout)} == {0}
    files = manifest_of(folder)["files"]
    assert sorted((one["kind"], one["market"], one["final"]) for one in files) == [
        ("bar", "SH", True),
        ("tick", "SH", True),
        ("tick", "SZ", True),
    ]
    assert_same(archived_rows(folder), before)
    assert_same(before, publisher.expected())
    assert len(archived_bars(folder)) == 12
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")}
    assert on_disk == {one["path"] for one in files}
    verified = run_archive(folder, "verify", "--json")
    assert verified.returncode == 0, verified.stdout
    assert [one["problems"] for one in json.loads(verified.stdout)] == [[], [], []]
    assert json.loads(run_archive(folder, "compact", "--json").stdout) == []


def test_the_folder_is_read_as_the_page_says(
    streams: redis.Redis,
    streams_server: RedisServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher = Publisher(streams)
    publisher.steps(2)
    publisher.minute(FRIDAY_MS + 60_000)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 80)
    monkeypatch.chdir(folder)
    page = (Path(__file__).parents[2] / "docs/archive.md").read_text("utf-8")
    for_files, select = page.partition("```sql")[2].partition("```")[0].strip().split(";")[:2]
    with duckdb.connect() as db:
        db.execute(for_files.replace("20261120", str(DAY)))
        query = db.sql(select.replace("600519.SH", "000001.SH"))
        found = query.project("code, epoch_ms(time), lastPrice").fetchall()
        (bars,) = glob.glob("bars/**/*.parquet", recursive=True)  # by its partitions too
        shown = db.execute(f"SELECT period, market, month, close FROM '{bars}'").fetchall()
    mine = {ms: row for (code, ms, _), row in publisher.expected().items() if code == "000001.SH"}
    assert sorted(found) == sorted(("000001.SH", *row[:2]) for row in mine.values())
    assert [row[:3] for row in shown] == [("1m", "SH", 202511)] * 3
    files = [one["path"] for one in manifest_of(folder)["files"] if one["market"] == "SH"]
    ticks = polars.read_parquet([path for path in files if path.startswith("ticks")])
    assert ticks["lastPrice"].len() == 40
    assert polars.read_parquet(bars)["period"].to_list() == ["1m"] * 3
    assert pq.read_table(bars).column("close").to_pylist() == [11.37, 12.37, 13.37]


def test_a_day_that_is_over_is_compacted_while_it_runs(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    publisher = Publisher(streams, ["SH"])
    with archive_process(folder, streams_server.url, QMT_ARCHIVE_COMPACT_AFTER_S="1"):
        now = publisher.steps(3)
        wait_archived(folder, 60)
        publisher.steps(3, now)
        wait_archived(folder, 120)
        wait_for(lambda: events(streams, "archive compacted"), "the day is compacted")
    assert [one["final"] for one in manifest_of(folder)["files"]] == [True]
    assert_same(archived_rows(folder), publisher.expected())
    assert archived_count(folder) == 120


@pytest.mark.parametrize("epoch", [False, True])
def test_what_the_feed_lost_comes_from_the_streams(
    streams: redis.Redis, streams_server: RedisServer, folder: Path, epoch: bool
) -> None:
    publisher = Publisher(streams)
    now = publisher.steps(5)
    publisher.minute(FRIDAY_MS + 60_000)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 200)
    now = publisher.steps(5, now)
    publisher.minute(FRIDAY_MS + 120_000)
    for market in publisher.markets:
        if epoch:
            streams.set(KEYS.epoch(market), "e2")
        streams.xtrim(KEYS.feed(market), maxlen=1 if epoch else 0, approximate=False)
    publisher.steps(5, now, codes=30)  # ten codes are new to the archive
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 700)
        publisher.steps(2, now + 10_000)
        wait_archived(folder, 780)
    assert_same(archived_rows(folder), publisher.expected())
    assert len(archived_bars(folder)) == 6
    assert manifest_of(folder)["missing"] == []


def test_what_the_streams_lost_too_is_missing(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    publisher = Publisher(streams, ["SH"])
    now = publisher.steps(5)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 100)
    kept = dict(publisher.expected())
    publisher.steps(5, now)
    streams.xtrim(KEYS.feed("SH"), maxlen=0, approximate=False)
    for code in publisher.codes:
        streams.xtrim(KEYS.tick(code), maxlen=2, approximate=False)
    streams.xadd(
        KEYS.events,
        {
            "e": json.dumps(
                {
                    "kind": "gap",
                    "reason": "ring full",
                    "market": "SH",
                    "from_ms": 5,
                    "to_ms": 9,
                    "ticks": 1,
                    "codes": {"000001.SH": [5, 9, 1]},
                }
            )
        },
    )
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 140)
        wait_for(lambda: len(manifest_of(folder)["missing"]) == 2, "both are told")
    kept |= stream_rows(streams, publisher.codes)
    assert_same(archived_rows(folder), kept)
    trimmed, gap = manifest_of(folder)["missing"]
    assert (gap["reason"], gap["from_ms"], gap["to_ms"], gap["codes"]) == (
        "ring full",
        5,
        9,
        ["000001.SH"],
    )
    assert trimmed["reason"] == "trimmed before it was archived"
    assert FRIDAY_MS < trimmed["from_ms"] < trimmed["to_ms"] <= now + 5000
    assert len(trimmed["codes"]) == 20
    assert len(events(streams, "archive missing")) == 2
    with archive_process(folder, streams_server.url):  # and once only
        publisher.steps(1, now + 5000)
        wait_archived(folder, 160)
    assert len(manifest_of(folder)["missing"]) == 2


def test_night_sessions_belong_to_the_next_trading_day(
    streams: redis.Redis, streams_server: RedisServer, folder: Path
) -> None:
    publisher = Publisher(streams, ["SF"])
    friday = FRIDAY_MS + 86_400_000
    for hours in (5.5, 12, 17):  # 15:00, 21:30, 02:30 on Saturday
        publisher.steps(2, friday + int(hours * 3_600_000), codes=3)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 18)
    rows = {one["day"]: one["rows"] for one in manifest_of(folder)["files"]}
    assert rows == {20251121: 6, 20251124: 12}
    assert_same(archived_rows(folder), publisher.expected())
    assert run_archive(folder, "verify").returncode == 0
