"""From a terminal to a file: what the simulator logged is what DuckDB reads, field by field."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import redis
from archive_rig import (
    COLUMNS,
    archive_process,
    archived_count,
    archived_rows,
    manifest_of,
    run_archive,
)
from waiting import wait_for

from qmt_simulator.control import Control
from qmt_simulator.oracle import read_push_log
from qmt_standalone.redis_server import RedisServer

pytestmark = pytest.mark.long

RUN_S = 6


@contextmanager
def process(module: str, *flags: str, **env: str) -> Iterator[IO[bytes]]:
    child = subprocess.Popen(
        [sys.executable, "-m", module, "--exit-with-stdin", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TZ": "CST-8", "QMT_LOG_LEVEL": "error", **env},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        try:
            yield child.stdout
        finally:
            child.stdin.close()
            try:
                child.wait(60)
            finally:
                child.kill()


def test_what_a_terminal_pushed_is_archived_equal(
    streams: redis.Redis, streams_server: RedisServer, tmp_path: Path
) -> None:
    folder, log_path = tmp_path / "archive", tmp_path / "pushed"
    with process("qmt_simulator", "--port", "0", "--push-log", str(log_path)) as ready:
        port = int(json.loads(ready.readline())["port"])
        with (
            process(
                "qmt_producer",
                QMT_STREAMS_URL=streams_server.url,
                QMT_TERMINAL_PORT=str(port),
                QMT_NATIVE_MODULE="qmt_simulator.native",
                QMT_RING=str(tmp_path / "ring"),
            ),
            archive_process(folder, streams_server.url),
        ):
            wait_for(lambda: archived_count(folder), "ticks flow")
            time.sleep(RUN_S)
            with closing(Control(port)) as control:
                control.set_fault("deaf")
            time.sleep(1)
            pushed = read_push_log(log_path)
            wait_for(lambda: archived_count(folder) >= len(pushed), f"{len(pushed)} archived")
    assert len(pushed) > 1500 * RUN_S
    assert manifest_of(folder)["missing"] == []
    check(pushed, folder)
    assert run_archive(folder, "compact").returncode == 0
    check(pushed, folder)
    assert run_archive(folder, "verify").returncode == 0


def check(pushed: np.ndarray, folder: Path) -> None:
    rows = archived_rows(folder)
    assert len(rows) == len(pushed)
    names = ["time", *COLUMNS]
    of_code: dict[str, list[tuple[int, int]]] = {}
    for code, ms, number in rows:
        of_code.setdefault(code, []).append((ms, number))
    compared = set(names).intersection(pushed.dtype.names)
    assert len(compared) == len(names) - 20  # all but the levels of the book
    for code in np.unique(pushed["code"]):
        logged = pushed[pushed["code"] == code]
        name = code.decode()
        stored = [rows[name, ms, number] for ms, number in sorted(of_code[name])]
        columns = dict(zip(names, zip(*stored, strict=True), strict=True))
        for field in logged.dtype.names:
            if field in columns:
                np.testing.assert_allclose(
                    np.array(columns[field], float),
                    logged[field],
                    rtol=0,
                    atol=1.1e-10,
                    err_msg=f"{name} {field}",
                )
            elif f"{field}1" in columns:
                book = np.array([columns[f"{field}{level}"] for level in range(1, 6)], float).T
                np.testing.assert_allclose(book, logged[field], rtol=0, atol=1.1e-10)
