"""The long run: 5,000 ticks/s through Windows CPython for five minutes, with twenty kills.

Seconds count only while ticks flow; each kill falls into the moment behind a push. The judge is the
crash tests' account: every tick of the simulator's push log lies in Redis once, in order and equal,
or a gap names it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

HERE: Final = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent / "crash")]

from waiting import wait_for  # noqa: E402
from wine_environment import VERSIONS, WinePython, find_wine  # noqa: E402
from wine_rig import Bridge  # noqa: E402

from qmt_simulator.oracle import read_push_log  # noqa: E402

INTERVAL_MS: Final = 1200
"""Of about 6,000 codes each ticks once in it."""
_START_S: Final = 120.0


def main() -> int:
    """Run, print figures as JSON; return 0 where nothing was lost, repeated or reordered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    wine = find_wine()
    if wine is None:
        return 77
    python = WinePython(os.environ.get("QMT_WINE_PYTHON", VERSIONS[0]), wine)
    with tempfile.TemporaryDirectory(prefix="wine-long-") as folder:
        flags = ("--interval-ms", str(INTERVAL_MS))
        with Bridge(python, Path(folder) / "rig", *flags) as bridge:
            return run(bridge, options)


def run(bridge: Bridge, options: argparse.Namespace) -> int:
    chance = random.Random(options.seed)
    began_s = time.monotonic()
    carried_s = 0.0
    away_s: list[float] = []
    latencies: list[dict[str, int]] = []
    bridge.start_producer()
    bridge.wait_until_well()
    for number in range(options.kills + 1):
        round_s = options.seconds / (options.kills + 1)
        flowing_s = time.monotonic()
        time.sleep(round_s)
        latencies += [
            one["figures"]["latency_ms"] for one in bridge.beats() if one["role"] == "producer"
        ]
        carried_s += time.monotonic() - flowing_s
        if number == options.kills:
            break
        await_push(bridge)
        time.sleep(chance.uniform(0, 0.08))
        bridge.roles.pop("producer").kill()
        killed_s = time.monotonic()
        bridge.start_producer()
        bridge.wait_flowing(_START_S)
        away_s.append(time.monotonic() - killed_s)
        note(f"kill {number + 1} of {options.kills}: back after {away_s[-1]:.1f} s")
    bridge.quiet()
    spent_s = time.monotonic() - began_s
    verdict = bridge.account()
    log = read_push_log(bridge.log_path)
    events = Counter(event["kind"] for event in bridge.events)
    figures = {
        "python": bridge.python.version,
        "seconds": round(spent_s),
        "seconds_carried": round(carried_s),
        "ticks_per_s": round(len(log) / listening_s(log["wall_ms"])),
        "pushes_logged": len(log),
        "kills": len(away_s),
        "away_s": [round(one, 1) for one in away_s],
        "latency_ms_p50": [one.get("p50") for one in latencies],
        "latency_ms_p99": [one.get("p99") for one in latencies],
        "events": dict(events),
        **verdict.figures(),
        "problems": verdict.problems,
    }
    print(json.dumps(figures, indent=2))
    return 1 if verdict.problems else 0


def listening_s(wall_ms: npt.NDArray[np.int64]) -> float:
    """Return for how long the terminal pushed: pauses of two seconds and more are not counted."""
    steps = np.diff(wall_ms)
    return float(steps[steps < 2000].sum()) / 1000


def await_push(bridge: Bridge) -> None:
    """Return right after the terminal has logged a push: it is on its way now."""
    size = bridge.log_path.stat().st_size
    wait_for(lambda: bridge.log_path.stat().st_size > size, "a push")


def note(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
