"""Which processes have not ended."""

from __future__ import annotations

from collections.abc import Sequence

import psutil


def still_running(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Return those that run after a time; one that is dead and that nobody waited for does not."""
    _gone, left = psutil.wait_procs(processes, timeout_s)
    return [one for one in left if _runs(one)]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
