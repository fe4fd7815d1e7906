"""docker/up: the settings file, what it asks of Docker, and what it says next."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from docker_servers import DOCKER

FAKE = """#!/bin/sh
# Docker as docker/up calls it: writes down what it is asked.
echo "$@" >>"{folder}/asked"
case "$*" in
"compose version --short") {version} ;;
info) exit {info} ;;
*" up "*) exit {up} ;;
esac
"""


class ArchiveStore:
    """A copy of docker/ with a Docker that only writes down."""

    def __init__(
        self, folder: Path, *, version: str = "echo 2.26.1-4", info: int = 0, up: int = 0
    ) -> None:
        self.docker = folder / "docker"
        self.docker.mkdir()
        for name in ("up", "join", ".env.example", "compose.yaml"):
            shutil.copy(DOCKER / name, self.docker)
        (folder / "bin").mkdir()
        fake = folder / "bin/docker"
        fake.write_text(FAKE.format(folder=folder, version=version, info=info, up=up), "utf-8")
        fake.chmod(0o755)
        # Not root's rights: nothing here may change the system that the tests run on.
        (folder / "bin/id").write_text("#!/bin/sh\necho 1000\n", "utf-8")
        (folder / "bin/id").chmod(0o755)
        self.folder = folder

    def up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.docker / "up", *arguments],
            env={"PATH": f"{self.folder}/bin:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def env(self) -> Path:
        return self.docker / ".env"

    @property
    def settings(self) -> dict[str, str]:
        lines = self.env.read_text("utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if line and line[0] != "#")

    @property
    def asked(self) -> str:
        return (self.folder / "asked").read_text("utf-8")


def test_the_first_time_it_makes_every_secret_and_keeps_them_to_itself(tmp_path: Path) -> None:
    store = ArchiveStore(tmp_path)
    done = store.up("192.168.1.100")
    assert done.returncode == 0, done.stderr
    assert store.env.stat().st_mode & 0o777 == 0o600
    secrets = [value for name, value in store.settings.items() if "PASSWORD" in name]
    secrets.append(store.settings["QMT_BRIDGE_API_KEYS"])
    assert len(secrets) == len(set(secrets)) == 7
    assert all(re.fullmatch(r"[0-9a-f]{48}", one) for one in secrets)
    assert store.settings["QMT_REDIS_ADDRESS"] == "192.168.1.100"
    assert store.settings["QMT_BRIDGE_ADDRESS"] == "192.168.1.100"
    assert store.settings["QMT_STREAMS_MEMORY"] == "8gb"
    assert re.search(r"compose -f \S+/docker/compose.yaml up -d --build --wait\n", store.asked)
    assert "docker/join 192.168.1.100" in done.stdout
    assert not any(one in done.stdout + done.stderr + store.asked for one in secrets)
    joined = subprocess.run([store.docker / "join", "192.168.1.100"], check=False, timeout=60)
    assert joined.returncode == 0


def test_again_it_changes_nothing_that_is_set(tmp_path: Path) -> None:
    store = ArchiveStore(tmp_path)
    store.up()
    assert store.settings["QMT_REDIS_ADDRESS"] == "127.0.0.1"
    text = store.env.read_text("utf-8").replace("=8gb", "=16gb")
    text = re.sub(r"(?m)^QMT_CLIENT_PASSWORD=.*", "QMT_CLIENT_PASSWORD=", text)
    store.env.write_text(text, "utf-8")
    store.env.chmod(0o644)
    before = store.settings
    done = store.up()
    assert done.returncode == 0
    assert store.env.stat().st_mode & 0o777 == 0o600
    after = store.settings
    assert len(after.pop("QMT_CLIENT_PASSWORD")) == 48
    assert before.pop("QMT_CLIENT_PASSWORD") == ""
    assert before == after
    assert "docker/up ADDRESS" in done.stdout


def test_who_serves_everyone_gets_no_key(tmp_path: Path) -> None:
    store = ArchiveStore(tmp_path)
    example = (store.docker / ".env.example").read_text("utf-8")
    store.env.write_text(example.replace("ANONYMOUS=false", "ANONYMOUS=true"), "utf-8")
    assert store.up().returncode == 0
    assert store.settings["QMT_BRIDGE_API_KEYS"] == ""


def test_who_is_not_root_is_told_what_to_allow(tmp_path: Path) -> None:
    done = ArchiveStore(tmp_path).up("192.168.1.100")
    late = Path("/proc/sys/net/ipv4/ip_nonlocal_bind").read_text("utf-8").strip()
    told = "echo net/ipv4/ip_nonlocal_bind = 1 | sudo tee" in done.stdout
    assert told == (late == "0")


def test_on_this_machine_alone_nothing_is_to_be_allowed(tmp_path: Path) -> None:
    assert "ip_nonlocal_bind" not in ArchiveStore(tmp_path).up().stdout


@pytest.mark.parametrize(
    ("version", "info", "up", "told"),
    [
        ("echo 1.29.2", 0, 0, "Docker Compose 1.29.2 is too old"),
        ("exit 1", 0, 0, "Compose v2 is missing"),
        ("echo v2.26.1", 1, 0, "Docker does not answer"),
        ("echo v2.26.1", 0, 1, "The stack is not well"),
    ],
)
def test_what_keeps_it_from_coming_up_is_said(
    tmp_path: Path, version: str, info: int, up: int, told: str
) -> None:
    done = ArchiveStore(tmp_path, version=version, info=info, up=up).up()
    assert done.returncode == 1
    assert told in done.stderr
    assert "The stack is up" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"), [(["a", "b"], 2), (["--help"], 2), (["my;nas"], 1), (["nas.lan"], 1)]
)
def test_an_address_is_an_address(tmp_path: Path, arguments: list[str], code: int) -> None:
    store = ArchiveStore(tmp_path)
    done = store.up(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert not store.env.exists()
