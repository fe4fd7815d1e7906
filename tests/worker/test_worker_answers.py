"""What history answers look like: ranges, names, columns, refusals, progress."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from worker_rig import TODAY_MS, Caller, Rig, assert_equals_truth

from qmt_protocol.arrow import history_schema
from qmt_protocol.codes import asset_class
from qmt_protocol.times import DAY_MS, parse_start
from qmt_standalone.redis_server import RedisServer


@pytest.fixture(scope="module")
def research(
    worker_streams: RedisServer, worker_jobs: RedisServer, caller: Caller
) -> Iterator[Rig]:
    caller.jobs.flushall()
    caller.streams.flushall()
    running = Rig("research", worker_streams, worker_jobs)
    try:
        caller.wait_for_terminal("ok")
        yield running
    finally:
        running.stop()


def test_ticks_equal_the_oracle(research: Rig, caller: Caller) -> None:
    answer = caller.ask("history", codes=["600519.SH"], period="tick", start_ms=TODAY_MS)
    got, truth = answer.frame("600519.SH"), research.oracle.ticks("600519.SH")
    assert len(got) == len(truth["time"]) > 1000
    for column in ("lastPrice", "volume", "amount", "openInt", "transactionNum"):
        np.testing.assert_array_equal(got[column].to_numpy(), truth[column])
    for level in (1, 5):
        np.testing.assert_array_equal(got[f"askPrice{level}"], truth["askPrice"][:, level - 1])
        np.testing.assert_array_equal(got[f"bidVol{level}"], truth["bidVol"][:, level - 1])


def test_start_and_end_are_both_included(research: Rig, caller: Caller) -> None:
    start_ms, end_ms = parse_start("20261012"), parse_start("20261016")
    answer = caller.ask(
        "history", codes=["600000.SH"], period="1d", start_ms=start_ms, end_ms=end_ms
    )
    days = [at.strftime("%Y%m%d") for at in answer.frame("600000.SH")["time"]]
    assert days == ["20261012", "20261013", "20261014", "20261015", "20261016"]
    first_ms, last_ms = parse_start("20261016093100"), parse_start("20261016093500")
    minutes = caller.ask(
        "history", codes=["600000.SH"], period="1m", start_ms=first_ms, end_ms=last_ms
    )
    shown = [at.strftime("%H%M") for at in minutes.frame("600000.SH")["time"]]
    assert shown == ["0931", "0932", "0933", "0934", "0935"]
    assert minutes.frame("600000.SH")["closed"].all()


def test_a_suspended_day_is_kept_with_its_price(research: Rig, caller: Caller) -> None:
    for code in research.codes:
        truth = research.truth(code, "1d").tail(250)
        inner = truth["suspendFlag"].to_numpy()[1:-1] == 1
        if asset_class(code) == "stock" and inner.any():
            break
    answer = caller.ask("history", codes=[code], period="1d", count=250)
    got = answer.frame(code)
    assert_equals_truth(got, truth, code)
    suspended = got[got["suspendFlag"] == 1]
    assert (suspended["volume"] == 0).all()
    assert (suspended["close"] > 0).all()


@pytest.mark.long
def test_minutes_of_a_suspended_code_reach_farther_back(research: Rig, caller: Caller) -> None:
    def suspended_days(code: str) -> int:
        """Return for how many days up to today the code has been suspended."""
        flags = research.oracle.bars(code, "1d", TODAY_MS - 200 * DAY_MS)["suspendFlag"]
        return len(flags) if (flags == 1).all() else int((flags[::-1] != 1).argmax())

    code = next(
        code
        for code in research.codes
        if asset_class(code) == "stock" and 2 < suspended_days(code) < 90
    )
    answer = caller.ask("history", codes=[code], period="1m", count=300)
    truth = research.truth(code, "1m", start_ms=TODAY_MS - 200 * DAY_MS)
    assert_equals_truth(answer.frame(code), truth.tail(300), code)
    assert answer.frame(code)["time"].iloc[-1].date().isoformat() < "2026-11-20"


def test_unknown_codes_are_named_and_an_answer_without_rows_has_its_columns(
    research: Rig, caller: Caller
) -> None:
    answer = caller.ask("history", codes=["600000.SH", "609999.SH"], period="1d", count=3)
    assert answer.manifest["meta"]["absent"] == {"609999.SH": "no such instrument"}
    assert len(answer.frame("600000.SH")) == 3
    unknown = caller.ask("history", codes=["609999.SH"], period="1d", count=3)
    assert unknown.error["error"] == "instrument-not-found"
    assert unknown.error["data"]["codes"] == ["609999.SH"]
    start_ms = parse_start("19950103")
    early = caller.ask(
        "history", codes=["600519.SH"], period="1d", start_ms=start_ms, end_ms=start_ms + DAY_MS
    )
    assert early.table.num_rows == 0
    assert early.table.schema.remove_metadata().equals(history_schema("1d").remove_metadata())
    assert list(early.manifest["meta"]["absent"]) == ["600519.SH"]


def test_only_the_named_columns_come(research: Rig, caller: Caller) -> None:
    answer = caller.ask(
        "history", codes=["600000.SH"], period="1d", count=2, fields=["close", "closed"]
    )
    assert answer.table.column_names == ["code", "time", "close", "closed"]


def test_history_missing_says_what_and_how(research: Rig, caller: Caller) -> None:
    code = "601988.SH" if "601988.SH" in research.codes else research.codes[100]
    never = caller.ask("history", codes=[code], period="1d", count=30, download="never")
    assert never.error["error"] == "history-missing"
    assert never.error["data"]["codes"] == [code]
    assert never.error["data"]["rows"] == pytest.approx(30, abs=2)
    first, last = never.error["data"]["ranges"][code]
    assert never.error["data"]["command"] == (
        f"qmt download {code} --period 1d --start {first} --end {last}"
    )
    large = caller.ask("history", codes=[code], period="1m", count=5000, auto_download_rows=4000)
    assert large.error["error"] == "history-missing"
    assert "qmt download" in large.error["hint"]
    fetched = caller.ask("history", codes=[code], period="1d", count=30)
    assert fetched.manifest["rows"] == 30
    again = caller.ask("history", codes=[code], period="1d", count=30, download="never")
    pd.testing.assert_frame_equal(again.table.to_pandas(), fetched.table.to_pandas())


def test_padding_comes_only_when_asked_for(research: Rig, caller: Caller) -> None:
    for code in research.codes:
        flags = research.oracle.bars(code, "1d", TODAY_MS - 60 * DAY_MS)["suspendFlag"]
        if asset_class(code) == "stock" and (flags[1:-3] == 1).any() and flags[-1] == 0:
            break
    plain = caller.ask("history", codes=[code], period="5m", count=40 * 48)
    filled = caller.ask("history", codes=[code], period="5m", count=40 * 48, fill=True)
    assert not (plain.frame(code)["suspendFlag"] == 1).any()
    assert (filled.frame(code)["suspendFlag"] == 1).any()


def test_more_codes_than_subscriptions_all_reach_today(research: Rig, caller: Caller) -> None:
    codes = [code for code in research.codes if code.startswith("6010")][:80]
    answer = caller.ask("history", codes=codes, period="1d", count=2)
    frame = answer.table.to_pandas()
    assert frame["code"].unique().tolist() == codes
    last = frame.groupby("code")["time"].max()
    assert (last == pd.Timestamp(TODAY_MS, unit="ms", tz="Asia/Shanghai")).all()
    assert 0 < research.simulated.control.status()["single_subscriptions"] <= 50


def test_progress_is_told_while_downloading(research: Rig, caller: Caller) -> None:
    codes = [code for code in research.codes if code.startswith("688")][:40]
    answer = caller.ask("history", codes=codes, period="5m", count=100)
    told = [entry for entry in answer.progress if entry["total"]]
    assert answer.progress[0]["state"] == "running"
    assert {entry["total"] for entry in told} == {len(codes)}
    finished = [entry["finished"] for entry in told]
    assert finished == sorted(finished)
    assert finished[-1] == len(codes)


def test_results_expire(research: Rig, caller: Caller) -> None:
    job_id = caller.enqueue("history", codes=["600000.SH"], period="1d", count=3)
    caller.wait(job_id)
    keys = [
        caller.keys.progress(job_id),
        caller.keys.manifest(job_id),
        caller.keys.chunk(job_id, 0),
    ]
    lifetimes = [caller.jobs.ttl(key) for key in keys]
    assert all(0 < ttl <= 600 for ttl in lifetimes), lifetimes


def test_large_tables_come_in_chunks(research: Rig, caller: Caller) -> None:
    start_ms = parse_start("20251201")
    answer = caller.ask("history", codes=["600519.SH", "000001.SZ"], period="1m", start_ms=start_ms)
    assert answer.manifest["chunks"] > 1
    assert answer.manifest["rows"] == answer.table.num_rows
    truth = research.truth("600519.SH", "1m", start_ms=start_ms)
    assert_equals_truth(answer.frame("600519.SH"), truth, "600519.SH")
