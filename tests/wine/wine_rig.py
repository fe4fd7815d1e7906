"""Processes under Wine, and a bridge whose Windows half consists of them."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from crash_accounting import Verdict, account
from crash_evidence import gaps_of, pushed_by_code, stored_by_code
from told_events import told_events
from waiting import wait_for
from wine_environment import HERE, WinePython, windows_path

from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

MARKETS = ("SH", "SZ", "BJ")
NOW = "2026-11-20 10:30:00"


class WineProcess:
    """A Python process under Wine whose output is kept; its standard input is ours to close."""

    def __init__(self, python: WinePython, *arguments: str, **env: str) -> None:
        self.python = python
        self.process = python.start(*arguments, env=env)
        self._parts: list[bytes] = []
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        # Not to the pipe's end: what Wine started for a window of its own may hold it for a minute.
        while not self._ended or self._waits():
            if self._waits():
                part = os.read(self.process.stdout.fileno(), 65_536)
                if not part:
                    return
                self._parts.append(part)

    def _waits(self) -> bool:
        return bool(select.select([self.process.stdout], [], [], 0.1)[0])

    @property
    def output(self) -> str:
        """What it has written so far."""
        return b"".join(self._parts).decode("utf-8", "replace")

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it as `kill -9` does: not even Wine gets a say."""
        self.process.kill()
        self._end()

    def stop(self, within_s: float = 15.0) -> int:
        """Close its standard input; return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"it does not end with its input: {self.output[-2000:]}") from None
        finally:
            self.kill()
        return code

    def _end(self) -> None:
        self.process.wait(10)
        self._ended = True
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


class Bridge:
    """Redis servers and a simulated terminal on Linux; roles under Wine; a context manager.

    Parameters
    ----------
    flags
        The terminal's, beside its clock and push log.
    """

    def __init__(self, python: WinePython, folder: Path, *flags: str) -> None:
        self.python = python
        self.folder = folder
        self.log_path = folder / "pushed"
        self.flags = flags or ("--start", NOW, "--real-hours", "--cache-delay-s", "0.1,0.4")
        self.servers = {
            name: RedisServer(folder / name, aof=name == "streams") for name in ("streams", "jobs")
        }
        self.roles: dict[str, WineProcess] = {}
        self._open = ExitStack()

    def __enter__(self) -> Bridge:
        with ExitStack() as stack:
            for server in self.servers.values():
                server.start()
                stack.callback(server.stop)
            log = ("--push-log", str(self.log_path))
            self.terminal = stack.enter_context(TerminalProcess(*log, *self.flags))
            url = self.servers["streams"].url
            self.streams = stack.enter_context(redis.Redis.from_url(url, socket_timeout=20))
            stack.callback(self.kill_all)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def kill_all(self) -> None:
        """Kill every role that still runs."""
        for name in list(self.roles):
            self.roles.pop(name).kill()

    @property
    def target(self) -> dict[str, str]:
        """What a client needs."""
        return {"url": self.servers["streams"].url, "jobs_url": self.servers["jobs"].url}

    @property
    def ring(self) -> Path:
        """The producer's ring, in a folder with a Chinese name."""
        return self.folder / "行情" / "ring.sqlite"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the roles' settings."""
        return {
            "QMT_STREAMS_URL": self.servers["streams"].url,
            "QMT_JOBS_URL": self.servers["jobs"].url,
            "QMT_TERMINAL_PORT": str(self.terminal.port),
            "QMT_NATIVE_MODULE": "qmt_simulator.native",
            "QMT_RING": windows_path(self.ring),
            "QMT_FUNCTIONS_FILE": windows_path(self.folder / "functions.json"),
            "QMT_LOG_LEVEL": "warning",
            **more,
        }

    def start(self, name: str, *arguments: str, **env: str) -> WineProcess:
        """Start a role."""
        self.roles[name] = WineProcess(self.python, *arguments, **self.environment(**env))
        return self.roles[name]

    def start_producer(self, **env: str) -> WineProcess:
        """Start the producer."""
        return self.start("producer", "-m", "qmt_producer", "--exit-with-stdin", **env)

    def start_worker(self, **env: str) -> WineProcess:
        """Start the worker, with a process for each queue."""
        return self.start("worker", "-m", "qmt_worker", "--exit-with-stdin", **env)

    # -- what they say ------------------------------------------------------------------------

    def beats(self, within_s: float = 3.0) -> list[dict[str, Any]]:
        """Return the heartbeats heard of lately."""
        seconds, micros = self.streams.time()
        since_ms = (seconds - within_s) * 1000 + micros / 1000
        members = self.streams.zrangebyscore("qmt:seen", since_ms, "+inf")
        told = self.streams.hmget("qmt:status", members) if members else []
        return [json.loads(beat) for beat in told if beat]

    def roles_well(self) -> list[str]:
        """Return the role of each process that holds its terminal for well."""
        return [
            beat["role"] for beat in self.beats() if beat.get("terminal", {}).get("state") == "ok"
        ]

    def wait_until_well(self) -> None:
        """Wait until producer and both queues have a terminal, and ticks flow."""
        wanted = sorted(
            role for name in self.roles for role in [name] * (2 if name == "worker" else 1)
        )
        try:
            wait_for(lambda: self._well(wanted), f"{wanted} are well")
            if "producer" in self.roles:
                self.wait_flowing()
        except TimeoutError as error:
            said = {name: role.output[-3000:] for name, role in self.roles.items()}
            told = [(beat["role"], beat.get("terminal")) for beat in self.beats()]
            raise TimeoutError(f"{error}; {told}; {said}") from None

    def _well(self, wanted: list[str]) -> bool:
        ended = [name for name, role in self.roles.items() if not role.alive]
        if ended:
            raise TimeoutError(f"{ended} ended")
        return sorted(self.roles_well()) == wanted

    def _feed_ids(self) -> list[tuple[int, ...]]:
        ids = []
        for market in MARKETS:
            tail = self.streams.xrevrange(f"{{qmt:{market}}}:feed", count=1)
            ids.append(tuple(map(int, tail[0][0].decode().split("-"))) if tail else (0, 0))
        return ids

    def wait_flowing(self) -> None:
        """Wait until newer ticks of every market are published."""
        before = self._feed_ids()
        wait_for(
            lambda: all(now > was for now, was in zip(self._feed_ids(), before, strict=True)),
            "ticks of all markets flow",
        )

    def quiet(self) -> None:
        """Silence the terminal and wait until everything it pushed is published or named."""
        self.terminal.control.set_fault("deaf")
        silent_s = time.monotonic()

        def is_drained() -> bool:
            figures = [one["figures"] for one in self.beats(1.5) if one["role"] == "producer"]
            return (
                time.monotonic() > silent_s + 3
                and len(figures) == 1
                and not figures[0]["redis_away"]
                and not figures[0]["waiting_pushes"]
                and not figures[0]["waiting_batches"]
            )

        wait_for(is_drained, "the producer is drained")
        time.sleep(1.2)  # events of the last moment

    def run_inside(self) -> int:
        """Run the tests of `inside` in Windows' Python; return how many passed."""
        folder = windows_path(HERE / "inside")
        code, out, err = self.python.run(
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"),
            *("-c", f"{folder}\\pytest.ini", "--confcutdir", folder, folder),
            *("-k", os.environ.get("QMT_WINE_INSIDE", "")),
            env={
                "QMT_STREAMS_URL": self.servers["streams"].url,
                "QMT_JOBS_URL": self.servers["jobs"].url,
            },
            cwd=self.folder,
            timeout_s=500,
        )
        text = (out + err).decode("utf-8", "replace").replace("\r\n", "\n")
        found = re.search(r"^(\d+) passed", text, re.M)
        if code != 0 or found is None:
            raise AssertionError(text)
        return int(found[1])

    # -- the account --------------------------------------------------------------------------

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event told since the begin."""
        return told_events(self.streams)

    def account(self) -> Verdict:
        """Compare what was pushed with what the streams hold and the gap events name."""
        return account(
            pushed_by_code([self.log_path]), stored_by_code(self.streams), gaps_of(self.events)
        )


def kill_process(python: WinePython, *words: str) -> int:
    """Kill the one process under Wine whose command line has these words; return its id."""
    found = []
    for pid in python.running():
        with suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
            if all(word in line for word in words):
                found.append(pid)
    if len(found) != 1:
        raise LookupError(f"{len(found)} processes with {words}")
    os.kill(found[0], signal.SIGKILL)
    return found[0]
