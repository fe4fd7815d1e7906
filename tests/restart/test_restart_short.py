"""What `scripts/restart-matrix` does at length, once and small, on every server that is here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_servers import HERE, MATRIX, SHIPPED, WHEEL, MatrixServer
from restart_judge import Ledger
from restart_stack import KINDS, Stack, fast_disk
from restart_writers import WAYS, Writers

ROOT = Path(__file__).resolve().parents[2]
DEBIANS = [name for name in MATRIX if name != WHEEL]
"""The wheel has no tool that checks its files."""
NOTHING: dict[str, set[str]] = {kind: set() for kind in KINDS}


@pytest.fixture(params=MATRIX)
def program(request: pytest.FixtureRequest) -> MatrixServer:
    """Each server of the matrix."""
    found = [one for one in HERE if one.name == request.param]
    if not found:
        pytest.skip(f"{request.param} is not here: see scripts/servers")
    return found[0]


@pytest.fixture
def stack(program: MatrixServer) -> Iterator[Stack]:
    """Both servers, started by the image's script; a socket's path must be short."""
    with (
        tempfile.TemporaryDirectory(dir=fast_disk()) as folder,
        Stack(program, Path(folder)) as stack,
    ):
        stack.settle()
        yield stack


def test_the_image_holds_the_server_that_the_tests_run_against() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile.redis").read_text("utf-8")
    assert SHIPPED == "debian13-valkey-server"
    assert "debian:trixie-slim" in dockerfile
    assert "install -y --no-install-recommends valkey-server" in dockerfile


def test_what_was_written_in_any_way_is_there_after_a_kill(stack: Stack) -> None:
    writers, ledger = Writers(stack), Ledger()
    script = "for i = 1, 2 do redis.call('XADD', KEYS[i], '1-1', 'e', 'x') end"
    stack.streams.judge.eval(script, 2, "first", "second")
    for _ in range(3):
        writers.once()
    assert {one.state for one in writers.done} == {"acknowledged"}, writers.errors
    stack.settle()
    stack.kill()
    stack.start()
    assert ledger.settle(stack, writers.done, NOTHING, NOTHING) == []
    assert ledger.count == 3 * len(WAYS)
    assert stack.streams.judge.xlen("first") == stack.streams.judge.xlen("second") == 1
    writers.close()


def test_a_tail_cut_inside_a_transaction_takes_nothing_that_is_written_later(
    stack: Stack,
) -> None:
    judge = stack.streams.judge
    judge.xadd("before", {"e": "x"})
    with judge.pipeline(transaction=True) as pipe:
        for name in ("one", "two", "three"):
            pipe.xadd(name, {"e": "y" * 50})
        pipe.execute()
    stack.settle()
    stack.kill()
    path = stack.streams.aof()[-1]
    os.truncate(path, path.stat().st_size - 60)  # in the third command, behind two whole ones
    stack.start()
    assert [judge.xlen(name) for name in ("before", "one", "two", "three")] == [1, 0, 0, 0]
    for number in range(5):
        judge.xadd("after", {"e": number})
    stack.settle()
    stack.kill()
    stack.start()
    assert [judge.xlen(name) for name in ("before", "one", "two", "after")] == [1, 0, 0, 5]


@pytest.mark.parametrize("program", DEBIANS, indirect=True)
def test_a_tail_of_zeros_is_cut_off_and_kept(stack: Stack) -> None:
    judge = stack.streams.judge
    judge.xadd("before", {"e": "x"})
    stack.settle()
    stack.kill()
    with stack.streams.aof()[-1].open("ab") as file:
        file.write(bytes(5000))
    stack.start()
    assert judge.xlen("before") == 1
    (kept,) = stack.streams.data.glob("cut-*")
    assert kept.read_bytes() == bytes(5000)
