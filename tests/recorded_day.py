"""A part of a simulated trading day, captured live, archived and compacted, and its replays.

Every process is the real one: simulator, producer, Redis, ``qmt-archive``, ``qmt-producer replay``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import redis
from waiting import wait_for

from qmt_simulator.market.market import Market
from qmt_simulator.oracle import read_push_log
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

HERE = Path(__file__).resolve().parent
DAY = 20251120
MIDNIGHT_MS = 1_763_568_000_000  # of that day in China, a Thursday
MARKETS = ("SH", "SZ", "BJ")


@dataclass
class RecordedDay:
    """What was captured; nothing of it runs any more but Redis."""

    url: str
    streams: redis.Redis
    archive: Path
    codes: list[str]
    log: npt.NDArray[Any]
    """What the simulator pushed of the day, oldest first."""
    seconds: dict[str, float] = field(default_factory=dict)

    def replay(self, prefix: str, *flags: str) -> None:
        """Publish it again, at ``max`` unless the flags name a speed."""
        began = time.monotonic()
        _run(
            *("qmt_producer", "replay", "--day", str(DAY), "--speed", "max"),
            *("--to-prefix", prefix, *flags),
            QMT_STREAMS_URL=self.url,
            QMT_ARCHIVE_URL=str(self.archive),
        )
        self.seconds["replay"] = time.monotonic() - began

    def clean(self, prefix: str) -> None:
        """Remove a replay."""
        words = ("qmt_producer", "replay", "--clean", "--to-prefix", prefix)
        _run(*words, QMT_STREAMS_URL=self.url)


@contextmanager
def recorded_day(
    folder: Path, codes: int, begin: str, lasting_s: float, speed: float, flush_s: float = 0.5
) -> Iterator[RecordedDay]:
    """Capture a part of the day.

    Parameters
    ----------
    codes
        How many instruments, of all markets in proportion.
    begin
        Market time, ``HH:MM:SS``, at which the terminal starts.
    lasting_s
        Market seconds from the first tick that is published to the last.
    speed
        Market seconds per second.
    flush_s
        Seconds between two writes of the archive.
    """
    log_path, archive, chosen = folder / "pushed", folder / "archive", _choose(codes)
    at = f"{DAY // 10_000}-{DAY // 100 % 100:02}-{DAY % 100:02} {begin}"
    flags = ("--start", at, "--real-hours", "--speed", str(speed), "--push-ms", "10")
    with ExitStack() as stack:
        server = RedisServer(folder / "redis", aof=False)
        stack.callback(server.stop)
        server.start()
        streams = stack.enter_context(redis.Redis.from_url(server.url))
        began = time.monotonic()
        env = {"QMT_STREAMS_URL": server.url, "QMT_ARCHIVE_URL": str(archive)}
        with (
            TerminalProcess(*flags, "--push-log", str(log_path)) as terminal,
            _process("qmt_archive", "run", "--archive-flush-s", str(flush_s), **env) as ready,
            _process(
                "qmt_producer",
                QMT_TERMINAL_PORT=str(terminal.port),
                QMT_NATIVE_MODULE="few_codes_native",
                QMT_TEST_CODES=",".join(chosen),
                QMT_RING=str(folder / "ring.sqlite"),
                QMT_DEAF_AFTER_S="3600",
                PYTHONPATH=str(HERE),
                **env,
            ),
        ):
            assert ready.readline()
            wait_for(lambda: streams.exists("{qmt:SH}:feed") > 0, "ticks flow")
            end_ms = terminal.control.now() + lasting_s * 1000
            while terminal.control.now() < end_ms:
                time.sleep(0.05)
            terminal.control.set_fault("deaf")
            time.sleep(0.5)
            log = read_push_log(log_path)
            wait_for(lambda: _taken(streams) >= len(log), f"{len(log)} published")
            wait_for(lambda: _is_archived(streams, archive), "all is archived")
        captured = time.monotonic()
        _run("qmt_archive", "compact", **env)
        _run("qmt_archive", "verify", **env)
        # The first push may bring what the day before left.
        log = log[(log["time"] >= MIDNIGHT_MS) & (log["time"] < MIDNIGHT_MS + _ms("18:00:00"))]
        seconds = {"capture": captured - began, "compact": time.monotonic() - captured}
        yield RecordedDay(server.url, streams, archive, chosen, log, seconds)


def by_code(rows: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield each code's part of a log, in the order pushed."""
    order = np.argsort(rows["code"], kind="stable")
    codes, starts = np.unique(rows["code"][order], return_index=True)
    for code, part in zip(codes.tolist(), np.split(order, starts[1:]), strict=True):
        yield code.decode(), rows[part]


def _choose(count: int) -> list[str]:
    """Return instruments that tick on that day, evenly spread over the markets."""
    market, open_ms = Market(), MIDNIGHT_MS + _ms("09:30:00")
    ticking, _ = market.due(open_ms, open_ms + 3000)
    codes = [market.codes[number] for number in sorted(ticking.tolist())]
    codes = [code for code in codes if code.rpartition(".")[2] in MARKETS]
    return [codes[len(codes) * number // count] for number in range(count)]


def _ms(clock: str) -> int:
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((hours * 60 + minutes) * 60 + seconds) * 1000


def _taken(streams: redis.Redis) -> int:
    beats = (json.loads(one) for one in streams.hvals("qmt:status"))
    figures = [beat["figures"] for beat in beats if beat["role"] == "producer"]
    return sum(one.get("published", 0) + one.get("repeated", 0) for one in figures)


def _is_archived(streams: redis.Redis, archive: Path) -> bool:
    held = json.loads((archive / "manifest.json").read_text("utf-8"))["markets"]
    for market in MARKETS:
        feed = f"{{qmt:{market}}}:feed"
        if streams.exists(feed):
            end = streams.xinfo_stream(feed)["last-generated-id"].decode()
            if held.get(market, {}).get("position") != end:
                return False
    return True


@contextmanager
def _process(module: str, *flags: str, **env: str) -> Iterator[IO[bytes]]:
    child = subprocess.Popen(
        [sys.executable, "-m", module, *flags, "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(env),
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        try:
            yield child.stdout
            child.stdin.close()
            assert child.wait(60) == 0, module
        finally:
            child.kill()


def _run(*words: str, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env=_environment(env),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def _environment(env: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QMT_")}
    return {**kept, "TZ": "CST-8", "QMT_LOG_LEVEL": "error", **env}
