"""Faults on demand, as the real xtdata.py meets them."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import wait_for
from xtdata_scripts import ScriptedTerminal

from qmt_simulator.control import Control, ControlError


@pytest.fixture
def control(terminal: ScriptedTerminal) -> Iterator[Control]:
    with Control(terminal.port) as channel:
        yield channel
        channel.clear_fault()


def first_line(script: "subprocess.Popen[str]") -> str:
    assert script.stdout is not None
    return script.stdout.readline().strip()


def test_deaf_terminal_is_connected_but_silent(
    terminal: ScriptedTerminal, control: Control
) -> None:
    script = terminal.start("""
        got = []
        xtdata.subscribe_whole_quote(["SH"], got.append)
        wait_for(lambda: len(got) > 2)
        print("READY", flush=True)
        def is_silent():
            before = len(got)
            time.sleep(1.5)
            return len(got) == before
        wait_for(is_silent)
        tell(xtdata.get_client().is_connected())
    """)
    assert first_line(script) == "READY"
    control.set_fault("deaf", role="test")
    output, errors = script.communicate(timeout=120)
    assert "RESULT true" in output, errors


def test_quote_server_switch_sends_time_backwards(
    terminal: ScriptedTerminal, control: Control
) -> None:
    script = terminal.start("""
        got, states = [], []
        xtdata.subscribe_whole_quote(["600519.SH", "000001.SH"], got.append)
        xtdata.watch_quote_server_status(lambda info: states.append(info["status"]))
        wait_for(lambda: len(got) > 1)
        print("READY", flush=True)
        times = lambda: [push["600519.SH"]["time"] for push in got if "600519.SH" in push]
        wait_for(lambda: times() != sorted(times()) and len(states) > 1)
        tell([times(), states])
    """)
    assert first_line(script) == "READY"
    assert control.set_fault("server_switch", back_ms=20_000) == 4
    times, states = json.loads(script.communicate(timeout=120)[0].split("RESULT ")[1])
    assert states == ["disconnected", "connected"]
    assert min(after - before for before, after in itertools.pairwise(times)) < -10_000


def test_tick_times_go_wrong_for_chosen_codes_only(
    terminal: ScriptedTerminal, control: Control
) -> None:
    wrong = {
        "600519.SH": "missing",
        "000001.SZ": "zero",
        "300750.SZ": "repeated",
        "600000.SH": "backward",
        "510300.SH": "future",
    }
    for code, kind in wrong.items():
        control.set_fault("tick_time", kind=kind, codes=[code])
    pushes = terminal.run(f"""
        got = []
        codes = {[*wrong, "000001.SH"]}
        xtdata.subscribe_whole_quote(codes, got.append)
        wait_for(lambda: all(sum(code in push for push in got) > 2 for code in codes))
        tell(got)
    """)
    now_ms = control.now()
    times = {
        kind: [push[code].get("time") for push in pushes if code in push]
        for code, kind in {**wrong, "000001.SH": "right"}.items()
    }
    assert set(times["missing"]) == {None}
    assert set(times["zero"]) == {0}
    assert len(set(times["repeated"])) == 1
    assert 0 <= now_ms - times["repeated"][0] < 30_000
    assert all(now_ms - stamp > 50_000 for stamp in times["backward"])
    assert all(stamp - now_ms > 3_000_000 for stamp in times["future"])
    assert all(0 <= now_ms - stamp < 30_000 for stamp in times["right"])
    assert len(set(times["right"])) == len(times["right"])


def test_auction_zero_leaves_last_close(terminal: ScriptedTerminal, control: Control) -> None:
    control.set_fault("auction_zero", codes=["600519.SH"])
    tick = terminal.run("""
        got = []
        xtdata.subscribe_whole_quote(["600519.SH"], got.append)
        wait_for(lambda: got)
        tell(got[0]["600519.SH"])
    """)
    assert [tick[key] for key in ("lastPrice", "open", "high", "low")] == [0, 0, 0, 0]
    assert tick["lastClose"] > 0
    assert tick["openInt"] == 12


def test_functions_that_the_terminal_lacks(terminal: ScriptedTerminal, control: Control) -> None:
    control.set_fault("not_realized", func="getperiodlist")
    control.set_fault("not_realized", func="get_full_tick")
    texts = terminal.run("""
        texts = []
        for call in (xtdata.get_period_list, lambda: xtdata.get_full_tick(["SH"])):
            try:
                call()
            except RuntimeError as error:
                texts.append(str(error))
        tell(texts)
    """)
    head = "当前客户端未支持此功能，请更新客户端或升级投研版 func:"
    assert texts == [
        f"{head}getperiodlist, error:function not realize",
        f"{head}get_full_tick, error:function not realize",
    ]


def test_downloads_fail_as_the_real_ones(terminal: ScriptedTerminal, control: Control) -> None:
    script = """
        try:
            tell(xtdata.download_history_data2(["600519.SH"], "1d", "20260101", ""))
        except Exception as error:
            tell([type(error).__name__, str(error)])
    """
    control.set_fault("failed_download", message="服务器忙")
    assert terminal.run(script) == ["Exception", "下载数据失败：服务器忙"]
    control.clear_fault("failed_download")
    control.set_fault("empty_failure_download")
    assert terminal.run(script) == {}


def test_stuck_download_never_ends(terminal: ScriptedTerminal, control: Control) -> None:
    control.set_fault("stuck_download")
    result = terminal.run("""
        import threading
        ended = threading.Event()
        def load():
            xtdata.download_history_data2(["600519.SH"], "1d", "20260101", "")
            ended.set()
        threading.Thread(target=load, daemon=True).start()
        tell(ended.wait(2.0))
    """)
    assert result is False


def test_latency_delays_that_call_only(terminal: ScriptedTerminal, control: Control) -> None:
    control.set_fault("latency", func="get_sector_list", s=1.0)
    waits = terminal.run("""
        def timed(call):
            began = time.monotonic()
            call()
            return time.monotonic() - began
        tell([timed(xtdata.get_sector_list), timed(xtdata.get_holidays)])
    """)
    assert waits[0] >= 1.0 > waits[1]


def test_a_call_without_answer_times_out(
    terminal: ScriptedTerminal, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMT_SIMULATOR_REQUEST_TIMEOUT_S", "0.5")
    control.set_fault("latency", func="get_holidays", s=3.0)
    text = terminal.run("""
        try:
            xtdata.get_holidays()
        except RuntimeError as error:
            tell(str(error))
    """)
    assert text == "func:get_holidays, error:timeout"


@pytest.mark.skipif(os.name == "nt", reason="signals tell how a process ended on POSIX only")
def test_native_abort_kills_the_client(terminal: ScriptedTerminal, control: Control) -> None:
    script = terminal.start("print('READY', flush=True); time.sleep(30)", role="victim")
    assert first_line(script) == "READY"
    assert control.set_fault("abort_client", role="victim") == 1
    script.communicate(timeout=120)
    assert script.returncode == -signal.SIGABRT


def test_terminal_death_and_return(start_terminal: Callable[..., ScriptedTerminal]) -> None:
    terminal = start_terminal()
    script = terminal.start("""
        from xtquant import xtconn
        states = []
        xtdata.watch_xtquant_status(lambda info: states.append(info["status"]))
        client = xtdata.reconnect(port=PORT)
        xtdata.subscribe_whole_quote(["SH"], lambda push: None)
        print("READY", flush=True)
        wait_for(lambda: not client.is_connected())
        errors = []
        try:
            client.get_holidays()
        except RuntimeError as error:
            errors.append(str(error))
        try:
            xtdata.get_holidays()
        except Exception as error:
            errors.append(str(error))
        wait_for(lambda: len(states) > 1)
        tell([states, errors])
    """)
    assert first_line(script) == "READY"
    with Control(terminal.port) as channel:
        channel.kill()
    states, errors = json.loads(script.communicate(timeout=120)[0].split("RESULT ")[1])
    assert states == ["connected", "disconnected"]
    assert errors[0] == "func:get_holidays, error:not connected"
    assert errors[1].startswith("无法连接xtquant服务")
    again = start_terminal("--port", str(terminal.port))
    assert again.port == terminal.port
    assert again.run("tell(xtdata.get_client().is_connected())") is True


def test_a_refused_command_says_why(control: Control) -> None:
    with pytest.raises(ControlError, match="unknown fault: nonsense"):
        control.set_fault("nonsense")
    with pytest.raises(ControlError, match=r"no such instrument: 1\.SH"):
        control.set_fault("auction_zero", codes=["1.SH"])
    with pytest.raises(ControlError, match="kind must be one of"):
        control.set_fault("tick_time", kind="late")


def test_control_is_for_controllers_only(terminal: ScriptedTerminal) -> None:
    text = terminal.run("""
        try:
            xtdata.get_client()._call("control.burst")
        except RuntimeError as error:
            tell(str(error))
    """)
    assert text.endswith("function not realize")


@pytest.mark.skipif(os.name == "nt", reason="signals tell how a process ended on POSIX only")
def test_the_terminal_ends_with_its_parent(tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'qmt_simulator', '--port', '0',"
        " '--exit-with-stdin'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    wait_for(lambda: not _alive(pid), "the terminal ends with its parent")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
