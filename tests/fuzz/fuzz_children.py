"""Runs cases in child processes: a crash, a hang or too much memory is a finding, not the end.

A case is a number: everything about it follows from the seed and that number, so any one can be
done again by itself. A child notes each number before it begins with it.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import itertools
import json
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

__all__ = ["HERE", "Cases", "Failure", "Report", "in_children", "run_one"]

MEMORY_BYTES: Final = 512 * 2**20
"""How much more than at its beginning a child may ever need."""
HANG_S: Final = 60.0
_NUMBER: Final = struct.Struct("<qd")
_FAILURES_KEPT: Final = 20


@dataclass
class Failure:
    """A case that is not as it must be."""

    number: int
    what: str
    again: str = ""
    """Command that repeats it."""


@dataclass
class Report:
    """What a target found."""

    tried: int = 0
    refused: int = 0
    """Inputs refused by an error of our tree."""
    held: int = 0
    """Inputs taken, and decoded to what an independent decoder says."""
    failures: list[Failure] = field(default_factory=list)
    by_error: Counter[str] = field(default_factory=Counter)
    """Errors of our tree and how often each refused."""

    def add(self, other: Report) -> None:
        """Take in what another part of the run found."""
        self.tried += other.tried
        self.refused += other.refused
        self.held += other.held
        self.failures += other.failures
        self.by_error += other.by_error


class Cases(Protocol):
    """What a target module offers to a child: ``make_cases()`` returns it, once per child."""

    def input(self, chance: random.Random) -> bytes:
        """Return one input."""

    def judge(self, data: bytes, chance: random.Random) -> None:
        """Give an input to the code under test; what is taken must be what another decoder says.

        Raises
        ------
        QMTError
            When it was refused.
        BaseException
            Whatever else is a finding.
        """


def chance_of(seed: int, number: int) -> random.Random:
    """Return the case's own chance."""
    return random.Random(f"{seed}:{number}")


def in_children(target: str, seed: int, count: int, keep: Path | None, parallel: int = 0) -> Report:
    """Do cases 0 to ``count`` of a target's module.

    Parameters
    ----------
    target
        Name of the target; its module is ``target_<name>``.
    keep
        Folder for the inputs of failures; ``None``: they are not kept.
    """
    parallel = min(parallel or os.cpu_count() or 1, max(1, count // 200))
    borders = [count * part // parallel for part in range(parallel + 1)]
    report = Report()
    parts = [_Part(target, seed, *span, keep) for span in itertools.pairwise(borders)]
    try:
        while not all(part.is_done for part in parts):
            for part in parts:
                part.look()
            time.sleep(0.02)
    finally:
        for part in parts:
            part.close()
    for part in parts:
        report.add(part.report)
    return report


class _Part:
    """A span of cases, and the child that is at them."""

    def __init__(self, target: str, seed: int, begin: int, end: int, keep: Path | None) -> None:
        self._target = target
        self._seed = seed
        self._next = begin
        self._end = end
        self._keep = keep
        self.report = Report()
        self._noted = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._noted.truncate(_NUMBER.size)
        self._map = mmap.mmap(self._noted.fileno(), _NUMBER.size)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._child: subprocess.Popen[bytes] | None = None
        self.is_done = begin >= end

    def look(self) -> None:
        """Start, or take up what has ended or hangs."""
        if self.is_done:
            return
        if self._child is None:
            self._start()
            return
        number, since = _NUMBER.unpack(self._map[:])
        code = self._child.poll()
        if code is not None:
            self._ended(code, number)
        elif number >= 0 and time.monotonic() - since > HANG_S:
            self._child.kill()
            self._child.wait()
            self._ended(None, number)

    def _start(self) -> None:
        self._map[:] = _NUMBER.pack(-1, time.monotonic())
        self._said.seek(0)
        self._said.truncate()
        span = [str(one) for one in (self._seed, self._next, self._end, self._noted.fileno())]
        self._child = subprocess.Popen(
            [sys.executable, str(HERE / "fuzz_children.py"), "child", self._target, *span],
            stdout=self._said,
            pass_fds=[self._noted.fileno()],
        )

    def _ended(self, code: int | None, number: int) -> None:
        self._child = None
        self._said.seek(0)
        lines = self._said.read().splitlines()
        told = json.loads(lines[-1]) if code == 0 and lines else None
        if told is not None:
            for failure in told.pop("failures"):
                self._fail(**failure)
            self.report.add(Report(**{**told, "by_error": Counter(told["by_error"])}))
            self._next = told["tried"] + self._next
        else:
            ending = "it hung" if code is None else _ending(code)
            done = max(0, number - self._next) + 1
            self.report.tried += done  # what was refused and held before it is not known
            self._fail(number, ending)
            self._next += done
        self.is_done = self._next >= self._end

    def _fail(self, number: int, what: str, data: str = "") -> None:
        again = f"scripts/fuzz --seed {self._seed} --target {self._target} --only {number}"
        self.report.failures.append(Failure(number, what, again))
        if self._keep is not None and len(self.report.failures) <= _FAILURES_KEPT:
            self._keep.mkdir(parents=True, exist_ok=True)
            stem = self._keep / f"{self._target}-{self._seed}-{number}"
            stem.with_suffix(".txt").write_text(f"{again}\n\n{what}\n", "utf-8")
            if data:
                stem.with_suffix(".bin").write_bytes(base64.b64decode(data))

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._map.close()
        self._noted.close()
        self._said.close()


def _ending(code: int) -> str:
    return f"the process ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def run_one(target: str, seed: int, number: int, keep: Path | None) -> str:
    """Do one case here and now; return what came of it."""
    from qmt_protocol.errors import QMTError

    cases = importlib.import_module(f"target_{target}").make_cases()
    chance = chance_of(seed, number)
    data = cases.input(chance)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{target}-{seed}-{number}.bin").write_bytes(data)
    try:
        cases.judge(data, chance)
    except QMTError as error:
        return f"refused: {type(error).__name__}: {error}"
    return "held"


# -- in the child ---------------------------------------------------------------------------------


def child(target: str, seed: int, begin: int, end: int, noted: int) -> None:
    """Do a span of cases; tell what was found as one line of JSON."""
    from qmt_protocol.errors import QMTError

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cases: Cases = importlib.import_module(f"target_{target}").make_cases()
    at = mmap.mmap(noted, _NUMBER.size)
    report = Report()
    base_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failures: list[dict[str, Any]] = []

    def fail(number: int, what: str, data: bytes) -> None:
        if len(failures) < _FAILURES_KEPT:
            encoded = base64.b64encode(data[: 2**20]).decode()
            failures.append({"number": number, "what": what, "data": encoded})
        else:
            failures.append({"number": number, "what": what.splitlines()[-1]})

    for number in range(begin, end):
        at[:] = _NUMBER.pack(number, time.monotonic())
        chance = chance_of(seed, number)
        data = cases.input(chance)
        report.tried += 1
        try:
            cases.judge(data, chance)
            report.held += 1
        except QMTError as error:
            report.refused += 1
            report.by_error[type(error).__name__] += 1
        except BaseException:  # noqa: BLE001  # whatever it is, it is what is looked for
            fail(number, traceback.format_exc(limit=-8), data)
        now_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (now_kb - base_kb) * 1024 > MEMORY_BYTES:
            fail(number, f"it took {(now_kb - base_kb) // 1024} MiB", data)
            break  # the peak of a process never falls: another one goes on
    told = {
        "tried": report.tried,
        "refused": report.refused,
        "held": report.held,
        "failures": failures,
        "by_error": dict(report.by_error),
    }
    print(json.dumps(told), flush=True)
    close: Callable[[], None] = getattr(cases, "close", lambda: None)
    close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("child", choices=["child"])
    parser.add_argument("target")
    for name in ("seed", "begin", "end", "noted"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    child(given.target, given.seed, given.begin, given.end, given.noted)
