"""A terminal's day beside `qmt-windows run`, 150 times as fast as a real one.

Killed at 02:00, not running until 08:00, nobody logs in until 08:40, no quote server until 09:10,
ticks from 09:15. The judge knows this schedule and the simulator's push log; what the producer
and the supervisor say of themselves is what is judged.
"""

from __future__ import annotations

import datetime as dt
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import warm_start
from windows_rig import Box, Receiver, children, heartbeats

from qmt_simulator.oracle import read_push_log
from qmt_simulator.process import TerminalProcess
from qmt_simulator.tickrows import FLAG_SNAPSHOT
from qmt_standalone.redis_server import RedisServer, free_port

DAY = "2026-11-20"
SPEED = 150.0
START, END = "01:30:00", "09:45:00"
PHASES = {
    "01:30:00": "ok",
    "02:00:00": "not_running",
    "08:00:00": "waiting_for_login",
    "08:40:00": "quote_server_down",
    "09:10:00": "ok",
}
ALERT_AT = {
    "07:30:00": "not_running",
    "08:30:00": "waiting_for_login",
    "09:05:00": "quote_server_down",
}
SETTLE_S = 9.0
"""Wall seconds from a change to its being told: the terminal's own start, a retry each 5 s."""
WITHIN_S = 10.0
"""Wall seconds from the first push to the tick in Redis."""
CHILDREN = ("producer", "worker-query", "worker-download")


def market_ms(at: str) -> int:
    """Return ms since the epoch of a China time of the day."""
    moment = dt.datetime.fromisoformat(f"{DAY}T{at}+08:00")
    return int(moment.timestamp() * 1000)


@dataclass
class Day:
    """The clock of the schedule, and what was seen by it."""

    wall_start_ms: int = 0
    samples: list[tuple[float, str, str]] = field(default_factory=list)
    """Wall seconds, child, terminal state."""
    pids: dict[str, set[int]] = field(default_factory=dict)
    restarts: set[int] = field(default_factory=set)

    def wall_s(self, at: str) -> float:
        """Return the wall time of a time of the day."""
        return self.wall_start_ms / 1000 + (market_ms(at) - market_ms(START)) / 1000 / SPEED

    def wait_until(self, at: str) -> None:
        time.sleep(max(0.0, self.wall_s(at) - time.time()))

    def at(self, wall_s: float) -> str:
        """Return a wall time as the time of the day."""
        ms = market_ms(START) + (wall_s * 1000 - self.wall_start_ms) * SPEED
        return (
            f"{dt.datetime.fromtimestamp(ms / 1000, dt.timezone(dt.timedelta(hours=8))):%H:%M:%S}"
        )

    def sample(self, streams: redis.Redis) -> None:
        """Note what each process says of the terminal now."""
        now_s = time.time()
        for name, told in children(streams).items():
            if told["pid"] is not None:  # not started yet
                self.pids.setdefault(name, set()).add(told["pid"])
            self.restarts.add(told["restarts"])
        for beat in heartbeats(streams, "producer") + heartbeats(streams, "worker"):
            queue = "".join(beat.get("queues", []))
            name = beat["role"] + queue.replace("qmt", "", 1)
            self.samples.append((now_s, name, beat["terminal"]["state"]))


class Terminal:
    """The day's terminal: two processes with one clock."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.app_dir = folder / "国金QMT交易端" / "bin.x64"
        self.app_dir.mkdir(parents=True)
        self.log = folder / "push.log"
        self.now: TerminalProcess | None = None

    def start(self, *flags: str) -> dict[str, Any]:
        self.now = TerminalProcess(
            *("--port", str(self.port), "--app-dir", str(self.app_dir), "--real-hours"),
            *("--start", f"{DAY} {START}", "--speed", str(SPEED), "--interval-ms", "15000"),
            *("--push-log", str(self.log), *flags),
            stderr=subprocess.DEVNULL,
        )
        return self.now.ready

    def stop(self) -> None:
        if self.now is not None:
            self.now.stop()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    both = (RedisServer(tmp_path / "s", aof=False), RedisServer(tmp_path / "j", aof=False))
    for one in both:
        one.start()
    yield both
    for one in both:
        one.stop()


def first_push(log: Path) -> tuple[str, int, int] | None:
    """Return code, time and wall ms of the first tick pushed after 09:10, snapshots left out."""
    ticks = pushed(log)
    return None if not len(ticks) else (_code(ticks[0]), int(ticks[0]["time"]), wall_of(ticks[0]))


def pushed(log: Path) -> Any:
    if not log.exists():
        return np.zeros(0)
    ticks = read_push_log(log)
    real = (ticks["flags"] & FLAG_SNAPSHOT == 0) & (ticks["time"] >= market_ms("09:10:00"))
    return ticks[real]


def _code(tick: Any) -> str:
    code = tick["code"]
    return code.decode() if isinstance(code, bytes) else str(code)


def wall_of(tick: Any) -> int:
    return int(tick["wall_ms"])


@pytest.mark.long  # three minutes of wall time
def test_the_day(
    tmp_path: Path,
    servers: tuple[RedisServer, RedisServer],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The terminal's program is known by its command line, which a warm start does not have.
    monkeypatch.setattr(subprocess, "Popen", warm_start._real_popen)
    streams_server, jobs_server = servers
    home = tmp_path / "home"
    home.mkdir()
    terminal = Terminal(tmp_path)
    day = Day()
    box = Box(
        *(home, streams_server.url, jobs_server.url, terminal.port),
        QMT_TERMINAL_PROGRAMS="qmt_simulator",
        QMT_TERMINAL_PATH=str(terminal.app_dir.parent),
        QMT_MARKETS="BJ",
        QMT_ALERT_AT=",".join(at[:5] for at in ALERT_AT),
        QMT_ALERT_URLS=f"post:{receiver.url}/",
    )
    done = threading.Event()

    def watch() -> None:
        with redis.Redis.from_url(streams_server.url) as own:
            while not done.is_set():
                day.sample(own)
                time.sleep(0.1)

    watching = threading.Thread(target=watch)
    streams = redis.Redis.from_url(streams_server.url)
    try:
        day.wall_start_ms = terminal.start()["wall_start_ms"]
        box.start()
        watching.start()
        day.wait_until("02:00:00")
        terminal.stop()
        day.wait_until("08:00:00")
        flags = ("--wall-start-ms", str(day.wall_start_ms))
        terminal.start(*flags, "--login-at", "08:40", "--quotes-at", "09:10")
        day.wait_until("09:10:00")
        while (found := first_push(terminal.log)) is None:
            assert time.time() < day.wall_s(END), "nothing was pushed"
            time.sleep(0.05)
        code, time_ms, push_wall_ms = found
        key = f"{{qmt:BJ}}:tick:{code}"
        while not streams.xrange(key, min=str(time_ms), max=str(time_ms)):
            assert time.time() - push_wall_ms / 1000 < WITHIN_S, f"{code} {time_ms}"
            time.sleep(0.02)
        late_s = time.time() - push_wall_ms / 1000
        day.wait_until(END)
        ticks = pushed(terminal.log)
        # What was pushed up to now is given the same ten seconds.
        missing = {(_code(one), int(one["time"])) for one in ticks}
        deadline = time.monotonic() + WITHIN_S
        count = len(missing)
        while missing and time.monotonic() < deadline:
            for one in {code for code, _ in missing}:
                entries = streams.xrange(f"{{qmt:BJ}}:tick:{one}")
                missing -= {(one, int(entry.split(b"-")[0])) for entry, _ in entries}
        assert not missing
        told_last = children(streams)
    finally:
        done.set()
        if watching.is_alive():
            watching.join()
        box.stop()
        terminal.stop()
        streams.close()
    print(f"\nfirst push {day.at(push_wall_ms / 1000)}, in Redis {late_s:.3f} s later")
    print(f"{count} pushed ticks, all in Redis; {len(day.samples)} samples")
    _judge_states(day)
    _judge_alerts(day, receiver)
    assert {name: len(pids) for name, pids in day.pids.items()} == dict.fromkeys(CHILDREN, 1)
    assert day.restarts == {0}
    assert {name: one["state"] for name, one in told_last.items()} == dict.fromkeys(
        CHILDREN, "running"
    )
    assert push_wall_ms / 1000 >= day.wall_s("09:15:00") - 1


def _judge_states(day: Day) -> None:
    begins = [*PHASES, END]
    for (at, state), until in zip(PHASES.items(), begins[1:], strict=True):
        settled_s, end_s = day.wall_s(at) + SETTLE_S, day.wall_s(until)
        for name in CHILDREN:
            mine = [one for one in day.samples if one[1] == name]
            if at == START:  # the box has just begun: that it got there is enough
                assert any(told == state for now_s, _, told in mine if now_s < end_s)
                continue
            inside = [told for now_s, _, told in mine if settled_s <= now_s < end_s]
            assert len(inside) >= 10, (name, at)
            assert set(inside) == {state}, (name, at, sorted(set(inside)))
            first_s = min(
                now_s for now_s, _, told in mine if told == state and now_s >= day.wall_s(at)
            )
            print(f"{at} {state:18} {name:16} told {first_s - day.wall_s(at):5.2f} s later")


def _judge_alerts(day: Day, receiver: Receiver) -> None:
    told = [(one.body["kind"], one.body["state"]) for one in receiver.got]
    assert told == [("terminal", state) for state in [*ALERT_AT.values(), "ok"]]
    for due, one in zip([*ALERT_AT, "09:10:00"], receiver.got, strict=True):
        late_s = one.at_s - day.wall_s(due)
        print(f"{due} {one.body['state']:18} alert {late_s:5.2f} s later, said {one.body['at']}")
        assert -0.1 < late_s < SETTLE_S
        assert one.body["simulated"] is True
        said_ms = dt.datetime.fromisoformat(one.body["at"]).timestamp() * 1000
        assert -1000 < said_ms - market_ms(due) < SETTLE_S * SPEED * 1000
