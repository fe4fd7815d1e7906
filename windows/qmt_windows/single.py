"""One supervisor for a home folder, and what a killed one left running."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import filelock
import psutil

from qmt_protocol.errors import ConfigurationError
from qmt_protocol.times import to_datetime

from .home import Home

__all__ = ["end_orphans", "holder", "only_one", "write_record"]

_ORPHANS_END_S: Final = 8.0
_LOOK_S: Final = 0.1


@contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Hold the home folder.

    Raises
    ------
    ConfigurationError
        When another supervisor holds it; the message says which.
    """
    home.folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(home.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigurationError(
            f"qmt-windows runs already with {home.folder} (已在运行): {_who(home)}.",
            hint="End that one first, or give this one a folder of its own by --home.",
        ) from None
    try:
        yield
    finally:
        lock.release()


def holder(home: Home) -> dict[str, Any] | None:
    """Return the record of the supervisor that runs here, ``None`` when none does."""
    if not home.lock.exists():
        return None
    lock = filelock.FileLock(home.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return _read(home) or {"pid": None}
    lock.release()
    return None


def write_record(home: Home, children: Mapping[str, int]) -> None:
    """Write down who runs here, for people and for the next supervisor."""
    record = {
        "pid": os.getpid(),
        "started_ms": int(psutil.Process().create_time() * 1000),
        "children": {
            name: {"pid": pid, "started": _started(pid)} for name, pid in children.items()
        },
    }
    fresh = home.record.with_suffix(".new")
    try:
        fresh.write_text(json.dumps(record), encoding="utf-8")
        os.replace(fresh, home.record)
    except OSError:
        pass  # somebody reads it on Windows; it is only a help


def end_orphans(home: Home, *, within_s: float = _ORPHANS_END_S) -> list[str]:
    """Wait until the children of a killed supervisor have ended, and end those that do not.

    They end by themselves, but one that is still at it holds the ring.

    Returns
    -------
    list of str
        Names of those that had to be killed.
    """
    left: dict[str, psutil.Process] = {}
    for name, one in (_read(home) or {}).get("children", {}).items():
        started = one.get("started")
        if started is not None and _started(one["pid"]) == started:
            try:
                left[name] = psutil.Process(one["pid"])
            except psutil.Error:
                continue
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and any(map(_runs, left.values())):
        time.sleep(_LOOK_S)
    killed = [name for name, process in left.items() if _runs(process)]
    for name in killed:
        try:
            left[name].kill()
            left[name].wait(within_s)
        except psutil.Error:
            continue  # gone meanwhile, or not ours: the next start will tell
    return killed


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _started(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _read(home: Home) -> dict[str, Any] | None:
    try:
        return dict(json.loads(home.record.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _who(home: Home) -> str:
    record = _read(home)
    if record is None:
        return "it has not said who it is"
    since = to_datetime(int(record["started_ms"]))
    return f"process {record['pid']}, since {since:%Y-%m-%d %H:%M:%S} China time"
