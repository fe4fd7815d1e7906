"""A process that reads the archive as users do, through the client, and tells how long it took."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from qmt_client import QMTClient

from .measure import quantile
from .processes import child

__all__ = ["Task", "ask"]

Kind = Literal["stored", "batches", "records", "paced"]
_SOME: Final = 1_000


@dataclass
class Task:
    """What a reader is to do."""

    kind: Kind
    streams_url: str
    archive_url: str
    codes: list[str]
    """Empty: all."""
    start: str
    end: str
    rows: int = 0
    """``stored``, ``batches``: how many there are; ``records``: how many to take."""
    parts: int = 1
    """How often to read; of ``batches`` and ``records``: stretches measured one by one."""
    speed: float = 1.0
    seconds: float = 0.0


def ask(task: Task, log: Path) -> dict[str, Any]:
    """Let a new process do a task; return what it found.

    Raises
    ------
    RuntimeError
        When it fails, or does not find the rows that there are.
    """
    with child(["benchmarks.stored_reader"], log=log) as reader:
        reader.tell(json.dumps(asdict(task)))
        try:
            return reader.line()
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {log.read_text('utf-8')[-2000:]}") from error


def main() -> None:
    """Do the task that standard input names."""
    print(json.dumps({"ready": True}), flush=True)
    task = Task(**json.loads(sys.stdin.readline()))
    act: Callable[[QMTClient, Task], dict[str, Any]] = _ACTS[task.kind]
    with QMTClient(task.streams_url, archive_url=task.archive_url) as client:
        # What is imported at the first read is nobody's question here.
        form: Literal["frame", "arrow"] = "frame" if task.kind == "stored" else "arrow"
        before = f"{task.start} 05:00"
        client.stored_ticks(task.codes[:1] or "600000.SH", before, before, as_=form)
        found = act(client, task)
    print(json.dumps({**found, "peak_bytes": _peak_bytes()}), flush=True)


def _stored(client: QMTClient, task: Task) -> dict[str, Any]:
    seconds = []
    for _ in range(task.parts):
        began = time.perf_counter()
        frame = client.stored_ticks(task.codes, task.start, task.end)
        seconds.append(time.perf_counter() - began)
        _check(task, len(frame))
    return {"seconds": seconds}


def _batches(client: QMTClient, task: Task) -> dict[str, Any]:
    rates = _Rates(task)
    with client.replay(task.codes or "*", task.start, task.end, "max") as replay:
        for batch in replay.batches():
            rates.add(len(batch))
    _check(task, rates.rows)
    return rates.told


def _records(client: QMTClient, task: Task) -> dict[str, Any]:
    rates = _Rates(task)
    with client.replay(task.codes or "*", task.start, task.end, "max") as replay:
        while rates.rows < task.rows and (some := sum(1 for _ in islice(replay, _SOME))):
            rates.add(some)
    if rates.rows < task.rows:
        _check(task, rates.rows)
    return rates.told


class _Rates:
    """Rows a second, stretch by stretch, from before the first row on."""

    def __init__(self, task: Task) -> None:
        self.rows = 0
        self.found: list[float] = []
        self._stretch = max(1, task.rows // task.parts)
        self._since = (0, time.perf_counter())
        self._used_s = time.process_time()

    @property
    def told(self) -> dict[str, Any]:
        used_us = (time.process_time() - self._used_s) * 1e6
        return {"rates": self.found, "us": used_us / max(1, self.rows)}

    def add(self, rows: int) -> None:
        self.rows += rows
        taken = self.rows - self._since[0]
        if taken >= self._stretch:
            now = time.perf_counter()
            self.found.append(taken / (now - self._since[1]))
            self._since = (self.rows, now)


def _paced(client: QMTClient, task: Task) -> dict[str, Any]:
    p50, p99, ticks = [], [], 0
    for _ in range(task.parts):
        taken: list[tuple[float, str]] = []
        with client.replay(task.codes or "*", task.start, task.end, task.speed) as replay:
            end = float("inf")
            for tick in replay:
                now = time.perf_counter()
                taken.append((now, tick.id))
                if end == float("inf"):
                    end = now + task.seconds
                elif now >= end:
                    break
        late = [now - int(at.partition("-")[0]) / 1000 / task.speed for now, at in taken]
        least = min(late)
        late_ms = [(one - least) * 1000 for one in late]
        p50.append(quantile(late_ms, 0.5))
        p99.append(quantile(late_ms, 0.99))
        ticks += len(taken)
    return {"p50": p50, "p99": p99, "ticks": ticks}


_ACTS: Final[dict[Kind, Callable[[QMTClient, Task], dict[str, Any]]]] = {
    "stored": _stored,
    "batches": _batches,
    "records": _records,
    "paced": _paced,
}


def _check(task: Task, rows: int) -> None:
    if rows != task.rows:
        raise RuntimeError(f"{rows} rows were read, the archive holds {task.rows}")


def _peak_bytes() -> int:
    """Return the most memory that this process had resident."""
    try:
        # getrusage would tell that of the parent before exec, where it was more.
        told = Path("/proc/self/status").read_text("ascii", "replace")
        return int(told.partition("VmHWM:")[2].split()[0]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on Mac


if __name__ == "__main__":
    main()
