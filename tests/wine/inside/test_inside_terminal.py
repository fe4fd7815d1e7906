"""The native library of xtquant, and what our packages make of a machine without a terminal."""

from __future__ import annotations

import os
import sys
import time
from zoneinfo import ZoneInfo

import pytest

from qmt_protocol.errors import TerminalNotConnected
from qmt_protocol.settings import TerminalSettings
from qmt_terminal import Terminal
from qmt_terminal.loading import check_timezone


def test_this_is_windows() -> None:
    assert sys.platform == "win32"
    assert os.sep == "\\"


def test_the_native_library_says_that_there_is_no_terminal() -> None:
    terminal = Terminal(TerminalSettings())
    native = sys.modules["xtquant.datacenter"]
    assert native.__file__ is not None
    assert native.__file__.endswith(".pyd")
    with pytest.raises(TerminalNotConnected) as caught:
        terminal.connect()
    assert "无法连接xtquant服务，请检查QMT-投研版或QMT-极简版是否开启" in str(caught.value)
    # From then on it is asked only when somebody listens.
    with pytest.raises(TerminalNotConnected, match="nothing listens at"):
        terminal.connect()
    assert not terminal.connected
    with pytest.raises(TerminalNotConnected):
        terminal.full_tick(["600519.SH"])
    terminal.close()


def test_local_time_is_china_standard_time() -> None:
    check_timezone()
    assert time.localtime(0).tm_hour == 8
    assert ZoneInfo("Asia/Shanghai").key == "Asia/Shanghai"
