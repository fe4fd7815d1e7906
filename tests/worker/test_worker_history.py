"""History from an empty terminal cache equals the oracle, for each terminal profile."""

from collections.abc import Iterator

import pytest
from worker_rig import DAY_MS, TODAY_MS, Caller, Rig, assert_equals_truth, ten_codes

from qmt_protocol.arrow import history_schema
from qmt_protocol.codes import asset_class
from qmt_protocol.periods import ADJUSTMENTS
from qmt_standalone.redis_server import RedisServer

KINDS = {
    "stock": "600519.SH",
    "etf": "510300.SH",
    "index": "000001.SH",
    "future": "IF2612.IF",
}


@pytest.fixture(scope="module", params=["research", "broker", "old"])
def rig(
    request: pytest.FixtureRequest,
    worker_streams: RedisServer,
    worker_jobs: RedisServer,
    caller: Caller,
) -> Iterator[Rig]:
    caller.jobs.flushall()
    caller.streams.flushall()
    running = Rig(request.param, worker_streams, worker_jobs)
    try:
        caller.wait_for_terminal("ok")
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_sixty_days_of_ten_codes_equal_the_oracle(rig: Rig, caller: Caller, adjust: str) -> None:
    codes = ten_codes(rig, "1d", seed=ADJUSTMENTS.index(adjust))
    answer = caller.ask("history", codes=codes, period="1d", count=60, adjust=adjust)
    assert answer.table.schema.remove_metadata().equals(history_schema("1d").remove_metadata())
    for code in codes:
        got = answer.frame(code)
        assert_equals_truth(got, rig.truth(code, "1d", adjust).tail(60), code)
        assert got["closed"].tolist() == [True] * 59 + [False]
    assert answer.manifest["meta"]["absent"] == {}
    assert answer.manifest["meta"]["simulated"] is True
    assert answer.manifest["meta"]["source"]["edition"] == rig.profile


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_minutes_of_ten_codes_equal_the_oracle(rig: Rig, caller: Caller, adjust: str) -> None:
    codes = ten_codes(rig, "1m", seed=60)
    answer = caller.ask("history", codes=codes, period="1m", count=500, adjust=adjust)
    for code in codes:
        got = answer.frame(code)
        truth = rig.truth(code, "1m", adjust, TODAY_MS - 30 * DAY_MS)
        assert len(truth) > 500
        assert_equals_truth(got, truth.tail(500), code)
        assert got["time"].iloc[-1].date().isoformat() == "2026-11-20"
    assert set(answer.table["code"].to_pylist()) == set(codes)


@pytest.mark.parametrize("period", ["5m", "15m", "30m", "60m", "1h", "1w", "1mon", "1q", "1y"])
def test_derived_periods_come_from_complete_stored_ones(
    rig: Rig, caller: Caller, period: str
) -> None:
    for code in ("000001.SZ", "IF2612.IF") if rig.profile == "research" else ("000001.SZ",):
        truth = rig.truth(code, period)
        count = max(1, min(8, len(truth) - 1))
        answer = caller.ask("history", codes=[code], period=period, count=count)
        assert_equals_truth(answer.frame(code), truth.tail(count), code)


def test_each_class_has_the_same_columns(rig: Rig, caller: Caller) -> None:
    known = {kind: code for kind, code in KINDS.items() if code in rig.codes}
    known["bond"] = next(code for code in rig.codes if asset_class(code) == "convertible_bond")
    known.setdefault("beijing", next(code for code in rig.codes if code.endswith(".BJ")))
    answer = caller.ask("history", codes=list(known.values()), period="1d", count=5)
    for code in known.values():
        assert_equals_truth(answer.frame(code), rig.truth(code, "1d").tail(5), code)
    nulls = answer.frame("600519.SH")["settelementPrice"].isna()
    assert nulls.all()
    assert not answer.frame("IF2612.IF")["settelementPrice"].isna().any()
