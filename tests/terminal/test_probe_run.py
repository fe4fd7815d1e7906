"""A call that hangs or aborts ends its question, not the probe; private words stay at home."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from probe_rig import MORNING, QUICK, RestartingTerminal, environment, probe

from qmt_simulator.process import TerminalProcess
from qmt_terminal.probe import QUESTIONS, Choice, Prober, Report, compare, load_references
from qmt_terminal.probe.redaction import Redactor

SECRETS = ("张三丰", "8881234567", "DESKTOP-QMT7", "10.20.30.40", "zhang@broker.example")
PRIVATE_TEXT = (
    r"C:\Users\张三丰\QMT\users\8881234567 on DESKTOP-QMT7 at 10.20.30.40:55300 "
    "zhang@broker.example"
)


@pytest.fixture(scope="module")
def simulated() -> Iterator[TerminalProcess]:
    with TerminalProcess(
        *("--start", MORNING, *QUICK, "--broker", "国金证券"),
        *("--app-dir", r"C:\Users\张三丰\国金QMT交易端\users\8881234567"),
    ) as terminal:
        yield terminal


@pytest.fixture
def terminal(simulated: TerminalProcess) -> Iterator[TerminalProcess]:
    yield simulated
    simulated.control.clear_fault()


def test_a_hanging_and_an_aborting_call_end_their_questions_alone(
    terminal: TerminalProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of five questions in a row one hangs and one aborts; the others are answered."""
    names = ["full_tick", "dividends", "instruments", "trading_days", "sectors"]
    for name in ("full_tick", "instruments"):
        monkeypatch.setitem(QUESTIONS, name, dataclasses.replace(QUESTIONS[name], limit_s=2.0))
    terminal.control.set_fault("latency", func="get_full_tick", s=60.0)
    terminal.control.set_fault("latency", func="get_divid_factors", s=60.0)

    def abort_the_next_client() -> None:
        deadline = time.monotonic() + 30
        while (child := prober._child) is None or child.process.pid not in {
            one["pid"] for one in terminal.control.status()["clients"]
        }:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2)  # it connects by several calls, and then asks
        terminal.control.set_fault("abort_client", pid=child.process.pid)

    def told(number: int, total: int, question: object, answer: object) -> None:
        assert (total, number <= total) == (5, True)
        if getattr(question, "name", "") == "dividends" and answer is None:
            threading.Thread(target=abort_the_next_client).start()

    prober = Prober(
        Choice(names=frozenset(names)), environment=environment(terminal.port), on_progress=told
    )
    file = tmp_path / "report.json"
    written: list[int] = []

    def write(report: Report) -> None:
        report.write(file)
        written.append(len(json.loads(file.read_text("utf-8"))["answers"]))

    answers = prober.run(Report(), after_each=write).answers
    assert written == [1, 2, 3, 4, 5, 5]
    assert {name: answers[name]["status"] for name in names} == {
        "full_tick": "hung",
        "dividends": "aborted",
        "instruments": "answered",
        "trading_days": "answered",
        "sectors": "answered",
    }
    assert answers["full_tick"]["reason"] == "no answer within 2 s"
    assert "native abort" in answers["dividends"]["reason"]
    document = json.loads(file.read_text("utf-8"))
    differences = compare(document, load_references()["research"]).differences
    assert {one.name for one in differences} == {"full_tick", "dividends"}


def test_nobody_is_named_in_a_report(
    terminal: TerminalProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a terminal's own words hold."""
    monkeypatch.setenv("USERNAME", "张三丰")
    monkeypatch.setenv("COMPUTERNAME", "DESKTOP-QMT7")
    terminal.control.set_fault("failed_download", message=PRIVATE_TEXT)
    names = {"identity", "download_year", "has_get_quote_server_status"}
    document = probe(terminal.port, names).document()
    text = json.dumps(document, ensure_ascii=False)
    assert document["answers"]["download_year"]["status"] == "failed"
    assert "下载数据失败" in document["answers"]["download_year"]["reason"]
    assert [secret for secret in SECRETS if secret in text] == []
    assert document["terminal"]["broker"] == "国金证券"
    assert document["terminal"]["version"] == "3.3.9.40000"
    assert str(terminal.port) not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"C:\Users\zhang san\QMT", r"~\QMT"),
        ("C:/Users/张三丰/QMT", "~/QMT"),
        (r"D:\QMT\userdata_mini\users\39988776", r"D:\QMT\userdata_mini\users\<number>"),
        (r"\\NAS-7\quotes", r"\\<host>\quotes"),
        ("connect 192.168.1.20:58610 failed", "connect <address>:58610 failed"),
        ("connect 127.0.0.1:58610 failed", "connect 127.0.0.1:58610 failed"),
        ("fe80::1ff:fe23:4567:890a", "<address>"),
        ("00-1A-2B-3C-4D-5E", "<address>"),
        ("account 13800138000", "account <number>"),
        ("600519.SH at 20261120103000", "600519.SH at 20261120103000"),
        ("20261120 09:30:00.000", "20261120 09:30:00.000"),
        ("1795141801404 2147483647", "1795141801404 2147483647"),
        ("起始时间错误 2026-01-05", "起始时间错误 2026-01-05"),
    ],
)
def test_what_is_redacted_and_what_stays(text: str, shown: str) -> None:
    assert Redactor({"USERNAME": "zs"}, host="box").text(text) == shown


def test_names_of_user_and_computer_go_with_any_case() -> None:
    redactor = Redactor(
        {"USERNAME": "Zhang.San", "COMPUTERNAME": "TRADER-01", "USERPROFILE": r"E:\profiles\zs"},
        host="box7",
    )
    document = redactor.document(
        {"zhang.san": [r"e:\PROFILES\ZS\qmt", "trader-01/box7", 7, None, True, 1.5]}
    )
    assert document == {"<user>": [r"~\qmt", "<host>/<host>", 7, None, True, 1.5]}


def test_without_a_terminal_the_report_says_so(tmp_path: Path) -> None:
    report = Prober(
        Choice(names=frozenset({"identity", "sectors"})), environment=environment(1)
    ).run(Report())
    document = report.document()
    assert document["refusal"]["error"] == "TerminalNotConnected"
    assert not document["complete"]
    assert {answer["status"] for answer in document["answers"].values()} == {"not asked"}
    assert compare(document, load_references()["research"]).compared == 0


@pytest.mark.long  # two restarts of a terminal; the reference reports hold what is expected
def test_restarts_are_asked_for_and_answered() -> None:
    terminal = RestartingTerminal("research")
    try:
        names = {"restart_without_a_call", "restart_with_a_call"}
        report = probe(terminal.port, names, on_person=terminal.restart)
    finally:
        terminal.stop()
    assert terminal.asked == ["restart", "restart"]
    found = compare(report.document(), load_references()["research"])
    assert (found.differences, found.compared) == ((), 5)
