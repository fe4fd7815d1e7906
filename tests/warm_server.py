"""Forks the project's programs from a process that has imported them already.

Every `python -m qmt_...` imports for half a second to a second before it does anything; of the
tests' time that was a third. This server imports a program when it is first asked for and forks a
child for each start. The child is the program's own `__main__` with its own arguments, environment,
folder and standard streams; nothing of it was run before the fork but imports. `warm_start` is the
other side.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import socket
import struct
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any, Final, NoReturn

PROGRAMS: Final[dict[str, tuple[str, ...]]] = {
    "-c": ("numpy", "pandas", "qmt_simulator.native"),
    "qmt_archive": (),
    "qmt_client": ("qmt_client.cli", "pandas", "pyarrow.parquet", "rq", "httpx"),
    "qmt_gateway": ("uvicorn.protocols.http.auto", "uvicorn.loops.auto", "uvicorn.lifespan.on"),
    "qmt_producer": ("qmt_producer.producer", "pandas", "rich.traceback"),
    "qmt_simulator": ("qmt_simulator.market.calendar", "qmt_simulator.terminal"),
    "qmt_worker": ("qmt_worker.service", "qmt_worker.supervisor", "qmt_worker.child"),
}
"""Programs and what they import only when they run. Never xtquant: what it loads is a setting."""

_loaded: Final[set[str]] = set()
_USUAL_WARNINGS: Final = tuple(warnings.filters)


def load(program: str) -> None:
    """Import what a program imports."""
    if program in _loaded:
        return
    for name in PROGRAMS[program]:
        importlib.import_module(name)
    if program != "-c":
        importlib.import_module(f"{program}.__main__")
        del sys.modules[f"{program}.__main__"]  # it is run once more, as a program
    if program == "qmt_simulator":
        from qmt_simulator.market.calendar import trading_calendar

        trading_calendar()
    _loaded.add(program)
    gc.collect()
    gc.freeze()  # else a child's first collection copies every page


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read one request and its standard streams; the process ends when the tests have."""
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    if len(head) < 4:
        sys.exit(0)
    (size,) = struct.unpack("!I", head)
    body = b""
    while len(body) < size:
        part = connection.recv(size - len(body))
        if not part:
            sys.exit(0)
        body += part
    return json.loads(body), streams


def fork() -> int:
    """Fork; the one thread beside this one is jemalloc's, which knows about forks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def become(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Run the program in this process, as `python -m` would."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    random.seed()
    as_variables_say(request["cwd"])
    program, *arguments = request["words"]
    show([sys.executable, *(["-m"] if program != "-c" else []), program, *arguments])
    sys.argv = [program, *arguments]
    if program == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv.remove(code := arguments[0])
        exec(compile(code, "<string>", "exec"), main.__dict__)
        sys.exit(0)
    runpy.run_module(program, run_name="__main__", alter_sys=True)
    sys.exit(0)


def show(words: list[str]) -> None:
    """Put words where `ps` and psutil read a process's command line."""
    fields = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    line = b"\0".join(os.fsencode(word) for word in words) + b"\0"
    ctypes.memmove(begin, line[: end - begin - 1].ljust(end - begin, b"\0"), end - begin)


def as_variables_say(folder: str) -> None:
    """Do what the interpreter does with its variables before a program runs."""
    coding, _, on_error = os.environ.get("PYTHONIOENCODING", "").partition(":")
    text: Any = {"encoding": coding or None, "closefd": False}
    sys.stdin = open(0, errors=on_error or None, **text)  # noqa: SIM115  # as long as it runs
    sys.stdout = open(1, "w", errors=on_error or None, **text)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", buffering=1, **text)  # noqa: SIM115
    given = os.environ.get("PYTHONPATH", "")
    sys.path[:1] = [folder, *(part for part in given.split(os.pathsep) if part)]
    action: Any = os.environ.get("PYTHONWARNINGS")
    if action:
        kept = [one for one in warnings.filters if one not in _USUAL_WARNINGS]
        warnings.resetwarnings()
        warnings.filters[:] = kept  # type: ignore[index]
        warnings.simplefilter(action, append=True)


def serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Answer requests; returns never but in children, each with what it is to become."""
    while True:
        request, streams = receive(connection)
        load(request["words"][0])
        connection.sendall(b".")  # now the asker is ready to adopt
        if not connection.recv(1):
            sys.exit(0)
        between = fork()
        if not between:
            between = os.getpid()
            child = fork()
            if child:
                connection.sendall(struct.pack("!I", child))
                os._exit(0)
            connection.close()
            while os.getppid() == between:  # until it is a child of the asker
                time.sleep(0.001)
            return request, streams
        for stream in streams:
            os.close(stream)
        os.waitpid(between, 0)
        connection.sendall(b".")


if __name__ == "__main__":
    try:
        wanted = serve(socket.socket(fileno=int(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)  # the tests' own matter
    become(*wanted)
