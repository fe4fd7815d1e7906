"""Gets the Redis and Valkey servers that the tests are run against, beside the system.

apt downloads Debian's packages of two releases with lists, state and cache of their own, dpkg-deb
unpacks them: nothing is installed, no root is needed. Where they come from is what this machine's
own apt sources say, with the release's name replaced. Each server gets a wrapper that starts it by
the libraries that were unpacked with it, so it runs on the other release too.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SERVERS = {
    "debian13-valkey-server": ("trixie", "valkey-server"),
    "debian13-redis-server": ("trixie", "redis-server"),
    "debian12-redis-server": ("bookworm", "redis-server"),
}
"""Wrapper to release and program; the first is the one in the image (docker/Dockerfile.redis)."""

CANNOT = 77
_RELEASES = {suite for suite, _ in SERVERS.values()}


class CannotFetchError(Exception):
    """What is missing, in words."""


def folder() -> Path:
    """Return where the servers are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("QMT_SERVERS_CACHE") or cache / "qmt-bridge-servers")


def sources(own: str, suite: str, into: Path, etc: Path = Path("/etc/apt")) -> None:
    """Write this machine's apt sources of its release with another release's name."""
    named = re.compile(rf"(?<=\s){own}(?=[-/\s]|$)")
    lines: list[str] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]:
        if path.is_file():
            text = path.read_text("utf-8")
            lines += [
                named.sub(suite, line)
                for line in text.splitlines()
                if line.startswith("deb ") and named.search(line)
            ]
    stanzas: list[str] = []
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text("utf-8")):
            found = re.search(r"^Suites:.*$", stanza, re.M)
            if found and named.search(found[0]):
                stanzas.append(stanza.replace(found[0], named.sub(suite, found[0])))
    if not lines and not stanzas:
        raise CannotFetchError(f"no apt source of {own} to derive those of {suite} from")
    into.mkdir(parents=True)
    (into / "derived.list").write_text("\n".join(lines) + "\n", "utf-8")
    (into / "derived.sources").write_text("\n\n".join(stanzas) + "\n", "utf-8")


def fetch(own: str, suite: str, packages: list[str]) -> None:
    """Download and unpack packages of one release, whole or not at all."""
    work = folder() / f"{suite}.part"
    shutil.rmtree(work, ignore_errors=True)
    for name in ("lists/partial", "packages/archives/partial", "tree"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    sources(own, suite, work / "sources")
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": work / "sources",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::State::extended_states": work / "states",
        "Dir::Cache": work / "packages",
        "Debug::NoLocking": "1",
        "Acquire::Languages": "none",
        "APT::Architectures": run("dpkg", "--print-architecture").strip(),
        # As root apt would download as a user that cannot write here.
        "APT::Sandbox::User": "root" if os.getuid() == 0 else "",
    }
    apt = ["apt-get", "-q", "-y", *(f"-o{name}={value}" for name, value in options.items())]
    run(*apt, "update")
    run(*apt, "--no-install-recommends", "--download-only", "install", *packages)
    for package in sorted((work / "packages" / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", str(package), str(work / "tree"))
    tree = folder() / suite
    shutil.rmtree(tree, ignore_errors=True)
    (work / "tree").rename(tree)
    shutil.rmtree(work)


def run(*command: str) -> str:
    """Run a command; what it says where it fails is the reason."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotFetchError(f"{command[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotFetchError(f"{command[0]}: {said[-1] if said else 'failed without a word'}")
    return done.stdout


def wrap(name: str) -> None:
    """Write the wrappers of a server and its tools, and prove that it starts."""
    suite, program = SERVERS[name]
    tree = folder() / suite
    loaders = sorted(tree.glob("**/ld-linux*.so.*"))
    libraries = {str(path.parent) for path in tree.glob("**/libc.so.6")}
    libraries |= {str(path.parent) for path in tree.glob("usr/lib/*/libjemalloc.so.*")}
    binary = tree / "usr" / "bin" / program
    if not loaders or not binary.exists():
        raise CannotFetchError(f"{suite} has no {program}")
    path = ":".join(sorted(libraries))
    for tool in ("cli", "check-aof", "server"):
        command = f'"{loaders[0]}" --library-path "{path}" "{binary.parent}/{_tool(program, tool)}"'
        written = folder() / f"{name}.part"
        written.write_text(f'#!/bin/sh\nexec {command} "$@"\n', "utf-8")
        written.chmod(0o755)
        if tool == "server":
            run(str(written), "--version")
        written.rename(folder() / _tool(name, tool))


def _tool(program: str, tool: str) -> str:
    return program.removesuffix("server") + tool


def get(own: str, suite: str, *, update: bool) -> list[str]:
    """Get one release's servers; return what could not be had, and why."""
    wanted = [name for name, (of, _) in SERVERS.items() if of == suite]
    if not update and all((folder() / name).exists() for name in wanted):
        return []
    try:
        fetch(own, suite, [SERVERS[name][1] for name in wanted])
        for name in wanted:
            wrap(name)
    except CannotFetchError as error:
        return [f"{name}: {error}" for name in wanted]
    return []


def main() -> int:
    """Get what is missing and print what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="fetch again what is there")
    options = parser.parse_args()
    os_release = Path("/etc/os-release")
    lines = os_release.read_text("utf-8").splitlines() if os_release.exists() else []
    release = dict(line.split("=", 1) for line in lines if "=" in line)
    own = release.get("VERSION_CODENAME", "").strip('"')
    if own in _RELEASES and shutil.which("apt-get"):
        folder().mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            found = pool.map(
                lambda suite: get(own, suite, update=options.update), sorted(_RELEASES)
            )
            missing = [line for lines in found for line in lines]
    else:
        system = release.get("PRETTY_NAME", sys.platform).strip('"')
        missing = [f"all of them: this is {system}, not Debian 12 or 13"]
    for name in SERVERS:
        if (folder() / name).exists():
            sys.stdout.write(f"{folder() / name}\n")
    for line in missing:
        sys.stderr.write(f"not to be had here: {line}\n")
    return CANNOT if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
