"""The terminal's day, as the real xtdata.py meets it: nobody logged in, then no quote server."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from waiting import wait_for
from xtdata_scripts import ScriptedTerminal

from qmt_simulator import bson, native
from qmt_simulator.oracle import read_push_log

StartTerminal = Callable[..., ScriptedTerminal]
NINE = 1_795_136_400_000  # 2026-11-20 09:00 in China


def line_of(script: "subprocess.Popen[str]") -> str:
    assert script.stdout is not None
    return script.stdout.readline().strip()


def test_without_a_quote_server_nothing_comes_and_downloads_fail(
    terminal: ScriptedTerminal, push_log_file: Path
) -> None:
    script = terminal.start("""
        got, states = [], []
        xtdata.watch_quote_server_status(lambda info: states.append(info["status"]))
        xtdata.subscribe_whole_quote(["600519.SH"], got.append)
        wait_for(lambda: len(got) > 1)
        servers = [xtdata.show_quote_server_status()]
        print("READY", flush=True)
        wait_for(lambda: states == ["disconnected"])
        time.sleep(0.3)
        xtdata.subscribe_whole_quote(["000001.SH"], got.append)
        before = len(got)
        servers.append(xtdata.show_quote_server_status())
        full = [xtdata.get_full_tick(["600519.SH"])["600519.SH"]["time"]]
        time.sleep(1.6)
        full.append(xtdata.get_full_tick(["600519.SH"])["600519.SH"]["time"])
        silent, errors = len(got) == before, []
        for download in (
            lambda: xtdata.download_history_data2(["600519.SH"], "1d", "20260101", ""),
            xtdata.download_holiday_data,
        ):
            try:
                download()
            except Exception as error:
                errors.append(str(error))
        print("DOWN", flush=True)
        wait_for(lambda: states == ["disconnected", "connected"])
        wait_for(lambda: sum("600519.SH" in push for push in got[before:]) > 1)
        tell([servers, full, silent, errors, xtdata.get_client().is_connected()])
    """)
    assert line_of(script) == "READY"
    terminal.control.set_fault("quote_server_down")
    down_ms = time.time_ns() // 1_000_000
    assert line_of(script) == "DOWN"
    up_ms = time.time_ns() // 1_000_000
    terminal.control.clear_fault("quote_server_down")
    output, errors = script.communicate(timeout=120)
    assert "RESULT" in output, errors
    servers, full, silent, failures, connected = json.loads(output.split("RESULT ")[1])
    assert set(servers[0]) >= {"0_SH_L1", "0_SZ_L1"}
    assert servers[1] == {}
    assert full[0] == full[1] < down_ms
    assert silent
    assert failures[0] == "下载数据失败：行情服务器未连接"
    assert "行情服务器未连接" in failures[1]
    assert connected
    walls = read_push_log(push_log_file)["wall_ms"]
    assert (walls > up_ms).any()
    assert not ((walls > down_ms + 100) & (walls < up_ms)).any(), "logged and not pushed"


def client_of(terminal: ScriptedTerminal) -> native.IPythonApiClient:
    client = native.IPythonApiClient()
    client.set_config_addr(f"127.0.0.1:{terminal.port}")
    return client


def test_a_second_process_goes_on_with_the_day(
    start_terminal: StartTerminal, tmp_path: Path
) -> None:
    """Logged in at 09:04, quotes from 09:20, whatever came before; a slow machine may be late."""
    log = tmp_path / "pushed"
    clock = ("--start", "2026-11-20 09:00:00", "--speed", "240", "--real-hours")
    first = start_terminal(*clock)
    again = ("--wall-start-ms", str(first.ready["wall_start_ms"]), "--push-log", str(log))
    day = ("--login-at", "09:04", "--quotes-at", "2026-11-20 09:20:00")
    told = ("--broker", "国金", "--app-dir", "D:\\国金QMT\\bin.x64")
    second = start_terminal(*clock, *again, *day, *told)
    off_ms = first.control.now() - second.control.now()
    assert abs(off_ms) < 240 * 500, "both are in the same minutes"

    client = client_of(second)
    status = second.control.status()
    assert status["logged_in"] is (status["now_ms"] >= NINE + 4 * 60_000)
    wait_for(lambda: client.connect()[0] == 0)
    assert second.control.now() >= NINE + 4 * 60_000
    tag = bson.decode(client.get_server_tag())
    assert (tag["broker"], client.get_app_dir()) == ("国金", "D:\\国金QMT\\bin.x64")
    pushed: list[int] = []
    states: list[str] = []
    client.registerCommonControlCallback(
        "watchquoteserverstatus", lambda raw: states.append(str(bson.decode(raw)["status"]))
    )
    param = bson.encode({"needCallback": True})
    client.subscribe_whole_quote(["SH"], param, lambda raw: pushed.append(second.control.now()))
    status = second.control.status()
    assert status["quotes_up"] is (status["now_ms"] >= NINE + 20 * 60_000)
    wait_for(lambda: bool(pushed))
    assert states == ["connected"] or status["quotes_up"]
    assert pushed[0] >= NINE + 20 * 60_000
    began_ms = int(first.ready["wall_start_ms"])
    logged_at = NINE + (read_push_log(log)["wall_ms"] - began_ms) * 240
    assert logged_at.min() >= NINE + 20 * 60_000 - 240
    second.control.set_fault("not_logged_in")
    wait_for(lambda: not client.is_connected())
    code, text = client.connect()
    assert code < 0
    assert text
    assert second.control.status()["clients"] == []
