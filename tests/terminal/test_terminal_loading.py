"""Loading xtquant: where it is refused, what does not run, which copy is taken."""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from qmt_protocol.errors import (
    InvalidRequest,
    TerminalNotConnected,
    TerminalRefused,
    TerminalUnsupported,
    TimedOut,
)
from qmt_terminal.clean import clean, clean_frame
from qmt_terminal.failures import translate
from qmt_terminal.loading import check_timezone

SETTINGS = """
from qmt_protocol.errors import QMTError
from qmt_protocol.settings import TerminalSettings
from qmt_terminal import Terminal
def load(**settings):
    try:
        return Terminal(TerminalSettings(**settings))
    except QMTError as error:
        print(error.slug, error)
"""


def run(script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", SETTINGS + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        env={**os.environ, "TZ": "Asia/Shanghai", "PYTHONUTF8": "1", **environment},
    )


def package_folder() -> Path:
    spec = importlib.util.find_spec("xtquant")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "CST6CDT"])
def test_other_time_zones_are_refused(zone: str) -> None:
    done = run("load(native_module='qmt_simulator.native')", TZ=zone)
    assert done.stdout.startswith("wrong-timezone "), done.stderr
    assert "TZ=Asia/Shanghai" in done.stdout
    assert "Time & language" in done.stdout


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "CST-8", "Asia/Taipei"])
def test_china_time_is_accepted_by_any_name(zone: str) -> None:
    done = run("print(load(native_module='qmt_simulator.native').connected)", TZ=zone)
    assert done.stdout == "False\n", done.stderr


def test_the_package_s_own_start_never_runs() -> None:
    done = run(
        """
        import socket, sys
        def refuse(*_): raise SystemExit("a connection was tried")
        socket.create_connection = socket.getaddrinfo = refuse
        load(native_module="qmt_simulator.native")
        print("requests" in sys.modules, sys.modules["xtquant"].__dict__.get("check_for_update"))
        print(sys.modules["xtquant.xtdata"].enable_hello)
        """
    )
    assert done.stdout == "False None\nFalse\n", done.stderr


def test_without_the_native_module_it_says_what_is_needed() -> None:
    done = run("load()")
    assert done.stdout.startswith("configuration ")
    assert "QMT_NATIVE_MODULE=qmt_simulator.native" in done.stdout


def test_a_copy_that_a_terminal_ships(tmp_path: Path) -> None:
    shipped = tmp_path / "bin" / "site-packages" / "xtquant"
    shutil.copytree(package_folder(), shipped, ignore=shutil.ignore_patterns("*.pyd", "*.dll"))
    (shipped / "__init__.py").write_text('__version__ = "xtquant_240101"\n', "utf-8")
    for folder in (shipped.parent, shipped):
        done = run(
            f"""
            import sys
            door = load(native_module="qmt_simulator.native", xtquant_path={str(folder)!r})
            print(sys.modules["xtquant.xtdata"].__file__, door._xtquant_version)
            """
        )
        assert done.stdout == f"{shipped / 'xtdata.py'} 240101\n", done.stderr
    elsewhere = run(f"load(xtquant_path={str(tmp_path)!r})")
    assert "holds no xtquant package" in elsewhere.stdout


def test_two_copies_or_natives_in_one_process_are_refused(tmp_path: Path) -> None:
    shipped = tmp_path / "xtquant"
    shipped.mkdir()
    (shipped / "xtdata.py").write_text("", "utf-8")
    done = run(
        f"""
        load(native_module="qmt_simulator.native")
        load(native_module="qmt_simulator.native", xtquant_path={str(tmp_path)!r})
        load(native_module="json")
        load(native_module="no.such.module")
        """
    )
    lines = done.stdout.splitlines()
    assert "loaded from" in lines[0]
    assert "cannot replace it" in lines[1]
    assert "cannot be imported" in lines[2]


def test_this_process_is_checked(china_time: None) -> None:
    check_timezone()


@pytest.mark.parametrize(
    ("raised", "connected", "kind"),
    [
        (
            Exception("无法连接xtquant服务，请检查QMT-投研版或QMT-极简版是否开启"),
            True,
            TerminalNotConnected,
        ),
        (Exception("行情服务连接断开"), True, TerminalNotConnected),
        (RuntimeError("func:get_full_tick, error:connection reset"), False, TerminalNotConnected),
        (RuntimeError("func:get_full_tick, error:timeout"), True, TimedOut),
        (
            RuntimeError(
                "当前客户端未支持此功能，请更新客户端或升级投研版 "
                "func:getperiodlist, error:function not realize"
            ),
            True,
            TerminalUnsupported,
        ),
        (
            RuntimeError("func:get, error:请求失败, 没有Python接口权限, func:get, period:1m"),
            True,
            TerminalUnsupported,
        ),
        (RuntimeError("func:x, error:需要VIP权限"), True, TerminalUnsupported),
        (RuntimeError("func:subscribe, error:订阅超过上限"), True, TerminalRefused),
        (Exception("下载数据失败：服务器忙"), True, TerminalRefused),
        (
            TypeError("get_full_tick(): incompatible function arguments. The following"),
            True,
            InvalidRequest,
        ),
        (ValueError("something else"), True, TerminalRefused),
    ],
)
def test_texts_become_errors(raised: Exception, connected: bool, kind: type) -> None:
    error = translate(raised, "call", connected=connected)
    assert type(error) is kind
    assert error.message


def test_no_value_marks_become_none() -> None:
    from qmt_simulator import bson

    document = {
        "int": bson.Int64(2147483647),
        "float": 1.7976931348623157e308,
        "minus": -1.7976931348623157e308,
        "date": "2147483647",
        "kept": bson.Int64(5),
        "list": [1.5, 2147483647],
        "flag": True,
    }
    cleaned = clean(document)
    assert cleaned == {
        "int": None, "float": None, "minus": None, "date": None, "kept": 5,
        "list": [1.5, None], "flag": True,
    }  # fmt: skip
    assert type(cleaned["kept"]) is int


def test_frames_get_nan_for_marks() -> None:
    import pandas as pd

    frame = pd.DataFrame({"close": [1.0, 1.7976931348623157e308], "volume": [1, 2147483647]})
    cleaned = clean_frame(frame)
    assert cleaned["close"].isna().tolist() == [False, True]
    assert cleaned["volume"].tolist() == [1, 2147483647]
    assert frame["close"].iloc[1] > 1e300
