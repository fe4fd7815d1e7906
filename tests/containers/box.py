"""A Linux machine of its own: Debian 13 with its Docker and Compose, beside this system.

It is namespaces of this kernel: own processes, mounts, network and host name. It can be switched
off as a machine is, and started with its address in the local network coming late. Everything in
it comes from Debian by the addresses that this machine's apt has, and is kept in a cache folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Final

__all__ = ["LAN", "WINDOWS", "Box", "CannotRun", "wait_for"]

LAN: Final = "198.18.99.2"
"""The box's address in the local network: of the range for tests of networks (RFC 2544)."""
WINDOWS: Final = "198.18.99.1"
"""The address of this side, where the Windows half runs."""

_SUITE: Final = "trixie"
_IN_BOX: Final = (
    *("docker.io", "docker-cli", "docker-compose", "docker-buildx"),
    *("iproute2", "iptables", "procps", "slirp4netns"),
)
_IN_PYTHON: Final = ("ca-certificates", "python3", "python3-pip", "python-is-python3")
_BASES: Final = ("debian:trixie-slim", "python:3.11-slim-bookworm")
_LINK: Final = "qmt-box"
_DAEMON: Final = """{
  "data-root": "/var/lib/docker-%(store)s",
  "features": {"containerd-snapshotter": %(containerd)s},
  "exec-root": "/run/docker",
  "pidfile": "/run/docker.pid",
  "hosts": ["unix:///run/docker.sock"],
  "cgroup-parent": "/qmt-box",
  "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 16384, "Hard": 16384}}
}
"""
_BOOT: Final = """
set -eu
mount --bind . .
cd "$PWD"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
echo 0 >run/overcommit_memory  # this one is the whole kernel's, not the box's
mount --bind run/overcommit_memory proc/sys/vm/overcommit_memory
ip link set lo up
hostname qmt-box
mkdir -p outside
pivot_root . outside
exec /bin/sh -c 'umount -l /outside; echo up; exec /usr/bin/tini -- cat'
"""
"""Runs in the new namespaces, in the box's root; ends when standard input does."""


class CannotRun(Exception):
    """This machine has not what the box needs."""


def wait_for(condition: Callable[[], object], what: str, within_s: float = 300.0) -> None:
    """Wait for a condition; `TimeoutError` names what did not happen."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(0.1)


class Box:
    """The machine; a context manager that holds its cache folder and switches it off.

    Parameters
    ----------
    cache
        Where its disk and what was downloaded stay.
    log
        Takes what its programs say.
    store
        Docker's image store: ``classic``, or ``containerd``, as later versions have it.

    Raises
    ------
    CannotRun
        Where this machine has no root, no apt or no network namespaces.
    """

    def __init__(self, cache: Path, log: IO[bytes], store: str = "classic") -> None:
        self.root = cache / "box"
        self._cache = cache
        self._log = log
        self._store = store
        self._machine: subprocess.Popen[bytes] | None = None
        self._network: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Box:
        _check_machine()
        self._cache.mkdir(parents=True, exist_ok=True)
        self._lock = (self._cache / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._prepare()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.switch_off()
        self._lock.close()

    # -- its disk -----------------------------------------------------------------------------

    def _prepare(self) -> None:
        recipe = f"{_SUITE} {_IN_BOX} {_IN_PYTHON} {_BASES}"
        stamp = self._cache / hashlib.sha256(recipe.encode()).hexdigest()[:16]
        if not stamp.exists():
            for name in ("box", "python", "debian", "debootstrap"):
                _remove(self._cache / name)
            tool = self._debootstrap()
            python = self._bootstrap(tool, "python", _host_suite(), _IN_PYTHON)
            debian = self._bootstrap(tool, "debian", _SUITE, ())
            self._finish(debian, "debian")
            # Device nodes among its files are copied as such: read, some have no end.
            self._said(["cp", "-a", str(self._cache / "debian"), str(self.root)])
            for command in ("update", f"install -y --no-install-recommends {' '.join(_IN_BOX)}"):
                self._said(["chroot", str(self.root), "sh", "-c", f"apt-get -q {command}"])
            self._finish(python, "python")
            _pip_as_here(self._cache / "python")
            stamp.touch()
        (self.root / "etc/docker").mkdir(exist_ok=True)
        (self.root / "etc/docker/daemon.json").write_text(
            _DAEMON
            % {"store": self._store, "containerd": str(self._store == "containerd").lower()},
            "utf-8",
        )
        (self.root / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n", "utf-8")
        for left in (self.root / "etc/sysctl.d").glob("*qmt*"):
            left.unlink()

    def _debootstrap(self) -> Path:
        """Unpack it beside the system: it is a shell script."""
        folder = self._cache / "debootstrap"
        folder.mkdir()
        # In a state of its own: the system's may be locked, old or empty.
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        state = (f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}/cache")
        options = ["-q", *(part for one in state for part in ("-o", one))]
        self._said(["apt-get", *options, "update"])
        self._said(["apt-get", *options, "download", "debootstrap"], cwd=folder)
        (package,) = folder.glob("*.deb")
        self._said(["dpkg-deb", "-x", str(package), str(folder)])
        return folder

    def _bootstrap(
        self, tool: Path, name: str, suite: str, packages: tuple[str, ...]
    ) -> subprocess.Popen[bytes]:
        """Begin to make a Debian of a suite."""
        sources = _sources()
        address = re.search(r"^URIs: (\S+)", sources, re.M)
        if address is None:
            raise CannotRun("this machine's apt has no Debian in its *.sources files")
        return subprocess.Popen(
            [
                *(str(tool / "usr/sbin/debootstrap"), "--variant=minbase"),
                *([f"--include={','.join(packages)}"] if packages else []),
                *(suite, str(self._cache / name), address[1]),
            ],
            env={**os.environ, "DEBOOTSTRAP_DIR": str(tool / "usr/share/debootstrap")},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def _finish(self, process: subprocess.Popen[bytes], name: str) -> None:
        if process.wait(1200):
            raise RuntimeError(f"debootstrap of {name} ended with {process.returncode}")
        folder = self._cache / name
        for package in (folder / "var/cache/apt/archives").glob("*.deb"):
            package.unlink()
        apt = folder / "etc/apt"
        (apt / "sources.list").unlink(missing_ok=True)
        suite = _SUITE if name == "debian" else _host_suite()
        text = _sources().replace(_host_suite(), suite)
        (apt / "sources.list.d/debian.sources").write_text(text, "utf-8")

    def import_bases(self) -> None:
        """Give the base images their names in the box's Docker, where they are missing."""
        for name, folder in zip(_BASES, ("debian", "python"), strict=True):
            if self.run(f"docker image ls -q {name}").strip():
                continue
            with subprocess.Popen(
                ["tar", "-C", str(self._cache / folder), "-c", "."], stdout=subprocess.PIPE
            ) as tar:
                self.run(f"docker import - {name}", stdin=tar.stdout)
            if tar.returncode:
                raise RuntimeError(f"tar of {folder} ended with {tar.returncode}")

    # -- power --------------------------------------------------------------------------------

    def switch_on(self, *, lan: bool = True) -> None:
        """Start it: its network, what it keeps in /etc/sysctl.d, Docker; `lan`: at once in it."""
        _run(["ip", "link", "delete", _LINK], check=False)
        self._machine = subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork"),
                *("--kill-child", "--propagation", "private", "sh", "-c", _BOOT),
            ],
            cwd=self.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._machine.stdout is not None
        if self._machine.stdout.readline() != b"up\n":
            raise CannotRun("the namespaces of a machine of its own could not be made")
        above = self._machine.pid
        self._pid = int(Path(f"/proc/{above}/task/{above}/children").read_text().split()[0])
        # The way out is a program of user space: this system's own network stays as it is.
        self._network = subprocess.Popen(
            [
                *("nsenter", "--target", str(self._pid), "--mount", "slirp4netns", "--configure"),
                *("--mtu=1400", "--netns-type=path", "/proc/1/ns/net", "tap0"),
            ],
            stdout=self._log,
            stderr=self._log,
        )
        _run(["ip", "link", "add", _LINK, "type", "veth", "peer", "lan0", "netns", str(self._pid)])
        _run(["ip", "address", "add", f"{WINDOWS}/30", "dev", _LINK])
        _run(["ip", "link", "set", _LINK, "up"])
        self.run("sysctl --quiet --system")
        if lan:
            self.lan_up()
        wait_for(lambda: "tap0" in self.run("ip route"), "the way out")
        self.start_docker()

    def lan_up(self) -> None:
        """Let the address in the local network come."""
        self.run(f"ip address add {LAN}/30 dev lan0 && ip link set lan0 up")

    def switch_off(self) -> None:
        """Take its power away: every process in it is killed."""
        for process in (self._machine, self._network):
            if process is not None:
                process.kill()
                process.wait(30)
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        stream.close()
        self._machine = self._network = None

    def start_docker(self) -> None:
        """Start the daemon and wait until it answers."""
        self.run("(setsid dockerd >>/var/log/dockerd.log 2>&1 &)")
        wait_for(lambda: self.run("docker info", check=False), "Docker answers")

    def stop_docker(self) -> None:
        """End the daemon as its service manager does; containers end with it."""
        self.run("kill $(cat /run/docker.pid)")
        wait_for(lambda: not self.run("pidof dockerd", check=False), "Docker's end")

    # -- work ---------------------------------------------------------------------------------

    def run(
        self,
        command: str,
        *,
        folder: str = "/",
        check: bool = True,
        within_s: float = 900,
        stdin: IO[bytes] | None = None,
    ) -> str:
        """Run a shell command in it; return what it printed, nothing where it failed."""
        self._log.write(f"\n$ {command}\n".encode())
        self._log.flush()
        done = subprocess.run(
            [
                *("nsenter", "--target", str(self._pid), "--all"),
                *("env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"),
                *("HOME=/tmp", "sh", "-c", f"cd {folder} && {command}"),
            ],
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            timeout=within_s,
            check=False,
        )
        self._log.write(done.stdout)
        if check and done.returncode:
            raise RuntimeError(f"in the box, exit {done.returncode}: {command}")
        return "" if done.returncode else done.stdout.decode()

    def _said(self, command: list[str], cwd: Path | None = None) -> None:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(
            command, cwd=cwd, env=env, check=True, stdout=self._log, stderr=self._log, timeout=900
        )


def _run(command: list[str], *, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=not check, timeout=60)


def _remove(folder: Path) -> None:
    subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True, timeout=300)


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise CannotRun("it needs root")
    needed = ("apt-get", "dpkg-deb", "unshare", "nsenter", "ip", "tar", "chroot")
    lacking = [name for name in needed if shutil.which(name) is None]
    if lacking:
        raise CannotRun(f"not found: {', '.join(lacking)}")
    if not Path("/dev/net/tun").exists():
        raise CannotRun("there is no /dev/net/tun")
    _host_suite()


def _host_suite() -> str:
    """Return this machine's Debian, whose Python is 3.11."""
    release = Path("/etc/os-release").read_text("utf-8")
    if "VERSION_CODENAME=bookworm" not in release:
        raise CannotRun("it needs Debian 12, whose Python is that of the image")
    return "bookworm"


def _sources() -> str:
    """Return this machine's own sources of Debian."""
    folder = Path("/etc/apt/sources.list.d")
    texts = [file.read_text("utf-8") for file in sorted(folder.glob("*.sources"))]
    return "\n\n".join(text for text in texts if _host_suite() in text)


def _pip_as_here(root: Path) -> None:
    """Let the look-alike of Python's image take packages as this machine does."""
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
    certificates = "etc/ssl/certs/ca-certificates.crt"
    shutil.copyfile(f"/{certificates}", root / certificates)
    lines = ["[global]", f"cert = /{certificates}"]
    asked = subprocess.run(
        ["python3", "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode == 0:
        lines.append(f"index-url = {asked.stdout.strip()}")
    (root / "etc/pip.conf").write_text("\n".join([*lines, ""]), "utf-8")
