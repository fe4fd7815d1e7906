"""Which processes have not ended."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
from waiting import wait_for


def still_running(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return those that do not end; one that is dead and that nobody waited for does not run."""
    try:
        wait_for(lambda: not any(map(_runs, processes)), "all of them end")
    except TimeoutError:
        return [one for one in processes if _runs(one)]
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
