"""Which event lies in which stream, what a gap may say, and how large a heartbeat may be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qmt_protocol.errors import CodecError
from qmt_protocol.events import archive_stream, decode_event, stream_of
from qmt_protocol.keys import Keys
from qmt_protocol.status import (
    HEARTBEAT_MAX_BYTES,
    decode_heartbeat,
    encode_heartbeat,
    new_heartbeat,
)

KEYS = Keys("t")
OTHERS = (
    *("connected", "terminal", "lost", "resubscribed", "deaf", "late", "late bar", "trimmed"),
    *("lease taken", "standby", "epoch", "redis away", "redis back", "clock"),
)


def test_nothing_but_gaps_lies_among_the_gaps() -> None:
    assert stream_of(KEYS, "gap") == ("t:events", 20_000)
    assert stream_of(KEYS, "demand refused") == ("t:events:refused", 1_000)
    assert {stream_of(KEYS, kind) for kind in OTHERS} == {("t:events:producer", 10_000)}
    assert archive_stream(KEYS) == ("t:events:archive", 10_000)


def test_a_gap_is_read_as_it_was_told() -> None:
    told = {"kind": "gap", "at_ms": 7, "reason": "ring full", "from_ms": 1, "to_ms": 9, "ticks": 3}
    told["codes"] = {"600519.SH": [1, 9, 3]}
    assert decode_event(json.dumps(told).encode(), "7-0") == told


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", b"[]", b"null", b'{"kind":', b"\xff", b"[" * 100_000]
)
def test_what_is_no_event_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match="The event 7-0"):
        decode_event(data, "7-0")


@pytest.mark.parametrize(
    "facts",
    [
        {"codes": {"600519.SH": 5}},
        {"codes": {"600519.SH": [1, 2]}},
        {"codes": ["600519.SH"]},
        {"from_ms": "yesterday"},
        {"from_ms": -1},
        {"to_ms": 10**18},
        {"to_ms": 10**30},
        {"ticks": None},
        {"market": 7},
        {"reason": {}},
    ],
)
def test_a_gap_that_does_not_say_what_is_missing_is_refused(facts: dict[str, Any]) -> None:
    event = json.dumps({"kind": "gap", "reason": "x", **facts}).encode()
    with pytest.raises(CodecError, match="The event 7-0 cannot be read"):
        decode_event(event, "7-0")


LISTS = {
    "usual": {"refused": {"1m|600519.SH": "no"}, "served": ["a", "b"]},
    "long": {"refused": {f"1m|{n:06}.SH": "no room" for n in range(100_000)}, "counts": 7},
    "text": {"error": "x" * 5_000_000},
    "keys": {"refused": {"x" * 1_000_000: "y"}},
    "nested": {"a": [[list(range(200)) for _ in range(200)] for _ in range(20)]},
    "many": {f"figure {n}": list(range(100)) for n in range(2_000)},
}


@pytest.mark.parametrize("name", LISTS)
def test_a_heartbeat_has_a_largest_size(name: str) -> None:
    beat = new_heartbeat(
        "producer",
        1,
        markets=["SH"],
        terminal={"state": "quote_server_down", "reason": "x"},
        figures=LISTS[name],
    )
    data = encode_heartbeat(beat)
    assert len(data) <= HEARTBEAT_MAX_BYTES
    back = decode_heartbeat(data)
    assert (back.role, back.markets, back.pid) == ("producer", ["SH"], beat.pid)
    assert back.terminal["state"] == "quote_server_down"
    if name == "usual":
        assert back == beat
    if name == "long":
        refused = back.figures["refused"]
        assert refused["..."] == "and 99950 more"
        assert (len(refused), back.figures["counts"]) == (51, 7)
