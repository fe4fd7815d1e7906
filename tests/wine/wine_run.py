"""Sets up Windows CPython under Wine and runs its tests: what `scripts/test-windows` starts."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from wine_environment import VERSIONS, WineError, WinePython, find_wine, using_wine

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
NO_WINE: Final = 77
"""Exit code where Wine is missing."""
QUICK: Final = {
    "3.11": (
        *(str(HERE / "test_wine_start.py"), str(HERE / "test_wine_box.py")),
        *("-k", "not doctor and not inside and not cp1252"),
    ),
    "3.10": (
        str(HERE / "test_wine_bridge.py"),
        *("-k", "not killed_comes_back and not second_producer"),
    ),
}
"""What --quick runs: each file on one of the two."""
_WITHIN_S: Final = 1200


def main() -> int:
    """Run; return 0 where all is well, 77 without Wine."""
    options = _parser().parse_args()
    wine = find_wine()
    if wine is None:
        install = "apt-get install --no-install-recommends wine wine64"
        print(f"test-windows: there is no Wine here; on Debian: {install}", file=sys.stderr)
        return NO_WINE
    began = time.monotonic()
    versions = [options.python] if options.python else list(VERSIONS)
    with using_wine(wine):
        try:
            for version in versions:
                WinePython(version, wine).prepare()
        except WineError as error:
            print(f"test-windows: {error}", file=sys.stderr)
            return 1
        ready_s = time.monotonic() - began
        if options.set_up:
            return 0
        if options.long:
            command = [sys.executable, str(HERE / "wine_long.py"), *options.arguments]
            env = {**os.environ, "QMT_WINE_PYTHON": versions[0]}
            return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
        with tempfile.TemporaryDirectory() as folder:
            runs = [_Run(version, options, Path(folder)) for version in versions]
            codes = [run.finish() for run in runs]
    counts = ", ".join(run.summary for run in runs)
    spent = f"{time.monotonic() - began - ready_s:.0f} s, set-up {ready_s:.0f} s"
    print(f"==> test-windows: {counts}; {spent}", file=sys.stderr)
    return next((code for code in codes if code), 0)


class _Run:
    """pytest for one Windows Python; its output waits until the ones before are done."""

    def __init__(self, version: str, options: argparse.Namespace, folder: Path) -> None:
        self.version = version
        self.summary = ""
        chosen = list(options.arguments) or [str(HERE)]
        if options.quick and not options.arguments:
            chosen = list(QUICK[version])
        # Inside, on the second Python, those that start many processes are left out.
        inside = "not test_inside_loop" if options.quick and version != VERSIONS[0] else ""
        flags = [
            *("-q", "--tb=short", "--durations=8", "--strict-markers", "-p", "no:cacheprovider"),
            *("-o", "addopts=", "-o", "timeout=400"),
        ]
        self._output = folder / f"output-{version}"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *flags, *chosen],
                cwd=ROOT,
                env={**os.environ, "QMT_WINE_PYTHON": version, "QMT_WINE_INSIDE": inside},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def finish(self) -> int:
        """Wait for its end, print what it said, return its exit code."""
        try:
            code = self._process.wait(_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            code = self._process.wait(60) or 1
        text = self._output.read_text("utf-8", "replace")
        print(f"==> Windows CPython {self.version}\n{text}", file=sys.stderr, flush=True)
        ended = re.findall(r"^(?=.*\b(?:passed|failed|error))(.*) in [\d.]+s", text, re.M)
        inside = sum(int(count) for count in re.findall(r"^inside: (\d+) passed", text, re.M))
        self.summary = f"{self.version}: {ended[-1].strip('= ') if ended else f'exit {code}'}"
        if inside:
            self.summary += f" and {inside} inside"
        return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="test-windows", description=__doc__)
    parser.add_argument("--python", choices=VERSIONS, help="this one alone")
    parser.add_argument("--quick", action="store_true", help="each file on one of the two")
    parser.add_argument("--long", action="store_true", help="5,000 ticks/s with twenty kills")
    parser.add_argument("--set-up", action="store_true", help="make the environment, run nothing")
    parser.add_argument("arguments", nargs="*", help="to pytest in place of all tests")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
