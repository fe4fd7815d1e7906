"""Programs start from nothing, without a warning; `warm_start` spares that elsewhere.

The standalone demo's supervisor starts the others so.
"""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("program", ["qmt_archive", "qmt_client", "qmt_gateway"])
def test_a_start_from_nothing(program: str) -> None:
    command = [sys.executable, "-W", "error", "-m", program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage" in done.stdout.lower()


def test_a_forked_program_is_a_child_with_its_own_words() -> None:
    command = [sys.executable, "-m", "qmt_simulator", "--port"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        told = child.stderr.read()
        assert child.wait(60) == 2  # by argparse: --port lacks its number
    assert b"qmt-simulator" in told
    assert b"expected one argument" in told
