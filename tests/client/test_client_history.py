"""history(): shapes, dtypes, absent codes and what goes to the worker."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fake_worker import FakeWorker, table

from qmt_client import HistoryFrames, QMTClient, QMTWarning
from qmt_protocol.arrow import history_schema
from qmt_protocol.errors import (
    HistoryMissing,
    InvalidCode,
    InvalidRequest,
    NotFound,
)
from qmt_protocol.tables import table_of

DAY_MS = 86_400_000
FIRST_MS = 1_767_542_400_000  # 2026-01-05 00:00 China time
LABELS = [FIRST_MS + at * DAY_MS for at in range(3)]
MakeWorker = Callable[..., FakeWorker]


def bars(params: dict[str, Any]) -> pa.Table:
    return table(params["period"], dict.fromkeys(params["codes"], LABELS), params["fields"])


def nothing(params: dict[str, Any]) -> pa.Table:
    return history_schema(params["period"], params["fields"]).empty_table()


def check_frame(frame: pd.DataFrame, period: str) -> None:
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        column.name: column.dtype for column in table_of(period)
    }
    assert frame.index.name == "time"
    assert str(frame.index.dtype) == "datetime64[ns, Asia/Shanghai]"


@pytest.mark.parametrize("period", ["1d", "1m", "tick"])
def test_one_code_is_a_frame_of_the_documented_table(
    client: QMTClient, make_worker: MakeWorker, period: str
) -> None:
    with make_worker(history=bars):
        frame = client.history("600519.SH", period)
    check_frame(frame, period)
    assert [at.value // 1_000_000 for at in frame.index] == LABELS
    first = table_of(period)[0].name
    assert frame[first].tolist() == [0.5, 1.5, 2.5]
    assert frame.attrs == {
        "simulated": True,
        "source": "SIMULATED",
        "absent": {},
        "period": period,
        "adjust": "none",
        "code": "600519.SH",
        "adjust_method": "",
    }


def test_bars_keep_nan_and_the_forming_bar(client: QMTClient, make_worker: MakeWorker) -> None:
    with make_worker(history=bars):
        frame = client.history("600519.SH")
    assert frame["settelementPrice"].isna().all()
    assert frame["closed"].tolist() == [True, True, False]
    assert frame.index[0] == pd.Timestamp("2026-01-05", tz="Asia/Shanghai")


def test_naive_index_is_china_time(
    streams: object, jobs: object, target: dict[str, str], make_worker: MakeWorker
) -> None:
    with QMTClient(**target, tz=None) as client, make_worker(history=bars):
        frame = client.history("600519.SH")
    assert str(frame.index.dtype) == "datetime64[ns]"
    assert frame.index[0] == pd.Timestamp("2026-01-05")


def test_many_codes_are_a_dict_in_the_order_asked_for(
    client: QMTClient, make_worker: MakeWorker
) -> None:
    asked = ["600519.SH", "000001.SZ", "830799.BJ"]

    def in_two_chunks(params: dict[str, Any]) -> list[pa.Table]:
        assert params["codes"] == asked
        rows = {"600519.SH": LABELS, "000001.SZ": LABELS[:2], "830799.BJ": LABELS[:1]}
        whole = table("1d", rows)
        return [whole.slice(0, 4), whole.slice(4)]

    with make_worker(history=in_two_chunks):
        frames = client.history(asked)
    assert isinstance(frames, HistoryFrames)
    assert list(frames) == asked
    assert [len(frame) for frame in frames.values()] == [3, 2, 1]
    assert frames.simulated
    assert frames.absent == {}
    for frame in frames.values():
        check_frame(frame, "1d")


def test_long_layout_has_a_code_column(client: QMTClient, make_worker: MakeWorker) -> None:
    with make_worker(history=bars):
        frame = client.history("600519.SH,000001.SZ", layout="long")
    assert frame["code"].astype(str).tolist() == ["600519.SH"] * 3 + ["000001.SZ"] * 3
    assert frame.columns[0] == "code"
    assert isinstance(frame["code"].dtype, pd.CategoricalDtype)
    check_frame(frame.drop(columns="code"), "1d")


@pytest.mark.parametrize("period", ["1d", "tick"])
@pytest.mark.parametrize("layout", [None, "long"])
def test_empty_frames_have_the_same_dtypes(
    client: QMTClient, make_worker: MakeWorker, period: str, layout: Any
) -> None:
    with make_worker(history=nothing):
        answer = client.history(["600519.SH"], period, layout=layout)
    frame = answer if layout else answer["600519.SH"]
    assert len(frame) == 0
    check_frame(frame.drop(columns="code") if layout else frame, period)


def test_fields_come_in_the_order_asked_for(client: QMTClient, make_worker: MakeWorker) -> None:
    with make_worker(history=bars) as worker:
        frame = client.history("600519.SH", fields="volume, close")
        again = client.history("600519.SH", fields=["close"])
    assert list(frame.columns) == ["volume", "close"]
    assert frame["volume"].dtype == np.int64
    assert list(again.columns) == ["close"]
    assert worker.seen[0][1]["fields"] == ["volume", "close"]


def test_what_is_asked_reaches_the_worker(client: QMTClient, make_worker: MakeWorker) -> None:
    with make_worker(history=bars) as worker:
        client.history(
            "600519.SH",
            "5m",
            start=dt.date(2026, 1, 5),
            end="20260106",
            count=7,
            adjust="qfq",
            download="never",
            fill=True,
        )
    name, params = worker.seen[0]
    assert name == "qmt.history"
    assert params == {
        "codes": ["600519.SH"],
        "period": "5m",
        "start_ms": FIRST_MS,
        "end_ms": FIRST_MS + 2 * DAY_MS - 1,
        "count": 7,
        "fields": None,
        "adjust": "front",
        "download": "never",
        "auto_download_rows": 1_000_000,
        "fill": True,
    }


def test_one_absent_code_raises_its_reason(client: QMTClient, make_worker: MakeWorker) -> None:
    with make_worker(history=nothing) as worker:
        worker.meta["absent"] = {"600519.SH": "not listed in the range"}
        with pytest.raises(NotFound, match="not listed in the range"):
            client.history("600519.SH")


def test_absent_codes_among_many_are_named(client: QMTClient, make_worker: MakeWorker) -> None:
    def first_only(params: dict[str, Any]) -> pa.Table:
        return table("1d", {params["codes"][0]: LABELS})

    with make_worker(history=first_only) as worker:
        worker.meta["absent"] = {"999999.SZ": "no such instrument"}
        with pytest.warns(QMTWarning, match=r"999999\.SZ: no such instrument"):
            frames = client.history(["600519.SH", "999999.SZ"])
    assert list(frames) == ["600519.SH"]
    assert frames.absent == {"999999.SZ": "no such instrument"}


def test_a_failed_job_raises_its_error(client: QMTClient, make_worker: MakeWorker) -> None:
    error = HistoryMissing("Not downloaded.", hint="qmt download ...", codes=["600519.SH"])
    with (
        make_worker(history=lambda params: error.to_dict()),
        pytest.raises(HistoryMissing) as caught,
    ):
        client.history("600519.SH")
    assert caught.value.codes == ["600519.SH"]
    assert caught.value.hint == "qmt download ..."


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"codes": "sh600519"}, InvalidCode),
        ({"codes": []}, InvalidRequest),
        ({"period": "2d"}, InvalidRequest),
        ({"codes": "６００５１９.SH"}, InvalidCode),
        ({"codes": ["\ud800.SH"]}, InvalidCode),
        ({"codes": 600519}, InvalidRequest),
        ({"start": "yesterday"}, InvalidRequest),
        ({"start": "0001-01-02"}, InvalidRequest),
        ({"start": "２０２６-０１-０５"}, InvalidRequest),
        ({"end": "9999-12-31T23:59:59-08:00"}, InvalidRequest),
        ({"start": "20260106", "end": "20260105"}, InvalidRequest),
        ({"count": 0}, InvalidRequest),
        ({"count": True}, InvalidRequest),
        ({"count": "１２"}, InvalidRequest),
        ({"count": float("nan")}, InvalidRequest),
        ({"fields": ["a\0"]}, InvalidRequest),
        ({"fields": "price"}, InvalidRequest),
        ({"adjust": "both"}, InvalidRequest),
        ({"download": "always"}, InvalidRequest),
        ({"layout": "tall"}, InvalidRequest),
        ({"layout": "wide", "period": "tick"}, InvalidRequest),
    ],
)
def test_wrong_arguments_never_reach_a_worker(
    client: QMTClient, arguments: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        client.history(**{"codes": "600519.SH", **arguments})


def test_the_names_of_the_incumbent(client: QMTClient, make_worker: MakeWorker) -> None:
    with make_worker(history=bars) as worker:
        one = client.get_history(stock="000001.SZ", period="1d", count=60)
        many = client.get_batch_history(stocks=["000001.SZ", "600519.SH"], count=-1)
    assert len(one) == 3
    assert list(many) == ["000001.SZ", "600519.SH"]
    assert [params["count"] for _, params in worker.seen] == [60, None]


def test_progress_is_told_and_bars_are_for_terminals_only(
    client: QMTClient, make_worker: MakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int]] = []
    with make_worker(download=lambda params: {"600519.SH": {"rows": 3}}):
        client.download("600519.SH", progress=lambda one: told.append((one.state, one.finished)))
        answer = client.download(stock="600519.SH", period="1m", start="20260105")
    assert told[-1] == ("done", 2)
    assert answer == {"600519.SH": {"rows": 3}}
    assert capsys.readouterr().err == ""
