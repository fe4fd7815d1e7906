"""The tick codec: golden vectors, tolerance, edge values, and bytes that are none."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmt_protocol.bars import decode_bar, encode_bar
from qmt_protocol.errors import CodecError, EncodeError
from qmt_protocol.feed import decode_latest, decode_rows, split_batch
from qmt_protocol.schema import schema_documents
from qmt_protocol.ticks import (
    TICK_FIELDS,
    TickFlag,
    decode_tick,
    encode_tick,
    encode_ticks,
    exchange_ms,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "docs/wire/vectors.json").read_text(encoding="utf-8")
)
T1 = [vector for vector in VECTORS["vectors"] if vector["schema"] == "t1"]
K1 = [vector for vector in VECTORS["vectors"] if vector["schema"] == "k1"]
FULL = next(vector["input"] for vector in T1 if vector["name"] == "pushed")


def ids(vectors: list[dict[str, Any]]) -> list[str]:
    return [vector["name"] for vector in vectors]


def read_with_schema_alone(data: bytes, name: str) -> dict[str, Any]:
    """Decode as a stranger would: msgpack package and the schema document, nothing of ours."""
    schema = json.loads(schema_documents()[name])
    row = msgpack.unpackb(data)
    assert len(row) == len(schema["fields"])
    read: dict[str, Any] = {}
    for field, value in zip(schema["fields"], row, strict=True):
        if value is None:
            continue
        if field["type"] == "price":
            value = value / schema["price_scale"] if isinstance(value, int) else value
        elif field["type"] == "array of price":
            value = [one / schema["price_scale"] if isinstance(one, int) else one for one in value]
        read[field["name"]] = value
    read.update(read.pop("extra", {}))
    return read


@pytest.mark.parametrize("vector", T1, ids=ids(T1))
def test_golden_ticks(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    assert encode_tick(vector["input"]) == data
    assert encode_ticks([vector["input"]]) == [data]
    alone = read_with_schema_alone(data, "t1")
    assert alone.pop("flags") == 0
    assert alone == vector["decoded"]
    assert dict(decode_tick(data, "x.SH")) == vector["decoded"]


@pytest.mark.parametrize("vector", K1, ids=ids(K1))
def test_golden_bars(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    assert encode_bar(vector["input"]) == data
    assert read_with_schema_alone(data, "k1") == vector["decoded"] == decode_bar(data)


def test_vectors_hold_the_real_recorded_ticks() -> None:
    assert {"pushed", "full tick", "history row", "timetag only"} <= set(ids(T1))


@pytest.mark.parametrize(
    ("price", "wire"),
    [
        (11.37, 113_700),
        (11.370000000000001, 113_700),  # a terminal's binary noise
        (0.0001, 1),
        (-37.63, -376_300),  # crude oil closed there once
        (1686, 16_860_000),  # get_full_tick sends whole floats as int
        (0.00005, 0.00005),  # half a unit stays literal
        (11.37001, 11.37001),
        (100.0 + 0.9e-10, 1_000_000),  # within the tolerance of 1e-10 yuan
        (100.0 + 2e-10, 100.0 + 2e-10),  # beyond it
        (-0.0, 0),
        (450359962737.71875, 450359962737.71875),  # here a float is coarser than a unit
        (1e300, 1e300),
        (math.inf, math.inf),
    ],
)
def test_price_rule(price: float, wire: float) -> None:
    alone = msgpack.unpackb(encode_tick({"lastPrice": price}))
    in_batch = msgpack.unpackb(encode_ticks([{**FULL, "lastPrice": price}])[0])
    for value in (alone[1], in_batch[1]):
        assert (value, type(value)) == (wire, type(wire))
        assert math.copysign(1, value) == math.copysign(1, wire)


def test_nan_stays_nan_and_missing_stays_missing() -> None:
    data = encode_tick({"lastPrice": math.nan, "askPrice": [1.0, math.nan], "amount": math.nan})
    tick = decode_tick(data, "x.SH")
    assert set(tick) == {"lastPrice", "askPrice", "amount"}
    assert math.isnan(tick["lastPrice"])
    assert tick["askPrice"][0] == 1.0
    assert math.isnan(tick["askPrice"][1])
    assert math.isnan(tick["amount"])


def test_unknown_keys_and_none_are_kept() -> None:
    tick = {**FULL, "tickvol": 7, "future": {"a": [1, "二"]}, "pe": None}
    expected = {**tick, "bidPrice": [11.39, 11.38, 11.37, 11.36, 11.35]}
    assert dict(decode_tick(encode_tick(tick), "x.SH")) == expected


@pytest.mark.parametrize(
    "bad",
    [
        {"lastPrice": "11.37"},
        {"askPrice": 11.37},
        {"askPrice": "11.37"},
        {"askVol": [1, None]},
        {"time": 1.5},
        {"time": "09:30"},
        {"volume": True},
        {"volume": 2**70},
        {"lastPrice": 2**2000},
        {"odd": object()},
    ],
    ids=",".join,
)
def test_what_is_no_tick_is_refused_alone(bad: dict[str, Any]) -> None:
    with pytest.raises(EncodeError):
        encode_tick(bad)
    good, refused, also_good = encode_ticks([FULL, {**FULL, **bad}, FULL])
    assert isinstance(refused, EncodeError)
    assert good == also_good == encode_tick(FULL)


def test_time_comes_from_time_then_timetag_then_receipt() -> None:
    assert exchange_ms({"time": 5, "timetag": "20260105 09:30:00"}, 9) == (5, 0)
    by_tag = (1_767_576_600_000, TickFlag.TIME_FROM_TIMETAG)
    assert exchange_ms({"time": 0, "timetag": "20260105 09:30:00"}, 9) == by_tag
    assert exchange_ms({"timetag": "20260105 09:30:00.250"}, 9)[0] == by_tag[0] + 250
    for missing in ({}, {"time": None}, {"time": -1}, {"time": math.nan}, {"timetag": "soon"}):
        assert exchange_ms(missing, 9) == (9, TickFlag.TIME_FROM_RECEIPT)


def test_phase_and_flags_have_names() -> None:
    tick = decode_tick(encode_tick({"openInt": 12}, int(TickFlag.LATE)), "600519.SH", "77-0")
    assert (tick.phase, tick.late, tick.time_ms) == ("call auction", True, 77)


number = st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=False))
price = st.one_of(number, st.decimals(0, 10_000, places=4).map(float))
KIND = {
    "time": st.integers(0, 2**47),
    "price": price,
    "prices": st.lists(price, max_size=10),
    "float": number,
    "int": number,
    "ints": st.lists(number, max_size=10),
}
any_tick = st.fixed_dictionaries({}, optional={name: KIND[kind] for name, kind, _ in TICK_FIELDS})


@given(any_tick)
@settings(max_examples=200, deadline=None)
def test_every_tick_comes_back(tick: dict[str, Any]) -> None:
    data = encode_tick(tick)
    assert encode_ticks([tick]) == [data]
    back = decode_tick(data, "x.SH")
    assert set(back) == set(tick)
    for name, value in tick.items():
        for was, now in zip(
            value if isinstance(value, list) else [value],
            back[name] if isinstance(value, list) else [back[name]],
            strict=True,
        ):
            assert now == was or abs(now - was) <= 1.1e-10


@given(st.one_of(st.binary(max_size=400), st.just(b"")))
@settings(max_examples=500, deadline=None)
def test_arbitrary_bytes_give_a_value_or_the_error(data: bytes) -> None:
    for decode in (
        lambda: decode_tick(data, "x.SH"),
        lambda: decode_rows(split_batch(data, "SH")[0])[0],
        lambda: decode_latest(data, "x.SH"),
        lambda: decode_bar(data),
    ):
        try:
            assert isinstance(decode(), (dict, list))
        except CodecError as error:
            assert error.message  # noqa: PT017


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_ticks_give_a_value_or_the_error(data: st.DataObject) -> None:
    good = bytearray(encode_tick(FULL))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        assert isinstance(decode_tick(cut, "x.SH"), dict)
    except CodecError as error:
        assert "t1" in error.message  # noqa: PT017


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    with pytest.raises(CodecError):
        decode_tick(b"\xdc\x00\x18" + b"\x91" * 100_000, "x.SH")


def test_schema_names_flags_and_floats_are_doubles() -> None:
    schema = json.loads(schema_documents()["t1"])
    assert schema["fields"][-1]["bits"] == {
        "1": "late",
        "2": "clamped",
        "4": "time_from_timetag",
        "8": "time_from_receipt",
    }
    assert encode_tick({"lastPrice": 0.00005})[4:13] == b"\xcb" + struct.pack(">d", 0.00005)
