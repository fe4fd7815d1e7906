"""Make `.venv` at the project's root from the lock; nothing happens when it is up to date.

It runs on the Python that the scripts found, with the standard library alone, and prints the
environment's Python. Several runs at once wait for each other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "lock-stamp"
WAIT_S = 1800


def say(text: str) -> None:
    sys.stderr.write(f"==> {text}\n")
    sys.stderr.flush()


def wanted() -> str:
    """Return what an up-to-date environment's stamp holds."""
    names = ("requirements.lock", "pyproject.toml")
    content = b"".join((ROOT / name).read_bytes() for name in names)
    return hashlib.sha256(content).hexdigest()


def usable() -> bool:
    """Tell whether the environment's Python starts and is one that the project supports."""
    check = "import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] < (3, 14))"
    try:
        return subprocess.run([PYTHON, "-c", check], check=False, timeout=60).returncode == 0
    except OSError:
        return False


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)


def make() -> None:
    """Make the environment; where Python came without ensurepip, take the outer pip's help."""
    import importlib.util

    shutil.rmtree(VENV, ignore_errors=True)
    say(f"making .venv with Python {sys.version.split()[0]}")
    if importlib.util.find_spec("ensurepip"):
        run(sys.executable, "-m", "venv", VENV)
        return
    run(sys.executable, "-m", "venv", "--without-pip", VENV)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run(
        [PYTHON, "-c", where], check=True, capture_output=True, text=True
    ).stdout.strip()
    run(sys.executable, "-m", "pip", "install", "--quiet", "--target", site, "pip")


def install() -> None:
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
    say("installing the locked packages (one to three minutes the first time)")
    started = time.monotonic()
    run(*pip, "--require-hashes", "-r", ROOT / "requirements.lock")
    run(*pip, "--no-build-isolation", "-e", ROOT)
    say(f"installed in {time.monotonic() - started:.0f} s")


def main() -> int:
    import fcntl

    with open(ROOT / "requirements.lock", "rb") as lock:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    say(f"another run has been making .venv for {WAIT_S} s; giving up")
                    return 1
                time.sleep(0.2)
        stamp = wanted()
        ready = usable()
        if not (ready and STAMP.is_file() and STAMP.read_text("utf-8") == stamp):
            try:
                if not ready:
                    make()
                install()
            except (OSError, subprocess.CalledProcessError) as error:
                say(f"the environment could not be made: {error}")
                return 1
            STAMP.write_text(stamp, encoding="utf-8")
    sys.stdout.write(f"{PYTHON}{os.linesep}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
