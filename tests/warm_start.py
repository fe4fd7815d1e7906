"""Starts of the project's programs in tests: by a fork of `warm_server` where that is the same.

`warm_starts` puts a `Popen` into `subprocess` that knows `[sys.executable, "-m", "qmt_...", ...]`
and `[sys.executable, "-c", code]` where the code begins with `WARM_SCRIPT`. Any other command, and
one with options that a fork cannot honour, starts as ever. What is started is a child of the tests'
process like any other: it is waited for, killed and listed by its pid.

A worker and `qmt-windows` start others in turn: those are forked too, by a server of their own, and
so are a worker's children of `multiprocessing`.

QMT_TEST_COLD=1 turns it off; so does a system other than Linux. Starts from nothing are proven by
tests/runtime/test_programs.py, by the standalone demo, whose supervisor starts its children itself
and with them a worker and a worker's children, and by everything under Wine.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import locale
import multiprocessing.util
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
CRASH_READER: Final = HERE / "crash" / "crash_reader.py"
PROGRAMS: Final[dict[str, tuple[str, ...]]] = {
    "-c": ("numpy", "pandas", "qmt_simulator.native"),
    str(CRASH_READER): ("qmt_client", "redis.asyncio", "websockets.asyncio.client", "httpx"),
    "qmt_archive": (),
    "qmt_client": ("qmt_client.cli", "pandas", "pyarrow.parquet", "rq", "httpx"),
    "qmt_gateway": ("uvicorn.protocols.http.auto", "uvicorn.loops.auto", "uvicorn.lifespan.on"),
    "qmt_producer": ("qmt_producer.producer", "pandas", "rich.traceback"),
    "qmt_simulator": ("qmt_simulator.market.calendar", "qmt_simulator.terminal"),
    "qmt_terminal.probe": ("pandas",),
    "qmt_windows": ("qmt_windows.supervisor", "qmt_windows.doctor", "pandas"),
    "qmt_worker": ("qmt_worker.service", "qmt_worker.supervisor", "qmt_worker.child"),
}
"""Programs and what they import only when they run. Never xtquant: what it loads is a setting."""

STARTERS: Final[dict[str, tuple[str, ...]]] = {
    "qmt_windows": ("qmt_producer", "qmt_worker"),
    "qmt_worker": (),
}
"""Programs that start others, and which beside themselves."""
SPAWN: Final = "multiprocessing.spawn"
WARM_SCRIPT: Final = "# With numpy and pandas imported.\n"
_SET_CHILD_SUBREAPER: Final = 36
_OBEYED: Final = {"PYTHONIOENCODING", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONWARNINGS"}
_real_popen: Final = subprocess.Popen
_real_spawn: Final = multiprocessing.util.spawnv_passfds


class _Server:
    """The server of this process, started when it is first needed unless it has one."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        self._lock = threading.Lock()
        self._connection = connection
        self._process: subprocess.Popen[bytes] | None = None

    def _connected(self) -> socket.socket:
        if self._connection is None:
            mine, theirs = socket.socketpair()
            self._process = _real_popen(
                # The last word is room for its children's.
                [sys.executable, HERE / "warm_server.py", str(theirs.fileno()), "-" * 4000],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd=HERE,
                # One thread only, or a fork may find a lock taken.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
            theirs.close()
            self._connection = mine
            atexit.register(self.stop)
        return self._connection

    def stop(self) -> None:
        """End the server; what it forked is not its child and goes on."""
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.wait(60)

    def fork(self, request: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Start a program; return the pid of what is now a child of this process."""
        body = json.dumps(request).encode()
        with self._lock:
            connection = self._connected()
            socket.send_fds(connection, [struct.pack("!I", len(body))], list(streams))
            connection.sendall(body)
            self._take(connection, 1)
            _adopt(True)
            try:
                connection.sendall(b".")
                (pid,) = struct.unpack("!I", self._take(connection, 4))
                self._take(connection, 1)
            finally:
                _adopt(False)
        return int(pid)

    @staticmethod
    def _take(connection: socket.socket, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            part = connection.recv(size - len(taken))
            if not part:
                raise RuntimeError("tests/warm_server.py ended; its standard error says why")
            taken += part
        return taken


def _adopt(on: bool) -> None:
    """Make orphans below this process its children; only while one is awaited."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, int(on), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


_server = _Server()


def _is_warm(
    args: Any, options: Mapping[str, Any], env: Mapping[str, str] | None
) -> list[str] | None:
    """Return a program and its arguments if a fork is the same as a start."""
    if isinstance(args, str | bytes | os.PathLike) or any(options.values()):
        return None
    words = [os.fspath(word) for word in args]
    if words[:2] == [sys.executable, "-m"] and words[2] in PROGRAMS:
        words = words[2:]
    elif words[:2] == [sys.executable, str(CRASH_READER)] or (
        words[:2] == [sys.executable, "-c"] and words[2].startswith(WARM_SCRIPT)
    ):
        words = words[1:]
    else:
        return None
    given = dict(os.environ if env is None else env)
    if given.get("PYTHONUTF8") == "1" and locale.getpreferredencoding(False) == "UTF-8":
        given.pop("PYTHONUTF8")  # what is so already
    names = {name for name in (*given, *os.environ) if name.startswith(("PYTHON", "LC_", "LANG"))}
    same = all(given.get(name) == os.environ.get(name) for name in names - _OBEYED)
    same = same and given.get("PYTHONWARNINGS", "error") == "error"
    return words if same else None


class WarmPopen(_real_popen):  # type: ignore[type-arg]
    """`subprocess.Popen` that forks the project's programs from `warm_server`."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        executable, preexec, _, pass_fds, cwd, env, startup, flags, shell = rest[:9]
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[9:15]
        gid, gids, uid, umask, session = rest[16:21]
        group = rest[21] if len(rest) > 21 else -1
        options = {
            **{"executable": executable, "preexec": preexec, "pass_fds": pass_fds, "shell": shell},
            **{"startup": startup, "flags": flags, "umask": umask != -1, "group": group != -1},
            "user": gid is not None or gids is not None or uid is not None,
        }
        words = _is_warm(args, options, env)
        if words is None:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        self.pid = _server.fork(
            {
                "words": words,
                "cwd": os.path.abspath(cwd or os.getcwd()),
                "env": dict(os.environ if env is None else env),
                "session": bool(session),
                "fds": [],
            },
            [
                0 if p2cread == -1 else p2cread,
                1 if c2pwrite == -1 else c2pwrite,
                2 if errwrite == -1 else errwrite,
            ],
        )
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        )


def _warm_spawn(path: bytes, args: Sequence[str], passfds: Sequence[int]) -> int:
    """Start a child of `multiprocessing` by a fork; its tracker of resources as ever."""
    if args[-1] != "--multiprocessing-fork":
        return int(_real_spawn(path, args, passfds))
    request = {
        "words": [SPAWN, args[-2]],
        "cwd": os.getcwd(),
        "env": dict(os.environ),
        "session": False,
        "fds": list(passfds),
    }
    return _server.fork(request, [0, 1, 2, *passfds])


def start_from(connection: socket.socket) -> None:
    """From now on start the project's programs by forks of the server at the line's other end."""
    global _server
    _server = _Server(connection)
    subprocess.Popen = WarmPopen  # type: ignore[misc]
    multiprocessing.util.spawnv_passfds = _warm_spawn  # type: ignore[assignment]


def warm_starts() -> None:
    """From now on start the project's programs by forks, where this system can."""
    if sys.platform == "linux" and os.environ.get("QMT_TEST_COLD") != "1":
        subprocess.Popen = WarmPopen  # type: ignore[misc]
