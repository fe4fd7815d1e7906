"""A producer, a gateway and an archive that work, each with its role's rights, and who looks on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import redis
from demand_contents import BUSY, MARKET, Case
from docker_servers import start_server
from redis.backoff import NoBackoff
from redis.retry import Retry
from waiting import wait_for
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect as open_websocket

from qmt_standalone.redis_server import free_port

__all__ = ["Rig"]

TESTS: Final = Path(__file__).resolve().parents[1]
OTHER: Final = "SZ"
PARTS: Final = ("simulator", "producer", "gateway", "archive")
STREAMS: Final = ("qmt:events", "qmt:events:producer", "qmt:events:refused", "qmt:events:archive")
PLACES: Final = 3


class Rig:
    """The processes, and what is asked of them after each content."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        process, self._connect = start_server(
            "streams", folder / "streams", QMT_ADMIN_PASSWORD="secret-of-admin"
        )
        stack.callback(process.wait, 60)
        stack.callback(process.kill)
        self.admin = self.by("admin", stack)
        self._roles = {
            role: self.by(role, stack) for role in ("producer", "archive", "client", "gateway")
        } | {"admin": self.admin}
        self._stack = stack
        terminal, self.port = free_port(), free_port()
        common = {
            "QMT_NATIVE_MODULE": "few_codes_native",
            "QMT_TEST_CODES": ",".join(BUSY),
            "QMT_TERMINAL_PORT": str(terminal),
            "QMT_MARKETS": f"{MARKET},{OTHER}",
            "QMT_DEMAND_MAX": str(PLACES),
            "QMT_LOG_LEVEL": "info",
            "QMT_ARCHIVE_URL": str(folder / "archive"),
            "QMT_ARCHIVE_FLUSH_S": "0.5",
            "QMT_ARCHIVE_BACKFILL_AT": "",
            "PYTHONPATH": str(TESTS),
            "TZ": "CST-8",
        }
        ticking = ("--interval-ms", "250", "--push-ms", "250")
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self._start("simulator", common, "--port", str(terminal), *ticking)
        self._start("producer", common)
        self._start("gateway", common, "--port", str(self.port))
        self._start("archive", common, "run")
        self.http = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)
        )
        wait_for(self._answers, "the gateway answers")
        self._ending = threading.Event()
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()
        stack.callback(self._reader.join, 60)
        stack.callback(self._ending.set)
        self.go_on()

    def by(self, role: str, stack: ExitStack) -> redis.Redis:
        """Return a role's connection, to be closed."""
        told = self._connect(role).connection_pool.connection_kwargs
        return stack.enter_context(
            redis.Redis(
                port=told["port"],
                username=role,
                password=told["password"],
                socket_timeout=60,
                retry=Retry(NoBackoff(), 0),
            )
        )

    def _start(self, name: str, common: dict[str, str], *arguments: str) -> None:
        role = "producer" if name == "simulator" else name
        port = self.admin.connection_pool.connection_kwargs["port"]
        url = f"redis://{role}:secret-of-{role}@127.0.0.1:{port}/0"
        inherited = {key: value for key, value in os.environ.items() if key[:4] != "QMT_"}
        with open(self._log(name), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"qmt_{name}", *arguments, "--exit-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env={**inherited, **common, "QMT_STREAMS_URL": url, "QMT_JOBS_URL": url},
            )
        self.parts[name] = process
        self._stack.callback(process.kill)
        self._stack.callback(self._end, name)

    def _end(self, name: str) -> None:
        process = self.parts[name]
        assert process.stdin is not None
        process.stdin.close()
        process.wait(120)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    # -- what is told -------------------------------------------------------------------------

    def told(self, since: dict[str, Any]) -> str:
        """Return what logs, events and heartbeats said since `mark`."""
        logs = []
        for name in PARTS[1:]:
            data = self._log(name).read_bytes()[since.get(name, 0) :]
            logs.append(data.decode("utf-8", "replace"))
        for key in STREAMS:
            first = since.get(key, "-")
            for _, fields in self.admin.xrange(key, min=first):
                logs.append(fields.get(b"e", b"").decode("utf-8", "replace"))
        logs += [beat.decode() for beat in self.admin.hvals("qmt:status")]
        return "\n".join(logs)

    def mark(self) -> dict[str, Any]:
        """Return where logs and events stand."""
        at: dict[str, Any] = {name: self._log(name).stat().st_size for name in PARTS[1:]}
        for key in STREAMS:
            tail = self.admin.xrevrange(key, count=1)
            at[key] = f"({tail[0][0].decode()}" if tail else "-"
        return at

    # -- what is asked ------------------------------------------------------------------------

    def alive(self) -> None:
        """Make sure that no process has ended."""
        ended = {name: one.poll() for name, one in self.parts.items() if one.poll() is not None}
        assert ended == {}, self._log(next(iter(ended))).read_text("utf-8", "replace")[-3000:]

    def _answers(self) -> bool:
        self.alive()
        try:
            return self.http.get("/api/v1/latest", params={"codes": BUSY[2]}).status_code == 200
        except httpx.TransportError:
            return False

    def _place(self, key: str) -> bytes:
        tail = self.admin.xrevrange(key, count=1)
        return tail[0][0] if tail else b""

    def published(self, market: str) -> Callable[[], bool]:
        """Return what tells whether a market was published since."""
        before = self.admin.xinfo_stream(f"{{qmt:{market}}}:feed") if self._is_fed(market) else {}

        def more() -> bool:
            self.alive()
            now = self.admin.xinfo_stream(f"{{qmt:{market}}}:feed") if self._is_fed(market) else {}
            return now.get("last-generated-id") not in (None, before.get("last-generated-id"))

        return more

    def _is_fed(self, market: str) -> bool:
        return self.admin.type(f"{{qmt:{market}}}:feed") == b"stream"

    def archived(self, market: str) -> Callable[[], bool]:
        """Return what tells whether a market was archived since."""
        before = self._archive_position(market)

        def more() -> bool:
            self.alive()
            return self._archive_position(market) not in ("", before)

        return more

    def _archive_position(self, market: str) -> str:
        try:
            manifest = json.loads((self._folder / "archive" / "manifest.json").read_bytes())
        except FileNotFoundError:
            return ""
        return str(manifest["markets"].get(market, {}).get("position", ""))

    def go_on(self) -> None:
        """Make sure that the other market is published, archived, read and sent to clients."""
        published, archived = self.published(OTHER), self.archived(OTHER)
        wait_for(published, f"{OTHER} is published")
        wait_for(archived, f"{OTHER} is archived")
        answer = self.http.get("/api/v1/latest", params={"codes": BUSY[2]})
        assert BUSY[2] in answer.json()["ticks"], answer.text
        assert self.http.get("/api/v1/status").status_code == 200
        self._is_live(codes=[BUSY[2]])

    def _is_live(self, **what: Any) -> None:
        with open_websocket(f"ws://127.0.0.1:{self.port}/ws/v1", proxy=None) as line:
            line.send(json.dumps({"op": "subscribe", "id": "a", **what}))
            while json.loads(line.recv(timeout=60)).get("kind") != "live":
                pass

    def _read_on(self) -> None:
        """Have the gateway follow the market of the contents, all the time."""
        while not self._ending.wait(0.1):
            try:
                with open_websocket(
                    f"ws://127.0.0.1:{self.port}/ws/v1", proxy=None, max_size=None
                ) as line:
                    line.send(json.dumps({"op": "subscribe", "id": "a", "markets": [MARKET]}))
                    line.send(json.dumps({"op": "subscribe", "codes": [BUSY[0]], "period": "1m"}))
                    while not self._ending.is_set():
                        with suppress(TimeoutError):
                            line.recv(timeout=1)
            except (OSError, WebSocketException):
                continue

    def meet(self, case: Case) -> None:
        """Write a content and see that everything goes on."""
        since, content = self.mark(), case.content
        whole = self.http.get("/api/v1/latest", params={"markets": f"{MARKET},{OTHER}"})
        assert whole.status_code == 200, whole.text
        content.write(self._roles[content.role])
        if case.named:
            self._is_named(case, since)
        self.go_on()
        if case.remove:
            self.admin.delete(*case.remove)
        wait_for(self.published(MARKET), f"{MARKET} is published")
        wait_for(self.archived(MARKET), f"{MARKET} is archived")
        self._is_live(markets=[MARKET])
        self.alive()

    def _is_named(self, case: Case, since: dict[str, Any]) -> None:
        found = re.compile(case.named)

        def named() -> bool:
            self.alive()
            told = self.told({} if case.once else since)
            if case.content.name.startswith("latest"):
                answer = self.http.get("/api/v1/latest", params={"markets": MARKET}).json()
                told += json.dumps(answer["unreadable"])
            return found.search(told) is not None

        wait_for(named, f"{case.content.name} is named: {case.named}")
