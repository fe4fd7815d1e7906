"""The bytes of a push, judged by xtquant's own BSON decoder."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from qmt_simulator import bson, tickrows
from qmt_simulator.market import Ticks

CODES = ["600519.SH", "000001.SZ", "10008888.SHO", "IF2612.IF"]


def made_up_ticks(count: int) -> Ticks:
    numbers = np.random.default_rng(7)
    columns = {
        name: (numbers.random((count, 5) if name in tickrows.DEPTH else count) * 1000).astype(kind)
        for name, kind in tickrows.FIELDS.items()
    }
    columns["time"] += 1_766_000_000_000
    return Ticks(idx=np.arange(count, dtype=np.int32) % len(CODES), **columns)


def encoded(ticks: Ticks, flags: list[int]) -> bytes:
    rows = tickrows.Rows(ticks, np.array(flags, dtype=np.uint32))
    groups = tickrows.TickEncoder(CODES).groups(rows)
    return tickrows.document([matrix.tobytes() for _rows, matrix in groups])


def test_push_is_what_xtbson_reads() -> None:
    ticks = made_up_ticks(4)
    script = """
        import importlib.util, json, sys, types, warnings
        warnings.simplefilter("ignore")
        package = types.ModuleType("xtquant")
        package.__path__ = importlib.util.find_spec("xtquant").submodule_search_locations
        sys.modules["xtquant"] = package
        from xtquant import xtbson
        document = xtbson.BSON.decode(sys.stdin.buffer.read())
        print(json.dumps({code: [[key, type(value).__name__, value] for key, value in tick.items()]
                          for code, tick in document.items()}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=encoded(ticks, [0, 0, 0, 0]),
        capture_output=True,
        check=True,
        timeout=120,
    )
    document = json.loads(done.stdout)
    kinds = {"<i8": "Int64", "<i4": "int", "<f8": "float"}
    assert set(document) == set(CODES)
    for row, code in enumerate(CODES):
        assert [item[0] for item in document[code]] == list(tickrows.FIELDS)
        for key, kind, value in document[code]:
            expected = "list" if key in tickrows.DEPTH else kinds[tickrows.FIELDS[key]]
            assert kind == expected, key
            assert value == getattr(ticks, key)[row].tolist(), key


def test_a_tick_without_time_lacks_the_key_and_nothing_else() -> None:
    ticks = made_up_ticks(4)
    document = bson.decode(encoded(ticks, [0, tickrows.FLAG_NO_TIME, 0, 0]))
    assert list(document["000001.SZ"]) == list(tickrows.FIELDS)[1:]
    assert document["000001.SZ"]["lastPrice"] == ticks.lastPrice[1]
    assert list(document["600519.SH"]) == list(tickrows.FIELDS)


def test_single_quote_wraps_the_tick_in_a_list() -> None:
    ticks = made_up_ticks(4)
    rows = tickrows.Rows(ticks.take(np.array([0])), np.zeros(1, dtype=np.uint32))
    [(_members, matrix)] = tickrows.TickEncoder(CODES).groups(rows)
    document = bson.decode(tickrows.list_document("600519.SH", matrix[0].tobytes()))
    [tick] = document["600519.SH"]
    assert tick["askVol"] == ticks.askVol[0].tolist()


def test_rounds_keep_each_code_once_and_in_order() -> None:
    idx = np.array([1, 2, 1, 3, 1, 2], dtype=np.int32)
    rounds = [part.tolist() for part in tickrows.rounds(idx)]
    assert rounds == [[0, 1, 3], [2, 5], [4]]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"a": 1, "b": -(2**31), "c": 2**31, "d": 1.5, "e": "中文", "f": None, "g": True},
        {"list": [1, "x", [2.5]], "inner": {"bytes": b"\0\1"}},
    ],
)
def test_bson_round_trip(document: dict[str, object]) -> None:
    assert bson.decode(bson.encode(document)) == document


@pytest.mark.parametrize("data", [b"", b"\5\0\0\0", b"\6\0\0\0\0\0", b"\xff\xff\xff\x7f\0"])
def test_malformed_bson_is_refused(data: bytes) -> None:
    with pytest.raises(bson.BsonError):
        bson.decode(data)
