"""The whole way: simulated terminal, real xtdata, producer, worker, Redis, gateway, client.

The judge is the simulator's oracle, which no code under test stands behind.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from client_gateway import Gateway, running_gateway
from waiting import wait_for

from qmt_client import QMTClient, QMTWarning
from qmt_protocol.codes import asset_class
from qmt_protocol.errors import HistoryMissing, InstrumentNotFound, NotFound, SectorNotFound
from qmt_protocol.periods import ADJUSTMENTS
from qmt_protocol.tables import table_of
from qmt_protocol.times import parse_start
from qmt_simulator.control import Control
from qmt_simulator.oracle import Oracle, read_push_log
from qmt_simulator.process import TerminalProcess
from qmt_standalone.redis_server import RedisServer

NOW = "2026-11-20 10:30:00"
TODAY = "2026-11-20"
BACK_DAYS = {"1m": 30, "1d": 400}
"""How far back the truth is asked for: the oracle makes every bar anew."""


@contextmanager
def running(module: str, **env: str) -> Iterator[None]:
    """Run one role."""
    child = subprocess.Popen(
        [sys.executable, "-m", module, "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TZ": "Asia/Shanghai", "QMT_LOG_LEVEL": "warning", **env},
    )
    assert child.stdin is not None
    with child:
        try:
            yield
        finally:
            child.stdin.close()
            try:
                child.wait(60)
            finally:
                child.kill()


@dataclass
class Bridge:
    """A bridge over one simulated terminal."""

    oracle: Oracle
    control: Control
    target: dict[str, str]
    push_log: Path

    def truth(self, code: str, period: str, adjust: str = "none") -> pd.DataFrame:
        since_ms = (parse_start(TODAY) or 0) - BACK_DAYS[period] * 86_400_000
        columns = dict(self.oracle.bars(code, period, since_ms, adjust=adjust))
        times = columns.pop("time").astype("datetime64[ms]").astype("datetime64[ns]")
        index = pd.DatetimeIndex(times, name="time").tz_localize("UTC")
        return pd.DataFrame(columns, index=index.tz_convert("Asia/Shanghai"))

    def one_of(self, kind: str, market: str) -> str:
        """Return a code that trades today and did so for sixty days."""
        for code in self.oracle.codes():
            if asset_class(code) == kind and code.endswith(f".{market}"):
                labels = self.truth(code, "1d").index
                if len(labels) > 60 and labels[-1].date().isoformat() == TODAY:
                    return code
        raise LookupError(f"no {kind} of {market}")


@contextmanager
def running_bridge(folder: Path, *clock: str) -> Iterator[Bridge]:
    log = folder / "pushed"
    with ExitStack() as stack:
        servers = {name: RedisServer(folder / name, aof=False) for name in ("streams", "jobs")}
        for server in servers.values():
            server.start()
            stack.callback(server.stop)
        terminal = stack.enter_context(TerminalProcess("--push-log", str(log), *clock))
        env = {
            "QMT_STREAMS_URL": servers["streams"].url,
            "QMT_JOBS_URL": servers["jobs"].url,
            "QMT_TERMINAL_PORT": str(terminal.port),
            "QMT_NATIVE_MODULE": "qmt_simulator.native",
            "QMT_RING": str(folder / "ring.sqlite"),
        }
        stack.enter_context(running("qmt_producer", **env))
        stack.enter_context(running("qmt_worker", **env))
        target = {"url": servers["streams"].url, "jobs_url": servers["jobs"].url}
        with QMTClient(**target) as client:
            _wait_for_all(client)
        yield Bridge(terminal.oracle, terminal.control, target, log)


def _wait_for_all(client: QMTClient) -> None:
    def are_ready() -> bool:
        ready = [
            one.beat.role
            for one in client.status().processes
            if one.alive and one.beat.terminal.get("state") == "ok"
        ]
        return (
            ready.count("worker") == 2
            and "producer" in ready
            and bool(client.latest(markets=["BJ"]))
        )

    wait_for(are_ready, "producer and worker are ready, and ticks flow")


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A bridge whose clock stands at mid-session."""
    flags = ("--start", NOW, "--speed", "0", "--real-hours", "--cache-delay-s", "0.1,0.4")
    with running_bridge(tmp_path_factory.mktemp("frozen"), *flags) as made:
        yield made


@pytest.fixture(scope="module")
def way(bridge: Bridge) -> Iterator[QMTClient]:
    """A client over Redis."""
    with QMTClient(**bridge.target) as client:
        yield client


@pytest.fixture(scope="module")
def by_gateway(bridge: Bridge) -> Iterator[QMTClient]:
    """A client over a gateway."""
    gateway: Gateway
    with running_gateway(bridge.target) as gateway, QMTClient(gateway.url) as client:
        yield client


def assert_true(frame: pd.DataFrame, truth: pd.DataFrame, code: str, period: str) -> None:
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        column.name: column.dtype for column in table_of(period)
    }
    assert str(frame.index.dtype) == "datetime64[ns, Asia/Shanghai]"
    pd.testing.assert_index_equal(frame.index, truth.index, exact=False)
    for name in ("open", "high", "low", "close", "volume", "amount", "preClose", "suspendFlag"):
        np.testing.assert_array_equal(
            frame[name].to_numpy(), truth[name].to_numpy(), err_msg=f"{code} {name}"
        )
    derivative = asset_class(code) in ("future", "option")
    if derivative:
        for name in ("settelementPrice", "openInterest"):
            np.testing.assert_array_equal(frame[name].to_numpy(), truth[name].to_numpy())
    else:
        assert frame["settelementPrice"].isna().all()
        assert not frame["openInterest"].any()


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_each_adjustment_equals_the_oracle(bridge: Bridge, way: QMTClient, adjust: str) -> None:
    codes = [code for code in bridge.oracle.codes() if asset_class(code) == "stock"]
    for code in random.Random(adjust).sample(codes, 3):
        truth = bridge.truth(code, "1d", adjust).tail(60)
        if len(truth) < 60:
            continue
        frame = way.history(code, period="1d", count=60, adjust=adjust)
        assert_true(frame, truth, code, "1d")
        assert frame.attrs["simulated"] is True
        assert frame.attrs["adjust"] == adjust
    assert way.history(code, count=1, adjust="qfq").equals(
        way.history(code, count=1, adjust="front")
    )


@pytest.mark.parametrize(
    ("kind", "market"),
    [
        ("stock", "SZ"),
        ("stock", "BJ"),
        ("etf", "SH"),
        ("convertible_bond", "SZ"),
        ("index", "SH"),
        ("future", "IF"),
    ],
)
def test_each_class_has_the_documented_table(
    bridge: Bridge, way: QMTClient, kind: str, market: str
) -> None:
    code = bridge.one_of(kind, market)
    for period, count in (("1d", 40), ("1m", 300)):
        frame = way.history(code, period, count=count)
        assert_true(frame, bridge.truth(code, period).tail(count), code, period)
        assert frame.index[-1].date().isoformat() == TODAY
        assert frame["closed"].tolist()[:-1] == [True] * (count - 1)
    ticks = way.history(code, "tick", start=TODAY)
    assert {name: str(dtype) for name, dtype in ticks.dtypes.items()} == {
        column.name: column.dtype for column in table_of("tick")
    }
    truth = bridge.oracle.ticks(code)
    assert ticks["lastPrice"].tolist() == truth["lastPrice"].tolist()
    assert ticks["bidVol2"].tolist() == truth["bidVol"][:, 1].tolist()


def test_a_suspended_day_is_a_row_with_its_flag(bridge: Bridge, way: QMTClient) -> None:
    for code in bridge.oracle.codes():
        truth = bridge.truth(code, "1d").tail(250)
        if asset_class(code) == "stock" and (truth["suspendFlag"] == 1).sum() in range(1, 20):
            break
    frame = way.history(code, count=250)
    assert_true(frame, truth, code, "1d")
    assert (frame.loc[frame["suspendFlag"] == 1, "volume"] == 0).all()


def test_a_day_of_no_session_has_no_rows_and_says_so(way: QMTClient) -> None:
    with pytest.raises(NotFound):
        way.history("600519.SH", "1d", start="2026-11-14", end="2026-11-15")
    with pytest.warns(QMTWarning):
        frames = way.history(["600519.SH"], "1d", start="2026-11-14", end="2026-11-15")
    assert list(frames.absent) == ["600519.SH"]
    with pytest.warns(QMTWarning):
        empty = way.history("600519.SH", start="2026-11-14", end="2026-11-15", layout="long")
    assert {name: str(dtype) for name, dtype in empty.drop(columns="code").dtypes.items()} == {
        column.name: column.dtype for column in table_of("1d")
    }


def test_ranges_include_both_ends_and_may_reach_into_the_future(way: QMTClient) -> None:
    frame = way.history("000001.SZ", start="2026-11-16", end="2026-11-18")
    assert [at.day for at in frame.index] == [16, 17, 18]
    minutes = way.history("000001.SZ", "1m", start="2026-11-19", end="2026-11-19")
    assert len(minutes) == 241
    assert way.history("000001.SZ", start="2026-11-18", end="2030-01-01").index[-1].day == 20


def test_both_ways_give_the_same(way: QMTClient, by_gateway: QMTClient) -> None:
    codes = ["000001.SZ", "600519.SH"]
    for mine, other in zip(
        way.history(codes, "5m", count=100).values(),
        by_gateway.history(codes, "5m", count=100).values(),
        strict=True,
    ):
        pd.testing.assert_frame_equal(mine, other)
    assert way.full_tick(codes) == by_gateway.full_tick(codes)
    assert way.sector_stocks("沪深300") == by_gateway.sector_stocks("沪深300")


def test_unknown_codes_and_sectors(way: QMTClient, by_gateway: QMTClient) -> None:
    for client in (way, by_gateway):
        with pytest.raises(InstrumentNotFound):
            client.history("600999.SZ")
        with pytest.raises(InstrumentNotFound):
            client.instrument_detail("600999.SZ")
        with pytest.raises(InstrumentNotFound):
            client.full_tick("600999.SZ")
        with pytest.raises(SectorNotFound):
            client.sector_stocks("没有的板块")
        with pytest.warns(QMTWarning, match=r"600999\.SZ"):
            frames = client.history(["000001.SZ", "600999.SZ"], count=5)
        assert list(frames) == ["000001.SZ"]


def test_missing_history_is_named_and_a_download_brings_it(way: QMTClient) -> None:
    asked = {"period": "5m", "start": "2026-06-01", "end": "2026-06-05"}
    with pytest.raises(HistoryMissing) as caught:
        way.history("000002.SZ", download="never", **asked)
    assert caught.value.codes == ["000002.SZ"]
    told = way.download("000002.SZ", **asked)
    assert told["000002.SZ"]["rows"] == 5 * 48
    assert len(way.history("000002.SZ", download="never", **asked)) == 5 * 48


def test_reference_data(way: QMTClient) -> None:
    stocks = way.sector_stocks("沪深A股")
    assert len(stocks) > 4000
    detail = way.get_instrument_detail("600519.SH")
    assert detail["InstrumentID"] == "600519"
    assert detail["InstrumentName"]


def test_full_tick_equals_the_oracle(bridge: Bridge, way: QMTClient) -> None:
    codes = ["600519.SH", "000001.SZ", bridge.one_of("stock", "BJ"), "000001.SH"]
    for code, tick in way.full_tick(codes).items():
        truth = bridge.oracle.ticks(code)
        for name in ("time", "lastPrice", "volume", "amount", "lastClose"):
            assert tick[name] == truth[name][-1], f"{code} {name}"
        assert tick["askPrice"] == pytest.approx(truth["askPrice"][-1].tolist(), abs=1e-9)
        assert tick["bidVol"] == truth["bidVol"][-1].tolist()


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A bridge whose market moves."""
    with running_bridge(tmp_path_factory.mktemp("moving"), "--start", NOW) as made:
        yield made


def test_the_guides_examples_run(moving: Bridge) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    names = ("client.md", "live.md", "replay.md")
    page = "".join((docs / name).read_text("utf-8") for name in names)
    examples = re.findall(r"<!-- run -->\n```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 11
    with QMTClient(**moving.target) as client:
        namespace: dict[str, Any] = {"client": client}
        for example in examples:
            exec(compile(example, "docs", "exec"), namespace)
    assert list(namespace["frames"]) == ["000001.SZ", "600519.SH"]
    assert namespace["number"] == 4
    assert namespace["position"].keys() >= {"SH", "SZ"}
    assert len(namespace["codes"]) == 300
    assert set(namespace["frame"]["code"]) == {"600519.SH"}
    assert namespace["replayed"] == 3


@pytest.mark.parametrize("over", ["redis", "gateway"])
def test_live_ticks_are_those_that_were_pushed(moving: Bridge, over: str) -> None:
    wanted = 3000
    found = []
    with ExitStack() as stack:
        target = moving.target
        if over == "gateway":
            target = {"url": stack.enter_context(running_gateway(moving.target)).url}
        client = stack.enter_context(QMTClient(**target))
        for tick in client.ticks(markets=["SZ"]):
            found.append(tick)
            if len(found) == wanted:
                break
    log = read_push_log(moving.push_log)
    pushed: dict[str, list[tuple[Any, ...]]] = {}
    for row in log[["code", "time", "lastPrice", "volume"]].tolist():
        pushed.setdefault(row[0].decode(), []).append(row[1:])
    assert len({tick.code for tick in found}) > 500
    by_code: dict[str, list[tuple[Any, ...]]] = {}
    for tick in found:
        told = (tick["time"], pytest.approx(tick["lastPrice"], abs=1e-9), tick["volume"])
        by_code.setdefault(tick.code, []).append(told)
    for code, ticks in by_code.items():
        of_code = pushed[code]
        first = next(at for at, row in enumerate(of_code) if row == ticks[0])
        assert of_code[first : first + len(ticks)] == ticks, code
