"""Files in and out: equal rows, nothing twice, nothing half, and errors that name the place."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import redis
from archive_rig import (
    COLUMNS,
    FRIDAY_MS,
    Publisher,
    archive_process,
    archived_bars,
    archived_count,
    archived_rows,
    assert_same,
    manifest_of,
    run_archive,
    wait_archived,
)
from waiting import WITHIN_S

from qmt_archive.exporting import export_rows
from qmt_archive.importing import Imported, import_files
from qmt_archive.locks import lock_for
from qmt_archive.store import ArchiveStore
from qmt_archive.verify import verify
from qmt_protocol.errors import BadFile, InvalidRequest
from qmt_protocol.keys import Keys
from qmt_standalone.redis_server import RedisServer

NOWHERE = "redis://127.0.0.1:1/0"
HEAD = "code,time,lastPrice,volume"
GOOD = f"600519.SH,{FRIDAY_MS},11.37,100"


def run_import(
    folder: Path, *files: Path, url: str = NOWHERE, period: str = "tick", market: str = ""
) -> Imported:
    """Import as the command does, without the second that a process takes to start."""
    store = ArchiveStore(str(folder))
    with lock_for(store, Keys(), url) as lock:
        store.load("qmt")
        return asyncio.run(
            import_files(
                store,
                lock.check,
                files,
                period=period,
                market=market,
                keys=Keys(),
                streams_url=url,
            )
        )


def export_all(folder: Path, out: Path, shape: Any = "csv", period: str = "tick") -> int:
    return export_rows(str(folder), None, period, None, None, shape, out)


def contents(folder: Path) -> dict[tuple[Any, ...], int]:
    """Return the archived ticks without their numbers, and how often each is there."""
    counts: dict[tuple[Any, ...], int] = {}
    for (code, ms, _), row in archived_rows(folder).items():
        counts[code, ms, row] = counts.get((code, ms, row), 0) + 1
    return counts


def test_what_was_exported_and_imported_is_the_same(
    streams: redis.Redis, streams_server: RedisServer, folder: Path, tmp_path: Path
) -> None:
    publisher = Publisher(streams)
    publisher.steps(20)
    publisher.minute(FRIDAY_MS + 60_000)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 800)
    for shape in ("csv", "parquet"):
        ticks, bars = tmp_path / f"tick.{shape}", tmp_path / f"1m.{shape}"
        assert export_all(folder, ticks, shape) == 800
        assert export_all(folder, bars, shape, "1m") == 3
        if shape == "csv":
            with ticks.open(newline="") as file:
                rows = list(csv.DictReader(file))
        else:
            rows = pq.read_table(ticks).to_pylist()
        assert len(rows) == 800
        assert {*COLUMNS, "code", "time"} == set(rows[0])
        copy = tmp_path / f"copy-{shape}"
        done = run_import(copy, ticks)
        assert (done.rows, done.repeats) == (800, 0)
        run_import(copy, bars, period="1m")
        assert contents(copy) == contents(folder)
        assert [bar[:3] + bar[4:] for bar in archived_bars(copy)] == [
            bar[:3] + bar[4:] for bar in archived_bars(folder)
        ]
        assert {tuple(one["sources"]) for one in manifest_of(copy)["files"]} == {("import",)}
        store = ArchiveStore(str(copy))
        store.load()
        assert {problem for one in verify(store) for problem in one.problems} == set()
        # Once more, into the archive that recorded it: nothing is new.
        done = run_import(folder, ticks, url=streams_server.url)
        assert (done.rows, done.repeats, done.streams) == (0, 800, "")
    assert archived_count(folder) == 800


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "600519.csv").write_text(f"{HEAD}\n600519,{FRIDAY_MS},11.37,100\n")
    done = run_archive(
        folder,
        *("import", str(tmp_path / "600519.csv"), "--market", "SH", "--json"),
        *("--streams-url", NOWHERE),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["rows"], told["days"]) == (1, [20251120])
    assert "the streams were not compared" in done.stderr
    exported = run_archive(folder, "export", "--codes", "600519.SH", "--start", "20251120")
    rows = list(csv.DictReader(io.StringIO(exported.stdout)))
    assert [(one["code"], one["time"], one["volume"]) for one in rows] == [
        ("600519.SH", str(FRIDAY_MS), "100")
    ]


def test_an_import_fills_up_what_is_there(
    streams: redis.Redis, streams_server: RedisServer, folder: Path, tmp_path: Path
) -> None:
    publisher = Publisher(streams, ["SH"])
    publisher.steps(10)
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 200)
    recorded = archived_rows(folder)
    out = tmp_path / "all.csv"
    export_all(folder, out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    more = [{**row, "volume": "77"} for row in rows[:3]]  # the same ms, other contents
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([*rows, *more])
    done = run_import(folder, out, url=streams_server.url)
    assert (done.rows, done.repeats) == (3, 200)
    found = archived_rows(folder)
    assert_same({key: row for key, row in found.items() if key in recorded}, recorded)
    added = {key: row for key, row in found.items() if key not in recorded}
    assert [row[1 + COLUMNS.index("volume")] for row in added.values()] == [77, 77, 77]
    assert {key[2] for key in added} == {32_768}
    assert json.loads(run_archive(folder, "compact", "--json").stdout)[0]["repeats"] == 0
    assert archived_rows(folder) == found


def test_rows_ahead_of_the_recording_are_refused(
    streams: redis.Redis, streams_server: RedisServer, folder: Path, tmp_path: Path
) -> None:
    publisher = Publisher(streams, ["SH"])
    publisher.steps(3)
    (tmp_path / "a.csv").write_text(f"{HEAD}\n000001.SH,{FRIDAY_MS + 2500},11.5,5\n")
    with pytest.raises(InvalidRequest, match="more in the streams than in the archive"):
        run_import(folder, tmp_path / "a.csv", url=streams_server.url)
    assert list(folder.rglob("*.parquet")) == []
    with archive_process(folder, streams_server.url):
        wait_archived(folder, 60)
    assert run_import(folder, tmp_path / "a.csv", url=streams_server.url).rows == 1
    assert_same(
        {key: row for key, row in archived_rows(folder).items() if key[2] < 32_768},
        publisher.expected(),
    )


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", f"{HEAD}\n{GOOD}\n600519.SH,{FRIDAY_MS + 1},abc,1\n", ("row 3", "lastPrice")),
        ("a.csv", f"{HEAD}\n{GOOD}\n600519.SH,{FRIDAY_MS + 1},1,1.5\n", ("row 3", "volume")),
        ("a.csv", f"{HEAD}\n600519.SH,0,1,1\n", ("row 2", "time")),
        ("a.csv", f"{HEAD}\n600519.SH,20260230093000,1,1\n", ("row 2", "time")),
        ("a.csv", f"{HEAD}\n600519.SH,20990101093000,1,1\n", ("row 2", "time", "future")),
        ("a.csv", f"{HEAD}\n600519.SH,,1,1\n", ("row 2", "time", "there is no time")),
        ("a.csv", f"{HEAD}\n{GOOD}\n600519,{FRIDAY_MS},1,1\n", ("row 3", "code", "600519.SH")),
        ("a.csv", f"{HEAD}\n{GOOD}\n8.SZ,{FRIDAY_MS},1,1\n", ("row 3", "code", "000008.SZ")),
        ("a.csv", f"{HEAD}\n600519.SH,{FRIDAY_MS},inf,1\n", ("row 2", "lastPrice", "infinite")),
        ("a.csv", f"{HEAD}\n600519.SH,{FRIDAY_MS},-1,1\n", ("row 2", "lastPrice", "below 0")),
        ("a.csv", f"{HEAD}\n600519.SH,{FRIDAY_MS},1,-1\n", ("row 2", "volume", "below 0")),
        ("a.csv", f'{HEAD},bidPrice\n{GOOD},"[1,-1,0,0,0]"\n', ("row 2", "bidPrice2", "below 0")),
        ("a.csv", f"{HEAD},askVol1\n{GOOD},-5\n", ("row 2", "askVol1", "below 0")),
        ("a.csv", f'{HEAD},extra\n{GOOD},"{{""a"": NaN}}"\n', ("row 2", "extra", "NaN")),
        ("a.csv", f"{HEAD}\n{GOOD}\n{GOOD}\n", ("row 3", "repeats")),
        ("a.csv", f"{HEAD}\n{GOOD}\n600519.SH,{FRIDAY_MS}\n", ("3", "4")),
        ("a.csv", f"code,time,lastPrice\n600519.SH,{FRIDAY_MS},1\n", ("column volume",)),
        ("a.csv", f"time,lastPrice,volume\n{FRIDAY_MS},1,1\n", ("column code", "600519.SH.csv")),
        ("a.csv", f'{HEAD},askPrice\n{GOOD},"[1,2,3,4,5,6]"\n', ("row 2", "askPrice", "6 levels")),
        ("a.csv", f'{HEAD},odd\n{GOOD},"{{""volume"": ""x""}}"\n', ("row 2", "odd")),
        ("a.csv", "", ("empty",)),
        ("a.parquet", "no parquet", ("a.parquet", "cannot be read")),
        ("a.txt", "", (".csv nor .parquet",)),
    ],
)
def test_a_bad_file_is_named_and_nothing_is_imported(
    folder: Path, tmp_path: Path, name: str, text: str, told: tuple[str, ...]
) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / name
    good.write_text(f"{HEAD}\n000001.SZ,{FRIDAY_MS},9.9,7\n")
    bad.write_text(text)
    with pytest.raises(BadFile) as failure:
        run_import(folder, good, bad)
    for part in (name, *told):
        assert part in str(failure.value)
    assert archived_count(folder) == 0
    assert list(folder.rglob("*.parquet")) == []


def test_bars_are_checked(folder: Path, tmp_path: Path) -> None:
    head = "time,open,high,low,close,volume,closed"
    cases = {
        f"{head}\n20251120,1,2,3,1,10,true\n": "row 2, column high",
        f"{head}\n20251120093000,1,2,1,1,10,true\n": "row 2, column time",
        f"{head}\n20251120,1,2,1,1,10,true\n20251120,1,2,1,1,11,true\n": "row 3: it repeats",
        f"{head}\n20251120,1,2,1,1,10,maybe\n": "row 2, column closed",
        f"{head}\n20251120,1,2,1,nan,10,true\n": "row 2, column close: the bar's close has no",
        f"{head}\n20251120,1,2,1,,10,true\n": "row 2, column close: the bar's close has no",
        f"{head}\n20251120,1,2,1,1.7976931348623157e308,10,true\n": "column close: .* has no value",
        f"{head}\n20251120,inf,2,1,1,10,true\n": "row 2, column open: it is infinite",
        f"{head}\n20251120,1,2,-1,1,10,true\n": "row 2, column low: -1 is below 0",
        f"{head}\n20251120,0,2,1,1,10,true\n": "row 2, column open: .* is 0",
        f"{head}\n20251120,1,2,1,3,10,true\n": "row 2, column high: .* below its close",
        f"{head}\n20251120,1,2,1.5,1,10,true\n": "row 2, column low: .* above its",
        f"{head}\n20251120,1,2,1,1,-10,true\n": "row 2, column volume: -10 is below 0",
        f"{head}\n20251122,1,2,1,1,10,true\n": "row 2, column time: .* weekend",
    }
    bad = tmp_path / "600519.SH.csv"
    for text, told in cases.items():
        bad.write_text(text)
        with pytest.raises(BadFile, match=told):
            run_import(folder, bad, period="1d")
    bad.write_text(f"{head}\n20251120,1,2,1,1.5,10,True\n20251121,1,2,1,1,10,False\n")
    done = run_import(folder, bad, period="1d")
    assert (done.rows, done.forming) == (1, 1)
    bad.write_text(f"{head}\n20251120,1,2,1,1.7,10,True\n20251121,1,2,1,1.6,10,True\n")
    done = run_import(folder, bad, period="1d")
    assert (done.rows, done.repeats) == (1, 1)  # what is there counts
    assert [bar[4] for bar in archived_bars(folder)] == [1.5, 1.6]


BARS = "time,open,high,low,close,volume"


def minutes(step: int, count: int) -> str:
    """Return bars of the morning, each so many minutes behind the last one."""
    begin = dt.datetime(2025, 11, 20, 9, 30)
    labels = (begin + dt.timedelta(minutes=step * at) for at in range(1, count + 1))
    return "\n".join([BARS, *(f"{at:%Y%m%d%H%M%S},10,11,9,10,1" for at in labels)]) + "\n"


@pytest.mark.parametrize(
    ("text", "period", "told"),
    [
        (minutes(1, 3), "5m", "row 2, column time: no 5m bar"),
        (minutes(5, 6), "15m", "row 2, column time: no 15m bar"),
        (minutes(5, 60), "1m", "multiples of 5 minutes: they are not those of 1m bars"),
        (minutes(30, 48), "5m", "multiples of 30 minutes"),
        (f"{BARS}\n20251120,1,2,1,1,1\n20251121,1,2,1,1,1\n", "1m", "those of daily bars"),
        (f"{BARS}\n20251120,1,2,1,1,1\n20251121,1,2,1,1,1\n", "1w", "row 3, column time: .* 1w"),
        (f"{BARS}\n20251103,1,2,1,1,1\n20251121,1,2,1,1,1\n", "1mon", "row 3, column time"),
    ],
)
def test_bars_of_another_period_are_refused(
    folder: Path, tmp_path: Path, text: str, period: str, told: str
) -> None:
    bad = tmp_path / "600519.SH.csv"
    bad.write_text(text)
    with pytest.raises(BadFile, match=told):
        run_import(folder, bad, period=period)
    assert list(folder.rglob("*.parquet")) == []


@pytest.mark.parametrize(
    ("step", "count", "period"), [(1, 60, "1m"), (5, 48, "5m"), (15, 8, "15m"), (30, 4, "60m")]
)
def test_bars_of_their_own_period_are_taken(
    folder: Path, tmp_path: Path, step: int, count: int, period: str
) -> None:
    good = tmp_path / "600519.SH.csv"
    good.write_text(minutes(step, count))
    assert run_import(folder, good, period=period).rows == count


def test_codes_are_stored_as_everybody_asks_for_them(folder: Path, tmp_path: Path) -> None:
    """One that can mean one thing only is converted: as it stands nothing would find it again."""
    written = ("sz000008", "600000.XSHG", "SH600519")
    rows = (f"{code},{FRIDAY_MS},1,1" for code in written)
    (tmp_path / "a.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    run_import(folder, tmp_path / "a.csv")
    found = {code for code, _, _ in archived_rows(folder)}
    assert found == {"000008.SZ", "600000.SH", "600519.SH"}
    (tmp_path / "b.csv").write_text(f"{HEAD}\nsz000008,{FRIDAY_MS},1,1\n")
    with pytest.raises(BadFile, match=r"row 2, column code: .* two markets"):
        run_import(folder, tmp_path / "b.csv", market="SH")


def test_a_spread_may_cost_less_than_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "SPRM601.ZF.csv").write_text(f"{BARS}\n20251120,-5,-3,-6,-4,1\n")
    assert run_import(folder, tmp_path / "SPRM601.ZF.csv", period="1d").rows == 1


def test_a_header_in_gbk_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(f"代码,{HEAD}\nx,{GOOD}\n".encode("gbk"))
    told = run_archive(folder, "import", str(tmp_path / "a.csv"), "--streams-url", NOWHERE)
    assert told.returncode == 2
    assert "a.csv, row 1: it is not UTF-8. Save it as UTF-8" in told.stderr
    assert "Traceback" not in told.stderr


def test_times_and_books_are_read_as_people_write_them(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "600519.SH_tick.csv").write_text(
        "time,lastPrice,volume,askPrice,bidVol,tickvol\n"
        f'{FRIDAY_MS},11.37,1,"[11.38, 11.39, 0, 0, 0]",[1 2 3 4 5],9\n'
        "20251120093001,11.37,2,,,\n"
        "20251120093002500,11.37,3,,,\n"
        "2025-11-20 09:30:03,11.37,4,,,\n"
        "2025-11-20T01:30:04Z,nan,5,,,\n"
    )
    assert run_import(folder, tmp_path / "600519.SH_tick.csv").rows == 5
    files = [str(folder / one["path"]) for one in manifest_of(folder)["files"]]
    with duckdb.connect() as db:
        rows = db.execute(
            "SELECT id_ms - $begin, askPrice2, askPrice5, bidVol3, isnan(lastPrice), extra "
            "FROM read_parquet($files, hive_partitioning=false) ORDER BY 1",
            {"files": files, "begin": FRIDAY_MS},
        ).fetchall()
    assert [row[0] for row in rows] == [0, 1000, 2500, 3000, 4000]
    assert rows[0][1:] == (11.39, 0.0, 3, False, b"\x81\xa7tickvol\x09")
    assert {row[1:4] for row in rows[1:]} == {(None, None, None)}
    assert rows[4][4] is None  # no value, as the largest double is


SMALL_PORTIONS = """
import sys
from qmt_archive import importing
from qmt_archive.__main__ import main
importing._ROWS_AT_ONCE = 2_000
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("parts", [1, 6])
def test_a_killed_import_leaves_nothing(folder: Path, tmp_path: Path, parts: int) -> None:
    files = []
    for number in range(12):
        path = tmp_path / f"{number:06}.SH.csv"
        lines = [f"{FRIDAY_MS + at * 10},{10 + at / 1e4},{at}" for at in range(2_000)]
        path.write_text("\n".join(["time,lastPrice,volume", *lines]) + "\n")
        files.append(str(path))
    command = ["import", *files, "--streams-url", NOWHERE]
    child = subprocess.Popen(
        [sys.executable, "-c", SMALL_PORTIONS, *command],
        env={**os.environ, "QMT_ARCHIVE_URL": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Files are written and the manifest does not name them yet.
    deadline = time.monotonic() + WITHIN_S
    while len(list(folder.rglob("*.parquet"))) < parts:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    assert list(folder.rglob("*.parquet")) != []
    assert archived_count(folder) == 0
    again = run_archive(folder, *command, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == archived_count(folder) == 24_000
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet*")}
    assert on_disk == {one["path"] for one in manifest_of(folder)["files"]}
