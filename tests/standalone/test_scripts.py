"""The scripts on a machine that is not as they wish."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a PATH that has what every system has, and no Python."""
    for tool in ("dirname", "sh"):
        found = shutil.which(tool)
        assert found
        (tmp_path / tool).symlink_to(found)
    return tmp_path


def run_venv(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / "venv"],
        env={"PATH": str(path), **environment},
        cwd=path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def shim(path: Path, name: str, script: str) -> None:
    (path / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (path / name).chmod(0o755)


def test_no_python_is_told(path: Path) -> None:
    done = run_venv(path)
    assert done.returncode == 1
    assert "No Python 3.10 to 3.13 was found" in done.stderr


def test_a_python_that_cannot_run_is_passed_over(path: Path) -> None:
    """Version managers put names on PATH that fail when called."""
    shim(path, "python3.11", "echo shim >&2; exit 127")
    shim(path, "python3", f'[ "$1" = -c ] && exec {sys.executable} "$@"; echo "took $1"')
    done = run_venv(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"took {SCRIPTS}/make_venv.py\n"


def test_a_named_python_comes_first(path: Path) -> None:
    shim(path, "python3", f'[ "$1" = -c ] && exec {sys.executable} "$@"; echo "took python3"')
    shim(path, "mine", f'[ "$1" = -c ] && exec {sys.executable} "$@"; echo "took mine"')
    done = run_venv(path, PYTHON=str(path / "mine"))
    assert done.stdout == "took mine\n", done.stderr
