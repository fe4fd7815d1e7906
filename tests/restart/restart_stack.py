"""The image's two Redis servers, by its own start script, to be struck and started again.

Configuration, users, rights and order of starting are the image's; the judge looks as its admin.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis_servers import MatrixServer, redis_cli, wait_for_append_only_file
from small_disk import SmallDisk
from waiting import wait_for

from qmt_standalone.reaper import Reaper
from qmt_standalone.redis_server import free_port

__all__ = ["KINDS", "Server", "Stack", "fast_disk"]

KINDS: Final = ("streams", "jobs")
ROLES: Final = ("producer", "worker", "gateway", "archive", "client", "reader", "admin")
START: Final = Path(__file__).resolve().parents[2] / "docker" / "redis" / "start.sh"
_DISK_BYTES: Final = 64 * 2**20
# One for all: they speak the same protocol.
_MEMORY: Final = "256mb"
_WRAPPER: Final = """#!/bin/sh
# A file-size limit must be an error to the server, not its end.
trap '' XFSZ
exec "{program}" "$@"
"""


def fast_disk() -> str | None:
    """Return a folder in memory, if there is one.

    Where an fsync takes long, Redis holds writes back for up to 2 s that it has acknowledged:
    what a kill leaves would depend on what else the disk has to do.
    """
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class Server:
    """One of the two: where it keeps its data, how it is started, struck and looked at."""

    def __init__(self, kind: str, program: MatrixServer, folder: Path, reaper: Reaper) -> None:
        self.kind = kind
        self.program = program
        self.data = folder / f"{kind}-data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.log = folder / f"{kind}.log"
        self.memory = _MEMORY
        self._run_dir = folder / f"{kind}-run"
        self._reaper = reaper
        self._wrapper = folder / "server"
        self._wrapper.write_text(_WRAPPER.format(program=program.path), "utf-8")
        self._wrapper.chmod(0o755)
        self.process: subprocess.Popen[bytes] | None = None
        self.judge = self.connect("admin")

    def connect(self, role: str) -> redis.Redis:
        """Open a connection of a role; nothing is sent twice."""
        return redis.Redis(
            port=self.port,
            username=role,
            password=f"secret-of-{role}",
            socket_timeout=30,
            retry=Retry(NoBackoff(), 0),
        )

    def url(self, role: str) -> str:
        """Return the address that a program of a role is given."""
        return f"redis://{role}:secret-of-{role}@127.0.0.1:{self.port}/0"

    def launch(self) -> None:
        """Start it by the image's script and do not wait."""
        passwords = {f"QMT_{role.upper()}_PASSWORD": f"secret-of-{role}" for role in ROLES}
        address = ("--bind", "127.0.0.1", "--port", str(self.port))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", START, self.kind, *address],
                env={
                    **os.environ,
                    **passwords,
                    "QMT_REDIS_BINARY": str(self._wrapper),
                    "QMT_RUN_DIR": str(self._run_dir),
                    "QMT_REDIS_CLI": str(redis_cli()),
                    "QMT_TEST_PYTHON": sys.executable,
                    "QMT_REDIS_CHECK_AOF": str(self.program.tool("check-aof") or ""),
                    "QMT_REDIS_DIR": str(self.data),
                    "QMT_REDIS_MEMORY": self.memory,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._reaper.register(self.process.pid)

    def answers(self, within_s: float = 120.0) -> bool:
        """Wait until it has loaded its data; false where it ended instead."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                return False
            try:
                self.judge.ping()
                return True
            except redis.ConnectionError:  # loading among them
                time.sleep(0.01)
            except redis.ResponseError:  # a full disk is told to PING as well
                return True
        raise TimeoutError(f"{self.kind} does not answer; see {self.log.name}")

    def settle(self) -> None:
        """See `Stack.settle`."""
        if self.kind == "streams":
            wait_for((self._run_dir / "ready").exists, "the functions are loaded")
        wait_for_append_only_file(self.judge)

    def kill(self) -> None:
        """End it and its children at once, as a container is killed."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._bury()

    def terminate(self) -> int:
        """Ask it to end, as `docker stop` does; returns its exit code."""
        if self.process is None:
            raise RuntimeError("it is not running")
        self.process.terminate()
        code = self.process.wait(120)
        self._bury()
        return code

    def _bury(self) -> None:
        if self.process is not None:
            self.process.wait(120)
            self._reaper.forget(self.process.pid)
            self.process = None
        self.judge.connection_pool.disconnect()

    def aof(self) -> list[Path]:
        """Return the append-only files that commands are appended to, by the manifest, in order."""
        folder = self.data / "appendonlydir"
        named = [
            dict(zip(*[iter(line.split())] * 2, strict=False))
            for path in folder.glob("*.manifest")
            for line in path.read_text("utf-8").splitlines()
        ]
        growing = sorted((int(one["seq"]), one["file"]) for one in named if one["type"] == "i")
        return [folder / name for _, name in growing]

    def limit_files(self, most_bytes: int | None) -> None:
        """Let no file of it grow beyond a size; ``None``: again without a limit."""
        if self.process is None:
            raise RuntimeError("it is not running")
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        soft = hard if most_bytes is None else most_bytes
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (soft, hard))


class Stack:
    """Streams and jobs server of one program on a folder; a context manager."""

    def __init__(
        self, program: MatrixServer, folder: Path, *, on_small_disks: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.program = program
        self.folder = folder
        self._reaper = Reaper()
        self.disks: dict[str, SmallDisk] = {}
        """By the server's kind, where their data lie on disks of their own."""
        if on_small_disks:
            for kind in KINDS:
                self.disks[kind] = SmallDisk(folder / f"{kind}-data", _DISK_BYTES)
                self.disks[kind].__enter__()
        self.streams = Server("streams", program, folder, self._reaper)
        self.jobs = Server("jobs", program, folder, self._reaper)
        self.servers = (self.streams, self.jobs)
        self._sizes: dict[str, list[tuple[float, Path, int]]] = {}
        self._watching = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self.stop_watching()
        for server in self.servers:
            server.kill()
        self._reaper.close()
        for disk in self.disks.values():
            disk.__exit__(None, None, None)

    def start(self) -> None:
        """Start both and wait until they have loaded.

        Raises
        ------
        RuntimeError
            When one of them ends instead.
        """
        for server in self.servers:
            server.launch()
        for server in self.servers:
            if not server.answers():
                end = server.log.read_text("utf-8", "replace").splitlines()[-4:]
                raise RuntimeError(f"{server.kind} did not start: {' | '.join(end)}")

    def kill(self) -> None:
        """Kill both, one right behind the other."""
        for server in self.servers:
            if server.process is not None:
                os.killpg(server.process.pid, signal.SIGKILL)
        for server in self.servers:
            server.kill()

    def settle(self) -> None:
        """Wait until the start is over and all that was acknowledged is in the append-only files.

        The streams server's functions are loaded behind its first answer, and a server that waits
        for its disk holds acknowledged writes in memory for up to two seconds.
        """
        for server in self.servers:
            server.settle()

    # -- what stood in the append-only files when ----------------------------------------------

    def watch(self) -> None:
        """Note the append-only files' sizes from now on, until `stop_watching`."""
        self._sizes = {server.kind: [] for server in self.servers}
        self._watching.clear()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._watching.wait(0.025):
            for server in self.servers:
                try:
                    last = server.aof()[-1]
                    size = last.stat().st_size
                except (OSError, IndexError):
                    continue
                self._sizes[server.kind].append((time.monotonic(), last, size))

    def stop_watching(self) -> None:
        """End `watch`."""
        self._watching.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    def size_at(self, server: Server, moment: float) -> int:
        """Return how much of its last file was written at a moment, by `time.monotonic`."""
        last = server.aof()[-1]
        sizes = self._sizes[server.kind]
        return max((size for at, path, size in sizes if path == last and at <= moment), default=0)
