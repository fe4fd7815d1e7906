"""What a type checker knows of the public face, and that both clients are one."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qmt_client
from qmt_client import AsyncQMTClient, QMTClient

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).parent / "typed_script.py"


def test_the_generated_client_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "sync_client.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_public_face_is_a_sorted_list_and_nothing_more() -> None:
    def order(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

    assert qmt_client.__all__ == sorted(qmt_client.__all__, key=order)
    for name in qmt_client.__all__:
        assert getattr(qmt_client, name) is not None


def test_a_users_script_is_known_to_a_strict_checker(tmp_path: Path) -> None:
    """`reveal_type` says what an editor shows; the expected types stand beside it."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    lines = SCRIPT.read_text("utf-8").splitlines()
    wanted = {
        number: line.partition("# ")[2]
        for number, line in enumerate(lines, 1)
        if line.strip().startswith("reveal_type(")
    }
    assert len(wanted) >= 12
    revealed: dict[int, str] = {}
    for line in done.stdout.splitlines():
        assert ": error:" not in line, done.stdout
        if "Revealed type is" in line:
            number = int(line.split(":")[1])
            told = line.partition('"')[2].rstrip('"')
            revealed[number] = re.sub(r"(?:\w+\.)+", "", told)
    assert revealed == wanted


@pytest.mark.parametrize("name", ["history", "stored_ticks", "ticks", "status", "download"])
def test_nothing_public_is_of_any_type(name: str) -> None:
    for kind in (QMTClient, AsyncQMTClient):
        text = str(inspect.signature(getattr(kind, name)))
        assert "Any" not in text, text
