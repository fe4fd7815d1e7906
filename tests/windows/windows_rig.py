"""What tests of the Windows box share: a webhook receiver, and `qmt-windows run` as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import redis


@dataclass
class Request:
    path: str
    body: Any
    at_s: float


class Receiver:
    """A real HTTP server that takes webhooks down and answers as told, else with 200."""

    def __init__(self) -> None:
        self.got: list[Request] = []
        self.answers: list[tuple[int, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                outer.got.append(Request(self.path, body, time.time()))
                code, document = outer.answers.pop(0) if outer.answers else (200, {"errcode": 0})
                answer = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def states(self, kind: str) -> list[str]:
        """Return what was told of one kind, in order."""
        return [one.body["state"] for one in self.got if one.body["kind"] == kind]


class Box:
    """A running `qmt-windows run`."""

    def __init__(self, home: Path, streams_url: str, jobs_url: str, port: int, **env: str) -> None:
        self.home = home
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("QMT_")},
            "QMT_HOME": str(home),
            "QMT_STREAMS_URL": streams_url,
            "QMT_JOBS_URL": jobs_url,
            "QMT_NATIVE_MODULE": "qmt_simulator.native",
            "QMT_TERMINAL_PORT": str(port),
            **env,
        }
        self.output = home.parent / f"{home.name}.out"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> None:
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qmt_windows", "run", "--exit-with-stdin", *flags],
                env=self.env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def below(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """Kill it as the task manager does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)
        assert self.process.stdin is not None
        self.process.stdin.close()

    def stop(self) -> float:
        """Close its standard input; returns how long it took."""
        if self.process is None:
            return 0.0
        began = time.monotonic()
        process, self.process = self.process, None
        assert process.stdin is not None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait(60)
        return time.monotonic() - began

    def told(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def log(self, name: str) -> str:
        path = self.home / "logs" / f"{name}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""


def heartbeats(streams: redis.Redis, role: str, within_s: float = 3.0) -> list[dict[str, Any]]:
    """Return the living processes of a role, newest first."""
    seconds, micros = streams.time()
    found = []
    for member, at_ms in streams.zrevrange("qmt:seen", 0, -1, withscores=True):
        if seconds * 1000 + micros // 1000 - at_ms > within_s * 1000:
            continue
        beat = json.loads(streams.hget("qmt:status", member) or b"{}")
        if beat.get("role") == role:
            found.append(beat)
    return found


def children(streams: redis.Redis) -> dict[str, Any]:
    """Return what the supervisor tells of its children."""
    beats = heartbeats(streams, "windows")
    return dict(beats[0]["figures"]["children"]) if beats else {}
