"""A run of `qmt-standalone` as a user starts it, and a look at the processes it makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import WITHIN_S, wait_for

from qmt_standalone.redis_server import free_port

MARK = "STANDALONE_TEST_MARK"


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Demo:
    """One run in a folder of its own; every process it makes carries a mark."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        keep_data: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.env = {**os.environ, **(env or {})}
        self.data_dir = folder / "data"
        self.output = folder / "output.txt"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        self.arguments = [
            *(["--data-dir", str(self.data_dir)] if keep_data else []),
            *(["--http-port", str(free_port())] if "--http-port" not in arguments else []),
            *arguments,
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Demo:
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qmt_standalone", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.temporary,
                env={**self.env, MARK: self.mark, "TMPDIR": str(self.temporary)},
                start_new_session=True,
            )
        return self

    def text(self) -> str:
        return self.output.read_text("utf-8") if self.output.exists() else ""

    def wait_until_ready(self) -> Demo:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.text()
            return "试一试" in self.text()

        wait_for(ready, "it is ready")
        return self

    @property
    def run(self) -> dict[str, Any]:
        return dict(json.loads((self.data_dir / "run.json").read_text("utf-8")))

    def processes(self) -> list[psutil.Process]:
        """Return every living process of this run, by the mark in its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and (
                    process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(WITHIN_S)

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for process in self.processes():
            process.kill()


@pytest.fixture
def make_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Make runs that are gone when the test is."""
    made: list[Demo] = []

    def make(*arguments: str, **options: Any) -> Demo:
        made.append(Demo(tmp_path / f"run{len(made)}", *arguments, **options))
        return made[-1]

    yield make
    for demo in made:
        demo.clean_up()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Give one run that is up, shared by a module's tests."""
    running = Demo(tmp_path_factory.mktemp("demo")).start()
    try:
        yield running.wait_until_ready()
    finally:
        running.clean_up()
