"""Kills qmt-archive with SIGKILL, over and over, while days begin, end and are trimmed.

``scripts/crash-archive`` kills 100 times. A kill comes at a random moment, or at one that is waited
for: while a file is written, behind its rename, while the manifest is written, behind its swap,
while a day is compacted, behind that, when streams were just trimmed. Meanwhile the feed is kept
for a second, so that most starts must recover, and the codes' streams are trimmed behind what the
archive has.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import redis

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from archive_rig import (  # noqa: E402
    FRIDAY_MS,
    KEYS,
    Publisher,
    archived_bars,
    archived_rows,
    assert_same,
    kill_archive,
    manifest_of,
    run_archive,
    start_archive,
    stop_archive,
)
from waiting import wait_for  # noqa: E402

from qmt_standalone.redis_server import RedisServer  # noqa: E402

DAY_MS = 86_400_000
STEPS_PER_DAY = 80
PAUSE_S = 0.03
FEED_KEEP_S = 1.0
WITHIN_S = 6.0
MOMENTS = (
    *("random", "writing", "renamed", "manifest", "swapped", "compacting", "compacted"),
    "trimmed",
)


class Market:
    """Publishes without end, a day in some seconds, and trims behind the archive."""

    def __init__(self, url: str) -> None:
        self.connection = redis.Redis.from_url(url)
        self.publisher = Publisher(self.connection)
        self.days = 0
        self.trimmed = 0
        """Entries that were trimmed from the codes' streams."""
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self._day(FRIDAY_MS + self.days * DAY_MS)
                self.days += 1
        except BaseException as error:  # noqa: BLE001  # told by stop
            self._error = error

    def _day(self, begin_ms: int) -> None:
        for step in range(STEPS_PER_DAY):
            self.publisher.step(begin_ms + step * 1000)
            if step % 20 == 19:
                self.publisher.minute(begin_ms + step * 3000 // 60_000 * 60_000 + step * 60_000)
                self._trim()
            if self._ended.wait(PAUSE_S):
                return

    def _trim(self) -> None:
        """Do as the sweeper does: what a marked feed entry holds may go from the streams."""
        now_ms = int(time.time() * 1000)
        for market in self.publisher.markets:
            feed = KEYS.feed(market)
            archived: Any = self.connection.get(KEYS.archived(market))
            if archived is not None:
                behind = self.connection.xrange(feed, min=archived, count=1)
                if behind and behind[0][0] == archived:
                    self._trim_streams(market, behind[0][1])
            self.connection.xtrim(feed, minid=now_ms - int(FEED_KEEP_S * 1000), approximate=False)

    def _trim_streams(self, market: str, fields: dict[bytes, bytes]) -> None:
        if b"b1" not in fields:
            return
        oldest = min(
            int(entry_id.split("-")[0]) for _, entry_id, _ in msgpack.unpackb(fields[b"b1"])
        )
        for code in {code for code in self.publisher.codes if code.endswith(f".{market}")}:
            key = KEYS.tick(code)
            gone: Any = self.connection.xtrim(key, minid=oldest - 2000, approximate=False)
            self.trimmed += gone


def _moment(folder: Path, market: Market, kind: str) -> Callable[[], bool]:
    """Return what tells that a moment has come."""
    manifest = folder / "manifest.json"
    ticks = folder / "ticks"

    def found(pattern: str) -> list[Path]:
        try:
            return list(ticks.rglob(pattern))
        except OSError:
            return []

    def unnamed(pattern: str) -> bool:
        named = {one["path"] for one in manifest_of(folder)["files"]}
        return any(path.relative_to(folder).as_posix() not in named for path in found(pattern))

    if kind == "writing":
        return lambda: bool(found("part-*.part"))
    if kind == "renamed":
        return lambda: unnamed("part-*.parquet")
    if kind == "manifest":
        part = folder / "manifest.json.part"
        return part.exists
    if kind == "compacting":
        return lambda: bool(found("day-*.part"))
    if kind == "compacted":
        return lambda: unnamed("day-*.parquet")
    if kind == "trimmed":
        trimmed = market.trimmed
        return lambda: market.trimmed > trimmed
    before = manifest.stat().st_mtime_ns
    return lambda: manifest.stat().st_mtime_ns != before


def crash(url: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill it so often, then let it finish and compare; return what was hit and counted."""
    rng = random.Random(seed)
    market = Market(url)
    hit: Counter[str] = Counter()
    log = folder.with_suffix(".log").open("w+b")
    settings = {"QMT_ARCHIVE_FLUSH_S": "0.1", "QMT_ARCHIVE_COMPACT_AFTER_S": "0.2"}
    try:
        for number in range(kills):
            child = start_archive(folder, url, stderr=log.fileno(), **settings)
            kind = MOMENTS[number % len(MOMENTS)]
            time.sleep(rng.uniform(0, 1.5))
            if kind != "random":
                has_come, deadline = _moment(folder, market, kind), time.monotonic() + WITHIN_S
                while not has_come():
                    if time.monotonic() > deadline:
                        kind = f"random ({kind} not seen)"
                        break
            kill_archive(child)
            hit[kind] += 1
            if rng.random() < 0.3:
                time.sleep(1.5 * FEED_KEEP_S)
    finally:
        market.stop()
    child = start_archive(folder, url, stderr=log.fileno(), **settings)
    ends = {
        m: market.connection.xinfo_stream(KEYS.feed(m))["last-generated-id"].decode()
        for m in market.publisher.markets
    }

    def is_done() -> bool:
        held = manifest_of(folder)["markets"]
        return all(held.get(m, {}).get("position") == end for m, end in ends.items())

    wait_for(is_done, "all is archived")
    assert stop_archive(child) == 0
    log.seek(0)
    said = log.read().decode()
    log.close()
    assert "stored twice" not in said, said  # a compaction would hide it
    assert "Traceback" not in said, said
    expected = market.publisher.expected()
    assert_same(archived_rows(folder), expected)
    bars = {(code, label) for code, _, label, *_ in archived_bars(folder)}
    assert bars == {(code, label) for code, _, label, _ in market.publisher.bars}
    verified = run_archive(folder, "verify")
    assert verified.returncode == 0, verified.stdout
    assert run_archive(folder, "compact").returncode == 0
    assert_same(archived_rows(folder), expected)
    manifest = manifest_of(folder)
    assert manifest["missing"] == []
    assert all(one["final"] for one in manifest["files"])
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet*")}
    assert on_disk == {one["path"] for one in manifest["files"]}
    market.connection.close()
    return {
        "kills": kills,
        "seed": seed,
        "moments": dict(hit),
        "ticks": len(expected),
        "bars": len(bars),
        "days": market.days + 1,
        "trimmed": market.trimmed,
        "commits": manifest["generation"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        server = RedisServer(Path(work) / "redis")
        server.start()
        try:
            found = crash(server.url, Path(work) / "archive", arguments.kills, arguments.seed)
        finally:
            server.stop()
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
