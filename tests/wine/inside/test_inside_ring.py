"""The ring and our other files, where nobody may rename over or delete what another holds open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from qmt_producer.ring import Ring
from qmt_protocol.errors import ConfigurationError

MB = 1_000_000
ENTRY = ("600519.SH", 1, b"\x90")
HOLD = """
import sys
{how}
print("held", flush=True)
sys.stdin.read()
"""


def held(how: str) -> subprocess.Popen[str]:
    """Start a process that holds something until it is killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(how=how)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate(timeout=20)


def test_a_ring_outlives_the_kill_of_its_process(tmp_path: Path) -> None:
    path = tmp_path / "环 形" / "ring.sqlite"
    child = held(
        "from pathlib import Path; from qmt_producer.ring import Ring\n"
        f"ring = Ring(Path({str(path)!r}), {MB})\n"
        f"for at in range(3): ring.append([('SH', 'tick', at, [{ENTRY!r}])])"
    )
    try:
        with pytest.raises(ConfigurationError, match="another producer"):
            Ring(path, MB)
        with pytest.raises(PermissionError):
            path.rename(path.with_name("elsewhere"))
        with pytest.raises(PermissionError):
            path.unlink()
    finally:
        end(child)
    ring = Ring(path, MB)
    assert [(one.number, one.received_ms) for one in ring.after("SH", 0, 9)] == [
        (1, 0),
        (2, 1),
        (3, 2),
    ]
    assert ring.after("SH", 0, 1)[0].candidates.entries == [ENTRY]
    ring.close()
    assert [one.name for one in path.parent.iterdir()] == ["ring.sqlite"]
    path.unlink()


def test_a_lock_is_free_when_its_holder_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = held(f"from filelock import FileLock; lock = FileLock({str(path)!r}); lock.acquire()")
    try:
        with pytest.raises(Timeout):
            FileLock(path).acquire(timeout=0.2)
    finally:
        end(child)
    with FileLock(path).acquire(timeout=5):
        pass
