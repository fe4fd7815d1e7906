"""What people type: codes, periods, times, settings, job parameters; and the error tree."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pandas as pd
import pytest
import redis
from heartbeats import write_heartbeat
from redis.crc import key_slot

from qmt_protocol import errors
from qmt_protocol.amounts import parse_count, parse_seconds, parse_speed
from qmt_protocol.arrow import history_schema
from qmt_protocol.codes import (
    asset_class,
    convert_code,
    lot_size,
    market_of,
    parse_code,
    parse_codes,
    parse_markets,
)
from qmt_protocol.documents import parse_json, parse_msgpack
from qmt_protocol.errors import (
    ConfigurationError,
    InvalidCode,
    InvalidRequest,
    QMTError,
    error_from_dict,
)
from qmt_protocol.ids import parse_entry_id, parse_job_id
from qmt_protocol.jobs import CATALOGUE, HistoryParams, job_spec, parse_params
from qmt_protocol.keys import JobKeys, Keys
from qmt_protocol.periods import parse_adjust, parse_period, stored_period
from qmt_protocol.settings import RedisSettings, TerminalSettings, load_settings
from qmt_protocol.status import Heartbeat, decode_heartbeat, new_heartbeat
from qmt_protocol.tables import BAR_TABLE
from qmt_protocol.texts import parse_text
from qmt_protocol.times import (
    LAST_MS,
    day_of,
    day_start_ms,
    parse_end,
    parse_ms,
    parse_start,
    xt_time,
)

NINE_THIRTY_MS = 1_767_576_600_000  # 2026-01-05 09:30 in China


@pytest.mark.parametrize(
    ("code", "market"),
    [("600519.SH", "SH"), ("IF2612.IF", "IF"), ("10005001.SHO", "SHO"), ("BRK.B.US", "US")],
)
def test_market_is_what_follows_the_last_dot(code: str, market: str) -> None:
    assert market_of(code) == market


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("600519", "600519.SH"),
        ("000001", "000001.SZ"),
        ("sz000001", "000001.SZ"),
        ("600519.sh", "600519.SH"),
        ("920001", "920001.BJ"),
        ("830799", "830799.BJ"),
        ("900901", "900901.SH"),  # B shares
        ("204001", "204001.SH"),  # repo
        ("131810", "131810.SZ"),
        ("110059", "110059.SH"),  # convertible bonds
        ("113050", "113050.SH"),
        ("123001", "123001.SZ"),
        ("019547", "019547.SH"),  # a treasury bond
        ("200012", "200012.SZ"),
        ("159915", "159915.SZ"),
        ("399006", "399006.SZ"),
        ("000001.XSHG", "000001.SH"),
        ("000001.XSHE", "000001.SZ"),
        ("600000.SS", "600000.SH"),
        ("SHSE.600000", "600000.SH"),
        ("rb2601.SHFE", "rb2601.SF"),
        (600519, "600519.SH"),
        (1, "000001.SZ"),
    ],
)
def test_a_likely_code_is_proposed(typed: object, meant: str) -> None:
    with pytest.raises(InvalidCode, match=f"Did you mean {meant}"):
        parse_code(typed)


def test_no_market_is_guessed_where_none_is_likely() -> None:
    for number in ("700001", "999999", "137001"):
        with pytest.raises(InvalidCode, match="For example"):
            parse_code(number)


@pytest.mark.parametrize(
    ("written", "market", "meant"),
    [
        ("sz000008", "", "000008.SZ"),
        ("sz000008", "SZ", "000008.SZ"),
        ("SZ.000008", "", "000008.SZ"),
        ("600000.XSHG", "", "600000.SH"),
        ("600000.sh", "", "600000.SH"),
        ("SHSE.600000", "SH", "600000.SH"),
        (" 600000 ", "SH", "600000.SH"),
        ("rb2601.SHFE", "", "rb2601.SF"),
        ("rb2601", "SF", "rb2601.SF"),
        ("IF2612.IF", "", "IF2612.IF"),
        ("10005001.SHO", "", "10005001.SHO"),
    ],
)
def test_codes_as_others_write_them(written: str, market: str, meant: str) -> None:
    assert convert_code(written, market) == meant


@pytest.mark.parametrize(
    ("written", "market", "told"),
    [
        ("sz000008", "SH", "SZ and SH"),
        ("sh600000.SZ", "", "two markets"),
        ("8", "SZ", "000008.SZ"),
        ("600000", "", "600000.SH"),
        ("xx600000", "", "600000.SH"),
        ("", "SH", "not a code"),
    ],
)
def test_what_could_mean_two_things_is_refused(written: str, market: str, told: str) -> None:
    with pytest.raises(InvalidCode, match=told):
        convert_code(written, market)


def test_markets_by_others_names() -> None:
    for name, meant in (("XSHG", "SH"), ("sz", "SZ"), ("SHFE", "SF")):
        with pytest.raises(InvalidRequest, match=f"Did you mean {meant}"):
            parse_markets([name])


@pytest.mark.parametrize(
    "bad",
    [
        *("", ".", "600519.", ".SH", "6 0.SH", "{a}.SH", "a*.SH", 600519),
        *(
            "６００５１９.SH",
            "٠.SH",
            "600519.ＳＨ",
            "6\0.SH",
            "\ud800.SH",
            "1m|600519.SH",
            "x" * 10**6,
        ),
    ],
    ids=lambda bad: repr(bad)[:20],
)
def test_what_is_no_code_is_refused(bad: object) -> None:
    with pytest.raises(InvalidCode) as caught:
        parse_code(bad, "stock")
    assert caught.value.data["field"] == "stock"
    assert len(json.dumps(caught.value.to_dict())) < 1_000, "it is not sent back at length"


def test_lists_of_codes() -> None:
    assert parse_codes("600519.SH, 000001.SZ,600519.SH") == ["600519.SH", "000001.SZ"]
    with pytest.raises(InvalidRequest):
        parse_codes([])
    with pytest.raises(InvalidRequest):
        parse_codes([f"{n:06d}.SH" for n in range(10_001)])
    for none in (5, b"600519.SH", [b"600519.SH"], [["600519.SH"]]):
        with pytest.raises(InvalidRequest):
            parse_codes(none)  # type: ignore[arg-type]


def test_the_first_code_too_many_ends_the_list() -> None:
    def endless() -> Iterator[str]:
        for number in itertools.count():
            assert number <= 10_000
            yield f"{number}.SH"

    with pytest.raises(InvalidRequest, match="10000 codes"):
        parse_codes(endless())


def test_lists_of_markets() -> None:
    assert parse_markets("SH, SZ,SH") == parse_markets(["SH", "SZ"]) == ["SH", "SZ"]
    assert parse_markets("") == []
    for bad in ("sh", "ＳＨ", "S H", "0", "SH\0", ["*"], [f"M{n}" for n in range(33)]):
        with pytest.raises(InvalidRequest) as caught:
            parse_markets(bad, "markets")
        assert caught.value.data["field"] == "markets"


@pytest.mark.parametrize(
    ("code", "kind", "lot"),
    [
        ("600519.SH", "stock", 100),
        ("688981.SH", "stock", 100),
        ("920001.BJ", "stock", 100),
        ("510300.SH", "etf", 100),
        ("159915.SZ", "etf", 100),
        ("113050.SH", "convertible_bond", 10),
        ("123001.SZ", "convertible_bond", 10),
        ("000300.SH", "index", 100),
        ("399006.SZ", "index", 100),
        ("IF2612.IF", "future", 1),
        ("10005001.SHO", "option", 1),
        ("900901.SH", "stock", 100),
        ("204001.SH", "other", 1),
        ("001979.SZ", "stock", 100),
    ],
)
def test_asset_class_and_lot(code: str, kind: str, lot: int) -> None:
    assert (asset_class(code), lot_size(code)) == (kind, lot)


def test_keys_of_a_market_share_a_slot() -> None:
    keys = Keys("qmt")
    assert keys.tick("600519.SH") == "{qmt:SH}:tick:600519.SH"
    assert keys.bar("1m", "600519.SH") == "{qmt:SH}:bar:1m:600519.SH"
    names = [keys.tick("600519.SH"), keys.bar("1d", "600000.SH")]
    names += [
        getattr(keys, of)("SH") for of in ["feed", "latest", "lease", "epoch", "acked", "archived"]
    ]
    assert len({key_slot(name.encode()) for name in names}) == 1, "by redis-py's hash"
    assert Keys("replay-1").feed("SH") != keys.feed("SH")
    assert JobKeys("qmt").manifest("x") == "qmt:result:x"
    with pytest.raises(ConfigurationError):
        Keys("a{b}")


@pytest.mark.parametrize(
    "value",
    [
        "20260105093000",
        "202601050930",
        "2026-01-05 09:30",
        "2026-01-05T09:30:00",
        "2026-01-05T01:30:00Z",
        dt.datetime(2026, 1, 5, 9, 30),
        dt.datetime(2026, 1, 5, 1, 30, tzinfo=dt.timezone.utc),
        NINE_THIRTY_MS,  # as xtdata's own time
        np.int64(NINE_THIRTY_MS),
        str(NINE_THIRTY_MS),
        20260105093000,
        np.datetime64("2026-01-05T09:30"),
        pd.Timestamp("2026-01-05 09:30"),
        pd.Timestamp("2026-01-05 09:30", tz="Asia/Shanghai"),
    ],
    ids=repr,
)
def test_times_mean_china_time(value: Any) -> None:
    assert parse_start(value) == parse_end(value) == NINE_THIRTY_MS


@pytest.mark.parametrize(
    "value",
    [
        *("20260105", "2026-01-05", dt.date(2026, 1, 5), 20260105, np.datetime64("2026-01-05")),
        # What pandas makes of a date; nobody means one ms by it.
        *(pd.Timestamp("2026-01-05"), pd.Timestamp("2026-01-05", tz="Asia/Shanghai")),
        dt.datetime(2026, 1, 4, 16, tzinfo=dt.timezone.utc),
    ],
    ids=repr,
)
def test_a_date_is_its_whole_day(value: Any) -> None:
    start, end = parse_start(value), parse_end(value)
    assert start is not None
    assert end is not None
    assert end - start == 86_400_000 - 1
    assert day_of(start) == day_of(end) == 20260105
    assert day_start_ms(20260105) == start
    assert xt_time(end) == "20260105235959"


@pytest.mark.parametrize(
    "bad",
    [
        *(
            "yesterday",
            "2026-13-01",
            "20261301",
            5,
            5.0,
            pd.NaT,
            pytest.param(object(), id="object"),
            b"20260105",
            True,
            -1,
            176757660000,
            float(NINE_THIRTY_MS),
            np.datetime64("NaT"),
            10**30,
        ),
        *("0001-01-01", "00010102", "1969-12-31", "21000101", "9999-12-31T23:59:59-08:00"),
        *(
            dt.date.min,
            dt.datetime.max,
            pd.Timestamp.max,
            "２０２６-０１-０５",
            "2026-01-05\0",
            "\ud800",
        ),
    ],
    ids=repr,
)
def test_what_is_no_time_of_our_years_is_refused(bad: Any) -> None:
    for parse, field in ((parse_start, "start"), (parse_end, "end")):
        with pytest.raises(InvalidRequest, match=f"{field}=") as caught:
            parse(bad)
        assert caught.value.data["field"] == field
        json.dumps(caught.value.to_dict()).encode()


def test_a_string_with_its_time_is_that_moment() -> None:
    assert parse_end("2026-01-05 00:00") == parse_start("2026-01-05") == parse_end("20260105000000")


def test_the_first_and_last_day_are_served() -> None:
    assert (parse_start("1970-01-01"), parse_start("19700101")) == (0, 0), "no id is below zero"
    assert parse_end("2099-12-31") == LAST_MS
    assert day_of(LAST_MS) == 20991231
    assert parse_ms(LAST_MS, "at_ms") == LAST_MS
    for bad in (-1, LAST_MS + 1, 2**62 + 1, 1.5, True, None, "１２", math.nan):
        with pytest.raises(InvalidRequest, match="at_ms="):
            parse_ms(bad, "at_ms")


def test_whole_numbers_as_digits_or_numbers() -> None:
    assert [parse_count(one, "n") for one in (5, "5", np.int64(5))] == [5, 5, 5]
    for bad in (
        "１２",
        "٣",
        "1_0",
        " 1",
        "+1",
        "1e3",
        "",
        "9" * 5000,
        1.0,
        True,
        None,
        0,
        -1,
        10**7,
    ):
        with pytest.raises(InvalidRequest, match="n="):
            parse_count(bad, "n")
    assert [parse_seconds(one, "s") for one in (0, 2.5, "2.5")] == [0.0, 2.5, 2.5]
    assert [parse_speed(one) for one in ("max", 10, "0.5")] == [math.inf, 10.0, 0.5]
    for bad in (math.nan, math.inf, -1, True, "１", "1e3", "nan", 10**5000, None, [1]):
        for parse in (partial(parse_seconds, field="s"), parse_speed):
            with pytest.raises(InvalidRequest):
                parse(bad)


def test_ids_are_what_redis_gives() -> None:
    for right in ("0-0", f"{2**64 - 1}-{2**64 - 1}"):
        assert parse_entry_id(right, "after") == right
    for bad in ("", "1", "1-", "-1-0", "1-1-1", "٣-٤", "1-0\n", f"{2**64}-0", "9" * 5000 + "-0", 5):
        with pytest.raises(InvalidRequest, match="after="):
            parse_entry_id(bad, "after")
    for bad in ("", "a b", "a" * 65, "é", None):
        with pytest.raises(InvalidRequest, match="job's id"):
            parse_job_id(bad)


def test_texts_hold_nothing_that_cannot_be_sent() -> None:
    assert parse_text("沪深300", "sector", most=64) == "沪深300"
    for bad in ("", "a\0", "a\nb", "\ud800", "x" * 65, None, 5):
        with pytest.raises(InvalidRequest, match="sector="):
            parse_text(bad, "sector", most=64)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        *((data, "body") for data in (b"", b"{", b"[" * 10**5, b'{"a":NaN}', b'"\xff"', b"1 2")),
        *((data, "body") for data in ('"\\ud800"', '"\ud800"', '{"a":1e400}', "9" * 5000)),
        ('{"a":{"b":1,"b":2}}', "b"),
    ],
    ids=lambda told: repr(told)[:20],
)
def test_what_is_not_json_alone_is_refused(data: bytes | str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(data)
    assert caught.value.data["field"] == field


def test_documents_are_read_strictly() -> None:
    told = {"a": [1, 2.5, True, None, "沪"]}
    assert parse_json(json.dumps(told)) == told == parse_msgpack(msgpack.packb(told))
    twice = b"\x82\xa1a\x01\xa1a\x02"
    for bad in (b"", b"\xc1", b"\x91" * 10**5, b"\xdd\xff\xff\xff\xff", b"\x01\x01", twice):
        with pytest.raises(InvalidRequest):
            parse_msgpack(bad)


def test_periods_and_adjustments() -> None:
    assert [stored_period(p) for p in ("tick", "1m", "15m", "1h", "1w", "1y")] == [
        "tick", "1m", "5m", "5m", "1d", "1d",
    ]  # fmt: skip
    assert [parse_adjust(a) for a in (None, "qfq", "hfq", "back_ratio")] == [
        "none", "front", "back", "back_ratio",
    ]  # fmt: skip
    for refuse, value in ((parse_period, "1min"), (parse_period, 1), (parse_adjust, "pre")):
        with pytest.raises(InvalidRequest, match="Choose one of"):
            refuse(value)
    with pytest.raises(InvalidRequest):
        parse_period("tick", bars_only=True)


@pytest.mark.parametrize(
    ("job", "document", "named"),
    [
        ("history", {"codes": []}, "code"),
        ("history", {"codes": ["600519"]}, "600519"),
        ("history", {"codes": ["600519.SH"], "period": "7m"}, "7m"),
        ("history", {"codes": ["600519.SH"], "count": 0}, "count"),
        ("history", {"codes": ["600519.SH"], "fields": ["colour"]}, "colour"),
        ("history", {"codes": ["600519.SH"], "start_ms": 2, "end_ms": 1}, "range"),
        ("history", {"codes": ["600519.SH"], "start_ms": -1}, "start_ms"),
        ("history", {"codes": ["600519.SH"], "end_ms": 2**62 + 1}, "end_ms"),
        ("history", {"codes": ["600519.SH"], "count": True}, "count"),
        ("history", {"codes": ["600519.SH"], "count": "１２"}, "count"),
        ("history", {"codes": ["600519.SH"], "fields": ["close"] * 101}, "fields"),
        ("history", {"codes": ["600519.SH"], "auto_download_rows": 10**30}, "auto_download_rows"),
        ("download", {"codes": ["600519.SH"], "start_ms": math.nan}, "start_ms"),
        ("sector_stocks", {"sector": "\ud800"}, "sector"),
        ("history", {"codes": ["600519.SH"], "shell": "rm"}, "shell"),
        ("sector_stocks", {}, "sector"),
        ("order_stock", {}, "order_stock"),
    ],
)
def test_bad_job_parameters_are_named(job: str, document: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        parse_params(job, document)


def test_catalogue_survives_json() -> None:
    params = parse_params("history", {"codes": ["600519.SH"], "adjust": "qfq", "count": 60})
    again = parse_params("history", json.loads(params.model_dump_json()))
    assert again == params
    assert isinstance(again, HistoryParams)
    assert again.adjust == "front"
    assert all(job_spec(name).function == f"qmt.{name}" for name in CATALOGUE)


def test_history_schema_follows_the_table() -> None:
    schema = history_schema("1d", ["close", "closed"])
    assert schema.names == ["code", "time", "close", "closed"]
    assert str(schema.field("time").type) == "timestamp[ms, tz=Asia/Shanghai]"
    assert history_schema("1m").names[2:] == [column.name for column in BAR_TABLE]


def all_errors(of: type[QMTError] = QMTError) -> list[type[QMTError]]:
    return [of, *(one for sub in of.__subclasses__() for one in all_errors(sub))]


def test_every_error_survives_json_and_pickle_with_its_facts() -> None:
    kinds = [kind for kind in all_errors() if kind.__module__ == errors.__name__]
    assert len({kind.slug for kind in kinds}) == len(kinds) > 20
    for kind in kinds:
        error = kind("It failed.", hint="Do this.", codes=["600519.SH"])
        for again in (
            error_from_dict(json.loads(json.dumps(error.to_dict()))),
            pickle.loads(pickle.dumps(error)),
        ):
            assert type(again) is kind
            assert (str(again), again.data) == ("It failed. Do this.", {"codes": ["600519.SH"]})
    assert type(error_from_dict({"error": "from-the-future", "message": "?"})) is QMTError


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {word for line in (errors.__doc__ or "").splitlines() for word in line.split()[:4]}
    for name in errors.__all__:
        if name != "error_from_dict":
            assert name in "".join(f"{word} " for word in drawn), name


def test_settings_flags_beat_environment_beat_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "qmt.toml"
    file.write_text('prefix = "file"\nstreams_url = "redis://file"\njobs_url = "redis://file"\n')
    monkeypatch.setenv("QMT_CONFIG", str(file))
    monkeypatch.setenv("QMT_STREAMS_URL", "redis://environment")
    monkeypatch.setenv("QMT_JOBS_URL", "redis://environment")
    settings = load_settings(RedisSettings, ["--jobs-url", "redis://flag"])
    assert (settings.prefix, settings.streams_url, settings.jobs_url) == (
        "file",
        "redis://environment",
        "redis://flag",
    )
    assert settings.keys.feed("SH") == "{file:SH}:feed"


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigurationError, match="terminal_port"):
        load_settings(TerminalSettings, ["--terminal-port", "0"])
    assert load_settings(TerminalSettings, ["--terminal-port", "58610"]).terminal_port == 58610


def test_heartbeat_lies_in_redis_by_redis_time(streams: redis.Redis) -> None:
    keys = Keys("t")
    beat = new_heartbeat("worker", 5, queues=["qmt-query"], terminal={"state": "ok"})
    now_ms = write_heartbeat(streams, keys, beat)
    assert streams.zscore(keys.seen, beat.member) == now_ms
    raw = streams.hget(keys.status, beat.member)
    assert raw is not None
    assert decode_heartbeat(raw) == beat
    assert json.loads(raw)["queues"] == ["qmt-query"], "plain JSON, for any reader"


@pytest.mark.parametrize(
    "params",
    [
        {"codes": ["x" * 900_000]},
        {"codes": [1] * 300_000},
        {"codes": ["a.SH"], "x" * 900_000: 1},
        {"codes": ["a.SH"], **{f"p{number}": 1 for number in range(100_000)}},
        {"codes": ["a.SH"], "period": "x" * 900_000},
        {"codes": ["a.SH"], "adjust": "x" * 900_000},
        {"codes": ["a.SH"], "fields": ["x" * 900_000]},
        {"codes": ["a.SH"], "fields": ["close"] * 101},
        {"codes": ["a.SH"], "start_ms": 10**30},
        {"codes": ["a.SH"], "auto_download_rows": 10**30},
    ],
    ids=lambda params: max(params, key=len)[:9],
)
def test_what_is_refused_is_not_repeated_in_full(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_params("history", params)
    assert len(json.dumps(caught.value.to_dict())) < 1000


@pytest.mark.parametrize("figures", [{}, {"dead": 0}, {"dead": 2}, {"dead": 2, "last_dead": "x"}])
def test_a_heartbeat_without_dead_jobs_says_nothing_of_them(figures: dict[str, Any]) -> None:
    assert Heartbeat(role="worker", figures=figures).dead == ""
