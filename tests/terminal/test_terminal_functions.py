"""Older copies of xtquant and terminals that lack functions: named, remembered, not asked again."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmt_protocol.errors import TerminalUnsupported
from qmt_protocol.settings import TerminalSettings
from qmt_simulator.process import TerminalProcess
from qmt_terminal import Terminal
from qmt_terminal.functions import Functions

CODE = "600519.SH"


def older_copy(folder: Path, *, without: set[str]) -> Path:
    """Make a copy that looks like those of 2023: fewer functions, other names, a bare reconnect."""
    spec = importlib.util.find_spec("xtquant")
    assert spec is not None
    assert spec.submodule_search_locations
    installed = Path(next(iter(spec.submodule_search_locations)))
    shutil.copytree(
        installed, folder / "xtquant", ignore=shutil.ignore_patterns("*.pyd", "*.dll", "doc")
    )
    file = folder / "xtquant" / "xtdata.py"
    source = file.read_text("utf-8")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name in without:
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
            without = without - {node.name}
    assert not without, f"no such functions: {without}"
    text = (
        "\n".join(lines).replace("xtbson as _BSON_", "xtbson as bson").replace("_BSON_.", "bson.")
    )
    returns = "    return connect(ip, port, remember_if_success)\n"
    assert returns in text
    file.write_text(text.replace(returns, returns.replace("return ", "")), "utf-8")
    (folder / "xtquant" / "__init__.py").write_text('__version__ = "xtquant_230403"\n', "utf-8")
    return folder


SCRIPT = """
def say(*what):
    print('>', *what)
from qmt_protocol.errors import QMTError
from qmt_protocol.settings import TerminalSettings
from qmt_terminal import Terminal
from qmt_terminal.calendar import TradingCalendar
def tell(call, *arguments, **named):
    try:
        answer = call(*arguments, **named)
        say(type(answer).__name__)
    except QMTError as error:
        say(type(error).__name__, error.message)
door = Terminal(TerminalSettings(native_module="qmt_simulator.native"))
say(door.connect().xtquant_version)
say(len(door.full_tick(["600519.SH"])))
tell(door.trading_sessions, "600519.SH")
tell(door.holidays)
pushes = []
tell(door.subscribe_pushes, ["BJ"], pushes.append)
tell(door.bars, ["600519.SH"], "1d", start_ms=None, end_ms=None, count=3, adjust="none", fill=True)
say(TradingCalendar(door).of_day(20261120).to_dict())
say([name for name, state in door.functions.table.items() if state == "missing"])
door.close()
say(door.connected)
"""


def test_an_older_copy_serves_what_it_has_and_names_what_it_lacks(
    simulated: TerminalProcess, tmp_path: Path
) -> None:
    lacks = {"get_trading_period", "get_holidays", "watch_xtquant_status", "disconnect"}
    kept = tmp_path / "kept" / "functions.json"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        env={
            **os.environ,
            "TZ": "CST-8",
            "PYTHONUTF8": "1",
            "QMT_TERMINAL_PORT": str(simulated.port),
            "QMT_XTQUANT_PATH": str(older_copy(tmp_path / "old", without=set(lacks))),
            "QMT_FUNCTIONS_FILE": str(kept),
        },
    )
    said = [line[2:] for line in done.stdout.splitlines() if line.startswith("> ")]
    assert len(said) == 9, done.stderr
    assert said[:2] == ["230403", "1"]
    for line, function in zip(said[2:4], ("get_trading_period", "get_holidays"), strict=True):
        assert line.startswith("TerminalUnsupported xtquant 230403 in ")
        assert line.endswith(f"has no {function}.")
    assert said[4:6] == ["int", "dict"]
    assert ast.literal_eval(said[6]) == {"day": 20261120, "trades": True, "source": "terminal"}
    assert set(ast.literal_eval(said[7])) == lacks
    assert said[8] == "False"
    ((name, entry),) = json.loads(kept.read_text("utf-8"))["terminals"].items()
    assert name == "xtquant 230403 | research 3.3.9.40000"
    assert set(entry["missing"]) == lacks


def test_what_a_terminal_refused_is_asked_once(
    start_simulated: Callable[..., TerminalProcess], china_time: None, tmp_path: Path
) -> None:
    simulated = start_simulated("--profile", "broker")
    file = tmp_path / "functions.json"

    def door() -> Terminal:
        settings = TerminalSettings(
            terminal_port=simulated.port,
            native_module="qmt_simulator.native",
            functions_file=file,
        )
        connected = Terminal(settings)
        connected.connect()
        return connected

    first = door()
    with pytest.raises(TerminalUnsupported, match="downloadholidaydata"):
        first.download_holidays()
    first.close()
    kept = json.loads(file.read_text("utf-8"))["terminals"]
    assert list(kept["xtquant 250807 | broker 1.0.0.36000"]["refused"]) == ["download_holiday_data"]

    # A call that reached the terminal would wait.
    simulated.control.set_fault("latency", func="downloadholidaydata", s=30)
    again = door()
    with pytest.raises(TerminalUnsupported, match="said so before"):
        again.download_holidays()
    assert again.functions.table["download_holiday_data"] == "refused"
    assert again.functions.table["get_full_tick"] == "has"
    again.close()
    # What every terminal has is asked again however it answered.
    simulated.control.set_fault("not_realized", func="get_full_tick")
    other = door()
    for _ in range(2):
        with pytest.raises(TerminalUnsupported, match="does not know get_full_tick"):
            other.full_tick([CODE])
    simulated.control.clear_fault()
    assert CODE in other.full_tick([CODE])
    other.close()


def table(file: Path | None, **functions: Any) -> Functions:
    xtdata = SimpleNamespace(get_holidays=print, get_trading_period=print, **functions)
    return Functions(xtdata, xtquant_version="1", xtquant_path="here", file=file)


def test_a_refusal_holds_for_that_terminal_and_for_a_week(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "functions.json"
    one = table(file)
    one.of_terminal("1.0", "broker")
    one.note_refused("get_holidays")
    one.of_terminal("2.0", "broker")
    one.check("get_holidays")  # updated: asked anew
    with pytest.raises(TerminalUnsupported, match="has no get_instrument_detail"):
        one.check("get_instrument_detail")
    other = table(file)
    other.of_terminal("1.0", "broker")
    with pytest.raises(TerminalUnsupported, match="said so before"):
        other.check("get_holidays")
    later = json.loads(file.read_text("utf-8"))
    for entry in later["terminals"].values():
        entry["refused"] = {
            name: at_ms - 8 * 86_400_000 for name, at_ms in entry["refused"].items()
        }
    file.write_text(json.dumps(later), "utf-8")
    third = table(file)
    third.of_terminal("1.0", "broker")
    third.check("get_holidays")


@pytest.mark.parametrize("body", ["", "{", "[]", '{"format": 9}', '{"format": 1, "terminals": 3}'])
def test_a_damaged_file_is_written_anew(tmp_path: Path, body: str) -> None:
    file = tmp_path / "functions.json"
    file.write_text(body, "utf-8")
    one = table(file)
    one.of_terminal("1.0", "broker")
    one.check("get_holidays")
    one.note_refused("get_holidays")
    assert list(json.loads(file.read_text("utf-8"))["terminals"]) == ["xtquant 1 | broker 1.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["functions.json"], "nothing is left over"


def test_a_file_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = table(tmp_path / "file" / "functions.json")
    one.of_terminal("1.0", "broker")
    one.note_refused("get_holidays")
    with pytest.raises(TerminalUnsupported):
        one.check("get_holidays")
    assert table(None).table["get_holidays"] == "has"
