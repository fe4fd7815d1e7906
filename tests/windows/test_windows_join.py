"""Joining: the line and its faults, the file it becomes, what is said of absent servers."""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from windows_rig import Receiver

from qmt_protocol.errors import ConfigurationError
from qmt_standalone.redis_server import RedisServer, free_port
from qmt_windows.home import Home
from qmt_windows.join import check_servers, parse_join_line, write_config
from qmt_windows.settings import WindowsSettings, read_settings

DOCUMENT = {
    "v": 1,
    "streams": "redis://producer:pw-of-producer@192.0.2.7:6379/0",
    "worker_streams": "redis://worker:pw-of-worker@192.0.2.7:6379/0",
    "jobs": "redis://worker:pw-of-worker@192.0.2.7:6380/0",
    "prefix": "qmt",
}


def line_of(document: Any, head: str = "qmt1.") -> str:
    text = json.dumps(document).encode()
    return head + base64.urlsafe_b64encode(text).decode().rstrip("=")


LINE = line_of(DOCUMENT)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("QMT_"):
            monkeypatch.delenv(name)
    # Set by reading settings; so it is taken back after the test.
    monkeypatch.setenv("QMT_CONFIG", "")


def test_a_line_as_people_copy_it() -> None:
    joined = parse_join_line(f'  "{LINE[:40]}\r\n   {LINE[40:]}"\n')
    assert joined.settings == {
        "streams_url": DOCUMENT["streams"],
        "worker_streams_url": DOCUMENT["worker_streams"],
        "jobs_url": DOCUMENT["jobs"],
        "prefix": "qmt",
    }
    assert "pw-of" not in repr(joined)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "begin"),
        ("redis://producer:pw-of-producer@192.0.2.7:6379/0", "begin"),
        (LINE[:-9], "missing or changed"),
        (LINE[:30] + "!" + LINE[31:], "characters"),
        (LINE.replace("qmt1.", "qmt1.AAAA"), "missing or changed"),
        (line_of(DOCUMENT, "qmt2."), "version 2"),
        (line_of({**DOCUMENT, "v": 2}), "version 1"),
        (line_of([1]), "version 1"),
        (line_of({**DOCUMENT, "jobs": None}), "called jobs"),
        (line_of({**DOCUMENT, "jobs": "http://192.0.2.7"}), "jobs is no redis://"),
        (line_of({**DOCUMENT, "streams": "redis://:pw-of-producer@:70000"}), "streams is no"),
        (line_of({**DOCUMENT, "prefix": "a b"}), "prefix"),
        (line_of({**DOCUMENT, "prefix": 7}), "prefix"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_without_showing_it(text: str, word: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_join_line(text)
    assert word in str(caught.value)
    assert "pw-of" not in str(caught.value)


def test_the_file_keeps_what_else_is_in_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "家")
    home.folder.mkdir()
    home.config.write_text(
        '\ufeff# mine\nmarkets = "SH,SZ"\nstreams_url = "redis://old"\n'
        'alert_at = "08:00"\n[other]\njobs_url = "stays"\n',
        encoding="utf-8",
    )
    write_config(home.config, parse_join_line(LINE).settings)
    text = home.config.read_text(encoding="utf-8")
    assert "redis://old" not in text
    assert text.index("# mine") < text.index('markets = "SH,SZ"') < text.index("[other]")
    assert text.endswith('[other]\njobs_url = "stays"\n')
    os.environ["QMT_CONFIG"] = ""
    settings = read_settings(home)
    assert settings.streams_url == DOCUMENT["streams"]
    assert settings.worker_streams_url == DOCUMENT["worker_streams"]
    assert settings.jobs_url == DOCUMENT["jobs"]
    assert settings.alert_at == ["08:00"]
    if os.name == "posix":
        assert stat.S_IMODE(home.config.stat().st_mode) == 0o600
    write_config(home.config, parse_join_line(LINE).settings)
    assert home.config.read_text(encoding="utf-8") == text
    assert sorted(one.name for one in home.folder.iterdir()) == ["qmt.toml"]


@pytest.mark.parametrize("before", [b"markets = [", "# 我的".encode("cp936")])
def test_a_file_that_cannot_be_kept_is_left_alone(tmp_path: Path, before: bytes) -> None:
    file = tmp_path / "qmt.toml"
    file.write_bytes(before)
    with pytest.raises(ConfigurationError, match=r"qmt\.toml cannot be changed"):
        write_config(file, parse_join_line(LINE).settings)
    assert [one.name for one in tmp_path.iterdir()] == ["qmt.toml"]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "word"),
    [("alert_at = '25:00'", "25:00"), ("markets = [", "qmt.toml"), ("log_files = 0", "log_files")],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str, word: str) -> None:
    home = Home(tmp_path)
    home.config.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read_settings(home)
    assert word in str(caught.value)


# -- the test of the connection -----------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    one = RedisServer(tmp_path_factory.mktemp("joined"), aof=False, password="right")
    one.start()
    yield one
    one.stop()


def checked(url: str) -> Any:
    return check_servers(WindowsSettings(streams_url=url, jobs_url=url), "")[0]


def test_a_server_that_is_well(server: RedisServer) -> None:
    for one in check_servers(WindowsSettings(streams_url=server.url, jobs_url=server.url), ""):
        assert one.wrong == ""
        assert one.remark == ""
        assert 0 < one.latency_ms < 1000


def test_what_is_wrong_with_a_server_is_said_in_words(server: RedisServer) -> None:
    port = server.port
    assert "password" in checked(f"redis://default:wrong@127.0.0.1:{port}").wrong
    assert "password" in checked(f"redis://nobody:wrong@127.0.0.1:{port}").wrong
    assert "refuses" in checked(f"redis://default:right@127.0.0.1:{free_port()}").wrong
    assert "not known" in checked(f"redis://default:right@no-such-host.invalid:{port}").wrong
    for url in (f"redis://nobody:hidden@127.0.0.1:{port}", "redis://x:hidden@127.0.0.1:1"):
        assert "hidden" not in checked(url).wrong


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmt_windows.join._TIMEOUT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://default:right@127.0.0.1:{silent.getsockname()[1]}"
        assert "does not answer" in checked(url).wrong


def test_something_else_than_redis(receiver: Receiver) -> None:
    address = receiver.url.removeprefix("http://")
    assert "else than Redis" in checked(f"redis://default:right@{address}").wrong


def test_a_clock_that_differs(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr("qmt_windows.join.time.time", lambda: real() - 90)
    one = checked(server.url)
    assert one.wrong == ""
    assert "90.0 s behind" in one.remark


def joined(home: Path, line: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qmt_windows", "--home", str(home), "join", line, *flags],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        # As a pipe on an English Windows: no Chinese can be written.
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        errors="replace",
    )


def test_join_as_a_command(tmp_path: Path, server: RedisServer) -> None:
    home = tmp_path / "home"
    urls = dict.fromkeys(("streams", "worker_streams", "jobs"), server.url)
    wrong = line_of({**DOCUMENT, **urls, "jobs": "redis://worker:hidden@127.0.0.1:1/0"})
    told = joined(home, wrong)
    assert told.returncode == 1
    assert "fail" in told.stdout
    assert "refuses" in told.stdout
    assert "hidden" not in told.stdout + told.stderr
    assert not (home / "qmt.toml").exists()
    told = joined(home, line_of({**DOCUMENT, **urls}))
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("ok ") == 3
    assert "right" not in told.stdout + told.stderr
    assert server.url in (home / "qmt.toml").read_text(encoding="utf-8")
    told = joined(home, "qmt1.nonsense")
    assert told.returncode == 2
    assert told.stderr.startswith("qmt-windows: ")
    assert "Traceback" not in told.stderr
