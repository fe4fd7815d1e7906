"""The apt sources that `scripts/servers` derives from a machine's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
LIST = """\
# deb http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/x.gpg] http://mirror.example/security bookworm-security main
deb http://mirror.example/bookworm stable main
deb http://other.example/apt cloud-sdk-bookworm main
"""
STANZAS = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://other.example/apt
Suites: cloud-sdk-bookworm
Components: main
"""


def derive(etc: Path, into: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from pathlib import Path; from fetch_servers import sources; "
        "sources('bookworm', 'trixie', Path(sys.argv[2]), Path(sys.argv[1]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, etc, into],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A folder as /etc/apt."""
    (tmp_path / "apt" / "sources.list.d").mkdir(parents=True)
    return tmp_path / "apt"


def test_only_the_machines_own_release_is_replaced(etc: Path, tmp_path: Path) -> None:
    (etc / "sources.list").write_text(LIST, "utf-8")
    (etc / "sources.list.d" / "debian.sources").write_text(STANZAS, "utf-8")
    done = derive(etc, tmp_path / "derived")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "derived" / "derived.list").read_text("utf-8").splitlines()
    assert lines == [
        "deb http://mirror.example/debian trixie main",
        "deb [signed-by=/usr/share/keyrings/x.gpg] http://mirror.example/security "
        "trixie-security main",
    ]
    stanzas = (tmp_path / "derived" / "derived.sources").read_text("utf-8")
    assert "Suites: trixie trixie-updates" in stanzas
    assert "other.example" not in stanzas


def test_a_machine_without_sources_is_told_so(etc: Path, tmp_path: Path) -> None:
    done = derive(etc, tmp_path / "derived")
    assert "no apt source of bookworm to derive those of trixie from" in done.stderr
