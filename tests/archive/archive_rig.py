"""What the archive's tests share: a publisher on the real scripts, the process, and two witnesses.

What was published is kept as bytes; the msgpack package decodes it. What is archived is read by
DuckDB through the manifest. Neither uses the code under test.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import duckdb
import msgpack
import redis
from heartbeats import BEATS_ON_MS, write_heartbeat
from waiting import wait_for

from qmt_producer.functions import Functions
from qmt_protocol.bars import encode_bar
from qmt_protocol.keys import Keys
from qmt_protocol.status import new_heartbeat
from qmt_protocol.ticks import encode_tick

KEYS = Keys()
FRIDAY_MS = 1_763_602_200_000  # 2025-11-20 09:30 in China, a Thursday
DAY = 20251120
FEED_KEEP_MS = 1_800_000

# Column of the archive, place in t1, level of the book, kind; as docs/wire.md says.
_PLAIN = (
    *((1, "lastPrice"), (2, "open"), (3, "high"), (4, "low"), (5, "lastClose"), (6, "amount")),
    *((7, "volume"), (8, "pvolume"), (9, "stockStatus"), (10, "openInt"), (11, "transactionNum")),
    *((12, "lastSettlementPrice"), (13, "settlementPrice"), (14, "pe")),
    *((19, "volRatio"), (20, "speed1Min"), (21, "speed5Min")),
)
_BOOKS = ((15, "askPrice"), (16, "bidPrice"), (17, "askVol"), (18, "bidVol"))
_PRICES = {1, 2, 3, 4, 5, 12, 13, 15, 16}
COLUMNS = [name for _, name in _PLAIN] + [f"{name}{n}" for _, name in _BOOKS for n in range(1, 6)]

Key = tuple[str, int, int]
Rows = dict[Key, tuple[Any, ...]]


def make_tick(rng: random.Random, at_ms: int, volume: int) -> bytes:
    """Return a tick as a whole-market push brings it, as t1."""
    price = rng.randrange(1000, 2000) / 100
    return encode_tick(
        {
            "time": at_ms,
            "lastPrice": price,
            "open": 11.37,
            "high": price + 1,
            "low": price - 1,
            "lastClose": 11.35,
            "amount": volume * price * 100,
            "volume": volume,
            "pvolume": volume * 100,
            "stockStatus": 0,
            "openInt": 13,
            "transactionNum": volume // 7,
            "lastSettlementPrice": 11.35,
            "settlementPrice": 0.0,
            "pe": 0.0,
            "askPrice": [price + level / 100 for level in range(1, 6)],
            "bidPrice": [price - level / 100 for level in range(5)],
            "askVol": [rng.randrange(1, 5000) for _ in range(5)],
            "bidVol": [rng.randrange(1, 5000) for _ in range(5)],
            "volRatio": 0.0,
            "speed1Min": 0.0,
            "speed5Min": 0.0,
        }
    )


class Publisher:
    """Publishes as a producer does, through its scripts, and keeps what it published."""

    def __init__(
        self,
        connection: redis.Redis,
        markets: Sequence[str] = ("SH", "SZ"),
        *,
        simulated: bool = False,
    ) -> None:
        self.connection = connection
        self.simulated = simulated
        self.markets = list(markets)
        self.rng = random.Random(7)
        self._functions = Functions(connection)
        self._functions.ensure()
        self._batch = 0
        self._last: dict[tuple[str, int], int] = {}
        self._volume = 0
        self.sent: list[tuple[str, int, bytes]] = []
        """Code, ms, t1; of what was new."""
        self.bars: list[tuple[str, str, int, bytes]] = []
        for market in self.markets:
            connection.set(KEYS.epoch(market), "e1", nx=True)
        self.beat()

    def beat(self) -> None:
        """Say that the markets are published."""
        beat = new_heartbeat("producer", 0, markets=self.markets, simulated=self.simulated)
        write_heartbeat(self.connection, KEYS, beat, ahead_ms=BEATS_ON_MS)

    def _call(self, market: str, field: str, streams: list[str], rows: list[Any]) -> None:
        """Append a batch and file it; the ids are ours."""
        self.connection.set(KEYS.lease(market), "holder")
        self._batch += 1
        body = msgpack.packb(rows)
        sizes = struct.pack(f">{len(rows)}I", *(len(msgpack.packb(row[-1])) for row in rows))
        state, _, entry_id = self._functions.call(
            "append",
            [KEYS.lease(market), KEYS.acked(market), KEYS.feed(market)],
            [
                *("holder", 60_000, f"ring {self._batch}", 1, 0),
                *(FEED_KEEP_MS, "9" * 13 + "-0", 0, 0, field, body, sizes),
            ],
        )
        assert state == b"applied", state
        names = [KEYS.filed(market), KEYS.feed(market), KEYS.latest(market), *streams]
        assert self._functions.call("file", names, [entry_id])[:3] == [b"filed", entry_id, 0]

    def _id(self, stream: str, ms: int) -> str:
        number = self._last.get((stream, ms), -1) + 1
        self._last[stream, ms] = number
        return f"{ms}-{number}"

    def publish(self, entries: Sequence[tuple[str, int, bytes]]) -> None:
        """Publish ticks of one market."""
        market = entries[0][0].rpartition(".")[2]
        rows = [[code, self._id(code, ms), msgpack.unpackb(t1)] for code, ms, t1 in entries]
        self._call(market, "b1", [KEYS.tick(code) for code, _, _ in entries], rows)
        self.sent += entries

    def publish_bars(self, entries: Sequence[tuple[str, str, int, bytes]]) -> None:
        """Publish bars of one market."""
        market = entries[0][0].rpartition(".")[2]
        rows = [
            [code, period, self._id(f"{period}|{code}", ms), msgpack.unpackb(k1)]
            for code, period, ms, k1 in entries
        ]
        self._call(market, "c1", [KEYS.bar(period, code) for code, period, _, _ in entries], rows)
        self.bars += entries

    def step(self, at_ms: int, codes: int = 20) -> None:
        """Publish one tick of some codes of each market, within a second."""
        for market in self.markets:
            entries = []
            for number in range(codes):
                self._volume += 1
                ms = at_ms + self.rng.randrange(1000)
                entries.append((f"{number:06}.{market}", ms, make_tick(self.rng, ms, self._volume)))
            self.publish(entries)

    def steps(self, count: int, at_ms: int = FRIDAY_MS, codes: int = 20) -> int:
        """Publish some seconds; return when the next one begins."""
        for number in range(count):
            self.step(at_ms + number * 1000, codes)
        return at_ms + count * 1000

    def minute(self, label_ms: int, market: str = "SH", codes: int = 3) -> None:
        """Publish a forming and a closed bar of some codes."""
        for closed in (False, True):
            self.publish_bars(
                [
                    (
                        f"{number:06}.{market}",
                        "1m",
                        label_ms,
                        encode_bar(
                            {
                                "time": label_ms,
                                **dict.fromkeys(("open", "high", "low", "close"), 11.37 + number),
                                "volume": 100 + closed,
                                "amount": 113700.0,
                                "closed": closed,
                            }
                        ),
                    )
                    for number in range(codes)
                ]
            )

    @property
    def codes(self) -> set[str]:
        """Codes that have ticks."""
        return {code for code, _, _ in self.sent}

    # The first witness: what was published, by the msgpack package.

    def expected(self) -> Rows:
        """Return what the archive must hold, flags included where none was set on the way."""
        rows: Rows = {}
        counts: dict[tuple[str, int], int] = {}
        for code, ms, t1 in self.sent:
            number = counts.get((code, ms), 0)
            counts[code, ms] = number + 1
            rows[code, ms, number] = decoded(t1)
        return rows


def decoded(t1: bytes) -> tuple[Any, ...]:
    """Decode t1 with the msgpack package alone, in the order of `COLUMNS`."""
    row = msgpack.unpackb(t1)
    values: list[Any] = [_yuan(row[at]) if at in _PRICES else row[at] for at, _ in _PLAIN]
    for at, _ in _BOOKS:
        book = row[at] or [None] * 5
        values += [_yuan(one) if at in _PRICES else one for one in book]
    return (row[0], *values)


def _yuan(value: Any) -> Any:
    return value / 10_000 if isinstance(value, int) else value


def stream_rows(connection: redis.Redis, codes: Iterable[str]) -> Rows:
    """Return what the streams hold, by the msgpack package."""
    rows: Rows = {}
    for code in codes:
        for entry_id, fields in connection.xrange(KEYS.tick(code)):
            ms, number = map(int, entry_id.decode().split("-"))
            rows[code, ms, number] = decoded(fields[b"t1"])
    return rows


# The second witness: what is archived, by DuckDB.


def manifest_of(folder: Path) -> dict[str, Any]:
    """Read the manifest as anybody would."""
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return found


def _files(folder: Path, kind: str) -> list[str]:
    named = manifest_of(folder)["files"]
    return [str(folder / one["path"]) for one in named if one["kind"] == kind]


def archived_rows(folder: Path) -> Rows:
    """Return all archived ticks, by DuckDB; a row that is there twice is an error."""
    files = [
        str(folder / one["path"]) for one in manifest_of(folder)["files"] if one["kind"] == "tick"
    ]
    if not files:
        return {}
    with duckdb.connect() as db:
        found = db.execute(
            f"SELECT code, id_ms, id_seq, epoch_ms(time), {', '.join(COLUMNS)} "
            "FROM read_parquet($files, hive_partitioning=false)",
            {"files": files},
        ).fetchall()
    rows = {(code, ms, number): tuple(values) for code, ms, number, *values in found}
    assert len(rows) == len(found), f"{len(found) - len(rows)} ticks are archived twice"
    return rows


def archived_bars(folder: Path) -> list[tuple[Any, ...]]:
    """Return all archived bars as (code, period, label, sequence, close, volume, closed)."""
    files = [
        str(folder / one["path"]) for one in manifest_of(folder)["files"] if one["kind"] == "bar"
    ]
    if not files:
        return []
    with duckdb.connect() as db:
        return db.execute(
            "SELECT code, period, id_ms, id_seq, close, volume, closed "
            "FROM read_parquet($files, hive_partitioning=false) ORDER BY 1, 2, 3, 4",
            {"files": files},
        ).fetchall()


def assert_same(archived: Rows, expected: Rows) -> None:
    """Compare two witnesses, and say which ticks differ."""
    lost = sorted(set(expected) - set(archived))
    extra = sorted(set(archived) - set(expected))
    assert (lost[:5], extra[:5]) == ([], []), f"{len(lost)} lost, {len(extra)} too many"
    wrong = [key for key, row in expected.items() if archived[key] != row]
    assert wrong == [], f"{wrong[0]}: {archived[wrong[0]]} is not {expected[wrong[0]]}"


# The process.


@contextmanager
def archive_process(
    folder: Path | str, url: str, *flags: str, stderr: int | None = None, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run qmt-archive; at the end of the block it is told to stop and must do so."""
    child = start_archive(folder, url, *flags, stderr=stderr, **env)
    try:
        yield child
    finally:
        stop_archive(child)


def start_archive(
    folder: Path | str, url: str, *flags: str, stderr: int | None = None, **env: str
) -> subprocess.Popen[bytes]:
    """Start qmt-archive run and wait until it is ready."""
    child = subprocess.Popen(
        [sys.executable, "-m", "qmt_archive", "run", "--exit-with-stdin", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={
            **os.environ,
            "QMT_ARCHIVE_URL": str(folder),
            "QMT_STREAMS_URL": url,
            "QMT_LOG_LEVEL": "warning",
            "QMT_ARCHIVE_FLUSH_S": "0.3",
            **env,
        },
    )
    stdout: IO[bytes] | None = child.stdout
    assert stdout is not None
    line = stdout.readline()
    assert line, f"it ended with {child.wait(60)}"
    return child


def stop_archive(child: subprocess.Popen[bytes]) -> int:
    """End it by its standard input, as a service manager would by SIGTERM."""
    assert child.stdin is not None
    with child:
        child.stdin.close()
        try:
            return child.wait(60)
        finally:
            child.kill()


def kill_archive(child: subprocess.Popen[bytes]) -> None:
    """End it with SIGKILL."""
    child.kill()
    assert child.stdin is not None
    child.stdin.close()
    with child:
        child.wait(60)


def run_archive(folder: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run another command of qmt-archive."""
    return subprocess.run(
        [sys.executable, "-m", "qmt_archive", *arguments],
        env={**os.environ, "QMT_ARCHIVE_URL": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def archived_count(folder: Path) -> int:
    """Return how many ticks the manifest names."""
    if not (folder / "manifest.json").exists():
        return 0
    return sum(one["rows"] for one in manifest_of(folder)["files"] if one["kind"] == "tick")


def wait_archived(folder: Path, count: int) -> None:
    """Wait until so many ticks are archived."""
    try:
        wait_for(lambda: archived_count(folder) >= count, f"{count} ticks archived")
    except AssertionError as error:
        raise AssertionError(f"{error}; {archived_count(folder)} are") from None


def events(connection: redis.Redis, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind."""
    told = [json.loads(fields[b"e"]) for _, fields in connection.xrange(KEYS.archive_events)]
    return [one for one in told if one["kind"] == kind]
