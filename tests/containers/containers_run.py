"""The container stack for real, broken in every way; each tick is counted after each break.

What `scripts/test-containers` runs. The stack is built and run by `docker/up` in a box of its own
(`box.py`); the Windows half stands outside of it, on this side of a network, and joins by the
line of `docker/join`. The judge is the simulator's push log: a tick is in its stream once, in
order and equal, or in a named gap.
"""

from __future__ import annotations

import argparse
import base64
import functools
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

import httpx
import redis

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
sys.path[:0] = [str(HERE.parent / "crash"), str(HERE.parent)]

from box import LAN, Box, CannotRun, wait_for  # noqa: E402
from crash_accounting import Verdict, account, account_reader  # noqa: E402
from crash_evidence import (  # noqa: E402
    gaps_of,
    pushed_by_code,
    pushed_view,
    read_notes,
    stored_by_code,
    tick_content,
)
from told_events import told_events  # noqa: E402

from qmt_client import QMTClient  # noqa: E402
from qmt_protocol.errors import NoWorker, TimedOut  # noqa: E402
from qmt_simulator.oracle import read_push_log  # noqa: E402
from qmt_simulator.process import TerminalProcess  # noqa: E402

CANNOT_RUN: Final = 77
GATEWAY: Final = f"http://{LAN}:8000"
PLACE: Final = "/srv/qmt-bridge"
COMPOSE: Final = f"docker compose -f {PLACE}/docker/compose.yaml"
SERVICES: Final = ("streams", "jobs", "archive", "gateway")
MARKETS: Final = ("SH", "SZ", "BJ")
CODE: Final = "600519.SH"


class Container(NamedTuple):
    """One container as Docker describes it."""

    id: str
    pid: int
    started: str
    health: str
    state: str


class Stack:
    """The project in the box."""

    def __init__(self, box: Box) -> None:
        self.box = box

    def install(self) -> None:
        """Put the project's files into the box; what an earlier run left there goes."""
        self.box.run(f"rm -rf {PLACE} && mkdir -p {PLACE}")
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        there = b"\0".join(one for one in listed.split(b"\0") if (ROOT / one.decode()).is_file())
        subprocess.run(
            f"tar -c --null -T - | tar -x -C {self.box.root}{PLACE}",
            shell=True,
            cwd=ROOT,
            input=there,
            check=True,
        )
        self.box.run(
            "docker ps -aq | xargs -r docker rm -f; docker volume ls -q | xargs -r docker volume rm"
        )

    @property
    def settings(self) -> dict[str, str]:
        """What docker/.env holds."""
        lines = (self.box.root / PLACE[1:] / "docker/.env").read_text("utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if line and line[0] != "#")

    def containers(self) -> dict[str, Container]:
        """Return the containers, by service."""
        form = (
            '{{index .Config.Labels "com.docker.compose.service"}} {{.Id}} {{.State.Pid}} '
            "{{.State.StartedAt}} {{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}} "
            "{{.State.Status}}"
        )
        shown = self.box.run(f"docker ps -aq | xargs -r docker inspect -f '{form}'")
        rows = [line.split() for line in shown.splitlines()]
        return {name: Container(i, int(p), at, well, how) for name, i, p, at, well, how in rows}

    def wait_well(self, within_s: float = 600) -> None:
        """Wait until every container is healthy."""

        def all_well() -> bool:
            found = self.containers()
            return set(found) == set(SERVICES) and all(
                one.health == "healthy" and one.state == "running" for one in found.values()
            )

        wait_for(all_well, "every container is healthy", within_s)

    def kill(self, service: str) -> None:
        """Kill a container's main process, and wait until it runs anew and is well."""
        before = self.containers()[service]
        self.box.run(f"kill -9 {before.pid}")
        wait_for(
            lambda: (
                self.containers()[service].started != before.started
                and self.containers()[service].health == "healthy"
            ),
            f"{service} comes back",
        )

    def as_documented(self, heading: str, **names: str) -> None:
        """Run the commands of a chapter of docs/operations.md."""
        page = (ROOT / "docs/operations.md").read_text("utf-8")
        chapter = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
        for block in re.findall(r"```sh\n(.*?)```", chapter, re.S):
            for name, value in names.items():
                block = block.replace(name, value)
            script = self.box.root / "run-this.sh"
            script.write_text(f"set -eu\ncd {PLACE}\n{block}", "utf-8")
            self.box.run("sh /run-this.sh")


class Windows:
    """The Windows half outside of the box: a terminal, a producer, a worker, and a reader."""

    def __init__(self, folder: Path, line: str, key: str, archive_password: str) -> None:
        head, _, body = line.partition(".")
        if head != "qmt1":
            raise RuntimeError("docker/join printed no line")
        self.line: dict[str, str] = json.loads(
            base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        )
        self.folder = folder
        self.log = folder / "pushed"
        self.terminal = TerminalProcess(
            *("--push-log", str(self.log), "--push-ms", "100", "--interval-ms", "15000")
        )
        self.key = key
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._events: dict[str, dict[str, Any]] = {}
        self.streams = redis.Redis(
            host=LAN, username="archive", password=archive_password, socket_timeout=20
        )

    def __enter__(self) -> Windows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self._children):
            self.end(name)
        self.streams.close()
        self.terminal.stop()

    def start(self) -> None:
        """Start producer and worker as the joined box does."""
        native = {
            "QMT_TERMINAL_PORT": str(self.terminal.port),
            "QMT_NATIVE_MODULE": "qmt_simulator.native",
            "QMT_RING": str(self.folder / "ring.sqlite"),
            # The silence in which this counts is no fault of the terminal's to be named.
            "QMT_DEAF_AFTER_S": "3600",
        }
        self._start(
            "producer", "-m", "qmt_producer", QMT_STREAMS_URL=self.line["streams"], **native
        )
        self._start(
            *("worker", "-m", "qmt_worker"),
            QMT_STREAMS_URL=self.line["worker_streams"],
            QMT_JOBS_URL=self.line["jobs"],
            **native,
        )
        self.wait_flowing()

    def leave(self) -> None:
        """Switch the Windows box off."""
        for name in ("producer", "worker"):
            self.end(name)

    def start_reader(self) -> None:
        """Start a reader of everything, through the gateway."""
        command = [str(HERE.parent / "crash/crash_reader.py"), "--url", GATEWAY]
        command += ["--file", str(self.folder / "reader.txt"), "--markets", ",".join(MARKETS)]
        self._start("reader", *command, "--stored", QMT_API_KEY=self.key)

    def _start(self, name: str, *command: str, **env: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("QMT_")}
        flags = () if name == "reader" else ("--exit-with-stdin",)
        with (self.folder / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, *command, *flags],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**clean, "TZ": "CST-8", **env},
            )

    def end(self, name: str) -> None:
        """Kill a process."""
        child = self._children.pop(name)
        child.kill()
        child.wait(20)
        if child.stdin is not None:
            child.stdin.close()

    def wait_flowing(self, within_s: float = 300) -> None:
        """Wait until ticks of every market are published, behind those that are there."""
        before: list[Any] = []

        def flowing() -> bool:
            try:
                now = [self.streams.xrevrange(f"{{qmt:{one}}}:feed", count=1) for one in MARKETS]
            except redis.RedisError:
                return False
            if not before:
                before.extend(now)
            return all(new and new != old for new, old in zip(now, before, strict=True))

        wait_for(flowing, "ticks of every market flow", within_s)

    def quiet(self) -> None:
        """Silence the terminal, and wait until the producer has published what it was given."""
        self.terminal.control.set_fault("deaf")
        silent_ms = time.time_ns() // 1_000_000
        member = f":{self._children['producer'].pid}"

        def drained() -> bool:
            try:
                seen = dict(self.streams.zrange("qmt:seen", 0, -1, withscores=True))
                beats = self.streams.hgetall("qmt:status")
            except redis.RedisError:
                return False
            for name, beat in beats.items():
                if name.startswith(b"producer:") and name.decode().endswith(member):
                    figures = json.loads(beat)["figures"]
                    return seen.get(name, 0) > silent_ms + 1_500 and not any(
                        figures[one] for one in ("redis_away", "waiting_pushes", "waiting_batches")
                    )
            return False

        wait_for(drained, "the producer has published everything")
        self.keep_events()

    def keep_events(self) -> None:
        """Keep the events told so far, whatever happens to Redis."""
        for event in told_events(self.streams):
            self._events[json.dumps(event, sort_keys=True)] = event

    def account(self) -> Verdict:
        """Compare what was pushed with what the streams hold and gap events name.

        The terminal is silenced for the time of reading, and speaks again behind it.
        """
        self.quiet()
        pushed, stored = pushed_by_code([self.log]), stored_by_code(self.streams)
        self.terminal.control.clear_fault("deaf")
        return account(pushed, stored, gaps_of(self._events.values()))

    def account_reader(self) -> Verdict:
        """Compare what was pushed with what the reader wrote down."""
        self.quiet()
        pushed = pushed_view(self.log, MARKETS)
        newest = {}
        for code, contents in pushed.items():
            market = code.rpartition(".")[2]
            newest[market] = max(newest.get(market, (0, "", "")), _last(code, contents))

        def has_read() -> bool:
            told, _ = read_notes(self.folder / "reader.txt")
            return all(content in told.get(code, ()) for _, code, content in newest.values())

        # A connection that a power cut broke looks whole until a ping is not answered.
        wait_for(has_read, "the reader has what is newest")
        got, gaps = read_notes(self.folder / "reader.txt")
        if gaps:
            raise RuntimeError(f"the reader was told {len(gaps)} gaps: {gaps[0]}")
        verdict = account_reader(pushed, got)
        self.terminal.control.clear_fault("deaf")
        return verdict

    def entries(self) -> int:
        """Count the entries of all tick streams."""
        return sum(map(len, stored_by_code(self.streams).values()))


class Run:
    """The steps in their order, each with what was counted after it."""

    def __init__(self, stack: Stack, folder: Path, seed: int) -> None:
        self.stack, self.box = stack, stack.box
        self.folder = folder
        self.random = random.Random(seed)
        self.rows: list[dict[str, Any]] = []

    def step(self, name: str, work: Callable[[], dict[str, Any] | None]) -> None:
        """Do one step; it adds a row, and what is wrong is raised."""
        began = time.monotonic()
        figures = work() or {}
        row = {"step": name, **figures, "seconds": round(time.monotonic() - began, 1)}
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)

    def start(self) -> None:
        """Build, start, and start again."""
        self.step("build and up", self._up)
        self.step("up again changes nothing", self._unchanged)

    def breaks(self) -> None:
        """Join, and break what runs."""
        self.step("keys", self._keys)
        settings = self.stack.settings
        line = self.box.run(f"{PLACE}/docker/join {LAN}").strip()
        key, password = settings["QMT_BRIDGE_API_KEYS"], settings["QMT_ARCHIVE_PASSWORD"]
        with Windows(self.folder, line, key, password) as self.windows:
            self.step("join and flow", self._joined)
            self.step("history and ticks through the gateway", self._served)
            self.step("down and up", lambda: self._broken(self._down_and_up))
            for service in SERVICES:
                kill = functools.partial(self.stack.kill, service)
                self.step(f"kill {service}", functools.partial(self._broken, kill))
            self.step("Docker stopped and started", lambda: self._broken(self._docker_again))
            self.step("power cut, address late", lambda: self._broken(self._power_cut))
            self.step("the gateway's reader", lambda: _counted(self.windows.account_reader()))
            self.step("restore of a backup", self._restore)
            self.step("streams killed, Windows away", self._windows_away)
            self.step("archive", self._archived)

    # -- the stack ----------------------------------------------------------------------------

    def _up(self) -> dict[str, Any]:
        shown = self.box.run(f"{PLACE}/docker/up {LAN}")
        self.stack.wait_well()
        _check(f"docker/join {LAN}" in shown, "docker/up says what to do next")
        mode = (self.box.root / PLACE[1:] / "docker/.env").stat().st_mode & 0o777
        _check(mode == 0o600, f"docker/.env has mode {mode:o}")
        secrets = {v for k, v in self.stack.settings.items() if k.endswith(("PASSWORD", "KEYS"))}
        _check(len(secrets) == 7 and min(map(len, secrets)) >= 32, "the secrets are random")
        # Longer than a round of health checks.
        seen = self.box.run(
            "for i in $(seq 60); do cat /proc/[0-9]*/cmdline; sleep 0.1; done | tr '\\0' ' '",
            check=False,
        )
        _check("valkey-server" in seen, "processes can be seen")
        _check(not any(one in seen for one in secrets), "no process shows a password")
        listed = self.box.run(f"{COMPOSE} exec -T archive qmt-archive ls")
        _check("/archive" in listed, "qmt-archive ls works in the archive's container")
        hour = self.box.run(
            f"{COMPOSE} exec -T gateway date +%z; {COMPOSE} exec -T streams date +%z"
        )
        _check(hour.split() == ["+0800"] * 2, f"the time zone is China's: {hour}")
        pong = self.box.run(f"{COMPOSE} exec -T streams qmt-admin PING")
        _check(pong.strip() == "PONG", "the admin is there")
        return {"images": self.box.run("docker image ls -q 'qmt-bridge-*' | sort -u").count("\n")}

    def _unchanged(self) -> None:
        before = self.stack.containers()
        self.box.run(f"{COMPOSE} up -d")
        self.box.run(f"{PLACE}/docker/up")
        _check(self.stack.containers() == before, "an unchanged stack is left alone")

    def _keys(self) -> dict[str, Any]:
        key = self.stack.settings["QMT_BRIDGE_API_KEYS"]
        url = f"{GATEWAY}/api/v1/status"
        with httpx.Client(trust_env=False, timeout=20) as client:
            codes = [
                client.get(url, headers=headers).status_code
                for headers in ({"X-API-Key": key}, {}, {"X-API-Key": key[:-1]})
            ]
            _check(codes == [200, 401, 401], f"with the key, without, with a wrong one: {codes}")
            program = f"{COMPOSE} exec -T gateway qmt-gateway keys"
            made = self.box.run(f"{program} add reader --expires 1").strip()
            headers = {"X-API-Key": made}
            wait_for(lambda: client.get(url, headers=headers).is_success, "a key that is added")
            refused = client.post(f"{GATEWAY}/api/v1/jobs/download", headers=headers).status_code
            _check(refused == 403, f"a download without the scope: {refused}")
            self.box.run(f"{program} revoke reader")
            wait_for(lambda: client.get(url, headers=headers).status_code == 401, "it is revoked")
        return {"answers": codes}

    # -- the Windows half ---------------------------------------------------------------------

    def _joined(self) -> dict[str, Any]:
        self.windows.start()
        self.windows.start_reader()
        return _counted(self.windows.account())

    def _served(self) -> dict[str, Any]:
        with QMTClient(GATEWAY, api_key=self.windows.key) as client:
            frame = self._history(client)
            true = self.windows.terminal.oracle.bars(CODE, "1d")
            closes = frame["close"].round(4).tolist()
            # The last bar is of today and moves.
            same = closes[:-1] == true["close"][-20:-1].round(4).tolist()
            _check(len(closes) == 20 and same, "history is the terminal's")
            with closing(client.ticks(markets=["SH"])) as live:
                ticks = list(itertools.islice(live, 30))
        got = {(tick.code, tick_content(tick)) for tick in ticks}
        pushed = {
            (row["code"].decode(), tick_content(row)) for row in read_push_log(self.windows.log)
        }
        _check(got <= pushed, "live ticks are the terminal's")
        return {"bars": len(frame), "live": len(ticks)}

    def _history(self, client: QMTClient) -> Any:
        """Ask until a worker is there: one whose heartbeat is late counts as gone."""
        frames: list[Any] = []

        def answered() -> bool:
            try:
                frames.append(client.history(CODE, period="1d", count=20))
            except (NoWorker, TimedOut):
                return False
            return True

        wait_for(answered, "a worker answers")
        return frames[0]

    def _broken(self, damage: Callable[[], None]) -> dict[str, Any]:
        """Break something at any moment while ticks flow, and count when they flow again."""
        self.windows.wait_flowing()
        time.sleep(self.random.uniform(0, 1))
        self.windows.keep_events()
        damage()
        self.stack.wait_well()
        self.windows.wait_flowing()
        return _counted(self.windows.account())

    def _down_and_up(self) -> None:
        self.box.run(f"{COMPOSE} down")
        self.box.run(f"{COMPOSE} up -d --wait")

    def _docker_again(self) -> None:
        self.box.stop_docker()
        self.box.start_docker()

    def _power_cut(self) -> None:
        self.box.switch_off()
        self.box.switch_on(lan=False)
        # Healthy without the address: what they ask of each other goes another way.
        self.stack.wait_well()
        self.box.lan_up()

    def _restore(self) -> dict[str, Any]:
        self.windows.quiet()
        at = self.windows.entries()
        self.stack.as_documented("Back up")
        self.windows.terminal.control.clear_fault("deaf")
        self.stack.wait_well()
        self.windows.wait_flowing()
        self.windows.keep_events()
        self.stack.as_documented("Restore")
        self.stack.wait_well()
        self.windows.wait_flowing()
        return {"in_backup": at, **_counted(self.windows.account())}

    def _windows_away(self) -> dict[str, Any]:
        self.windows.quiet()
        self.windows.leave()
        before = self.windows.entries()
        self.stack.kill("streams")
        killed = self.windows.entries()
        self.box.run(f"{COMPOSE} restart streams")
        self.stack.wait_well()
        after = self.windows.entries()
        _check(before == killed == after > 0, f"{before} entries, {killed}, {after}")
        self.windows.terminal.control.clear_fault("deaf")
        self.windows.start()
        return {
            "before": before,
            "killed": killed,
            "after": after,
            **_counted(self.windows.account()),
        }

    def _archived(self) -> dict[str, Any]:
        """The archive's files hold what the streams hold, once it has written what waited."""
        self.windows.quiet()
        self.box.run(f"{COMPOSE} stop archive")
        read = "docker run --rm -v qmt-bridge_archive-data:/archive:ro qmt-bridge-gateway"
        shown = self.box.run(f"{read} qmt-archive ls --json --archive-url /archive")
        rows = sum(one["rows"] for one in json.loads(shown)["files"] if one["period"] == "tick")
        entries = self.windows.entries()
        _check(rows == entries, f"{rows} rows in the archive, {entries} entries in the streams")
        return {"rows": rows, "entries": entries}


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(f"it does not hold that {what}")


def _last(code: str, contents: list[str]) -> tuple[int, str, str]:
    return int(contents[-1].partition(" ")[0]), code, contents[-1]


def _counted(verdict: Verdict) -> dict[str, Any]:
    if verdict.problems:
        raise RuntimeError("; ".join(verdict.problems))
    _check(verdict.pushed > 0, "ticks were pushed")
    return {name: count for name, count in verdict.figures().items() if count or name == "lost"}


def main() -> int:
    """Run; return 0 where all is equal, 77 where it cannot run."""
    parser = argparse.ArgumentParser(prog="test-containers", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the breaks")
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--cache", type=Path, default=default / "qmt-bridge-containers")
    parser.add_argument("--store", choices=("classic", "containerd"), default="classic")
    parser.add_argument("--up-only", action="store_true", help="build, start, start again")
    options = parser.parse_args()
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="qmt-containers-"))
    rows: list[dict[str, Any]] = []
    problem = ""
    with (work / "box.log").open("wb", buffering=0) as log:
        try:
            with Box(options.cache, log, options.store) as box:
                box.switch_on()
                stack = Stack(box)
                stack.install()
                box.import_bases()
                prepared_s = time.monotonic() - began
                run = Run(stack, work, options.seed)
                rows = run.rows
                run.start()
                if not options.up_only:
                    run.breaks()
        except CannotRun as error:
            print(f"test-containers cannot run here: {error}", file=sys.stderr)
            return CANNOT_RUN
        except Exception:  # noqa: BLE001  # whatever it is, the counts so far are printed
            problem = traceback.format_exc(limit=-6)
    if problem:
        print(f"{problem}The logs are in {work}", file=sys.stderr)
    print(
        json.dumps(
            {
                "ok": not problem,
                "seed": options.seed,
                "steps": rows,
                "seconds": {
                    "prepare": round(prepared_s, 1) if rows else None,
                    "all": round(time.monotonic() - began, 1),
                },
            }
        )
    )
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
