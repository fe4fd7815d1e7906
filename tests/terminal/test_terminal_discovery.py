"""Which of several terminals is used: found by its folder, checked after connecting, or refused."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from qmt_protocol.errors import ConfigurationError, TerminalNotConnected, WrongTerminal
from qmt_protocol.settings import TerminalSettings
from qmt_simulator.process import TerminalProcess
from qmt_terminal import Terminal
from qmt_terminal.discovery import Instance, addresses, broker_of, instances, is_below, root_of

Announce = Callable[..., Path]


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Announce]:
    """Write what a terminal writes of itself; its file is held while it runs."""
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with ExitStack() as held:

        def write(name: str, port: Any, *, running: bool = True, **told: Any) -> Path:
            folder = tmp_path / ".xtquant" / name
            folder.mkdir(parents=True)
            body = json.dumps({"port": port, **told}, ensure_ascii=False)
            (folder / "xtdata.cfg").write_text(body, "utf-8")
            status = held.enter_context((folder / "running_status").open("w"))
            if running:
                fcntl.flock(status, fcntl.LOCK_EX)
            return folder

        yield write


def test_what_terminals_tell_of_themselves(announce: Announce, tmp_path: Path) -> None:
    announce("a", 58610, ip="0.0.0.0", client_type="research", data_dir="D:\\投研\\datadir")
    announce("b", "58611", running=False, root_dir="/opt/国金QMT交易端")
    announce("no port", None)
    announce("no number", "x")
    announce("too high", 70_000)
    (announce("damaged", 1) / "xtdata.cfg").write_bytes(b"\xff{")
    (tmp_path / ".xtquant" / "empty").mkdir()
    (announce("gbk", 58612) / "xtdata.cfg").write_bytes(
        json.dumps({"port": 58612, "data_dir": "D:\\国信"}, ensure_ascii=False).encode("gbk")
    )
    found = {one.port: one for one in instances()}
    assert sorted(found) == [58610, 58611, 58612]
    assert found[58610] == Instance(
        "127.0.0.1", 58610, "research", "D:\\投研\\datadir", "", running=True
    )
    assert found[58610].place == "D:\\投研"
    assert not found[58611].running
    assert found[58612].data_dir == "D:\\国信"
    assert (tmp_path / ".xtquant/b/running_status").exists(), "looking deletes nothing"


def test_without_a_place_for_such_files_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "nobody"))
    assert instances() == []
    monkeypatch.delenv("USERPROFILE")
    assert instances() == []
    assert addresses("", None, None) == [("127.0.0.1", 58610)]


@pytest.mark.parametrize(
    ("path", "folder", "below"),
    [
        ("D:\\国金QMT交易端\\userdata_mini\\datadir", "D:\\国金QMT交易端", True),
        ("d:/国金qmt交易端/userdata_mini/datadir", "D:\\国金QMT交易端\\", True),
        ("D:\\国金QMT交易端\\bin.x64\\..\\userdata_mini\\datadir", "D:\\国金QMT交易端", True),
        ("D:\\国金QMT交易端模拟\\userdata_mini\\datadir", "D:\\国金QMT交易端", False),
        ("D:\\QMT", "D:\\QMT\\bin.x64\\XtMiniQmt.exe", True),
        ("D:\\QMT\\userdata_mini\\datadir", "D:\\QMT\\userdata_mini\\", True),
        ("E:\\QMT\\datadir", "D:\\QMT", False),
        ("D:\\QMT\\datadir", "D:\\", True),
        ("/opt/qmt/userdata_mini", "/opt/qmt/", True),
        ("/opt/qmt2", "/opt/qmt", False),
        ("/opt/qmt", "", False),
    ],
)
def test_folders_however_they_are_written(path: str, folder: str, below: bool) -> None:
    assert is_below(path, folder) is below


def test_a_junction_is_the_folder_behind_it(tmp_path: Path) -> None:
    real = tmp_path / "国信iQuant策略交易平台" / "userdata_mini"
    real.mkdir(parents=True)
    (tmp_path / "qmt").symlink_to(real.parent)
    assert is_below(str(tmp_path / "qmt" / "userdata_mini"), real.parent)
    assert is_below(str(real), tmp_path / "qmt")
    assert not is_below(str(tmp_path), tmp_path / "qmt")


@pytest.mark.parametrize(
    ("place", "broker"),
    [
        ("D:\\国金证券QMT交易端\\bin.x64", "国金证券"),
        ("D:\\国金QMT交易端模拟", "国金"),
        ("E:/国信iQuant策略交易平台/", "国信"),
        ("D:\\迅投极速交易终端 睿智融科版", "睿智融科"),
        ("D:\\QMT", ""),
        ("C:\\Program Files\\XtQuant_1.0", ""),
        ("", ""),
    ],
)
def test_a_broker_s_name_is_in_the_folder_s(place: str, broker: str) -> None:
    assert broker_of(place) == broker


def test_the_terminal_s_own_folder() -> None:
    assert root_of("D:\\国金\\bin.x64\\XtItClient.exe") == "D:\\国金"
    assert root_of("D:\\国金\\userdata_mini\\datadir\\") == "D:\\国金"
    assert root_of("D:\\") == "D:\\"
    assert root_of("") == ""


def test_one_that_runs_is_taken_and_several_are_a_question(announce: Announce) -> None:
    announce("stale", 58620, running=False, data_dir="D:\\旧\\datadir")
    announce("a", 58611, data_dir="D:\\国金QMT交易端\\userdata_mini\\datadir")
    assert addresses("", None, None) == [("127.0.0.1", 58611)]
    announce("b", 58610, root_dir="E:\\华鑫QMT", data_dir="F:\\data")
    with pytest.raises(ConfigurationError, match="2 terminals run here") as caught:
        addresses("", None, None)
    assert "QMT_TERMINAL_PATH" in caught.value.hint
    assert {"D:\\国金QMT交易端", "E:\\华鑫QMT"} == set(caught.value.data["terminals"])
    assert addresses("", 60000, None) == [("127.0.0.1", 60000)], "a port is an answer"
    assert addresses("", None, Path("e:\\华鑫QMT\\")) == [("127.0.0.1", 58610)]
    assert addresses("", None, Path("D:\\旧")) == [("127.0.0.1", 58620)]
    with pytest.raises(TerminalNotConnected, match=r"none runs in G:\\x"):
        addresses("", None, Path("G:\\x"))


def settings(**changes: Any) -> TerminalSettings:
    return TerminalSettings(native_module="qmt_simulator.native", **changes)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """Two terminals in two folders."""
    base = tmp_path_factory.mktemp("two")
    with ExitStack() as stack:
        running = []
        for name in ("国金QMT交易端", "华鑫证券QMT"):
            (base / name / "bin.x64").mkdir(parents=True)
            flags = ("--app-dir", str(base / name / "bin.x64"), "--start", "2026-11-20 10:30:00")
            running.append(
                (base / name, stack.enter_context(TerminalProcess(*flags, "--real-hours")))
            )
        yield running[0], running[1]


def test_the_one_in_the_folder_is_used(
    two: tuple[Any, Any], announce: Announce, china_time: None, tmp_path: Path
) -> None:
    (path, process), (other_path, other) = two
    announce("a", process.port, data_dir=str(path / "userdata_mini" / "datadir"))
    announce("b", other.port, root_dir=str(other_path))
    door = Terminal(settings(terminal_path=path / "userdata_mini"))
    info = door.connect()
    assert info.port == process.port
    assert (info.path, info.broker) == (str(path), "国金")
    assert info.facts()["xtquant_path"].endswith("xtquant")
    door.close()
    through_link = tmp_path / "link"
    through_link.symlink_to(other_path)
    door = Terminal(settings(terminal_path=through_link))
    assert door.connect().port == other.port
    assert door.info is not None
    assert door.info.broker == "华鑫证券"
    door.close()


def test_another_one_is_refused(two: tuple[Any, Any], china_time: None) -> None:
    (path, _), (other_path, other) = two
    door = Terminal(settings(terminal_path=path, terminal_port=other.port))
    with pytest.raises(WrongTerminal) as caught:
        door.connect()
    assert str(path) in caught.value.message
    assert str(other_path) in caught.value.message
    assert isinstance(caught.value, TerminalNotConnected), "it is tried again as any other"
    assert not door.connected
    assert other.control.status()["clients"] == []


def test_several_and_none_named_is_told_at_each_try(
    two: tuple[Any, Any], announce: Announce, china_time: None
) -> None:
    door = Terminal(settings())
    for name, (path, process) in zip("ab", two, strict=True):
        announce(name, process.port, root_dir=str(path))
    with pytest.raises(ConfigurationError, match="QMT_TERMINAL_PATH"):
        door.connect()
    assert not door.connected


def test_xtdata_s_own_search_is_never_used(announce: Announce, tmp_path: Path) -> None:
    """It would delete the files of terminals that do not run, and may find another one."""
    folder = announce("stale", 1, running=False, data_dir=str(tmp_path / "qmt"))
    script = """
from qmt_protocol.errors import TerminalNotConnected
from qmt_protocol.settings import TerminalSettings
from qmt_terminal import Terminal
try:
    Terminal(TerminalSettings(native_module="qmt_simulator.native")).connect()
except TerminalNotConnected as error:
    print(error.reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "TZ": "CST-8", "PYTHONUTF8": "1", "QMT_TERMINAL_PATH": str(tmp_path)},
    )
    assert "无法连接xtquant服务" in done.stdout
    assert (folder / "running_status").exists()
