"""The fast way from BSON to t1 against the ordinary one: xtquant's decoder and `encode_tick`."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmt_producer.push_codec import PushCodec
from qmt_protocol.errors import CodecError, EncodeError
from qmt_protocol.ticks import encode_tick, exchange_ms
from qmt_simulator import bson

AT_MS = 1_763_697_600_000
INT_KEYS = ("stockStatus", "openInt", "transactionNum")


def full_tick(seed: int = 0) -> dict[str, Any]:
    """Return a tick as contract section 6.1 lists it, types included."""
    chance = random.Random(seed)
    price = lambda: round(chance.uniform(0.01, 2000), 2) + chance.choice((0.0, 2e-13))  # noqa: E731
    return {
        "time": bson.Int64(AT_MS + seed),
        **{key: price() for key in ("lastPrice", "open", "high", "low", "lastClose")},
        "amount": chance.choice((float(chance.randrange(10**9)), chance.random() * 1e9)),
        "volume": bson.Int64(chance.randrange(10**6)),
        "pvolume": bson.Int64(chance.randrange(10**8)),
        **{key: chance.randrange(20) for key in INT_KEYS},
        "lastSettlementPrice": price(),
        "settlementPrice": 0.0,
        "pe": 0.0,
        "askPrice": [price() for _ in range(5)],
        "bidPrice": [price() for _ in range(5)],
        "askVol": [chance.randrange(10**5) for _ in range(5)],
        "bidVol": [chance.randrange(10**5) for _ in range(5)],
        "volRatio": 0.0,
        "speed1Min": 0.0,
        "speed5Min": -0.0,
    }


def decode(data: bytes) -> dict[str, Any]:
    try:
        return bson.decode(data)
    except bson.BsonError as error:
        raise CodecError(str(error)) from error


def assert_same(push: dict[str, dict[str, Any]]) -> None:
    codec = PushCodec(decode)
    for _ in range(2):  # once while it learns, once when it knows
        done = codec.encode(bson.encode(push), received_ms=7)
        assert [code for code, _, _ in done] == list(push)
        for code, at_ms, t1 in done:
            tick = decode(bson.encode(push[code]))
            wanted_ms, flags = exchange_ms(tick, 7)
            assert (at_ms, t1) == (wanted_ms, encode_tick(tick, flags)), code
            assert type(at_ms) is int, "BSON's Int64 cannot go on to the ring"


def test_full_ticks_are_equal_to_the_ordinary_way() -> None:
    push = {f"{600000 + n}.SH": full_tick(n) for n in range(300)}
    push |= {f"1000500{n}.SHO": full_tick(n) for n in range(5)}
    assert_same(push)


@pytest.mark.parametrize(
    "odd",
    [
        {"time": bson.Int64(0)},
        {"time": bson.Int64(-5)},
        {"time": bson.Int64(2**60)},
        {"lastPrice": math.inf},
        {"lastPrice": 5},
        {"volume": 5.5},
        {"askPrice": [1.0]},
        {"askPrice": [1.0, 2, 3.0, 4.0, 5.0]},
        {"askVol": [1, 2, 3, 4, bson.Int64(5)]},
        {"iopv": 3.2},
        {"note": "停牌"},
        {"bidVol": []},
        {"pe": None},
    ],
    ids=str,
)
def test_one_odd_tick_among_full_ones(odd: dict[str, Any]) -> None:
    assert_same(
        {"600000.SH": full_tick(1), "600001.SH": {**full_tick(2), **odd}, "600002.SH": full_tick(3)}
    )
    assert_same({"600001.SH": {**full_tick(2), **odd}, "600002.SH": full_tick(3)})


def test_keys_in_another_order_or_missing() -> None:
    backwards = dict(reversed(full_tick(1).items()))
    short = {key: value for key, value in full_tick(2).items() if key != "time"}
    assert_same({"1.SH": backwards, "2.SH": short, "3.SH": full_tick(3), "4.SH": {}})


def test_a_nan_price_is_kept() -> None:
    ((_, _, t1),) = PushCodec(decode).encode(
        bson.encode({"600000.SH": {**full_tick(1), "lastPrice": math.nan}}), 7
    )
    assert t1 == encode_tick({**full_tick(1), "lastPrice": math.nan})


def test_a_tick_of_another_type_is_refused_alone() -> None:
    done = PushCodec(decode).encode(
        bson.encode({"1.SH": full_tick(1), "2.SH": {**full_tick(2), "high": "a"}}), 7
    )
    assert isinstance(done[0][2], bytes)
    assert isinstance(done[1][2], EncodeError)


def test_a_document_without_its_end_is_left_to_the_decoder() -> None:
    first = bson.encode(full_tick(1))
    push = bytearray(bson.encode({"1.SH": full_tick(1), "2.SH": full_tick(2)}))
    push[push.index(first) + len(first) - 1] = 0x10  # another field begins where the tick ends
    done = PushCodec(decode).encode(bytes(push), 7)
    assert isinstance(done[0][2], EncodeError)
    assert done[1][2] == encode_tick(full_tick(2))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_pushes_give_ticks_or_value_error(data: st.DataObject) -> None:
    codec = PushCodec(decode)
    push = bytearray(bson.encode({"1.SH": full_tick(1), "2.SH": full_tick(2)}))
    if data.draw(st.booleans()):
        codec.encode(bytes(push), 7)
    for _ in range(data.draw(st.integers(1, 4))):
        push[data.draw(st.integers(0, len(push) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(push[: data.draw(st.integers(0, len(push)))])
    for read in (codec.encode, codec.glance):
        try:
            assert isinstance(read(cut, 7), list)
        except ValueError as error:
            assert str(error)  # noqa: PT017
