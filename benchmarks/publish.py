"""How many ticks a second go into Redis, against the limit of the server itself."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import redis

from qmt_producer.bar_maker import BarMaker
from qmt_producer.candidates import Entry
from qmt_producer.intake import Intake
from qmt_producer.publisher import Publisher
from qmt_producer.ring import Ring
from qmt_protocol.codes import market_of
from qmt_protocol.keys import Keys
from qmt_protocol.status import encode_heartbeat, new_heartbeat
from qmt_protocol.times import redis_ms
from qmt_simulator import bson
from qmt_standalone.redis_server import RedisServer

from .measure import Aim, Context, Row, Section, Side, in_turns
from .processes import Meter, wait_until
from .sample import BATCH, MARKETS, Pushes, batches_of
from .venvs import cache_directory

__all__ = ["KEYS", "Line", "run"]

KEYS: Final = Keys()
_STREAMS: Final = 5000
_DEPTH: Final = 64
_FEED_KEEP_MS: Final = 1_800_000
_WITHIN_S: Final = 300.0
_LIMIT: Final = "limit"
_BEAT_S: Final = 1.0
_TELL_US: Final = 0.1
RATE: Final = "ticks per second"


class Line:
    """The producer's way from the ring to Redis, without a terminal.

    Parameters
    ----------
    directory
        Where the ring's file goes.
    markets
        Markets that are published.
    """

    def __init__(
        self,
        directory: Path,
        url: str,
        *,
        markets: tuple[str, ...] = MARKETS,
        feed_keep_ms: int = _FEED_KEEP_MS,
    ) -> None:
        self.ring = Ring(directory / f"ring-{time.monotonic_ns()}.sqlite", 4_000_000_000)
        self.events: list[dict[str, Any]] = []
        self._url = url
        self._markets = list(markets)
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat)
        self.publisher = Publisher(
            self.ring,
            list(markets),
            keys=KEYS,
            url=url,
            lease_ms=10_000,
            feed_keep_ms=feed_keep_ms,
            future_ms=10_000,
            ring_keep_ms=900_000,
            listening=lambda: True,
            on_event=self.events.append,
        )

    def start(self) -> None:
        """Begin to publish, and to say so: readers ask for a live producer."""
        self.publisher.thread.start()
        self._beats.start()

    def _beat(self) -> None:
        began_ms = time.time_ns() // 1_000_000
        with redis.Redis.from_url(self._url) as connection:
            while not self._ended.is_set():
                beat = new_heartbeat(
                    "producer",
                    began_ms,
                    version="0",
                    simulated=True,
                    markets=self._markets,
                    terminal={"state": "ok"},
                )
                connection.hset(KEYS.status, beat.member, encode_heartbeat(beat))
                connection.zadd(KEYS.seen, {beat.member: redis_ms(connection.time())})
                self._ended.wait(_BEAT_S)

    def publish(self, entries: list[Entry]) -> None:
        """Append ticks and wake the publisher."""
        self.ring.append(batches_of(entries))
        self.publisher.more.set()

    def wait(self, ticks: int) -> None:
        """Wait until so many ticks are filed, each once; `RuntimeError` when one is not."""
        figures, publisher = self.publisher.figures, self.publisher
        wait_until(
            lambda: (
                figures.published + figures.repeated + figures.rejected >= ticks
                and not publisher.left
            ),
            f"{ticks} ticks published and filed",
            _WITHIN_S,
        )
        if (figures.published, figures.late) != (ticks, 0):
            raise RuntimeError(f"{ticks} ticks went to the ring, the publisher says {figures}")

    def close(self) -> None:
        """Stop publishing and close the ring."""
        self._ended.set()
        if self._beats.ident is not None:
            self._beats.join()
        self.publisher.stop(5.0)
        self.ring.close()


def run(ctx: Context) -> Section:
    """Measure the limit, a plain pipeline and ours, in turns."""
    pushes = Pushes()
    taken = ctx.pick(full=60, quick=12, smoke=1)
    documents = [pushes.push(step) for step in range(taken)]
    entries = [entry for step in range(taken) for entry in pushes.entries(step)]
    t1_bytes = round(sum(len(t1) for _, _, t1 in entries) / len(entries))
    bench = _Bench(ctx, entries, documents, t1_bytes)
    tool = _redis_benchmark()
    limit = bench.limit_by_tool(tool) if tool else bench.limit_by_socket
    section = Section(
        "publish",
        "How many ticks a second can be published, with an append-only file (fsync each second)?",
        references=(_LIMIT,),
        facts={
            "ticks per turn": len(entries),
            "codes": len({code for code, _, _ in entries}),
            "payload bytes (t1)": t1_bytes,
            "limit by": f"redis-benchmark, {_STREAMS} streams, -P {_DEPTH} -c 50"
            if tool
            else f"pre-packed XADDs from one socket, {_STREAMS} streams, {_DEPTH} in flight",
        },
        notes=[
            "limit: nothing but XADD of as many bytes to 5,000 streams. pipeline: redis-py, "
            "batches of 500, XADD per code, HSET of latest, XADD of the feed; no lease, no "
            "protection from repeats. ours: ring on disk, lease, acknowledgement, per-tick order "
            "check, latest and feed; of Redis's time FCALL is appending and filing, all "
            "commands in it included. from pushes: the same behind BSON decoding, encoding and the "
            "write to the ring.",
        ],
    )
    sides = [
        Side(_LIMIT, limit),
        Side("pipeline", bench.pipeline),
        Side("ours", bench.from_ring),
        Side("ours, from pushes", bench.from_pushes),
    ]
    repeats = ctx.pick(full=5, quick=2, smoke=1)
    measured = in_turns(sides, repeats, warm_up=ctx.pick(full=1, quick=0, smoke=0))
    aims = {("ours", RATE): (Aim(120_000), Aim(0.3, of="ratio"))}
    for side, of_side in measured.items():
        for what, samples in of_side.items():
            rate = what == RATE
            unit = "ticks/s" if rate else "us/tick"
            section.rows.append(
                Row(what, side, unit, samples, more_is_better=rate, aims=aims.get((side, what), ()))
            )
    section.rows.sort(key=lambda row: row.what != RATE)
    return section


class _Bench:
    def __init__(
        self, ctx: Context, entries: list[Entry], documents: list[bytes], t1_bytes: int
    ) -> None:
        self._directory = ctx.directory
        self._entries = entries
        self._documents = documents
        self._t1_bytes = t1_bytes
        self._numbers = count()

    @contextmanager
    def _server(self) -> Iterator[RedisServer]:
        server = RedisServer(self._directory / f"publish-{next(self._numbers)}", password="")
        server.start()
        try:
            yield server
        finally:
            server.stop()
            shutil.rmtree(server.directory)

    def _timed(
        self, server: RedisServer, work: Callable[[], None], own: int | None = None
    ) -> dict[str, float]:
        assert server.process is not None
        meter = Meter(redis=server.process.pid, own=own or os.getpid())
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        ticks = len(self._entries)
        return {
            RATE: ticks / seconds,
            "Redis processor time": meter.cpu_s("redis") * 1e6 / ticks,
            "publisher processor time": meter.cpu_s("own") * 1e6 / ticks,
        }

    def _check(self, url: str) -> None:
        codes = {code for code, _, _ in self._entries}
        with redis.Redis.from_url(url) as connection:
            pipe = connection.pipeline(transaction=False)
            for code in codes:
                pipe.xlen(KEYS.tick(code))
            stored = sum(pipe.execute())
        if stored != len(self._entries):
            raise RuntimeError(f"{len(self._entries)} ticks sent, {stored} stored")

    def _by_command(self, url: str) -> dict[str, float]:
        """Return what Redis spent in the script and in the commands that it calls."""
        with redis.Redis.from_url(url) as connection:
            told: Any = connection.info("commandstats")
        spent = {
            f"of it {name.removeprefix('cmdstat_').upper()}": one["usec"] / len(self._entries)
            for name, one in told.items()
        }
        return {name: us for name, us in spent.items() if us >= _TELL_US}

    def limit_by_tool(self, tool: Path) -> Callable[[], Mapping[str, float]]:
        def limit() -> Mapping[str, float]:
            with self._server() as server:
                assert server.process is not None
                meter = Meter(redis=server.process.pid)
                done = subprocess.run(
                    [
                        *(tool, "-p", str(server.port), "-P", str(_DEPTH), "-r", str(_STREAMS)),
                        *("-n", str(len(self._entries)), "--csv"),
                        *("XADD", "{qmt:SH}:tick:__rand_int__", "*", "t1", "x" * self._t1_bytes),
                    ],
                    capture_output=True,
                    text=True,
                    timeout=_WITHIN_S,
                    check=True,
                )
                used = meter.cpu_s("redis") * 1e6 / len(self._entries)
            table = list(csv.reader(done.stdout.splitlines()))
            return {RATE: float(table[1][table[0].index("rps")]), "Redis processor time": used}

        return limit

    def limit_by_socket(self) -> Mapping[str, float]:
        payload = b"x" * self._t1_bytes
        packed = [
            b"*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$2\r\nt1\r\n$%d\r\n%b\r\n"
            % (len(key), key, len(payload), payload)
            for number in range(_STREAMS)
            for key in (b"{qmt:SH}:tick:%012d" % number,)
        ]
        total = len(self._entries)
        parts = [
            (b"".join(packed[(at + n) % _STREAMS] for n in range(size)), size)
            for at in range(0, total, _DEPTH)
            for size in (min(_DEPTH, total - at),)
        ]
        with self._server() as server:

            def work() -> None:
                with socket.create_connection(("127.0.0.1", server.port)) as line:
                    answers = line.makefile("rb")
                    waiting = 0
                    for part, size in parts:
                        line.sendall(part)
                        waiting += size
                        while waiting > 8 * _DEPTH:
                            answers.readline()
                            answers.readline()
                            waiting -= 1
                    for _ in range(2 * waiting):
                        answers.readline()

            return self._timed(server, work)

    def pipeline(self) -> Mapping[str, float]:
        with self._server() as server, redis.Redis(port=server.port) as connection:

            def work() -> None:
                for at in range(0, len(self._entries), BATCH):
                    batch = self._entries[at : at + BATCH]
                    pipe = connection.pipeline(transaction=False)
                    latest: dict[str, dict[str | bytes, bytes | float | int | str]] = {}
                    for code, _, t1 in batch:
                        pipe.xadd(KEYS.tick(code), {"t1": t1})
                        latest.setdefault(market_of(code), {})[code] = t1
                    for market, values in latest.items():
                        pipe.hset(KEYS.latest(market), mapping=values)
                    pipe.xadd(KEYS.feed("SH"), {"b1": b"".join(t1 for _, _, t1 in batch)})
                    pipe.execute()

            measured = self._timed(server, work)
            self._check(server.url)
            return measured

    def from_ring(self) -> Mapping[str, float]:
        with self._server() as server:
            line = Line(self._directory, server.url)
            try:
                line.ring.append(batches_of(self._entries))

                def work() -> None:
                    line.start()
                    line.wait(len(self._entries))

                measured = self._timed(server, work)
                measured |= self._by_command(server.url)
                self._check(server.url)
            finally:
                line.close()
            return measured

    def from_pushes(self) -> Mapping[str, float]:
        with self._server() as server:
            line = Line(self._directory, server.url)
            intake = Intake(
                line.ring,
                list(MARKETS),
                bars=BarMaker(lambda: 0, 0, lambda: None),
                batch_ticks=BATCH,
                queue_bytes=256_000_000,
                decode_bson=bson.decode,
            )
            intake.on_stored = line.publisher.more
            intake.thread.start()
            line.start()
            try:

                def work() -> None:
                    for document in self._documents:
                        while intake.waiting_bytes > 16_000_000:
                            time.sleep(0.001)
                        intake.put(document)
                    line.wait(len(self._entries))

                measured = self._timed(server, work)
                self._check(server.url)
            finally:
                intake.stop()
                line.close()
            return measured


def _redis_benchmark() -> Path | None:
    """Return the tool: QMT_REDIS_BENCHMARK, on PATH, or laid into the cache folder by hand."""
    named = os.environ.get("QMT_REDIS_BENCHMARK") or shutil.which("redis-benchmark")
    if named:
        return Path(named)
    cached = cache_directory() / "redis-benchmark"
    return cached if cached.is_file() else None
