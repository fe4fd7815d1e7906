"""Ticks and bars as columns: what is read back is what was on the wire, in value and in type."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmt_protocol.bars import BAR_FIELDS, Bar, decode_bar, encode_bar
from qmt_protocol.columns import (
    BAR_COLUMNS,
    TICK_COLUMNS,
    bars_from,
    bars_table,
    rows_from,
    ticks_from,
    ticks_table,
)
from qmt_protocol.errors import CodecError
from qmt_protocol.ticks import TICK_FIELDS, Tick, TickRow, decode_tick, encode_tick

VECTORS = json.loads(
    (Path(__file__).parents[2] / "docs/wire/vectors.json").read_text(encoding="utf-8")
)["vectors"]
T1 = {v["name"]: bytes.fromhex(v["bytes"]) for v in VECTORS if v["schema"] == "t1"}
K1 = {v["name"]: bytes.fromhex(v["bytes"]) for v in VECTORS if v["schema"] == "k1"}
decode_row = msgspec.msgpack.Decoder(TickRow).decode
Wire = tuple[str, str, bytes]


def batch_of(table: pa.Table) -> pa.RecordBatch:
    """Send a table through Parquet, as the archive does."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    back = pq.read_table(pa.BufferReader(sink.getvalue()))
    assert back.schema.equals(table.schema, check_metadata=True)
    (batch,) = back.combine_chunks().to_batches()
    return batch


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal in type and bits, containers included."""
    return type(a) is type(b) and bool(msgpack.packb(a) == msgpack.packb(b))


def assert_back(wires: list[Wire]) -> pa.RecordBatch:
    batch = batch_of(ticks_table([(code, at, decode_row(t1)) for code, at, t1 in wires]))
    rows, ticks = rows_from(batch), ticks_from(batch)
    assert len(rows) == len(ticks) == len(wires)
    for (code, entry_id, t1), row, tick in zip(wires, rows, ticks, strict=True):
        assert row[:2] == (code, entry_id)
        assert msgpack.packb(row[2]) == msgpack.packb(msgpack.unpackb(t1))
        live = decode_tick(t1, code, entry_id)
        assert type(tick) is Tick
        assert list(tick) == list(live)
        assert (tick.code, tick.id, tick.flags) == (live.code, live.id, live.flags)
        assert type(tick.flags) is type(live.flags)
        wrong = [name for name in live if not same(tick[name], live[name])]
        assert wrong == []
    return batch


@pytest.mark.parametrize("name", sorted(T1))
def test_golden_ticks_come_back(name: str) -> None:
    assert_back([("600519.SH", "1763697600000-3", T1[name])])


def test_all_golden_ticks_in_one_batch() -> None:
    assert_back([(f"{at:06}.SH", f"{at}-{at}", t1) for at, t1 in enumerate(T1.values())])


number = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-100, 2_000_000),
    st.floats(),
    st.integers(-(2**54), 2**54).map(float),
    st.sampled_from([0, -0.0, 2**43, 2**43 + 1, -(2**53), 2**53 - 1, 11.37, 0.5, 11.370001]),
)
a_list = st.one_of(
    st.lists(st.integers(0, 10**7), min_size=5, max_size=5),
    st.lists(number, min_size=5, max_size=5),
    st.lists(number, max_size=11),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), number, st.text(max_size=8), st.binary(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
KIND = {
    "time": st.integers(-(2**63), 2**64 - 1) | st.integers(0, 2**41),
    "price": number,
    "prices": a_list,
    "float": number,
    "int": number,
    "ints": a_list,
}
named = {name for name, _, _ in TICK_FIELDS}
other_key = st.text(max_size=6).filter(lambda key: key not in named)
wire_row = st.tuples(
    *(st.none() | KIND[kind] for _, kind, _ in TICK_FIELDS),
    st.none() | st.dictionaries(other_key, anything, max_size=3),
    st.integers(0, 15) | st.integers(-5, 2**40),
)
whole_row = st.tuples(*(KIND[kind] for _, kind, _ in TICK_FIELDS), st.none(), st.integers(0, 15))
a_wire = st.tuples(
    st.sampled_from(["600519.SH", "000001.SZ", "IF2612.IF"]),
    st.tuples(st.integers(0, 2**48), st.integers(0, 2**31 - 1)).map(
        lambda id_: f"{id_[0]}-{id_[1]}"
    ),
    (wire_row | whole_row).map(msgspec.msgpack.encode),
)


@given(st.lists(a_wire, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_every_tick_comes_back_exactly(wires: list[Wire]) -> None:
    assert_back(wires)


price = st.one_of(st.floats(), st.integers(0, 2**60), st.decimals(0, 10_000, places=4).map(float))
published = st.fixed_dictionaries(
    {},
    optional={
        "time": st.integers(0, 2**41),
        "lastPrice": price,
        "askPrice": st.lists(price, min_size=5, max_size=5),
        "amount": st.floats(),
        "volume": st.integers(0, 2**62) | st.floats(0, 100),
        "extra key": anything,
    },
)


@given(st.lists(published, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_what_we_publish_needs_no_oddity_but_where_a_column_cannot_say_it(
    ticks: list[dict[str, Any]],
) -> None:
    batch = assert_back([("1.SH", f"{n}-0", encode_tick(tick)) for n, tick in enumerate(ticks)])
    for tick, odd in zip(ticks, batch.column("odd").to_pylist(), strict=True):
        strange = set(msgpack.unpackb(odd)) if odd else set()
        fraction = isinstance(tick.get("volume"), float) and not tick["volume"].is_integer()
        assert ("volume" in strange) == fraction
        assert "amount" not in strange


def test_columns_show_what_people_expect() -> None:
    batch = assert_back([("600519.SH", "1763697600000-3", T1["pushed"])])
    tick = decode_tick(T1["pushed"], "")
    row = batch.to_pylist()[0]
    assert row["code"] == "600519.SH"
    assert (row["id_ms"], row["id_seq"], row["source"]) == (1763697600000, 3, "live")
    assert row["lastPrice"] == tick["lastPrice"]
    assert [row[f"bidVol{level}"] for level in range(1, 6)] == tick["bidVol"]
    assert row["time"].timestamp() * 1000 == tick["time"]
    assert str(row["time"].tzinfo) == "Asia/Shanghai"
    assert TICK_COLUMNS.field("lastPrice").metadata == {b"unit": b"yuan"}
    assert {field.metadata[b"unit"] != b"" for field in (*TICK_COLUMNS, *BAR_COLUMNS)} == {True}


def test_missing_is_null_and_nan_is_nan() -> None:
    t1 = encode_tick({"lastPrice": math.nan, "askPrice": [1.0, math.nan, 0, 0, 0]})
    row = assert_back([("1.SH", "1-0", t1)]).to_pylist()[0]
    assert math.isnan(row["lastPrice"])
    assert math.isnan(row["askPrice2"])
    assert row["askPrice3"] == 0
    assert (row["open"], row["bidPrice1"], row["time"], row["odd"]) == (None, None, None, None)


def test_no_rows() -> None:
    assert ticks_table([]).schema == TICK_COLUMNS
    assert bars_table([]).schema == BAR_COLUMNS
    empty = pa.RecordBatch.from_pylist([], TICK_COLUMNS)
    assert ticks_from(empty) == rows_from(empty) == []


@pytest.mark.parametrize("bad", ["", "5", "5-", "a-0", "1-2-3", "1-99999999999", f"{2**64}-0"])
def test_what_is_no_entry_id_is_refused(bad: str) -> None:
    with pytest.raises(CodecError):
        ticks_table([("1.SH", bad, decode_row(T1["pushed"]))])


@pytest.mark.parametrize("name", sorted(K1))
def test_golden_bars_come_back(name: str) -> None:
    live = decode_bar(K1[name], "600519.SH", "1m", "1763697600000-1")
    assert_bars([live])


bar_values = st.fixed_dictionaries(
    {"time": st.integers(0, 2**41), "closed": st.booleans()},
    optional={
        **{
            name: price if kind == "price" else st.floats() | st.integers(0, 2**60)
            for name, kind, _ in BAR_FIELDS
            if name not in ("time", "closed")
        },
        "more": anything,
    },
)


@given(st.lists(bar_values, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_every_bar_comes_back_exactly(bars: list[dict[str, Any]]) -> None:
    live = [decode_bar(encode_bar(bar), "600519.SH", "1m", f"{n}-1") for n, bar in enumerate(bars)]
    assert_bars(live)


def assert_bars(live: list[Bar]) -> None:
    read = bars_from(batch_of(bars_table(live)))
    for was, now in zip(live, read, strict=True):
        assert type(now) is Bar
        assert (now.code, now.period, now.id) == (was.code, was.period, was.id)
        assert set(now) == set(was)
        assert [name for name in was if not same(now[name], was[name])] == []
        assert encode_bar(now) == encode_bar(was)
