"""Gives made-up inputs to everything that reads what others wrote; see docs/fuzz-tests.md.

Each target is a module ``target_<name>.py`` beside this file that has a ``TARGET``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]

from fuzz_children import Report, run_one  # noqa: E402

__all__ = ["Target", "targets"]

_SHOWN: Final = 5


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    Parameters
    ----------
    name
        As in the name of its module.
    what
        What is given to what, for the page.
    count
        Inputs of a full run.
    quick
        Inputs of a run with ``--quick``: some seconds.
    run
        Called with seed, count and the folder where failures are kept (or ``None``).
    """

    name: str
    what: str
    count: int
    quick: int
    run: Callable[[int, int, Path | None], Report]


def targets() -> dict[str, Target]:
    """Return all targets by name."""
    found = {}
    for path in sorted(HERE.glob("target_*.py")):
        target: Target = importlib.import_module(path.stem).TARGET
        found[target.name] = target
    return found


def main() -> int:
    """Run the targets chosen, or all; return 1 when something failed."""
    known = targets()
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    parser.add_argument("--target", nargs="*", default=list(known), choices=list(known))
    parser.add_argument("--count", type=int, help="inputs of each target")
    parser.add_argument("--quick", action="store_true", help="few inputs; nothing is written")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of failures")
    parser.add_argument("--only", type=int, help="do this one input of a target again, and tell")
    options = parser.parse_args()
    if options.only is not None:
        for name in options.target:
            print(run_one(name, options.seed, options.only, options.keep))
        return 0
    failed = False
    for name in options.target:
        target = known[name]
        count = options.count or (target.quick if options.quick else target.count)
        began = time.monotonic()
        report = target.run(options.seed, count, options.keep)
        took_s = time.monotonic() - began
        failed = failed or bool(report.failures)
        _tell(name, options.seed, report, took_s)
        if not options.quick and options.count is None:
            import fuzz_page

            fuzz_page.write(target, options.seed, report, took_s)
    return int(failed)


def _tell(name: str, seed: int, report: Report, took_s: float) -> None:
    for failure in report.failures[:_SHOWN]:
        print(f"{failure.what}\n  again: {failure.again}", file=sys.stderr, flush=True)
    line = {
        "target": name,
        "seed": seed,
        "tried": report.tried,
        "refused": report.refused,
        "held": report.held,
        "failures": len(report.failures),
        "again": [failure.again for failure in report.failures[:_SHOWN]],
        "took_s": round(took_s, 1),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    # Targets import this module by its name, not as the program.
    from fuzz_run import main as run

    raise SystemExit(run())
