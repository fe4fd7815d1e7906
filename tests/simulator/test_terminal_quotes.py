"""Pushes and snapshots through the real xtdata.py, judged by the push log and the oracle."""

import json
import time
from collections.abc import Callable

import numpy as np
import pytest
from xtdata_scripts import ScriptedTerminal

from qmt_simulator import tickrows
from qmt_simulator.control import Control
from qmt_simulator.oracle import Oracle

COLLECT = """
    got = []
    number = xtdata.subscribe_whole_quote(%s, got.append)
    time.sleep(%s)
    wait_for(lambda: len(got) > 4)
    xtdata.unsubscribe_quote(number)
    tell({"number": number, "pushes": got})
"""


def test_every_tick_arrives_once_in_order_and_unchanged(terminal: ScriptedTerminal) -> None:
    result = terminal.run(COLLECT % (["SH", "600000.SH", "000001.SZ"], 2.0))
    oracle = Oracle(terminal.port)
    try:
        pushed = oracle.pushed()
    finally:
        oracle.close()
    pushed = pushed[pushed["subscription"] == result["number"]]
    received = [(code, tick) for push in result["pushes"] for code, tick in push.items()]
    assert len(result["pushes"]) > 3
    # The log may hold a last push that left after the script stopped listening.
    assert len(pushed) >= len(received) > 2000
    assert (np.diff(pushed["seq"].astype(np.int64)) >= 1).all()
    for record, (code, tick) in zip(pushed, received, strict=False):
        assert record["code"].decode() == code
        assert list(tick) == list(tickrows.FIELDS)
        for field in tickrows.FIELDS:
            assert record[field].tolist() == tick[field], (code, field)


def test_first_push_is_everything_subscribed_and_later_ones_only_changes(
    terminal: ScriptedTerminal,
) -> None:
    result = terminal.run(COLLECT % (["SZ"], 1.5))
    with Control(terminal.port) as control:
        codes = control.call("oracle.codes")
    first, *later = result["pushes"]
    listed = {code for code in codes if code.endswith(".SZ")}
    assert set(first) <= listed
    assert len(first) > 0.9 * len(listed)
    assert all(0 < len(push) < len(first) for push in later)


def test_ticks_are_fresh_and_equal_to_the_market(terminal: ScriptedTerminal) -> None:
    result = terminal.run(COLLECT % (["600519.SH"], 3.0))
    oracle = Oracle(terminal.port)
    try:
        truth = oracle.ticks("600519.SH")
        now_ms = oracle.control.now()
    finally:
        oracle.close()
    ticks = [push["600519.SH"] for push in result["pushes"]]
    assert len(ticks) >= 2
    assert now_ms - ticks[-1]["time"] < 15_000
    for tick in ticks:
        [row] = np.flatnonzero(truth["time"] == tick["time"])
        assert {field: truth[field][row].tolist() for field in tick} == tick


def test_single_quotes_push_lists_and_reform_the_bar(terminal: ScriptedTerminal) -> None:
    result = terminal.run("""
        ticks, bars = [], []
        one = xtdata.subscribe_quote("000001.SZ", "tick", callback=ticks.append)
        two = xtdata.subscribe_quote("000001.SZ", "1m", callback=bars.append)
        wait_for(lambda: len(ticks) > 2 and len(bars) > 2)
        subscribed = xtdata.get_current_connect_sub_info()
        xtdata.unsubscribe_quote(one)
        xtdata.unsubscribe_quote(two)
        tell({"ticks": ticks, "bars": bars, "subscribed": subscribed, "numbers": [one, two]})
    """)
    rows = [row for push in result["bars"] for row in push["000001.SZ"]]
    labels = [row["time"] for row in rows]
    assert labels == sorted(labels)
    assert len(set(labels)) < len(labels) or len(set(labels)) >= 2
    assert all(isinstance(push["000001.SZ"], list) for push in result["ticks"])
    assert [item["subId"] for item in result["subscribed"]] == result["numbers"]
    oracle = Oracle(terminal.port)
    try:
        truth = oracle.bars("000001.SZ", "1m", labels[0], labels[0])
    finally:
        oracle.close()
    assert truth["open"].tolist() == [rows[0]["open"]]


def test_full_tick_is_the_market_now_with_whole_numbers_as_ints(
    midsession: ScriptedTerminal,
) -> None:
    result = midsession.run("""
        tell({
            "ticks": xtdata.get_full_tick(["600519.SH", "000001.SH", "no such.SH"]),
            "count": len(xtdata.get_full_tick(["BJ"])),
        })
    """)
    assert set(result["ticks"]) == {"600519.SH", "000001.SH"}
    assert result["count"] > 100
    tick = result["ticks"]["600519.SH"]
    oracle = Oracle(midsession.port)
    try:
        truth = oracle.ticks("600519.SH")
    finally:
        oracle.close()
    [row] = np.flatnonzero(truth["time"] == tick["time"])
    assert tick["timetag"].startswith("20261120 10:3")
    for field in ("lastPrice", "amount", "volume", "askPrice", "bidVol"):
        assert tick[field] == truth[field][row].tolist()
    numbers = [tick["settlementPrice"], *result["ticks"]["000001.SH"]["askPrice"]]
    assert all(isinstance(number, int) for number in numbers)


def test_burst_is_the_whole_market_in_one_push(terminal: ScriptedTerminal) -> None:
    script = terminal.start("""
        got = []
        xtdata.subscribe_whole_quote(["SH", "SZ", "BJ"], got.append)
        wait_for(lambda: got)
        print("READY", flush=True)
        wait_for(lambda: max(map(len, got[1:]), default=0) > 4000)
        tell(max(map(len, got[1:])))
    """)
    assert script.stdout is not None
    assert script.stdout.readline() == "READY\n"
    with Control(terminal.port) as control:
        result = control.burst()
    output, errors = script.communicate(timeout=120)
    assert result["last_seq"] - result["first_seq"] + 1 >= 4000, errors
    assert json.loads(output.split("RESULT ")[1]) > 4000


@pytest.mark.parametrize(("profile", "limit"), [("research", 300), ("broker", 100)])
def test_too_many_single_quotes_are_refused(
    start_terminal: Callable[..., ScriptedTerminal], profile: str, limit: int
) -> None:
    result = start_terminal("--profile", profile).run(f"""
        codes = xtdata.get_stock_list_in_sector("沪深A股")[:{limit} + 1]
        tell([xtdata.subscribe_quote(code, "1m", callback=None) for code in codes])
    """)
    assert min(result[:limit]) > 0
    assert result[limit:] == [-1]


def test_profiles_show_the_same_tick_differently(
    start_terminal: Callable[..., ScriptedTerminal],
) -> None:
    shown = {}
    for profile in ("research", "broker", "old"):
        flags = ("--profile", profile, "--start", "2026-11-20 10:30:00", "--speed", "0")
        shown[profile] = start_terminal(*flags, "--real-hours").run("""
            got = []
            xtdata.subscribe_whole_quote(["600519.SH"], got.append)
            wait_for(lambda: got)
            tell([got[0]["600519.SH"], xtdata.get_full_tick(["600519.SH"])["600519.SH"]])
        """)
    research, broker, old = (shown[name][0] for name in ("research", "broker", "old"))
    assert research["askPrice"][4] > 0
    assert broker["askPrice"] == [research["askPrice"][0], 0, 0, 0, 0]
    assert (broker["pvolume"], broker["transactionNum"]) == (research["volume"] * 100, 0)
    assert (old["pvolume"], old["amount"]) == (research["volume"], research["amount"] * 100)
    assert "time" in shown["research"][1]
    assert not {"time", "transactionNum", "pe", "tickvol"} & set(shown["broker"][1])
    assert shown["old"][1]["timetag"].endswith(".000")


def test_an_accelerated_clock_conflates(start_terminal: Callable[..., ScriptedTerminal]) -> None:
    terminal = start_terminal("--start", "2026-11-20 10:00:00", "--speed", "20", "--real-hours")
    began = time.monotonic()
    result = terminal.run(COLLECT % (["600000.SH"], 2.0))
    ticks = [push["600000.SH"]["time"] for push in result["pushes"]]
    assert ticks == sorted(set(ticks))
    # Market time runs ahead: more than the wall time that this test took could give.
    assert ticks[-1] - ticks[0] > 15_000
    with Control(terminal.port) as control:
        passed_ms = control.now() - 1_795_140_000_000
    assert passed_ms > (time.monotonic() - began) * 1000
