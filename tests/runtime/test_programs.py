"""Programs start from nothing, without a warning; `warm_start` spares that elsewhere.

The standalone demo's supervisor starts the others so.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qmt_runtime import programs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


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


WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None
from qmt_runtime import programs
sys.exit(programs.{program}())
"""


@pytest.mark.parametrize(
    ("program", "names", "extra"),
    [
        ("archive", ["filelock"], "archive"),
        ("gateway", ["uvicorn"], "gateway"),
        ("gateway", ["fastapi"], "gateway"),
        ("qmt", ["typer"], "client"),
        ("qmt", ["pandas", "pyarrow", "httpx"], "client"),
        ("windows", ["platformdirs"], "windows"),
    ],
)
def test_what_is_not_installed_is_told_with_its_extra(
    program: str, names: list[str], extra: str, tmp_path: Path
) -> None:
    """As after `pip install .[client]`, which makes all the commands."""
    code = WITHOUT.format(names=names, program=program)
    arguments = ["history", "600519.SH"] if program == "qmt" else []
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"qmt-redis-bridge[{extra}]" in done.stderr


def test_every_command_has_its_entry_point() -> None:
    commands = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    for command, target in commands.items():
        module, _, name = target.partition(":")
        assert module == "qmt_runtime.programs"
        assert callable(getattr(programs, name)), command
