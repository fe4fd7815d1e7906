"""One cell of the matrix: a server, a fault, Windows there or away; rounds on the same data."""

from __future__ import annotations

import random
import shutil
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis_servers import HERE
from restart_box import Box
from restart_disks import DISKS
from restart_faults import FAULTS, Struck
from restart_judge import Ledger, Ticks, account_ticks, compare_ticks, read_push_log
from restart_stack import KINDS, Stack
from restart_writers import Writers
from small_disk import can_mount
from waiting import wait_for

from qmt_protocol.errors import QMTError

__all__ = ["Cell", "Outcome", "run_cell"]

_FLOW = 20


@dataclass
class Outcome:
    """What a cell came to; goes to JSON."""

    server: str
    version: str
    fault: str
    windows: str
    seed: int
    rounds: int = 0
    figures: dict[str, int] = field(default_factory=dict)
    variants: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def again(self) -> str:
        """Return the command that repeats it."""
        return (
            f"scripts/restart-matrix --seed {self.seed} --rounds {max(self.rounds, 1)} "
            f"--servers {self.server} --faults {self.fault} --windows {self.windows}"
        )


class Cell:
    """The rounds of one cell."""

    def __init__(self, stack: Stack, fault: str, windows: str, seed: str) -> None:
        self.stack = stack
        self.away = windows == "away"
        self.random = random.Random(seed)
        self.figures: Counter[str] = Counter()
        self.writers = Writers(stack)
        self.ledger = Ledger()
        self.box = Box(stack.streams, stack.folder / "windows", self.random.randrange(10**6))
        self._strike = FAULTS[fault]
        self._watched = fault == "tail"
        self._begun = 0.0

    def close(self) -> None:
        """End what runs."""
        self.writers.close()
        self.box.kill()

    def round(self) -> tuple[str, list[str]]:
        """Write, strike, start again, judge; returns the fault's variant and what is wrong."""
        if self.box.running:
            self.box.go()
        else:
            self.box.start()
        if self._watched:
            self.stack.watch()
        self._begun = time.monotonic()
        self.writers.start()
        self.wait_acknowledged()
        try:
            struck = self._strike(self)
        finally:
            self.stack.stop_watching()
        (struck.start or self.stack.start)()
        writes = self.writers.stop()
        if self.writers.forbidden:
            raise RuntimeError(self.writers.forbidden)
        wrong = self._judge_as_it_lies(struck, writes)
        struck.relieve()
        if not self.box.running:
            self.box.start()
        self.box.pause()
        self.box.wait_drained()
        return struck.variant, wrong + self._judge_with_windows()

    def _judge_as_it_lies(self, struck: Struck, writes: list[Any]) -> list[str]:
        for one in writes:
            self.figures[f"writes {one.state}"] += 1
        wrong = self.ledger.settle(self.stack, writes, struck.may_lack_texts, struck.held_texts)
        self.figures["entries before"] += struck.before.count
        if self.away:
            after = Ticks.read(self.stack.streams)
            pushed = read_push_log(self.box.log, after)
            found, gone = compare_ticks(struck.before, after, pushed, struck.may_lack, struck.held)
            self.figures["entries after"] += after.count
            self.figures["entries cut"] += gone
            wrong += found
        return wrong

    def _judge_with_windows(self) -> list[str]:
        stored = Ticks.read(self.stack.streams)
        verdict = account_ticks(self.stack.streams, read_push_log(self.box.log, stored), stored)
        self.figures["pushed"] = verdict.pushed
        self.figures["stored"] = verdict.stored
        self.figures["named"] = verdict.named_by_window + verdict.named_by_count
        return verdict.problems + stored.disagreements()

    # -- what faults wait for -------------------------------------------------------------------

    def wait_acknowledged(self) -> None:
        """Wait until both servers have taken new writes, and new ticks are there."""
        before, was = dict(self.writers.counts), self._fed()
        try:
            wait_for(
                lambda: (
                    all(
                        self.writers.counts[kind, "acknowledged"]
                        >= before.get((kind, "acknowledged"), 0) + _FLOW
                        for kind in KINDS
                    )
                    and self._fed() > was + 5
                ),
                "writes are acknowledged and ticks flow",
            )
        except TimeoutError as error:
            flow = f"batches {was} to {self._fed()}, {dict(self.writers.counts)}"
            said = f"{flow}, {self.writers.forbidden or dict(self.writers.errors)}"
            raise TimeoutError(f"{error}: {said}; {self.box.last_words()}") from error

    def _fed(self) -> int:
        return int(self.stack.streams.judge.xlen("{qmt:SH}:feed"))

    def wait_refused(self, word: str) -> None:
        """Wait until both servers have refused writes, for that reason."""
        before = dict(self.writers.counts)
        wait_for(
            lambda: all(
                self.writers.counts[kind, "refused"] > before.get((kind, "refused"), 0) + 5
                for kind in KINDS
            ),
            f"writes are refused: {word}",
        )
        if not any(word in said for said in self.writers.errors):
            raise RuntimeError(f"refused, but not for {word}: {dict(self.writers.errors)}")

    def wait_written_for(self, seconds: float) -> None:
        """Wait until a round's writes have gone on for so long."""
        time.sleep(max(0.0, self._begun + seconds - time.monotonic()))


def run_cell(server: str, fault: str, windows: str, seed: int, rounds: int, work: Path) -> Outcome:
    """Run a cell; it ends at its first wrong round, whose files stay."""
    (program,) = (one for one in HERE if one.name == server)
    outcome = Outcome(server, program.version, fault, windows, seed)
    folder = work / f"{server}-{fault}-{windows}"
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    seed_of_cell = f"{seed}/{server}/{fault}/{windows}"
    try:
        if fault in DISKS:
            _run_disk(outcome, folder, seed_of_cell, rounds)
        else:
            on_small_disks = fault == "disk" and can_mount()
            with Stack(program, folder, on_small_disks=on_small_disks) as stack:
                _run_rounds(outcome, Cell(stack, fault, windows, seed_of_cell), rounds)
                if outcome.problems and stack.disks:
                    shutil.copytree(folder, folder.with_name(f"{folder.name}-kept"))
    except (OSError, RuntimeError, TimeoutError, redis.RedisError, QMTError):
        outcome.problems += [f"round {outcome.rounds}:", traceback.format_exc(limit=-6)]
    if not outcome.problems:
        shutil.rmtree(folder, ignore_errors=True)
    outcome.took_s = time.monotonic() - begun
    return outcome


def _run_rounds(outcome: Outcome, cell: Cell, rounds: int) -> None:
    variants: Counter[str] = Counter()
    try:
        for _ in range(rounds):
            outcome.rounds += 1
            variant, wrong = cell.round()
            variants[variant] += 1
            if wrong:
                outcome.problems += [f"round {outcome.rounds}, {variant}:", *wrong]
                return
    finally:
        cell.close()
        cell.figures["writes there"] = cell.ledger.count
        cell.figures["writes cut"] = cell.ledger.cut
        outcome.figures = dict(cell.figures)
        outcome.variants = dict(variants)


def _run_disk(outcome: Outcome, folder: Path, seed: str, rounds: int) -> None:
    if not can_mount():
        outcome.problems.append("mounting a small disk needs root")
        return
    folder.mkdir(parents=True)
    outcome.figures, outcome.variants, outcome.problems = DISKS[outcome.fault](folder, seed, rounds)
    outcome.rounds = sum(outcome.variants.values())
