"""The file of keys: what the command writes, and that a running gateway takes it up."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from access_rig import KEYS, add_key, ask, closed_with, live, next_of, run_keys
from gateway_bench import GatewayProcess, Producer, gateway
from waiting import WITHIN_S, wait_for

from qmt_gateway.__main__ import main
from qmt_gateway.settings import GatewaySettings
from qmt_protocol.errors import ConfigurationError
from qmt_protocol.live import CloseCode
from qmt_protocol.times import CHINA
from qmt_standalone.redis_server import RedisServer

STATUS = "/api/v1/status"


def stored(folder: Path) -> list[dict[str, Any]]:
    document: dict[str, Any] = json.loads((folder / KEYS).read_text("utf-8"))
    assert document["version"] == 1
    keys: list[dict[str, Any]] = document["keys"]
    return keys


def refused(folder: Path, *arguments: str) -> None:
    """Run a command that must be refused."""
    with pytest.raises(SystemExit) as ended:
        run_keys(folder, *arguments)
    assert ended.value.code == 2


def test_the_program_prints_a_key_once_and_keeps_its_hash(workdir: Path) -> None:
    environment = {**os.environ, "QMT_BRIDGE_KEYS_FILE": str(workdir / "state" / KEYS)}
    command = [sys.executable, "-m", "qmt_gateway", "keys"]
    done = subprocess.run(
        [*command, "add", "desk", "--scope", "download", "--expires", "30", "--limit", "rows=9"],
        env=environment,
        cwd=workdir,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=True,
    )
    key = done.stdout.strip()
    assert re.fullmatch(r"qmt_[A-Za-z0-9_-]{43}", key)
    assert key not in done.stderr
    (one,) = stored(workdir / "state")
    assert one == {
        "name": "desk",
        "hash": f"sha256:{hashlib.sha256(key.encode()).hexdigest()}",
        "scopes": ["read", "download"],
        "created": one["created"],
        "expires": f"{dt.datetime.now(CHINA).date() + dt.timedelta(days=30)}",
        "limits": {"rows": 9},
    }
    assert dt.datetime.fromisoformat(one["created"]).utcoffset() == dt.timedelta(hours=8)
    listed = subprocess.run(
        [*command, "list"],
        env=environment,
        cwd=workdir,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=True,
    ).stdout
    assert "desk" in listed
    assert key not in listed
    assert one["hash"] not in listed


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_the_file_is_its_owners_alone_and_never_half_there(workdir: Path) -> None:
    before = os.umask(0)
    try:
        add_key(workdir, "first")
    finally:
        os.umask(before)
    file = workdir / KEYS
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    whole = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not whole.is_set():
            seen.append(len(json.loads(file.read_bytes())["keys"]))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(20):
            add_key(workdir, f"key-{number}")
    finally:
        whole.set()
        reader.join(WITHIN_S)
    assert seen == sorted(seen)
    assert len(stored(workdir)) == 21
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {path.name for path in workdir.iterdir()} == {KEYS, f"{KEYS}.lock"}


def test_those_who_add_at_once_lose_nothing(workdir: Path) -> None:
    at = ("--file", str(workdir / KEYS))
    threads = [
        threading.Thread(target=main, args=(["keys", *at, "add", f"key-{number}"],))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN_S)
    assert {one["name"] for one in stored(workdir)} == {f"key-{number}" for number in range(8)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "a name"),
        ("add", "-"),
        ("add", "../etc"),
        ("add", "x", "--scope", "write"),
        ("add", "x", "--expires", "2020-01-01"),
        ("add", "x", "--expires", "soon"),
        ("add", "x", "--limit", "requests=5"),
        ("add", "x", "--limit", "rows=-1"),
        ("add", "x", "--limit", "rows=1.5"),
        ("add", "x", "--limit", "rows=many"),
        ("add", "taken"),
        ("revoke", "nobody"),
    ],
)
def test_what_cannot_be_done_changes_nothing(workdir: Path, arguments: tuple[str, ...]) -> None:
    add_key(workdir, "taken")
    before = (workdir / KEYS).read_bytes()
    refused(workdir, *arguments)
    assert (workdir / KEYS).read_bytes() == before


def test_to_revoke_where_nothing_is_does_not_lock_the_gateway(workdir: Path) -> None:
    refused(workdir, "revoke", "nobody")
    assert list(workdir.iterdir()) == []


def test_a_key_may_expire_on_a_day_or_never(workdir: Path) -> None:
    add_key(workdir, "a-day", "--expires", "2099-12-31")
    add_key(workdir, "always", "--expires", "never")
    add_key(workdir, "unsaid")
    expires = [one["expires"] for one in stored(workdir)]
    assert expires[:2] == ["2099-12-31", None]
    assert expires[2] == f"{dt.datetime.now(CHINA).date() + dt.timedelta(days=365)}"


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        '{"version": 2, "keys": []}',
        '{"version": 1, "keys": [{"name": "x"}]}',
        '{"version": 1, "keys": [], "more": 1}',
    ],
)
def test_a_file_that_is_none_does_not_start(workdir: Path, broken: str) -> None:
    file = workdir / KEYS
    file.write_text(broken)
    settings = GatewaySettings(bridge_keys_file=file)
    with pytest.raises(ConfigurationError, match=KEYS):
        settings.keyring()


def test_keys_in_the_file_are_enough_to_listen_for_others(workdir: Path) -> None:
    settings = GatewaySettings(bridge_host="0.0.0.0", bridge_keys_file=workdir / KEYS)
    with pytest.raises(ConfigurationError, match="qmt-gateway keys add"):
        settings.check_exposure()
    add_key(workdir, "one")
    settings.check_exposure()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the running gateway has its file."""
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def process(
    streams_server: RedisServer, jobs_server: RedisServer, folder: Path
) -> Iterator[GatewayProcess]:
    """One that begins without any key."""
    with gateway(streams_server.url, jobs_server.url, folder) as running:
        assert ask(running, STATUS).status_code == 200
        yield running


def opens(process: GatewayProcess, key: str) -> bool:
    try:
        return ask(process, STATUS, key).status_code == 200
    except httpx.TransportError:
        return False  # the answer was on its way when the key went


def test_the_running_gateway_takes_keys_up_and_ends_what_is_revoked(
    process: GatewayProcess, folder: Path, producer: Producer
) -> None:
    stays, goes = add_key(folder, "stays"), add_key(folder, "goes")
    wait_for(lambda: ask(process, STATUS).status_code == 401, "the gateway asks for keys")
    assert opens(process, stays)
    assert opens(process, goes)
    with live(process, stays) as one, live(process, goes) as other:
        with live(process, goes, "/ws/realtime") as third:
            third.send('{"stocks": ["600519.SH"]}')
            next_of(one, "welcome")
            next_of(other, "welcome")
            run_keys(folder, "revoke", "goes")
            code, reason = closed_with(other)
            assert code == CloseCode.ACCESS_DENIED
            assert "goes" in reason
            assert "revoked" in reason
            assert closed_with(third)[0] == CloseCode.ACCESS_DENIED
        assert not opens(process, goes)
        assert opens(process, stays)
        one.ping().wait(WITHIN_S)  # it goes on
        one.send('{"op": "subscribe", "id": "a", "codes": ["600519.SH"]}')
        assert next_of(one, "subscribed")["id"] == "a"
    log = process.log()
    assert stays not in log
    assert goes not in log
    assert "keys taken up" in log


def test_a_key_that_expires_is_told_its_day_and_ends(process: GatewayProcess, folder: Path) -> None:
    key = add_key(folder, "short")
    wait_for(lambda: opens(process, key), "the key opens")
    with live(process, key) as client:
        next_of(client, "welcome")
        keys = stored(folder)
        for one in keys:
            if one["name"] == "short":
                one["expires"] = "2026-01-05"
        (folder / KEYS).write_text(json.dumps({"version": 1, "keys": keys}))  # as a person would
        assert closed_with(client)[0] == CloseCode.ACCESS_DENIED
    answer = ask(process, STATUS, key)
    assert answer.status_code == 401
    assert "short expired on 2026-01-05 23:59" in answer.json()["message"]


def test_a_file_that_breaks_or_goes_lets_nobody_else_in(
    process: GatewayProcess, folder: Path
) -> None:
    key = add_key(folder, "lasting")
    wait_for(lambda: opens(process, key), "the key opens")
    good = (folder / KEYS).read_bytes()
    (folder / KEYS).write_text("{")
    wait_for(lambda: "keys not taken up" in process.log(), "it is told that the file is broken")
    assert opens(process, key)
    assert ask(process, STATUS).status_code == 401
    (folder / KEYS).unlink()
    wait_for(lambda: not opens(process, key), "the keys of a file that is gone open nothing")
    assert ask(process, STATUS).status_code == 401
    (folder / KEYS).write_bytes(good)
    wait_for(lambda: opens(process, key), "the file is back")
