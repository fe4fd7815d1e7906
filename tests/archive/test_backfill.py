"""What was not recorded is fetched from a simulated terminal, through a worker.

The oracle of the simulator says what there was; DuckDB says what is archived.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pytest
import redis
from archive_rig import events, manifest_of, run_archive
from waiting import wait_for

from qmt_archive import backfill as backfill_module
from qmt_archive.adding import write_parts
from qmt_archive.backfill import NOTHING_OF_THE_DAY, Filled
from qmt_archive.locks import WriterLock, lock_for
from qmt_archive.nightly import NightlySettings, backfilling, is_due, nightly
from qmt_archive.store import ArchiveStore
from qmt_archive.verify import verify
from qmt_protocol.archive import Missing
from qmt_protocol.codes import asset_class
from qmt_protocol.columns import ticks_table
from qmt_protocol.errors import ConfigurationError, InvalidRequest, NoWorker
from qmt_protocol.keys import Keys
from qmt_protocol.settings import load_settings
from qmt_protocol.ticks import TickRow, encode_tick
from qmt_protocol.times import CHINA, day_start_ms
from qmt_simulator.oracle import Oracle
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

FROZEN = (
    *("--start", "2026-11-20 10:30:00", "--speed", "0", "--real-hours"),
    *("--cache-delay-s", "0.1,0.4"),
)
BEFORE, YESTERDAY = 20261118, 20261119
TOO_OLD = 20250915  # ticks reach back 366 days
MINUTE_MS = 60_000
WIRE_YUAN = 1e-10  # a scaled price lies at most so far beside the one it stands for
COMPARED = ("time", "lastPrice", "volume", "amount", "high", "transactionNum", "openInt")
BOOKS = ("askPrice", "bidPrice", "askVol", "bidVol")
_row = msgspec.msgpack.Decoder(TickRow).decode


@dataclass
class Rig:
    """A terminal whose clock stands, a worker, and two Redis servers."""

    oracle: Oracle
    streams_url: str
    jobs_url: str
    streams: redis.Redis
    codes: list[str]
    """Two of SH and one of SZ that traded on both days."""

    def truth(self, code: str, day: int) -> dict[str, Any]:
        return dict(self.oracle.ticks(code, day))

    def settings(self, folder: Path) -> NightlySettings:
        flags = ("--archive-url", str(folder), "--streams-url", self.streams_url)
        return load_settings(NightlySettings, [*flags, "--jobs-url", self.jobs_url])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    servers = [
        RedisServer(tmp_path_factory.mktemp(name), aof=False) for name in ("streams", "jobs")
    ]
    for server in servers:
        server.start()
    with TerminalProcess(*FROZEN) as terminal:
        worker = subprocess.Popen(
            [sys.executable, "-m", "qmt_worker", "--exit-with-stdin"],
            stdin=subprocess.PIPE,
            env={
                **os.environ,
                "TZ": "Asia/Shanghai",
                "QMT_STREAMS_URL": servers[0].url,
                "QMT_JOBS_URL": servers[1].url,
                "QMT_TERMINAL_PORT": str(terminal.port),
                "QMT_NATIVE_MODULE": "qmt_simulator.native",
                "QMT_LOG_LEVEL": "warning",
            },
        )
        assert worker.stdin is not None
        try:
            with redis.Redis.from_url(servers[0].url) as streams:
                wait_for(lambda: _ready(streams), "the worker is ready")
                codes = _traded(terminal.oracle)
                yield Rig(terminal.oracle, servers[0].url, servers[1].url, streams, codes)
        finally:
            with worker:
                worker.stdin.close()
                try:
                    worker.wait(60)
                finally:
                    worker.kill()
    for server in servers:
        server.stop()


def _ready(streams: redis.Redis) -> bool:
    beats = [json.loads(beat) for beat in streams.hvals(Keys().status)]
    return len(beats) == 2 and all(beat["terminal"].get("state") == "ok" for beat in beats)


def _traded(oracle: Oracle) -> list[str]:
    """Return two codes of SH and one of SZ that traded on both days and long ago."""
    found: list[str] = []
    for market, count in (("SH", 2), ("SZ", 1)):
        kept = 0
        for code in oracle.codes():
            if not code.endswith(f".{market}") or asset_class(code) != "stock":
                continue
            bars = oracle.bars(code, "1d", day_start_ms(TOO_OLD))
            days = {
                int(at): int(volume)
                for at, volume in zip(bars["time"], bars["volume"], strict=True)
            }
            if all(days.get(day_start_ms(day)) for day in (TOO_OLD, BEFORE, YESTERDAY)):
                found.append(code)
                kept += 1
                if kept == count:
                    break
    assert len(found) == 3
    return found


class Archive:
    """An archive as recording would have left it."""

    def __init__(self, folder: Path, rig: Rig) -> None:
        self.folder = folder
        self._rig = rig
        self._store = ArchiveStore(str(folder))
        self._store.load("qmt")

    def record(self, code: str, day: int, keep: Callable[[int], bool] = lambda _: True) -> int:
        """Store what was pushed of a day, as far as it was received; return what was not."""
        columns = self._rig.truth(code, day)
        rows, lost = [], 0
        counts: dict[int, int] = {}
        for at, ms in enumerate(columns["time"].tolist()):
            if not keep(ms):
                lost += 1
                continue
            tick = {name: values[at].tolist() for name, values in columns.items()}
            counts[ms] = counts.get(ms, -1) + 1
            rows.append((code, f"{ms}-{counts[ms]}", _row(encode_tick(tick))))
        files = write_parts(self._store, "tick", ticks_table(rows), "live", simulated=True)
        self._store.commit(
            lambda manifest: msgspec.structs.replace(manifest, files=[*manifest.files, *files])
        )
        return lost

    def miss(self, *missing: Missing) -> None:
        self._store.commit(
            lambda manifest: msgspec.structs.replace(
                manifest, missing=[*manifest.missing, *missing]
            )
        )

    def rows(self, code: str, day: int) -> dict[str, list[Any]]:
        """Return a code's day by DuckDB, in the order of exchange time."""
        files = [
            str(self.folder / one["path"])
            for one in manifest_of(self.folder)["files"]
            if one["day"] == day
        ]
        books = [f"{book}{level}" for book in BOOKS for level in range(1, 6)]
        with duckdb.connect() as db:
            found = db.execute(
                f"SELECT epoch_ms(time) AS time, {', '.join(COMPARED[1:])}, {', '.join(books)}, "
                "source FROM read_parquet($files, hive_partitioning=false) WHERE code = $code "
                "ORDER BY id_ms, id_seq",
                {"files": files, "code": code},
            )
            names = [one[0] for one in found.description]
            rows = found.fetchall()
        return {name: [row[at] for row in rows] for at, name in enumerate(names)}

    def assert_whole(self, code: str, day: int) -> None:
        """Compare a code's day with the oracle: each tick once."""
        truth, found = self._rig.truth(code, day), self.rows(code, day)
        assert len(truth["time"]) > 1000
        for name in COMPARED:
            np.testing.assert_allclose(
                found[name], truth[name], rtol=0, atol=WIRE_YUAN, err_msg=f"{code} {name}"
            )
        for book in BOOKS:
            levels = np.array([found[f"{book}{level}"] for level in range(1, 6)]).T
            np.testing.assert_allclose(
                levels, truth[book], rtol=0, atol=WIRE_YUAN, err_msg=f"{code} {book}"
            )

    def missing(self) -> list[tuple[str, str, int, int]]:
        """Return what is missing: market, state, number of codes, found."""
        return [
            (one["market"], one["state"], len(one["codes"]), one["found"])
            for one in manifest_of(self.folder)["missing"]
        ]

    def backfill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        urls = ("--streams-url", self._rig.streams_url, "--jobs-url", self._rig.jobs_url)
        return run_archive(self.folder, "backfill", *arguments, *urls, "--log-level", "warning")


@pytest.fixture
def archive(tmp_path: Path, rig: Rig) -> Archive:
    rig.streams.delete(Keys().events)
    return Archive(tmp_path / "archive", rig)


def hole(day: int) -> tuple[int, int]:
    """Return ten minutes of a day."""
    begin_ms = day_start_ms(day) + (10 * 60 + 7) * MINUTE_MS
    return begin_ms, begin_ms + 10 * MINUTE_MS


def gap(market: str, day: int, *codes: str) -> Missing:
    from_ms, to_ms = hole(day)
    return Missing(
        market=market, from_ms=from_ms, to_ms=to_ms, codes=list(codes), reason="ring full"
    )


def at_lunch(missing: Missing) -> Missing:
    """Return a window in which nothing is traded."""
    later_ms = 90 * MINUTE_MS
    return msgspec.structs.replace(
        missing, from_ms=missing.from_ms + later_ms, to_ms=missing.to_ms + later_ms
    )


def opened(folder: Path) -> ArchiveStore:
    store = ArchiveStore(str(folder))
    store.load()
    return store


def outside(day: int) -> Callable[[int], bool]:
    from_ms, to_ms = hole(day)
    return lambda ms: not from_ms < ms < to_ms


def test_a_gap_is_filled_once(archive: Archive, rig: Rig) -> None:
    one, two, other = rig.codes
    lost = archive.record(one, YESTERDAY, outside(YESTERDAY))
    lost += archive.record(two, YESTERDAY, outside(YESTERDAY))
    archive.record(other, YESTERDAY)
    # The second window names no code: any of the market.
    archive.miss(gap("SH", YESTERDAY), at_lunch(gap("SZ", YESTERDAY, other)))
    assert lost > 100
    done = archive.backfill("--json")
    assert done.returncode == 0, done.stderr
    told = {one["market"]: one for one in json.loads(done.stdout)}
    assert (told["SH"]["found"], told["SH"]["codes"]) == (lost, 2)
    assert (told["SZ"]["found"], told["SZ"]["codes"]) == (0, 1)
    for code in rig.codes:
        archive.assert_whole(code, YESTERDAY)
    from_ms, to_ms = hole(YESTERDAY)
    rows = archive.rows(one, YESTERDAY)
    for ms, source in zip(rows["time"], rows["source"], strict=True):
        assert source == ("backfill" if from_ms < ms < to_ms else "live")
    assert archive.missing() == [("SH", "filled", 0, lost), ("SZ", "filled", 1, 0)]
    files = manifest_of(archive.folder)["files"]
    assert [(one["market"], one["final"]) for one in files if one["market"] == "SH"] == [
        ("SH", True)
    ]
    assert [one.problems for one in verify(opened(archive.folder))] == [[], []]
    assert [one["ticks"] for one in events(rig.streams, "archive backfilled")] == [lost, 0]
    assert asyncio.run(fill(archive.folder, rig, lambda inner: inner)) == []


def test_days_without_a_file_are_fetched_and_old_ones_named(archive: Archive, rig: Rig) -> None:
    one, two, _ = rig.codes
    archive.record(one, YESTERDAY - 2)
    archive.record(two, YESTERDAY - 2)
    archive.record(one, YESTERDAY)
    archive.miss(gap("SH", TOO_OLD, one))
    done = archive.backfill("--json")
    assert done.returncode == 0, done.stderr
    old, empty = sorted(json.loads(done.stdout), key=lambda one: one["from_ms"])
    assert (old["state"], old["found"], old["absent"]) == ("not to be had", 0, [one])
    assert (empty["state"], empty["codes"]) == ("filled", 2)
    for code in (one, two):
        archive.assert_whole(code, BEFORE)
    assert {*archive.rows(one, BEFORE)["source"]} == {"backfill"}
    whole = len(rig.truth(one, BEFORE)["time"]) + len(rig.truth(two, BEFORE)["time"])
    assert archive.missing() == [("SH", "not to be had", 1, 0), ("SH", "filled", 0, whole)]
    listed = run_archive(archive.folder, "ls")
    assert "not to be had" in listed.stdout
    assert NOTHING_OF_THE_DAY in listed.stdout
    assert [told["codes"] for told in events(rig.streams, "archive not to be had")] == [1]
    with pytest.raises(InvalidRequest, match="no trading day that is over"):
        asyncio.run(fill(archive.folder, rig, lambda inner: inner, 20261121))


async def fill(
    folder: Path, rig: Rig, wrap: Callable[[Any], Any], day: int | None = None
) -> list[Filled]:
    """Backfill as the process does, with a transport that a test can look into."""
    settings = rig.settings(folder)
    store = opened(folder)
    with lock_for(store, settings.keys, settings.streams_url) as lock:
        async with backfilling(settings, store, lock) as work:
            work.transport = wrap(work.transport)
            return await work.run(day)


class Watched:
    """A transport that notes whose ticks are downloaded, and fails after some."""

    def __init__(self, inner: Any, fail_after: int) -> None:
        self._inner = inner
        self._left = fail_after
        self.downloaded: list[str] = []

    async def run_job(self, name: str, params: Any, **options: Any) -> Any:
        if name == "download":
            if not self._left:
                raise NoWorker("No worker is alive.", hint="Start one.")
            self._left -= 1
            self.downloaded += params.codes
        return await self._inner.run_job(name, params, **options)


def test_what_was_interrupted_goes_on(
    archive: Archive, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = rig.codes
    for code in (one, two):
        archive.record(code, YESTERDAY, outside(YESTERDAY))
    archive.miss(gap("SH", YESTERDAY))
    monkeypatch.setattr(backfill_module, "_CODE_DAYS", 1)
    watched: list[Watched] = []

    def wrap(fail_after: int) -> Callable[[Any], Any]:
        def make(inner: Any) -> Watched:
            watched.append(Watched(inner, fail_after))
            return watched[-1]

        return make

    with pytest.raises(NoWorker):
        asyncio.run(fill(archive.folder, rig, wrap(1)))
    first, second = sorted((one, two))
    archive.assert_whole(first, YESTERDAY)
    assert archive.missing()[0][:3] == ("SH", "open", 0)
    told = asyncio.run(fill(archive.folder, rig, wrap(9)))
    assert [one.downloaded for one in watched] == [[first], [second]]
    assert [one.state for one in told] == ["filled"]
    archive.assert_whole(second, YESTERDAY)
    [(_, state, codes, found)] = archive.missing()
    assert (state, codes) == ("filled", 0)
    assert found == told[0].found + archive.rows(first, YESTERDAY)["source"].count("backfill")


def test_the_night_fills_what_is_open(archive: Archive, rig: Rig) -> None:
    one = rig.codes[0]
    archive.record(one, YESTERDAY, outside(YESTERDAY))
    archive.miss(gap("SH", YESTERDAY, one))
    settings = rig.settings(archive.folder)
    store = opened(archive.folder)

    async def a_night(lock: WriterLock) -> None:
        evening = dt.datetime(2026, 11, 20, 20, 5, tzinfo=CHINA)
        work = asyncio.create_task(
            nightly(settings, store, lock, clock=lambda: evening, first_after_s=0)
        )
        while any(entry.state == "open" for entry in store.manifest.missing):
            assert not work.done()
            await asyncio.sleep(0.05)
        work.cancel()
        await asyncio.wait([work])

    with lock_for(store, settings.keys, settings.streams_url) as lock:
        asyncio.run(asyncio.wait_for(a_night(lock), 120))
    archive.assert_whole(one, YESTERDAY)


def test_when_it_is_night() -> None:
    at = dt.time(20, 0)

    def moment(day: int, hour: int, minute: int = 0) -> dt.datetime:
        return dt.datetime(2026, 11, day, hour, minute, tzinfo=CHINA)

    assert is_due(moment(20, 20), at, None)
    assert is_due(moment(20, 7), at, None)  # it was away last night
    assert not is_due(moment(20, 10), at, None)  # but the market comes first
    assert not is_due(moment(20, 23), at, moment(20, 20, 1))
    assert not is_due(moment(21, 7), at, moment(20, 20, 1))
    assert is_due(moment(21, 20), at, moment(20, 20, 1))


def test_a_wrong_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no time of day"):
        _ = NightlySettings(archive_backfill_at="25:00").backfill_time
    assert NightlySettings(archive_backfill_at="").backfill_time is None
