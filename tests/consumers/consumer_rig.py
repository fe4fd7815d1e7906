"""The example consumers: what each needs, how it is built, and how it is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from waiting import WITHIN_S, wait_for

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "consumers"
VECTORS = ROOT / "docs" / "wire" / "vectors.json"
GO_SOURCES = Path("/usr/share/gocode")  # where Debian puts Go packages
CPP_HEADERS = ("hiredis/hiredis.h", "msgpack.hpp", "nlohmann/json.hpp")
SCALARS = (
    *("time", "lastPrice", "open", "high", "low", "lastClose", "amount", "volume", "pvolume"),
    *("stockStatus", "openInt", "transactionNum", "lastSettlementPrice", "settlementPrice", "pe"),
)
LISTS = ("askPrice", "bidPrice", "askVol", "bidVol")
RATES = ("volRatio", "speed1Min", "speed5Min")
FIELDS = (*SCALARS, *LISTS, *RATES)


def there(*tools: str) -> bool:
    return all(map(shutil.which, tools))


def run(*words: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def python_command(_: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "python" / "consumer.py")]


def node_is_there() -> bool:
    return there("node") and (EXAMPLES / "node" / "node_modules" / "typescript").exists()


def node_command(_: Path) -> list[str]:
    folder = EXAMPLES / "node"  # its imports are found from there alone
    run("node", "node_modules/typescript/bin/tsc", cwd=folder)
    return ["node", str(folder / "dist" / "consumer.js")]


def cpp_is_there() -> bool:
    if not there("g++", "make"):
        return False
    probe = "\n".join(f"#if !__has_include(<{one}>)\n#error\n#endif" for one in CPP_HEADERS)
    looked = subprocess.run(
        ["g++", "-E", "-x", "c++", "-"], input=probe.encode(), capture_output=True, timeout=60
    )
    return looked.returncode == 0


def cpp_command(build: Path) -> list[str]:
    run("make", "-j2", f"BUILD={build}", "CXXFLAGS=-O0 -Werror", cwd=EXAMPLES / "cpp")
    return [str(build / "consumer")]


def go_is_there() -> bool:
    packages = ("github.com/gomodule/redigo", "github.com/vmihailenco/msgpack/v5")
    return there("go", "gofmt") and all((GO_SOURCES / "src" / one).exists() for one in packages)


def go_command(build: Path) -> list[str]:
    folder = EXAMPLES / "go"
    assert run("gofmt", "-l", ".", cwd=folder) == ""
    env = {"GO111MODULE": "off", "GOPATH": str(GO_SOURCES), "GOFLAGS": ""}
    run("go", "build", "-o", build / "go-consumer", cwd=folder, **env)
    return [str(build / "go-consumer")]


def shell_command(_: Path) -> list[str]:
    return ["bash", str(EXAMPLES / "shell" / "consumer.sh")]


@dataclass(frozen=True)
class Language:
    """One example: what it needs, whether this machine has it, and the command that runs it."""

    name: str
    needs: str
    is_there: Callable[[], bool]
    command: Callable[[Path], list[str]]
    live_markets: tuple[str, ...] = ("SH", "BJ")


LANGUAGES = {
    one.name: one
    for one in (
        Language("python", "nothing more", there, python_command),
        Language("node", "node, and npm ci in its folder", node_is_there, node_command),
        Language(
            "cpp",
            "g++, make, and Debian's hiredis, msgpack and json",
            cpp_is_there,
            cpp_command,
        ),
        Language(
            "go",
            "golang-go and Debian's redigo and msgpack.v5 packages",
            go_is_there,
            go_command,
        ),
        # jq decodes about a thousand ticks a second: the smallest market is enough for it.
        Language(
            "shell",
            "bash, redis-tools, jq",
            lambda: there("bash", "redis-cli", "jq"),
            shell_command,
            ("BJ",),
        ),
    )
}


def commands_in(build: Path) -> dict[str, list[str]]:
    """Build every example that this machine can build; return the commands that run them."""
    with FileLock(build / "lock", timeout=120):
        return {one.name: one.command(build) for one in LANGUAGES.values() if one.is_there()}


@dataclass
class Consumer:
    """A consumer's runs one after the other, all with one position file."""

    command: list[str]
    folder: Path
    flags: list[str]
    runs: int = 0
    warnings: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    _out: IO[bytes] | None = None
    _began_at: dict[str, str] = field(default_factory=dict)

    @property
    def position(self) -> Path:
        return self.folder / "position.json"

    def start(self, *flags: str, until_idle_s: float | None = None, pipe: bool = False) -> None:
        """Start it with standard output in a file, or in a pipe that the test reads."""
        self.runs += 1
        self._began_at = self.last_ids()
        idle = [] if until_idle_s is None else ["--until-idle", str(until_idle_s)]
        self._out = (self.folder / f"{self.runs}.jsonl").open("wb")
        self.process = subprocess.Popen(
            [*self.command, "--position", str(self.position), *idle, *self.flags, *flags],
            stdout=subprocess.PIPE if pipe else self._out,
            stderr=subprocess.PIPE,
        )

    def wait(self, *returncodes: int) -> list[dict[str, Any]]:
        """Wait until it ends; return what this run printed."""
        assert self.process is not None
        assert self._out is not None
        out, errors = self.process.communicate(timeout=WITHIN_S)
        if out:
            self._out.write(out)
        self._out.close()
        self.warnings = errors.decode().splitlines()
        assert self.process.returncode in (returncodes or (0,)), errors.decode()
        return self.printed(self.runs)

    def wait_to_move(self) -> None:
        """Wait until this run has stored a position of its own."""
        wait_for(lambda: self.last_ids() != self._began_at, f"{self.command} reads")

    def stop(self) -> None:
        """Tell it to stop after its batch."""
        assert self.process is not None
        self.process.terminate()

    def kill(self) -> None:
        """Kill it if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
        if self._out is not None:
            self._out.close()

    def printed(self, run: int) -> list[dict[str, Any]]:
        """Return a run's whole lines: a kill may have cut the last one."""
        lines = (self.folder / f"{run}.jsonl").read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def last_ids(self) -> dict[str, str]:
        """Return the stored position's last id of each stream."""
        if not self.position.exists():
            return {}
        return dict(json.loads(self.position.read_text())["last"])


def assert_equal(ticks: list[dict[str, Any]], log: npt.NDArray[Any]) -> None:
    """Assert that these are the log's ticks, each once and in the order of its code."""
    counted = Counter(tick["code"] for tick in ticks)
    assert counted == Counter(code.decode() for code in log["code"].tolist())
    order = np.argsort(log["code"], kind="stable")
    ticks = sorted(ticks, key=lambda tick: str(tick["code"]))
    logged = log[order]
    assert [tick["code"].encode() for tick in ticks] == logged["code"].tolist()
    assert [int(tick["id"].split("-")[0]) for tick in ticks] == logged["time"].tolist()
    for name in FIELDS:
        printed = np.array([tick[name] for tick in ticks], dtype=np.float64)
        np.testing.assert_allclose(printed, logged[name], rtol=0, atol=1.1e-10, err_msg=name)
    assert {tick["flags"] for tick in ticks} == {0}
    assert all(tick["extra"] == {} for tick in ticks)
    names = {*FIELDS, "code", "id", "extra", "flags"}
    assert all(tick.keys() == names for tick in ticks)
