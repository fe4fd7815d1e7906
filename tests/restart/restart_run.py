"""The restart matrix: servers, faults, Windows there and away; every entry counted."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
TESTS: Final = HERE.parent
sys.path[:0] = list(map(str, (HERE, TESTS, TESTS / "crash", TESTS / "archive", ROOT)))

if TYPE_CHECKING:
    from restart_cell import Outcome

WINDOWS: Final = ("there", "away")
QUICK: Final = ("kill", "tail")
"""What `--quick` does to the servers that do not ship."""


def main() -> int:
    """Run the cells chosen, or all."""
    # Here, because each start of a Windows box imports this file again.
    import redis_servers
    import restart_report
    from restart_cell import run_cell
    from restart_disks import DISKS
    from restart_faults import FAULTS
    from restart_stack import fast_disk

    there = [one.name for one in redis_servers.HERE]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    parser.add_argument("--servers", nargs="*", default=there, choices=there)
    faults = [*FAULTS, *DISKS]
    parser.add_argument("--faults", nargs="*", default=faults, choices=faults)
    parser.add_argument("--windows", nargs="*", default=list(WINDOWS), choices=WINDOWS)
    parser.add_argument("--quick", action="store_true", help="a round of some; nothing is written")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, help="where the files of a faulty round stay")
    options = parser.parse_args()
    cells = [
        (server, fault, windows)
        for fault in options.faults
        for server in options.servers
        for windows in options.windows
        if (fault not in DISKS or (server, windows) == (options.servers[0], "there"))
        and (not options.quick or server == there[0] or (fault in QUICK and windows == "away"))
    ]
    rounds = 1 if options.quick else options.rounds
    for name in redis_servers.MISSING:
        print(f"{name} is not here: see scripts/servers", flush=True)
    print(f"seed {options.seed}, {len(cells)} cells, rounds: {rounds}", flush=True)
    work = options.work or Path(tempfile.mkdtemp(prefix="qmt-restart-", dir=fast_disk()))
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(options.parallel) as pool:
        running = [pool.submit(run_cell, *cell, options.seed, rounds, work) for cell in cells]
        for future in as_completed(running):
            outcomes.append(future.result())
            print(_line(outcomes[-1]), flush=True)
            if not options.quick:
                restart_report.write(outcomes[-1])
    bad = [one for one in outcomes if one.problems]
    for one in bad:
        print("", *one.problems, f"again: {one.again}", sep="\n", flush=True)
    print(f"{len(outcomes) - len(bad)} cells in order, {len(bad)} not", flush=True)
    if bad:
        print(f"files: {work}", flush=True)
    elif options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    return bool(bad)


def _line(one: Outcome) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in sorted(one.figures.items()))
    state = "in order" if not one.problems else "FAULT"
    return (
        f"{one.server} {one.fault} {one.windows}: {state}, {one.rounds} rounds "
        f"{one.variants} in {one.took_s:.0f} s: {figures}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
