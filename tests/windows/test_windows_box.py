"""`qmt-windows run` with all that is real: terminal, both Redis, producer, worker, a webhook.

One box lives through the whole file; each test leaves it well.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from still_running import still_running
from told_events import told_events
from waiting import wait_for
from windows_rig import Box, Receiver, children, heartbeats

from qmt_client import QMTClient
from qmt_protocol.errors import JobFailed
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

CODE = "600000.SH"
WRONG = "batch_ticks = 9999\n"


class Scene:
    """Everything around the box, and the box."""

    def __init__(self, tmp: Path) -> None:
        self.streams = RedisServer(tmp / "streams", aof=False)
        self.jobs = RedisServer(tmp / "jobs", aof=False)
        self.streams.start()
        self.jobs.start()
        self.terminal = TerminalProcess(
            *("--start", "2026-11-20 10:30:00", "--real-hours", "--interval-ms", "15000"),
            *("--cache-delay-s", "0.1,0.2"),
        )
        self.receiver = Receiver()
        self.redis = redis.Redis.from_url(self.streams.url)
        home = tmp / "用户 home"
        home.mkdir()
        self.config = home / "qmt.toml"
        self.config.write_text(
            WRONG + f'alert_urls = ["post:{self.receiver.url}/t0ken-of-mine"]\n', encoding="utf-8"
        )
        self.box = Box(home, self.streams.url, self.jobs.url, self.terminal.port)

    def client(self) -> QMTClient:
        return QMTClient(self.streams.url, jobs_url=self.jobs.url)

    def pid(self, name: str) -> int:
        """Return a child's pid, 0 while it does not run."""
        return int(children(self.redis).get(name, {}).get("pid") or 0)

    def states(self) -> dict[str, str]:
        """Return each child's state, with that of its terminal while it runs."""
        beats = heartbeats(self.redis, "producer") + heartbeats(self.redis, "worker")
        terminal = {one["pid"]: one["terminal"]["state"] for one in beats}
        return {
            name: terminal.get(one["pid"], "unheard") if one["state"] == "running" else one["state"]
            for name, one in children(self.redis).items()
        }

    def all_well(self) -> bool:
        return list(self.states().values()) == ["ok", "ok", "ok"]

    def close(self) -> None:
        self.box.stop()
        self.redis.close()
        self.receiver.stop()
        self.terminal.stop()
        self.streams.stop()
        self.jobs.stop()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    one = Scene(tmp_path_factory.mktemp("box"))
    one.box.start()
    yield one
    one.close()


def test_one_that_is_configured_wrong_waits_for_its_settings(scene: Scene) -> None:
    wrong = {"producer": "misconfigured", "worker-query": "ok", "worker-download": "ok"}
    wait_for(lambda: scene.states() == wrong, "a producer that is not started")
    since_ms = children(scene.redis)["producer"]["since_ms"]
    time.sleep(2.5)
    told = children(scene.redis)["producer"]
    assert told["restarts"] == 0
    assert told["since_ms"] == since_ms
    assert "batch_ticks" in told["trouble"]
    assert scene.receiver.states("producer") == ["misconfigured"]
    assert "batch_ticks" in scene.receiver.got[0].body["reason"]
    text = scene.config.read_text(encoding="utf-8")
    scene.config.write_text(text.replace(WRONG, ""), encoding="utf-8")
    wait_for(scene.all_well, "all three")
    # Not a moment after its start, but once it has run steadily, is it called well again.
    assert scene.receiver.states("producer") == ["misconfigured"]


def test_status_in_words_and_a_second_one_is_refused(scene: Scene) -> None:
    def ask(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qmt_windows", command],
            env={**scene.box.env, "PYTHONUTF8": "1"},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )

    told = ask("status")
    assert told.stdout.count("正常 · well") == 3
    assert told.stdout.count("运行中 · running") == 3
    assert "模拟 SIMULATED" in told.stdout
    # The producer's trouble is not over yet.
    assert "batch_ticks" in told.stdout
    second = ask("run")
    assert second.returncode == 2
    assert scene.box.process is not None
    assert f"process {scene.box.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert scene.all_well()


def test_a_native_abort_in_the_middle_of_a_job(scene: Scene) -> None:
    """The job fails with its reason, the other queue answers, the producer does not notice."""
    query = psutil.Process(scene.pid("worker-query"))
    below = {one.pid for one in query.children(recursive=True)}
    victims = [
        one["pid"] for one in scene.terminal.control.status()["clients"] if one["pid"] in below
    ]
    assert len(victims) == 1
    producer_before = heartbeats(scene.redis, "producer")[0]
    last_event = scene.redis.xrevrange("qmt:events:producer", count=1)[0][0].decode()
    scene.terminal.control.set_fault("latency", func="get_stock_list_in_sector", s=20)
    failed: list[tuple[float, Exception]] = []
    other: list[float] = []

    def ask() -> None:
        with scene.client() as client:
            try:
                client.sector_stocks("上证50")
            except JobFailed as error:
                failed.append((time.monotonic(), error))

    def download() -> None:
        with scene.client() as client:
            while not stop.is_set():
                client.download([CODE], period="1d", start="20261101")
                other.append(time.monotonic())

    stop = threading.Event()
    threads = [threading.Thread(target=one) for one in (ask, download)]
    for one in threads:
        one.start()
    try:
        wait_for(
            lambda: (
                "sector_stocks"
                in [one["figures"]["busy"] for one in heartbeats(scene.redis, "worker")]
                and len(other) >= 1
            ),
            "the job to run",
        )
        began = time.monotonic()
        assert scene.terminal.control.set_fault("abort_client", pid=victims[0]) == 1
        threads[0].join(60)
        assert failed, "the job did not end"
        assert failed[0][0] - began < 60
        print(f"\nthe job failed {failed[0][0] - began:.2f} s after the abort")
        assert failed[0][1].data["reason"] == "child died"  # type: ignore[attr-defined]
        assert "signal 6" in str(failed[0][1])
        count = len(other)
        wait_for(lambda: len(other) > count, "the other queue")
    finally:
        stop.set()
        threads[1].join(60)
    assert max(b - a for a, b in itertools.pairwise(other)) < 10
    scene.terminal.control.clear_fault()
    with scene.client() as client:
        assert len(client.sector_stocks("上证50")) == 50
    producer = heartbeats(scene.redis, "producer")[0]
    assert producer["pid"] == producer_before["pid"]
    assert producer["terminal"] == producer_before["terminal"]
    assert producer["figures"]["published"] > producer_before["figures"]["published"]
    assert producer["figures"]["lost"] == 0
    assert told_events(scene.redis, after=last_event) == []
    assert children(scene.redis)["worker-query"]["restarts"] == 0


def test_whatever_is_killed_comes_back_and_one_alert_is_sent(scene: Scene) -> None:
    query = psutil.Process(scene.pid("worker-query"))
    before = {name: scene.pid(name) for name in scene.states()}
    # The process below the worker that talks to the terminal.
    clients = {one["pid"] for one in scene.terminal.control.status()["clients"]}
    talking = [one for one in query.children(recursive=True) if one.pid in clients]
    os.kill(talking[0].pid, signal.SIGKILL)
    wait_for(lambda: not talking[0].is_running(), "its end")
    wait_for(scene.all_well, "the worker's own child")
    assert scene.pid("worker-query") == before["worker-query"]
    os.kill(before["worker-query"], signal.SIGKILL)
    os.kill(before["producer"], signal.SIGKILL)
    wait_for(lambda: children(scene.redis)["producer"]["restarts"] == 2, "another producer")
    wait_for(scene.all_well, "all three")
    # Once more: still the same trouble.
    os.kill(scene.pid("producer"), signal.SIGKILL)
    wait_for(lambda: children(scene.redis)["producer"]["restarts"] == 3, "a third producer")
    wait_for(scene.all_well, "all three")
    told = children(scene.redis)
    assert told["worker-query"]["restarts"] == 1
    assert told["worker-download"]["restarts"] == 0
    assert scene.pid("worker-download") == before["worker-download"]
    assert scene.receiver.states("producer") == ["misconfigured", "crashed"]
    assert scene.receiver.states("worker") == ["crashed"]
    assert "signal 9" in scene.receiver.got[-1].body["reason"]
    with scene.client() as client:
        assert len(client.history(CODE, period="1d", count=5)) == 5


def test_a_killed_supervisor_leaves_nothing_and_the_next_one_has_the_ring(scene: Scene) -> None:
    below = scene.box.below()
    assert len(below) >= 5
    before = scene.pid("producer")
    scene.box.kill()
    # At once, as a task scheduler would: the ring may still be held.
    scene.box.start()
    assert still_running(below) == []
    wait_for(lambda: scene.pid("producer") not in (0, before), "the next one's producer")
    wait_for(scene.all_well, "all three")


def test_a_clean_stop_is_quick_and_leaves_nothing(scene: Scene) -> None:
    assert scene.box.process is not None
    below = scene.box.below()
    process = scene.box.process
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert still_running(below) == []
    assert "已停止 · stopped" in scene.box.told()
    assert "Traceback" not in scene.box.told()


def test_no_password_in_any_log(scene: Scene) -> None:
    secrets = [scene.streams.password, scene.jobs.password, "t0ken-of-mine"]
    files = [one for one in scene.box.home.rglob("*") if one.is_file()]
    names = {one.name for one in files}
    assert {"windows.log", "producer.log", "worker-query.log", "worker-download.log"} <= names
    for path in [*files, scene.box.output]:
        if path == scene.config or ".sqlite" in path.name:
            continue
        data = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in data, path
    assert "native abort" not in scene.box.log("windows")  # it was the worker's child, not ours
    told: list[dict[str, Any]] = [
        json.loads(line) for line in scene.box.log("windows").splitlines()
    ]
    ended = [one for one in told if one["event"] == "ended"]
    assert {one["code"] for one in ended} == {2, -9}
