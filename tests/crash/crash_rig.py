"""A whole bridge of real processes that can be killed part by part, and its account at the end."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgpack
import redis
from crash_accounting import Verdict, account, account_feed, account_reader
from crash_evidence import (
    fed_ids,
    gaps_of,
    latest_ids,
    pushed_by_code,
    pushed_view,
    read_notes,
    reader_view,
    stored_by_code,
    stored_ids,
)
from told_events import told_events
from waiting import WITHIN_S, wait_for

from qmt_simulator.control import Control
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer, free_port

__all__ = ["HERE", "MARKETS", "Result", "Rig"]

MARKETS: Final = ("SH", "SZ", "BJ")
HERE: Final = Path(__file__).resolve().parent
_END_S: Final = 10.0
_REST_S: Final = 1.5


@dataclass
class Result:
    """What a scenario came to."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, what: str, verdict: Verdict) -> None:
        """Take a verdict's counts and problems."""
        self.figures[what] = verdict.figures()
        self.problems += [f"{what}: {line}" for line in verdict.problems]

    def check(self, holds: bool, problem: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self.problems.append(problem)


class Rig:
    """Redis, a terminal, producers, gateways and readers, each a process; a context manager.

    Parameters
    ----------
    directory
        Where everything keeps its files.
    seed
        Of the moments at which things are done.
    ticks_per_s
        About how many the terminal pushes.
    lease_s
        How long a lease outlives its use.
    """

    def __init__(
        self,
        directory: Path,
        seed: int,
        *,
        ticks_per_s: int = 2000,
        push_ms: int = 100,
        lease_s: float = 4.0,
    ) -> None:
        self.directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.random = random.Random(seed)
        self.lease_s = lease_s
        self.server = RedisServer(directory / "redis")
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._events: dict[str, dict[str, Any]] = {}
        self._markets: dict[str, tuple[str, ...]] = {}
        self._gateway_port = free_port()
        self.log_path = directory / "pushed"
        self.kills: dict[str, int] = {}
        interval_ms = {500: 12_000, 2000: 3000, 10_000: 600, 20_000: 300}[ticks_per_s]
        self._flags = (
            *("--push-log", str(self.log_path), "--push-ms", str(push_ms)),
            *("--interval-ms", str(interval_ms)),
        )

    def __enter__(self) -> Rig:
        try:
            self.server.start()
            self.streams = redis.Redis.from_url(self.server.url, socket_timeout=20)
            self.terminal = TerminalProcess(*self._flags)
            self.control = Control(self.terminal.port)
        except BaseException:
            self.server.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self._children):
            self.kill(name, counted=False)
        self.control.close()
        self.terminal.stop()
        self.streams.close()
        self.server.kill()

    # -- processes ----------------------------------------------------------------------------

    def _start(self, name: str, *command: str, **env: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("QMT_")}
        with (self.directory / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,  # ours to hold: with us it closes, and they end
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**clean, "TZ": "CST-8", "QMT_LOG_LEVEL": "warning", **env},
            )

    def start_producer(
        self, name: str, *, ring: Path | None = None, port: int = 0, **env: str
    ) -> None:
        """Start a producer with a ring of its own; without a path the name is the ring's.

        Parameters
        ----------
        port
            Of a relay before Redis.
        """
        self._start(
            name,
            *("-m", "qmt_producer", "--exit-with-stdin"),
            QMT_STREAMS_URL=self.server.url.replace(
                f":{self.server.port}/", f":{port or self.server.port}/"
            ),
            QMT_TERMINAL_PORT=str(self.terminal.port),
            QMT_NATIVE_MODULE="qmt_simulator.native",
            QMT_RING=str(ring or self.directory / f"{name}.sqlite"),
            QMT_LEASE_S=str(self.lease_s),
            **env,
        )

    def start_gateway(self, name: str = "gateway", **env: str) -> None:
        """Start a gateway, always on the same port."""
        self._start(
            name,
            *("-m", "qmt_gateway", "--exit-with-stdin"),
            QMT_STREAMS_URL=self.server.url,
            QMT_JOBS_URL=self.server.url,
            QMT_BRIDGE_PORT=str(self._gateway_port),
            **env,
        )

    def wait_gateway(self) -> None:
        """Wait until the gateway takes connections."""

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._gateway_port)) == 0

        wait_for(listens, "the gateway listens")

    @property
    def gateway_url(self) -> str:
        """Where the gateway is."""
        return f"http://127.0.0.1:{self._gateway_port}"

    def start_reader(
        self, name: str, url: str, *flags: str, markets: str = ",".join(MARKETS)
    ) -> None:
        """Start a reader of whole markets, or start it again with the file it had."""
        self._markets[name] = tuple(markets.split(","))
        flags = ("--markets", markets, *flags)
        file = str(self.file_of(name))
        self._start(name, str(HERE / "crash_reader.py"), "--url", url, "--file", file, *flags)

    def file_of(self, name: str) -> Path:
        """Return a reader's file."""
        return self.directory / f"{name}.txt"

    def pid(self, name: str) -> int:
        """Return a child's process id."""
        return self._children[name].pid

    def is_alive(self, name: str) -> bool:
        """Whether a child has not ended."""
        return name in self._children and self._children[name].poll() is None

    def kill(self, name: str, *, counted: bool = True) -> None:
        """Kill a child as a crash would."""
        child = self._children.pop(name)
        child.kill()
        child.wait(_END_S)
        if child.stdin is not None:
            child.stdin.close()
        if counted:
            self.kills[name] = self.kills.get(name, 0) + 1

    def pause(self, name: str) -> None:
        """Stop a child's clock (SIGSTOP)."""
        self._children[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a paused child go on."""
        self._children[name].send_signal(signal.SIGCONT)

    # -- Redis --------------------------------------------------------------------------------

    def kill_redis(self) -> None:
        """Kill the server; events told so far are kept for the account."""
        self.keep_events()
        self.server.kill()
        self.kills["redis"] = self.kills.get("redis", 0) + 1

    def start_redis(self) -> None:
        """Start it again on what its append-only file holds."""
        self.server.start()

    def pause_redis(self) -> int:
        """Stop the server's clock; returns its process id for `resume_redis`."""
        if self.server.process is None:
            raise RuntimeError("Redis is not running")
        pid = self.server.process.pid
        os.kill(pid, signal.SIGSTOP)
        return pid

    def resume_redis(self, pid: int) -> None:
        """Let it go on."""
        os.kill(pid, signal.SIGCONT)

    def copy_aof(self) -> Path:
        """Copy the append-only files as they are, as a backup of a running server would."""
        self.streams.config_set("auto-aof-rewrite-percentage", 0)  # no file goes meanwhile
        copy = self.directory / f"aof-{time.monotonic_ns()}"
        shutil.copytree(self.server.directory / "appendonlydir", copy)
        return copy

    def put_aof(self, copy: Path) -> None:
        """Put a copy in the place of the append-only files; the server must be down."""
        there = self.server.directory / "appendonlydir"
        shutil.rmtree(there)
        shutil.copytree(copy, there)

    def keep_events(self) -> None:
        """Keep what `qmt:events` holds beyond what happens to Redis."""
        try:
            for event in told_events(self.streams):
                self._events[json.dumps(event, sort_keys=True)] = event
        except redis.ConnectionError:
            pass

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event told since the begin."""
        self.keep_events()
        return list(self._events.values())

    # -- time ---------------------------------------------------------------------------------

    def await_push(self) -> None:
        """Return right after the terminal has logged a push: it is on its way now."""
        size = self._log_size()
        deadline = time.monotonic() + WITHIN_S
        while self._log_size() == size:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing was pushed for {WITHIN_S:g} s")
            time.sleep(0.0005)

    def acked(self) -> list[dict[bytes, bytes]]:
        """Return each market's ring and the last batch of it that Redis has."""
        return [dict(self.streams.hgetall(f"{{qmt:{market}}}:acked")) for market in MARKETS]

    def wait_complete(self) -> None:
        """Wait until everything that the terminal pushed up to now is published or named."""
        now_ms = time.time_ns() // 1_000_000

        def is_complete() -> bool:
            told = [one.get(b"complete", b"0").split()[0] for one in self.acked()]
            return all(int(one) > now_ms for one in told)

        wait_for(is_complete, "all markets are complete")

    def unfiled(self) -> int:
        """Return how many feed entries are not in streams and `latest` yet, of all markets."""
        pipe = self.streams.pipeline()
        for market in MARKETS:
            pipe.get(f"{{qmt:{market}}}:filed")
        filed = [one or b"0-0" for one in pipe.execute()]
        pipe = self.streams.pipeline()
        for market, entry_id in zip(MARKETS, filed, strict=True):
            pipe.xrange(f"{{qmt:{market}}}:feed", b"(" + entry_id)
        return sum(map(len, pipe.execute()))

    def _log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def in_flight(self, most_s: float = 0.08) -> None:
        """Wait for a push and then for a random moment of its way."""
        self.await_push()
        time.sleep(self.random.uniform(0, most_s))

    def statuses(self) -> dict[int, dict[str, Any]]:
        """Return the last heartbeat of each producer, by process id; `at_ms` is its time."""
        seen = dict(self.streams.zrange("qmt:seen", 0, -1, withscores=True))
        found = (
            {**json.loads(beat), "at_ms": seen.get(member, 0)}
            for member, beat in self.streams.hgetall("qmt:status").items()
        )
        return {status["pid"]: status for status in found if status["role"] == "producer"}

    def holder(self, market: str = "SH") -> str | None:
        """Return the name of the producer that holds a market."""
        lease = self.streams.get(f"{{qmt:{market}}}:lease")
        for name, status in self._status_by_name().items():
            held = status["figures"]["markets"].get(market, {}).get("holding")
            if lease is not None and held and self.is_alive(name):
                return name
        return None

    def live_statuses(self) -> list[dict[str, Any]]:
        """Return the heartbeats of the producers that run now."""
        return list(self._status_by_name().values())

    def _status_by_name(self) -> dict[str, dict[str, Any]]:
        by_pid = self.statuses()
        return {
            name: by_pid[child.pid] for name, child in self._children.items() if child.pid in by_pid
        }

    def wait_flowing(self) -> None:
        """Wait until ticks are published."""
        before = self._feed_ids()
        wait_for(
            lambda: all(now > was for now, was in zip(self._feed_ids(), before, strict=True)),
            "ticks of all markets flow",
        )

    def _feed_ids(self) -> list[tuple[int, ...]]:
        ids = []
        for market in MARKETS:
            tail = self.streams.xrevrange(f"{{qmt:{market}}}:feed", count=1)
            ids.append(tuple(map(int, tail[0][0].decode().split("-"))) if tail else (0, 0))
        return ids

    def wait_subscribed(self, count: int) -> None:
        """Wait until so many producers listen to the terminal."""
        wait_for(
            lambda: self.control.status()["whole_subscriptions"] >= count,
            f"{count} producers listen",
        )

    def quiet(self) -> None:
        """Silence the terminal and wait until everything it pushed is published or named."""
        self.control.set_fault("deaf")
        silent_ms = time.time_ns() // 1_000_000
        producers = [name for name in self._children if name.startswith("producer")]

        def is_drained() -> bool:
            try:
                by_name, unfiled = self._status_by_name(), self.unfiled()
            except redis.RedisError:
                return False
            return (
                not unfiled
                and bool(producers)
                and all(
                    name in by_name
                    and by_name[name]["at_ms"] > silent_ms + 1500
                    and not by_name[name]["figures"]["redis_away"]
                    and not by_name[name]["figures"]["waiting_pushes"]
                    and not by_name[name]["figures"]["waiting_batches"]
                    for name in producers
                )
            )

        wait_for(is_drained, "the producers are drained")
        time.sleep(1.2)  # events of the last moment
        self.keep_events()

    # -- the account --------------------------------------------------------------------------

    def account(self, *, late_allowed: bool = False) -> Verdict:
        """Compare what was pushed with what the streams hold and the gap events name."""
        return account(
            pushed_by_code([self.log_path]),
            stored_by_code(self.streams),
            gaps_of(self.events),
            late_allowed=late_allowed,
        )

    def account_feed(self) -> Verdict:
        """Compare the feeds, entry by entry, with streams and `latest`: they hold the same ids."""
        return account_feed(
            fed_ids(self.streams), stored_ids(self.streams), latest_ids(self.streams)
        )

    def wait_read(self, name: str) -> None:
        """Wait until a reader has what is newest in its markets, and its file grows no more."""
        file = self.file_of(name)
        newest = [max_ms for market in self._markets[name] if (max_ms := self._newest_ms(market))]

        def has_read() -> bool:
            told = file.stat() if file.exists() else None
            if not told or not told.st_size or time.time() - told.st_mtime < _REST_S:
                return False
            ticks, _ = read_notes(file)
            last = {code: int(seen[-1].split(" ")[0]) for code, seen in ticks.items() if seen}
            return set(newest) <= {*last.values()}

        wait_for(has_read, f"{name} has read everything")

    def _newest_ms(self, market: str) -> int:
        latest = self.streams.hvals(f"{{qmt:{market}}}:latest")
        return max((int(msgpack.unpackb(one)[0].split("-")[0]) for one in latest), default=0)

    def account_reader(
        self,
        name: str,
        *,
        may_repeat: bool = False,
        against_log: bool = False,
        gap_slack_ms: int = 1_500,
    ) -> Verdict:
        """Compare what the streams hold with what a reader wrote down.

        A gap told to the reader covers ticks by exchange time; it speaks of the time of the feed,
        so some seconds are granted at both ends.
        """
        got, gaps = read_notes(self.file_of(name))

        def named(code: str, content: object) -> bool:
            at_ms = int(str(content).split(" ", 1)[0])
            return any(
                from_ms - gap_slack_ms <= at_ms <= to_ms + gap_slack_ms
                for gap in gaps
                for from_ms, to_ms in [_range_of(gap, code)]
            )

        if against_log:
            view = pushed_view(self.log_path, self._markets[name])
        else:
            view = reader_view(self.streams, self._markets[name])
        may_repeat = may_repeat and any(gap.get("reason") == "epoch" for gap in gaps)
        return account_reader(view, got, named, may_repeat=may_repeat)

    def start_helper(self, name: str, *command: str) -> None:
        """Start a Python process of the tests' own."""
        self._start(name, *command)

    def gaps_told(self, name: str) -> list[dict[str, Any]]:
        """Return the gaps that a reader was told."""
        return read_notes(self.file_of(name))[1]


def _range_of(gap: dict[str, Any], code: str) -> tuple[float, float]:
    """Return the times between which a gap names a code's ticks; an empty range for none."""
    codes = gap.get("codes")
    if codes:
        if code not in codes:
            return (math.inf, -math.inf)
        first, last, *_ = (str(bound).partition("-")[0] or "0" for bound in codes[code])
        return (float(first), float(last) or math.inf)
    if gap.get("market") not in ("", None, code.rpartition(".")[2]):
        return (math.inf, -math.inf)
    return (gap.get("from_ms", 0), gap.get("to_ms") or math.inf)
