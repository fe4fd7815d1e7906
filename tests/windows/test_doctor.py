"""``doctor`` as a person runs it: what it finds, its exit code, its report after Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from still_running import still_running

from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer
from qmt_windows.doctor_calendar import look_at_calendar_file, trading_day_line

FLAGS = (
    *("--start", "2026-11-20 10:00:00", "--speed", "4", "--push-ms", "25", "--real-hours"),
    *("--cache-delay-s", "0.02,0.05", "--profile", "broker", "--broker", "国金证券"),
)


@pytest.fixture(scope="module")
def simulated() -> Iterator[TerminalProcess]:
    with TerminalProcess(*FLAGS) as terminal:
        yield terminal


def variables(home: Path, port: int, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QMT_")}
    return {
        **kept,
        "QMT_HOME": str(home),
        "QMT_TERMINAL_PORT": str(port),
        "QMT_NATIVE_MODULE": "qmt_simulator.native",
        "QMT_TERMINAL_PROGRAMS": "qmt_simulator",
        "PYTHONUTF8": "1",
        **more,
    }


def run(
    environment: dict[str, str],
    *arguments: str,
    module: str = "qmt_windows",
    encoding: str = "utf-8",
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, "doctor", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        encoding=encoding,
        timeout=120,
        check=False,
    )


def levels(told: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert told.stdout, told.stderr
    return {line["name"]: line for line in json.loads(told.stdout)["lines"]}


def test_a_well_machine_with_its_bridge(
    simulated: TerminalProcess,
    streams_server: RedisServer,
    jobs_server: RedisServer,
    tmp_path: Path,
) -> None:
    environment = variables(
        tmp_path,
        simulated.port,
        QMT_STREAMS_URL=streams_server.url,
        QMT_JOBS_URL=jobs_server.url,
        TZ="CST-8",
    )
    told = run(environment, "--json")
    lines = levels(told)
    assert told.returncode == 0, told.stdout
    assert {name for name, line in lines.items() if line["level"] == "fail"} == set()
    assert lines["timezone"]["level"] == "ok"
    assert lines["programs"]["facts"]["programs"] == ["qmt_simulator"]
    terminal = lines["terminal"]["facts"]
    assert (terminal["broker"], terminal["edition"], terminal["version"]) == (
        "国金证券",
        "broker",
        "1.0.0.36000",
    )
    day = {"day": 20261120, "trades": True, "source": "terminal"}
    assert lines["trading_day"]["facts"] == {**day, "known_until": 20351231}
    assert (lines["trading_day"]["level"], lines["calendar_file"]["level"]) == ("ok", "ok")
    for name in ("streams_as_producer", "streams_as_worker", "jobs_as_worker"):
        assert (lines[name]["level"], lines[name]["facts"]["latency_ms"] > 0) == ("ok", True)


def test_what_is_known_of_trading_days_ends_in_weeks(
    simulated: TerminalProcess, tmp_path: Path
) -> None:
    """A broker's terminal without holidays, no library, and a file that knows this year alone."""
    (tmp_path / "exchange_calendars").mkdir()
    (tmp_path / "exchange_calendars" / "__init__.py").write_text("raise ImportError('blocked')")
    file = tmp_path / "calendar.toml"
    file.write_text('[2026]\nholidays = ["2026-01-01", "2026-05-01", "2026-10-01..2026-10-07"]')
    simulated.control.set_fault("not_realized", func="get_holidays")
    try:
        told = run(variables(tmp_path, simulated.port, PYTHONPATH=str(tmp_path)), "--json")
    finally:
        simulated.control.clear_fault()
    lines = levels(told)
    assert lines["calendar_file"]["facts"]["years"] == [2026]
    line = lines["trading_day"]
    assert line["level"] == "warn"
    assert line["facts"]["known_until"] == 20261231
    assert "交易日只知道到 2026-12-31，还有 41 天" in line["chinese"]
    assert "known until 2026-12-31 only, 41 days from now" in line["english"]
    assert "calendar.toml" in line["todo"][0]
    assert "calendar.toml" in line["todo"][1]


def test_a_calendar_file_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "calendar.toml"
    assert look_at_calendar_file(file, named=False).level == "ok"
    assert look_at_calendar_file(file, named=True).level == "warn"
    file.write_text('[2027]\nclosed = ["2027-02-30"]', "utf-8")
    line = look_at_calendar_file(file, named=False)
    assert line.level == "fail"
    assert "line 2: '2027-02-30' is no day" in line.chinese
    assert "2027-02-05..2027-02-12" in (line.todo or ("", ""))[1], "how it is written"
    file.write_text('[2027]\nclosed = ["2027-02-26"]', "utf-8")
    assert look_at_calendar_file(file, named=True).facts["closed"] == 1


def test_days_that_are_known_no_more_are_told_in_both_languages() -> None:
    day = {"day": 20270104, "trades": True, "source": "weekday", "known_until": 20261231}
    line = trading_day_line(day)
    assert line.level == "warn"
    assert "2026-12-31 之后的交易日未知" in line.chinese
    assert "trading days after 2026-12-31 are not known" in line.english
    assert trading_day_line({**day, "source": "law", "known_until": 20271231}).level == "ok"


def test_without_terminal_and_bridge_it_says_what_to_do(tmp_path: Path) -> None:
    """By way of ``qmt doctor``, which hands over, on a console without Chinese."""
    environment = variables(
        tmp_path,
        1,
        QMT_TERMINAL_PROGRAMS="NoSuchProgram.exe",
        TZ="UTC0",
        PYTHONUTF8="0",
        PYTHONIOENCODING="cp1252",
    )
    told = run(environment, module="qmt_client", encoding="cp1252")
    assert (told.returncode, told.stderr) == (1, "")
    assert "the terminal is not running" in told.stdout
    assert "Start QMT and log in" in told.stdout
    assert "qmt-windows join" in told.stdout
    assert "this machine is not on Beijing time" in told.stdout
    assert "the console's encoding cp1252 has no Chinese" in told.stdout


def test_ctrl_c_leaves_a_valid_report_that_names_what_differs(
    simulated: TerminalProcess, tmp_path: Path
) -> None:
    """Both values of the difference, and the nearest profile; no process stays."""
    simulated.control.set_fault("not_realized", func="getopenclosetradetimebystock")
    file = tmp_path / "报告.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "qmt_windows", "doctor", "--probe", "--output", str(file)],
        env=variables(tmp_path, simulated.port),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("12/"):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=120)
    simulated.control.clear_fault()
    assert process.returncode == 1, errors
    document = json.loads(file.read_text("utf-8"))
    statuses = [answer["status"] for answer in document["answers"].values()]
    assert not document["complete"]
    assert statuses[:11] == ["answered"] * 11
    assert set(statuses[12:]) == {"not asked"}
    assert "differs from the simulator (nearest profile: broker) in 1 of" in rest
    sought = "has_get_trading_period.answers: 终端是否支持 get_trading_period"
    text = rest[rest.index(sought) :]
    assert text.index('"unsupported"') < text.index('"yes"')
    assert children
    assert still_running(children) == []


def test_a_probe_without_time_writes_what_it_has(
    simulated: TerminalProcess, tmp_path: Path
) -> None:
    """The default place of reports; the same on standard output for a program."""
    told = run(variables(tmp_path, simulated.port), "--probe", "--minutes", "0.0001", "--json")
    [file] = (tmp_path / "reports").glob("probe-*.json")
    assert json.loads(told.stdout) == json.loads(file.read_text("utf-8"))
    answers = json.loads(told.stdout)["answers"]
    assert {answer.get("reason") for answer in answers.values()} <= {None, "time is over"}
    assert answers["sectors"]["status"] == "not asked"
