"""Forks the project's programs from a process that has imported them already.

Every `python -m qmt_...` imports for half a second to a second before it does anything; of the
tests' time that was a third. This server imports a program when it is first asked for and forks a
child for each start. The child is the program's own `__main__` with its own arguments, environment,
folder and standard streams; nothing of it was run before the fork but imports. `warm_start` is the
other side.

A program that starts others of the project gets a server of its own, forked before anything of it
has run: what it starts must be its child.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import struct
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any, Final, NoReturn

from warm_start import PROGRAMS, SPAWN, STARTERS, start_from

_IGNORED: Final = (signal.SIGINT, signal.SIGTERM)
_MOST_STREAMS: Final = 16

_loaded: Final[set[str]] = set()
_USUAL_WARNINGS: Final = tuple(warnings.filters)


def load(program: str) -> None:
    """Import what a program imports."""
    if program in _loaded:
        return
    for name in PROGRAMS[program]:
        importlib.import_module(name)
    if program.startswith("qmt_"):
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
    head, streams, _, _ = socket.recv_fds(connection, 4, _MOST_STREAMS)
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
    numbers = [0, 1, 2, *request["fds"]]
    aside = [fcntl.fcntl(stream, fcntl.F_DUPFD, max(*numbers, *streams) + 1) for stream in streams]
    for stream in streams:
        os.close(stream)
    for number, stream in zip(numbers, aside, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    random.seed()
    as_variables_say(request["cwd"])
    program, *arguments = request["words"]
    if program in STARTERS:
        start_from(server_of_its_own())
    if program == SPAWN:
        show([sys.executable, "-c", *arguments, "--multiprocessing-fork"])
        sys.argv = ["-c", "--multiprocessing-fork"]
        exec(compile(arguments[0], "<string>", "exec"), {})
        sys.exit(0)
    show([sys.executable, *(["-m"] if program.startswith("qmt_") else []), program, *arguments])
    sys.argv = [program, *arguments]
    if program == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv.remove(code := arguments[0])
        exec(compile(code, "<string>", "exec"), main.__dict__)
        sys.exit(0)
    if program.endswith(".py"):
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
        sys.exit(0)
    runpy.run_module(program, run_name="__main__", alter_sys=True)
    sys.exit(0)


def server_of_its_own() -> socket.socket:
    """Fork a server for this process; return the line to it. It ends with this process."""
    mine, theirs = socket.socketpair()
    if fork():
        theirs.close()
        return mine
    mine.close()
    for number in _IGNORED:  # of the group's; it ends with the line
        signal.signal(number, signal.SIG_IGN)
    with open(os.devnull, "r+b") as nothing:
        for number in range(3):
            os.dup2(nothing.fileno(), number)
    become(*serve(theirs))


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
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)
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
        program = request["words"][0]
        for one in (program, *STARTERS.get(program, ())):
            if one in PROGRAMS:
                load(one)
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
