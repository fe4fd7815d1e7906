"""``qmt-standalone``: everything on one machine."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from qmt_protocol.errors import ConfigurationError, QMTError
from qmt_protocol.settings import load_settings

from .console import Console
from .parts import Stack
from .reaper import Reaper
from .settings import StandaloneSettings
from .supervisor import Stopped, Supervisor

__all__ = ["main"]

_LOOK_S: Final = 0.2
_FIGURES_S: Final = 1.0


class _Stop:
    """Set by Ctrl-C, SIGTERM and a terminal window that closes."""

    def __init__(self) -> None:
        self.asked = False
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def main(arguments: list[str] | None = None) -> int:
    """Run until Ctrl-C or the end of ``--for``; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        settings = load_settings(StandaloneSettings, arguments)
        if settings.terminal and os.name != "nt":
            raise ConfigurationError(
                "--terminal needs a QMT terminal, and that runs on Windows only.",
                hint="Leave it out to use the simulated market.",
            )
        with _data_dir(settings.data_dir) as (data_dir, temporary):
            return _run(Stack(settings, data_dir), temporary)
    except QMTError as error:
        print(f"qmt-standalone: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Who read our output is gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(stack: Stack, temporary: Path | None) -> int:
    stop = _Stop()
    console = Console(sys.stdout)
    console.banner(stack)
    reaper = Reaper(temporary) if os.name == "posix" else None
    supervisor = Supervisor(
        stack,
        reaper=reaper,
        say=lambda line: console.say(f"  {line}"),
        stopping=lambda: stop.asked,
    )
    try:
        supervisor.start()
        console.ready(stack)
        _watch(stack, supervisor, console, stop)
    except Stopped:
        pass
    finally:
        # Whatever happened, also a closed pipe at our output: nothing may stay behind.
        try:
            console.say("stopping · 正在停止")
        except BrokenPipeError:
            pass
        supervisor.stop()
        stack.probe.close()
        if reaper is not None:
            reaper.close()
    console.say("stopped · 已停止")
    return 0


def _watch(stack: Stack, supervisor: Supervisor, console: Console, stop: _Stop) -> None:
    began = time.monotonic()
    figures_at = 0.0
    while not stop.asked:
        now = time.monotonic()
        if stack.settings.for_s is not None and now - began >= stack.settings.for_s:
            return
        supervisor.look()
        if now - figures_at >= _FIGURES_S:
            figures_at = now
            stack.probe.time_history()
            console.figures(stack.probe.figures(), stack)
        time.sleep(_LOOK_S)


@contextmanager
def _data_dir(kept: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """Give the data folder, and once more when it is temporary; one run at a time has it."""
    if kept is None:
        temporary = Path(tempfile.mkdtemp(prefix="qmt-standalone-"))
        try:
            yield temporary, temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    folder = kept.resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        _hold(lock, folder)
        yield folder, None


def _hold(lock: IO[str], folder: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigurationError(
            f"Another qmt-standalone runs in {folder}.", hint="Choose another --data-dir."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
