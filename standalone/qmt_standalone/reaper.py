"""The reaper: kills what a killed supervisor leaves behind.

It is a process of its own that reads lines from the supervisor's pipe: ``+<group>`` and
``-<group>`` tell which process groups live, ``rm <folder>`` what to remove at the end. The pipe
closes when the supervisor ends, however it ends; then the groups that still live are ended.
It needs POSIX; on Windows the parts watch their standard input instead.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Final

__all__ = ["Reaper"]

_GRACE_S: Final = 3.0


class Reaper:
    """The supervisor's end of the pipe.

    Parameters
    ----------
    temporary
        A folder that is removed when the supervisor has ended.
    """

    def __init__(self, temporary: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        if temporary is not None:
            self._report(f"rm {temporary}")

    def register_self(self) -> None:
        """Register the calling process as a group's leader; for use between fork and exec.

        So the child is known before the supervisor could be killed.
        """
        self._report(f"+{os.getpid()}")

    def register(self, group: int) -> None:
        """Register a group that runs already."""
        self._report(f"+{group}")

    def forget(self, group: int) -> None:
        """Tell that a group has ended and its number may be used by others."""
        self._report(f"-{group}")

    def close(self, timeout_s: float = 10.0) -> None:
        """Let it end, and wait until it has."""
        self._pipe.close()
        self._process.wait(timeout_s)

    @property
    def _pipe(self) -> IO[bytes]:
        if self._process.stdin is None:
            raise ValueError("The reaper has no pipe.")
        return self._process.stdin

    def _report(self, line: str) -> None:
        # One unbuffered write: lines of parent and forked child do not mix.
        os.write(self._pipe.fileno(), f"{line}\n".encode())


def main() -> int:
    """Read until the pipe closes, then end what is left."""
    # Ctrl-C and a closing terminal window are the supervisor's to answer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    folders: list[str] = []
    for raw in sys.stdin.buffer:
        line = raw.decode().rstrip("\n")
        if line.startswith("+"):
            groups.add(int(line[1:]))
        elif line.startswith("-"):
            groups.discard(int(line[1:]))
        elif line.startswith("rm "):
            folders.append(line[3:])
    _end(groups)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _end(groups: set[int]) -> None:
    left = {group for group in groups if _signalled(group, signal.SIGTERM)}
    deadline = time.monotonic() + _GRACE_S
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = {group for group in left if _signalled(group, 0)}
    for group in left:
        _signalled(group, signal.SIGKILL)


def _signalled(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
