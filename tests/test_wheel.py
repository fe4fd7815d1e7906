"""The wheel that is built, with nothing beside it but what one of its extras asks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "qmt-redis-bridge"
COMMANDS = {
    "client": ["qmt"],
    "producer": ["qmt-producer"],
    "worker": ["qmt-worker"],
    "windows": ["qmt", "qmt-producer", "qmt-worker", "qmt-windows"],
    "archive": ["qmt", "qmt-archive"],
    "gateway": ["qmt", "qmt-gateway"],
    "simulator": ["qmt-simulator"],
    "standalone": ["qmt", "qmt-gateway", "qmt-archive", "qmt-simulator", "qmt-standalone"],
}
"""Extra to the commands that it is for."""
SHOWN = re.compile(r"^ *((?:from|import) qmt_[\w.]+.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (built,) = folder.glob("*.whl")
    return built


def needed(extra: str) -> Iterator[Distribution]:
    """Yield the installed distributions that an extra of ours asks for, each with its own needs."""
    waiting = [(PROJECT, frozenset({extra, ""}))]
    done: set[tuple[str, str]] = set()
    given: set[str] = set()
    while waiting:
        name, extras = waiting.pop()
        found = distribution(name)
        if name != PROJECT and name not in given:
            given.add(name)
            yield found
        for text in found.requires or ():
            requirement = Requirement(text)
            for one in extras:
                if requirement.marker and not requirement.marker.evaluate({"extra": one}):
                    continue
                wanted = canonicalize_name(requirement.name)
                news = {"", *requirement.extras} - {e for n, e in done if n == wanted}
                if news:
                    done |= {(wanted, e) for e in news}
                    waiting.append((wanted, frozenset(news)))


def installed(wheel: Path, extra: str, folder: Path) -> Path:
    """Make an environment of the wheel and what its extra asks for; return its programs' folder.

    What is asked for is linked from this environment, where the lock has put it.
    """
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for found in needed(extra):
        for file in found.files or ():
            top = file.parts[0]
            if top == ".." or top == "__pycache__":
                continue
            ours = Path(str(found.locate_file(top)))
            if ours.exists() and not (site / top).exists():
                (site / top).symlink_to(ours)
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    return folder / "bin"


def run(programs: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QMT_")}
    return subprocess.run(
        [str(programs / "python"), "-I", *command],
        env=environment,
        cwd=programs,
        capture_output=True,
        text=True,
        timeout=300,
    )


START = "import sys; from qmt_runtime import programs; sys.exit(programs.{}())"


def started(programs: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as its script would."""
    name = command.removeprefix("qmt-").replace("-", "_")
    return run(programs, "-c", START.format(name), *arguments)


@pytest.mark.parametrize("extra", sorted(COMMANDS))
def test_an_extra_brings_what_its_commands_need(wheel: Path, extra: str, tmp_path: Path) -> None:
    programs = installed(wheel, extra, tmp_path)
    for command in COMMANDS[extra]:
        done = started(programs, command, "--help")
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout.lower()


def test_a_command_of_another_extra_names_it(wheel: Path, tmp_path: Path) -> None:
    programs = installed(wheel, "client", tmp_path)
    for extra in ("producer", "worker", "windows", "archive", "gateway"):
        done = started(programs, COMMANDS[extra][-1], "--help")
        assert done.returncode == 2, done.stderr
        assert f"{COMMANDS[extra][-1]}: " in done.stderr
        assert f"qmt-redis-bridge[{extra}]" in done.stderr


def test_what_the_documentation_imports_is_there(wheel: Path, tmp_path: Path) -> None:
    pages = [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")]
    lines = sorted({line for page in pages for line in SHOWN.findall(page.read_text("utf-8"))})
    assert len(lines) >= 3
    done = run(installed(wheel, "client", tmp_path), "-c", "\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith(("from qmt_client", "import qmt_client")) for line in lines)


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {path.parent.name for path in ROOT.glob("*/qmt_*/__init__.py")}
    for top in tops:
        assert f"{top}/py.typed" in names
