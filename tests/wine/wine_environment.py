"""Windows CPython under Wine: made once from what is pinned here, kept in a cache, started by name.

Only the standard library is used. Nothing here names where packages come from: pip is asked, with
whatever the machine has configured for it, and takes nothing whose hash is not in the lock files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from wine_dll import RANDOM, forwarding_dll

__all__ = ["VERSIONS", "WINE", "WineError", "WinePython", "find_wine", "using_wine"]

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
VERSIONS: Final = ("3.11", "3.10")
EMBEDDED: Final = {
    "3.10": "5d5ca378a4db5ce2b026feb4a65a15a68edf8b00f194a03378aafec963d179a1",
    "3.11": "38a071697ad96140f1b75fe45e1c53c8bd381a60d5c404b003d6cbb9d811f42f",
}
"""SHA-256 of the embeddable distribution inside the sdist."""
WINE: Final = ("/usr/lib/wine/wine64", "/opt/wine-stable/bin/wine64", "/usr/bin/wine64")
FOLDERS: Final = (
    *(
        "protocol",
        "runtime",
        "reading",
        "terminal",
        "producer",
        "worker",
        "windows",
        "client",
        "simulator",
    ),
    *("tests/wine/inside",),
)
"""What of the project a Windows machine has, and the tests that run there."""
LAYOUT: Final = 1
"""Changes with the way an environment is made."""
_SETUP_S: Final = 900
_RUN: Final = os.environ.get("QMT_WINE_RUN") or f"{os.getpid()}-{time.monotonic_ns()}"
"""Tells the processes of one run from others' on this machine."""


class WineError(RuntimeError):
    """The environment cannot be made; the message says why."""


def find_wine() -> Path | None:
    """Return Wine's 64-bit loader; `QMT_WINE` names another."""
    given = os.environ.get("QMT_WINE")
    return next((Path(one) for one in ((given,) if given else WINE) if Path(one).exists()), None)


def cache_folder() -> Path:
    """Return the folder that everything is kept in."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "qmt-bridge-wine"


def windows_path(path: Path) -> str:
    """Return a path of this machine as Windows programs see it."""
    return "Z:" + str(path.resolve()).replace("/", "\\")


def wine_variables() -> dict[str, str]:
    """Return what Wine itself needs; of this machine's variables only a few get in."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "USER") if name in os.environ}
    return {
        **kept,
        "WINEPREFIX": str(cache_folder() / "prefix"),
        "WINEARCH": "win64",
        # Without it Wine takes Chinese names in variables and arguments for Latin letters.
        "LC_ALL": "C.UTF-8",
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree=;mshtml=;winemenubuilder.exe=d",
    }


def project_version() -> str:
    """Return the version that pyproject.toml states."""
    found = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    if found is None:
        raise WineError("pyproject.toml states no version")
    return found[1]


class WinePython:
    """One Windows CPython with the project's packages on its path.

    Parameters
    ----------
    version
        ``3.11`` or ``3.10``.
    wine
        The loader, see `find_wine`.
    """

    def __init__(self, version: str, wine: Path) -> None:
        self.version = version
        self.wine = wine
        self.pins = (HERE / f"python-{version}.lock", HERE / f"requirements-{version}.lock")
        pinned = b"\0".join(path.read_bytes() for path in (*self.pins, HERE / "build.lock"))
        about = f"{LAYOUT} {EMBEDDED[version]} {project_version()}".encode()
        self.folder = cache_folder() / hashlib.sha256(about + pinned).hexdigest()[:16]
        self.home = self.folder / f"cp{version.replace('.', '')}"
        self.executable = self.home / "python.exe"
        self._mark = f"{_RUN}-{version}"

    # -- making -------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make it unless it is there.

        Raises
        ------
        WineError
            When something cannot be fetched or is not what is pinned.
        """
        prefix = cache_folder() / "prefix"
        with _locked(cache_folder() / "setup-lock", fcntl.LOCK_EX):
            if not (prefix / "ready").is_file():
                _say("making a Wine prefix")
                shutil.rmtree(prefix, ignore_errors=True)
                prefix.mkdir(parents=True)
                _run([str(self.wine), "wineboot", "-i"], env=self.environment())
                (prefix / "ready").touch()
                start_server(self.wine)
            if not (self.home / "ready").is_file():
                _say(f"setting up Windows CPython {self.version}")
                began = time.monotonic()
                shutil.rmtree(self.home, ignore_errors=True)
                self._unpack_python()
                self._install_packages()
                (self.home / "ready").touch()
                _say(f"set up in {time.monotonic() - began:.0f} s")

    def _unpack_python(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            source = ("--no-deps", "--require-hashes", "-r")
            tools = ("--only-binary=:all:", *source, str(HERE / "build.lock"))
            _pip("install", "--target", str(work / "tools"), *tools)
            _pip(
                *("download", "--no-binary=:all:", "--no-build-isolation", "-d", str(work)),
                *(*source, str(self.pins[0])),
                PYTHONPATH=str(work / "tools"),
            )
            [sdist] = work.glob("*.tar.gz")
            with tarfile.open(sdist) as archive:
                [name] = [one for one in archive.getnames() if one.endswith("/data.zip")]
                data = archive.extractfile(name)
                if data is None:
                    raise WineError(f"{sdist.name} holds no {name}")
                embedded = work / "data.zip"
                embedded.write_bytes(data.read())
            digest = hashlib.sha256(embedded.read_bytes()).hexdigest()
            if digest != EMBEDDED[self.version]:
                raise WineError(f"data.zip of {sdist.name} has SHA-256 {digest}")
            self.folder.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(embedded) as archive:
                archive.extractall(self.folder)
        # Without this file it is a Python like any other: it heeds PYTHON* and site-packages.
        for path in self.home.glob("*._pth"):
            path.unlink()
        dll, functions = RANDOM
        (self.home / dll).write_bytes(forwarding_dll(dll, functions))

    def _install_packages(self) -> None:
        site = self.home / "Lib" / "site-packages"
        _pip(
            *("install", "--no-deps", "--require-hashes", "--no-compile", "--target", str(site)),
            *("--platform", "win_amd64", "--only-binary=:all:", "--python-version", self.version),
            *("-r", str(self.pins[1])),
        )
        name, version = "qmt-redis-bridge", project_version()
        about = site / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (about / "METADATA").write_text(text, "utf-8")

    # -- running ------------------------------------------------------------------------------

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of its processes, with more or others as given."""
        return {
            **wine_variables(),
            "TZ": "CST-8",
            "PYTHONUTF8": "1",
            "PYTHONPATH": ";".join(windows_path(ROOT / one) for one in FOLDERS),
            # Linux' CPython must not find byte code with paths of Windows, nor the other way.
            "PYTHONPYCACHEPREFIX": windows_path(self.folder / "bytecode"),
            "QMT_WINE_RUN": self._mark,
            **more,
        }

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs its interpreter."""
        return [str(self.wine), str(self.executable), *arguments]

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stderr: int = subprocess.STDOUT,
    ) -> subprocess.Popen[bytes]:
        """Start its interpreter; standard input and output are pipes, as Wine needs them to be."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=cwd,
            env=self.environment(**(env or {})),
        )

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 180.0,
        given: bytes = b"",
    ) -> tuple[int, bytes, bytes]:
        """Run its interpreter to the end; return exit code, output and error output."""
        process = self.start(*arguments, env=env, cwd=cwd, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(given, timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            text = (out + err).decode("utf-8", "replace")[-2000:]
            raise WineError(f"not done within {timeout_s:g} s: {arguments}\n{text}") from None
        return process.returncode, out, err

    def running(self) -> list[int]:
        """Return the ids, on this machine, of all processes that this object started.

        Wine's are children of nobody, so what they were started with tells them.
        """
        return _pythons(f"QMT_WINE_RUN={self._mark}\0")


def _pythons(told: str) -> list[int]:
    """Return the ids of Windows Pythons that were started with these letters in their variables."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().split(b"\0")[0].lower()
                if (
                    line.endswith(b"python.exe")
                    and told.encode() in (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
    return found


@contextlib.contextmanager
def using_wine(wine: Path) -> Iterator[None]:
    """Keep Wine's server up for a run, and kill at the end what the run has left.

    Who leaves last ends the server as well.
    """
    prefix = cache_folder() / "prefix"
    os.environ["QMT_WINE_RUN"] = _RUN
    with _locked(cache_folder() / "use-lock", fcntl.LOCK_SH) as lock:
        try:
            if (prefix / "ready").is_file():
                start_server(wine)
            yield
        finally:
            for pid in _pythons(f"QMT_WINE_RUN={_RUN}-"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if _is_alone(lock) and not _pythons(f"WINEPREFIX={prefix}\0"):
                # Not wineboot -k: without a server it would start one to end it.
                _quietly(_server(wine), "-k")


def start_server(wine: Path) -> None:
    """Start Wine's server and services unless they run.

    The first process of a prefix would start them otherwise, and they would hold its pipes open
    when it has ended. The server ends two minutes after the last process.
    """
    _quietly(_server(wine), "-p120")
    _quietly(str(wine), "cmd", "/c", "exit")


def _quietly(*command: str) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            command,
            env=wine_variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )


def _is_alone(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _server(wine: Path) -> str:
    names = (wine.with_name(name) for name in ("wineserver64", "wineserver"))
    return str(next((one for one in names if one.exists()), "wineserver"))


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as lock:
        deadline = time.monotonic() + _SETUP_S
        while True:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WineError(f"another run has held {path} for {_SETUP_S} s") from None
                time.sleep(0.2)
        yield lock


def _pip(*arguments: str, **env: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    _run([sys.executable, "-m", "pip", *arguments, *quiet], env={**os.environ, **env})


def _run(command: list[str], *, env: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SETUP_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WineError(f"not done within {_SETUP_S} s: {' '.join(command)}") from None
    if done.returncode:
        text = done.stdout.decode("utf-8", "replace").strip()[-3000:]
        raise WineError(f"{' '.join(command)} failed:\n{text}")


def _say(text: str) -> None:
    sys.stderr.write(f"==> {text}\n")
    sys.stderr.flush()
