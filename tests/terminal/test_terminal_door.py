"""The door over the real xtdata and a simulated terminal: answers, errors, states."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from terminal_rig import open_terminal
from waiting import wait_for

from qmt_protocol.errors import (
    ConfigurationError,
    DownloadIncomplete,
    InvalidCode,
    InvalidRequest,
    SectorNotFound,
    TerminalNotConnected,
    TerminalRefused,
    TerminalUnsupported,
    TimedOut,
)
from qmt_protocol.settings import TerminalSettings
from qmt_protocol.times import DAY_MS, parse_start
from qmt_simulator.process import TerminalProcess
from qmt_terminal import Terminal, TradingSession

CODE = "600519.SH"
TODAY_MS = parse_start("20261120")


def test_connect_tells_what_answers(terminal: Terminal, simulated: TerminalProcess) -> None:
    info = terminal.connect()
    assert info is terminal.info
    assert (info.edition, info.simulated) == ("research", True)
    assert info.address == f"127.0.0.1:{simulated.port}"
    assert info.xtquant_version == "250807"
    assert terminal.connected
    assert abs(terminal.now_ms() - simulated.control.now()) < 1000


def test_connecting_again_changes_nothing(terminal: Terminal, simulated: TerminalProcess) -> None:
    before = terminal.generation
    clients = len(simulated.control.status()["clients"])
    terminal.connect()
    assert terminal.generation == before
    assert len(simulated.control.status()["clients"]) == clients


def test_full_tick_is_plain(terminal: Terminal) -> None:
    ticks = terminal.full_tick([CODE, "609999.SH"])
    assert list(ticks) == [CODE]
    assert {type(value) for value in ticks[CODE].values()} <= {int, float, str, list}
    assert ticks[CODE]["lastPrice"] > 0
    assert len(terminal.full_tick(["BJ"])) > 100


def test_whole_quote_begins_with_a_snapshot_and_goes_on(terminal: Terminal) -> None:
    pushes: list[dict[str, Any]] = []
    threads: set[int] = set()

    def on_push(push: dict[str, Any]) -> None:
        threads.add(threading.get_ident())
        pushes.append(push)

    number = terminal.subscribe_whole_quote(["SH"], on_push)
    wait_for(lambda: len(pushes) >= 3, "three pushes")
    terminal.unsubscribe(number)
    assert len(pushes[0]) > 1000
    assert all(code.endswith(".SH") for code in pushes[0])
    assert threading.get_ident() not in threads


def test_bars_need_a_download_and_today_a_subscription(terminal: Terminal) -> None:
    def read(code: str, **changes: Any) -> Any:
        arguments: dict[str, Any] = {
            "start_ms": TODAY_MS - 20 * DAY_MS,
            "end_ms": None,
            "count": None,
            "adjust": "none",
            "fill": False,
        }
        return terminal.bars([code], "1d", **(arguments | changes))

    code = "601398.SH"
    assert read(code) == {}
    invented = read(code, fill=True)[code]
    assert (invented["volume"] == 0).all()
    number = terminal.subscribe_quote(code, "1d", count=-1)
    assert read(code)[code]["time"].tolist() == [TODAY_MS]
    terminal.unsubscribe(number)
    told: list[tuple[int, int, str, str]] = []
    terminal.download(
        [code, "601288.SH"],
        "1d",
        start_ms=TODAY_MS - 20 * DAY_MS,
        end_ms=None,
        on_progress=lambda *args: told.append(args),
    )
    assert [entry[:2] for entry in told] == [(1, 2), (2, 2)]
    wait_for(lambda: len(read(code).get(code, ())) >= 10, "what was downloaded is in the cache")
    frame = read(code)[code]
    days = terminal.trading_days("SH", TODAY_MS - 20 * DAY_MS, TODAY_MS)
    assert len(frame) == len(days)
    assert frame["time"].dtype == "int64"
    assert len(read(code, count=3)[code]) == 3
    assert set(read("609999.SH")) == set()


def test_ticks_come_with_lists_and_unknown_codes_are_left_out(terminal: Terminal) -> None:
    terminal.subscribe_quote(CODE, "tick", count=-1)
    frames = terminal.history_ticks([CODE, "609999.SH"], start_ms=TODAY_MS, end_ms=None, count=None)
    assert list(frames) == [CODE]
    assert all(len(levels) == 5 for levels in frames[CODE]["askPrice"])
    assert terminal.history_ticks(["609999.SH"], start_ms=None, end_ms=None, count=3) == {}


def test_instrument_detail_has_no_sentinels(terminal: Terminal) -> None:
    index = terminal.instrument_detail("000001.SH")
    assert index is not None
    assert index["UpStopPrice"] is None
    assert index["InstrumentName"] == "上证指数"
    stock = terminal.instrument_detail(CODE)
    assert stock is not None
    assert stock["UpStopPrice"] > stock["PreClose"]
    assert len(stock) == 31
    assert terminal.instrument_detail("609999.SH") is None


def test_sectors(terminal: Terminal) -> None:
    assert len(terminal.sector_stocks("沪深300")) == 300
    assert "沪深A股" in terminal.sector_list()
    with pytest.raises(SectorNotFound, match="没有这个"):
        terminal.sector_stocks("没有这个")
    with pytest.raises(SectorNotFound):
        terminal.sector_stocks("沪深300*")  # xtdata would drop the star and answer


def test_calendar_and_sessions(terminal: Terminal) -> None:
    days = terminal.trading_days("SH", parse_start("20260928"), TODAY_MS + 30 * DAY_MS)
    assert days[:4] == [20260928, 20260929, 20260930, 20261008]
    assert days[-1] == 20261120
    assert terminal.trading_days("NOWHERE", 0, TODAY_MS) == []
    sessions = terminal.trading_sessions(CODE)
    assert TradingSession(3, 9 * 3600 + 1800, 11 * 3600 + 1800) in sessions
    assert sessions[-1].end_s == 15 * 3600


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda door: door.full_tick("600519.SH"), InvalidRequest),
        (lambda door: door.full_tick([]), InvalidRequest),
        (lambda door: door.full_tick([1]), InvalidRequest),
        (lambda door: door.subscribe_quote("600519", "1m"), InvalidCode),
        (lambda door: door.subscribe_quote(CODE, "2m"), InvalidRequest),
        (lambda door: door.subscribe_quote(CODE, "1m", count="5"), InvalidRequest),
        (lambda door: door.subscribe_whole_quote("SH", print), InvalidRequest),
        (lambda door: door.unsubscribe("3"), InvalidRequest),
        (lambda door: door.instrument_detail(None), InvalidCode),
        (lambda door: door.sector_stocks(""), InvalidRequest),
        (lambda door: door.trading_days("SH", "20260101", 0), InvalidRequest),
        (lambda door: door.download([CODE], "7d", start_ms=None, end_ms=None), InvalidRequest),
        (lambda door: door.download([CODE], "1d", start_ms=1.5, end_ms=None), InvalidRequest),
    ],
)
def test_wrong_arguments_never_reach_the_terminal(
    terminal: Terminal, call: Callable[[Any], Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(terminal)


@pytest.mark.parametrize(
    "change",
    [{"period": "tick"}, {"adjust": "sideways"}, {"count": 0}, {"count": -1}, {"start_ms": "x"}],
)
def test_wrong_arguments_of_bars(terminal: Terminal, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "period": "1d", "start_ms": None, "end_ms": None, "count": 1, "adjust": "none",
        "fill": False,
    }  # fmt: skip
    with pytest.raises(InvalidRequest):
        terminal.bars([CODE], **(arguments | change))


def test_a_terminal_that_refuses_more_subscriptions(
    start_simulated: Callable[..., TerminalProcess], china_time: None
) -> None:
    door = open_terminal(start_simulated("--profile", "broker").port)
    door.connect()
    codes = door.sector_stocks("沪深300")
    for code in codes[:100]:
        door.subscribe_quote(code, "1m")
    with pytest.raises(TerminalRefused, match="refused subscribe_quote"):
        door.subscribe_quote(codes[100], "1m")
    door.close()


def test_failures_have_names(terminal: Terminal, simulated: TerminalProcess) -> None:
    simulated.control.set_fault("not_realized", func="get_sector_list")
    with pytest.raises(TerminalUnsupported, match="get_sector_list"):
        terminal.sector_list()
    simulated.control.set_fault("not_realized", func="getopenclosetradetimebystock")
    with pytest.raises(TerminalUnsupported):
        terminal.trading_sessions(CODE)
    simulated.control.clear_fault()
    simulated.control.set_fault("failed_download", message="服务器忙")
    with pytest.raises(TerminalRefused, match="服务器忙"):
        terminal.download([CODE], "1d", start_ms=None, end_ms=None)
    simulated.control.clear_fault()
    simulated.control.set_fault("empty_failure_download")
    with pytest.raises(DownloadIncomplete):
        terminal.download([CODE], "1d", start_ms=None, end_ms=None)
    simulated.control.clear_fault()
    terminal.download([CODE], "1d", start_ms=TODAY_MS - DAY_MS, end_ms=None)


def test_a_call_without_an_answer_times_out(
    terminal: Terminal, simulated: TerminalProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMT_SIMULATOR_REQUEST_TIMEOUT_S", "0.3")
    simulated.control.set_fault("latency", func="get_full_tick", s=2)
    with pytest.raises(TimedOut, match="get_full_tick"):
        terminal.full_tick([CODE])
    simulated.control.clear_fault()
    monkeypatch.undo()
    assert CODE in terminal.full_tick([CODE])


def test_calls_wait_for_each_other(terminal: Terminal, simulated: TerminalProcess) -> None:
    simulated.control.set_fault("latency", func="get_full_tick", s=0.5)
    spans: list[tuple[float, float]] = []

    def ask() -> None:
        began = time.monotonic()
        terminal.full_tick([CODE])
        spans.append((began, time.monotonic()))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert terminal.connected  # told without waiting for the lock
    for thread in threads:
        thread.join(60)
    ends = sorted(end for _began, end in spans)
    assert ends[1] - ends[0] > 0.4
    assert ends[2] - ends[1] > 0.4


def test_an_old_terminal_downloads_code_by_code(
    start_simulated: Callable[..., TerminalProcess], china_time: None
) -> None:
    simulated = start_simulated("--profile", "old", "--cache-delay-s", "0,0.1")
    door = open_terminal(simulated.port)
    door.connect()
    told: list[Any] = []
    door.download(
        [CODE, "600000.SH"],
        "1d",
        start_ms=door.now_ms() - 10 * DAY_MS,
        end_ms=None,
        on_progress=lambda *args: told.append(args),
    )
    assert told == [(1, 2, CODE, ""), (2, 2, "600000.SH", "")]
    assert "time" not in door.full_tick([CODE])[CODE]
    door.close()


def test_death_and_return(
    start_simulated: Callable[..., TerminalProcess], china_time: None
) -> None:
    simulated = start_simulated()
    door = open_terminal(simulated.port)
    door.connect()
    before = door.generation
    pushed: list[Any] = []
    door.subscribe_whole_quote(["BJ"], pushed.append)
    simulated.stop()
    # The status comes on a thread of its own, a moment after the connection is seen to be dead.
    wait_for(lambda: not door.connected and door.generation != before, "the end is noticed")
    with pytest.raises(TerminalNotConnected):
        door.full_tick([CODE])
    with pytest.raises(TerminalNotConnected):
        door.connect()
    assert not door.connected
    door.unsubscribe(1)  # gone with its connection
    start_simulated(port=simulated.port)
    with pytest.raises(TerminalNotConnected):
        door.full_tick([CODE])  # never rebuilt in passing
    door.connect()
    assert door.connected
    assert CODE in door.full_tick([CODE])
    door.close()
    assert not door.connected


def test_a_download_that_loses_its_terminal_is_no_success(
    start_simulated: Callable[..., TerminalProcess], china_time: None
) -> None:
    simulated = start_simulated()
    door = open_terminal(simulated.port)
    door.connect()
    simulated.control.set_fault("stuck_download")
    threading.Timer(0.5, simulated.process.kill).start()
    with pytest.raises(TerminalNotConnected):
        door.download([CODE], "1d", start_ms=None, end_ms=None)
    door.close()


def test_no_terminal_at_all(china_time: None) -> None:
    door = open_terminal(1)
    with pytest.raises(TerminalNotConnected) as caught:
        door.connect()
    assert "QMT_TERMINAL_PORT" in caught.value.hint
    assert not door.connected
    assert door.info is None


def test_a_remote_host_needs_a_port(china_time: None) -> None:
    with pytest.raises(ConfigurationError, match="without its port"):
        Terminal(TerminalSettings(terminal_host="10.0.0.5", native_module="qmt_simulator.native"))
