"""The server's start: the functions are loaded or it is not well, and the admin is local."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from docker_servers import DOCKER, health, launch, settings, start_server

from qmt_standalone.redis_server import free_port

WITHIN_S = 60


def wait_for(look: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def admin(folder: Path, *command: str) -> str:
    """Run the image's qmt-admin for a server that lives in a folder."""
    return subprocess.run(
        [DOCKER / "redis" / "admin.sh", *command],
        env=settings(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    assert process.wait(30) == 0


def test_a_server_that_is_well_has_the_producers_functions(tmp_path: Path) -> None:
    process, _ = start_server("streams", tmp_path / "streams")
    try:
        listed = admin(tmp_path / "streams", "FUNCTION", "LIST")
        assert "qmt3_append" in listed
    finally:
        end(process)


def test_without_its_functions_a_server_is_not_well_and_says_why(tmp_path: Path) -> None:
    scripts = tmp_path / "etc"
    shutil.copytree(DOCKER / "redis", scripts)
    broken = scripts / "functions.lua"
    broken.write_text("#!lua name=qmt3\nthis is no Lua\n", "utf-8")
    folder = tmp_path / "streams"
    process = launch("streams", folder, free_port(), scripts=scripts)
    try:
        log = folder / "log"
        wait_for(lambda: "could not be loaded: " in log.read_text("utf-8"), "a message")
        told = health(folder)
        assert (told.returncode, told.stderr) == (1, "The functions are not loaded.\n")
        # It goes on trying, and says the same only once.
        broken.write_text(
            "#!lua name=qmt3\nredis.register_function('qmt3_one', function() return 1 end)\n"
        )
        wait_for(lambda: health(folder).returncode == 0, "the functions")
        assert log.read_text("utf-8").count("could not be loaded: ") == 1
    finally:
        end(process)


def test_a_full_server_starts_again_with_the_functions_it_had(tmp_path: Path) -> None:
    folder = tmp_path / "streams"
    process, connect = start_server("streams", folder)
    with connect("producer") as producer:
        for number in range(64):
            producer.xadd("{qmt:SH}:tick:600519.SH", {"t1": os.urandom(100_000)}, id=number + 1)
    end(process)
    process, _ = start_server("streams", folder, QMT_REDIS_MEMORY="4mb")
    try:
        assert "used memory" in admin(folder, "SET", "one", "more")
        assert "qmt3_append" in admin(folder, "FUNCTION", "LIST")
    finally:
        end(process)


def test_a_server_that_is_gone_is_not_well(tmp_path: Path) -> None:
    process, _ = start_server("jobs", tmp_path / "jobs")
    try:
        assert health(tmp_path / "jobs").returncode == 0
        process.kill()
        process.wait(30)
        told = health(tmp_path / "jobs")
        assert told.returncode == 1
        assert "Could not connect" in told.stderr
    finally:
        process.kill()


def test_the_admins_password_is_anew_with_each_start_and_for_the_folders_owner(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "jobs"
    seen = set()
    for _ in range(2):
        process, connect = start_server("jobs", folder)
        try:
            password = (folder / "run" / "admin").read_text("utf-8")
            seen.add(password)
            assert len(password) == 64
            assert (folder / "run").stat().st_mode & 0o77 == 0
            assert admin(folder, "PING") == "PONG\n"
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            assert password.encode() not in environment
            assert password.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
            with connect("admin") as guesser, pytest.raises(redis.AuthenticationError):
                guesser.ping()
        finally:
            end(process)
    assert len(seen) == 2


def test_the_admin_ends_a_server_that_a_script_keeps_busy(tmp_path: Path) -> None:
    folder = tmp_path / "streams"
    process, _ = start_server("streams", folder)
    busy = subprocess.Popen(
        [DOCKER / "redis" / "admin.sh", "EVAL", "while true do end", "0"],
        env=settings(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: admin(folder, "PING").startswith("BUSY"), "a busy server")
        assert health(folder).returncode == 1
        assert admin(folder, "SCRIPT", "KILL") == "OK\n"
        wait_for(lambda: health(folder).returncode == 0, "a server that answers")
    finally:
        busy.kill()
        busy.wait(30)
        end(process)


def test_nothing_that_ships_shows_a_password_to_ps() -> None:
    for file in [DOCKER / "compose.yaml", *DOCKER.glob("Dockerfile*"), *DOCKER.rglob("*.sh")]:
        text = file.read_text("utf-8")
        assert "--pass" not in text, file
