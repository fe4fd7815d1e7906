"""A producer and a worker on Windows CPython serve Linux, with the real xtdata.py between."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from waiting import wait_for
from wine_rig import Bridge, WineProcess, kill_process

from qmt_client import QMTClient
from qmt_simulator.oracle import read_push_log

CODES = ["600519.SH", "000001.SZ", "IF2612.IF"]
COLUMNS = ("open", "high", "low", "close", "volume", "amount", "preClose", "suspendFlag")


@pytest.fixture(scope="module")
def client(bridge: Bridge) -> Iterator[QMTClient]:
    """A client on Linux."""
    with QMTClient(**bridge.target) as made:
        yield made


def truth(bridge: Bridge, code: str, period: str, adjust: str) -> pd.DataFrame:
    columns = dict(bridge.terminal.oracle.bars(code, period, adjust=adjust))
    times = columns.pop("time").astype("datetime64[ms]").astype("datetime64[ns]")
    index = pd.DatetimeIndex(times, name="time").tz_localize("UTC").tz_convert("Asia/Shanghai")
    return pd.DataFrame(columns, index=index)


def test_heartbeats_come_from_windows(bridge: Bridge) -> None:
    beats = bridge.beats()
    assert sorted(beat["role"] for beat in beats) == ["producer", "worker", "worker"]
    for beat in beats:
        assert beat["simulated"] is True
        assert beat["terminal"]["edition"] == "research"
        assert beat["version"]
    assert bridge.ring.is_file()


@pytest.mark.parametrize(
    ("period", "adjust", "count"), [("1d", "none", 60), ("1d", "front", 60), ("1m", "none", 300)]
)
def test_history_equals_the_oracle(
    bridge: Bridge, client: QMTClient, period: str, adjust: str, count: int
) -> None:
    codes = CODES if adjust == "none" else CODES[:2]
    frames = client.history(codes, period, count=count, adjust=adjust)
    for code, frame in frames.items():
        closed = frame[frame["closed"]]
        assert len(closed) >= count - 2
        wanted = truth(bridge, code, period, adjust).loc[closed.index[0] : closed.index[-1]]
        pd.testing.assert_index_equal(closed.index, wanted.index, exact=False)
        for name in COLUMNS:
            np.testing.assert_array_equal(
                closed[name].to_numpy(), wanted[name].to_numpy(), err_msg=f"{code} {name}"
            )


def test_chinese_text_arrives_whole(bridge: Bridge, client: QMTClient) -> None:
    stocks = client.sector_stocks("沪深300")
    assert len(stocks) > 250
    assert set(stocks) <= set(bridge.terminal.oracle.codes())
    assert client.instrument_detail("600519.SH")["InstrumentName"] == "贵州茅台"


@pytest.mark.timeout(600)
def test_inside_windows(bridge: Bridge, capsys: pytest.CaptureFixture[str]) -> None:
    count = bridge.run_inside()
    with capsys.disabled():
        print(f"\ninside: {count} passed")


def test_a_queue_that_is_killed_comes_back(bridge: Bridge, client: QMTClient) -> None:
    kill_process(bridge.python, "-m", "qmt_worker", "--queue", "qmt-query")
    wait_for(lambda: bridge.roles_well().count("worker") < 2, "the queue is missed")
    wait_for(lambda: bridge.roles_well().count("worker") == 2, "the queue is back")
    assert len(client.history("000001.SZ", count=5)) == 5


def test_a_second_producer_on_the_ring_is_refused(bridge: Bridge) -> None:
    second = WineProcess(bridge.python, "-m", "qmt_producer", **bridge.environment())
    try:
        assert second.process.wait(120) == 2
    finally:
        second.kill()
    assert "Is another producer running with it?" in second.output
    assert "Traceback" not in second.output


def test_every_tick_arrives_once_though_the_producer_is_killed(bridge: Bridge) -> None:
    bridge.roles.pop("producer").kill()
    assert bridge.ring.with_name("ring.sqlite-wal").stat().st_size > 0
    bridge.start_producer()
    bridge.wait_until_well()
    bridge.quiet()
    verdict = bridge.account()
    assert verdict.problems == []
    assert verdict.stored > 5_000
    assert verdict.late == 0
    log = read_push_log(bridge.log_path)
    assert verdict.pushed <= len(log)
    reasons = [event.get("reason") for event in bridge.events if event["kind"] == "gap"]
    assert len(reasons) <= 3, bridge.events


def test_they_end_when_their_input_closes(bridge: Bridge) -> None:
    for name in ("producer", "worker"):
        assert bridge.roles.pop(name).stop() == 0, name
    wait_for(lambda: not bridge.python.running(), "all processes are gone")
    # A ring that was closed in order has no log left beside it.
    assert not bridge.ring.with_name("ring.sqlite-wal").exists()
