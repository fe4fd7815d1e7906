"""What waits for a client stays within its bound, and nothing of it vanishes uncounted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from qmt_gateway.hub import Market
from qmt_gateway.subscriber import Frame, Subscriber
from qmt_gateway.wires import JSON, MSGPACK, REALTIME, Row, Rows
from qmt_protocol.live import CloseCode
from qmt_protocol.ticks import TickFlag, encode_tick

MAX_BYTES = 10_000
MARK = ("e", "5-0")


class FakeSink:
    """A connection that takes nothing until it is told to."""

    gone = False

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.waiting: list[bytes] = []
        self.taken: list[bytes] = []
        self.closed: tuple[int, str] | None = None

    @property
    def paused(self) -> bool:
        return bool(self.waiting)

    @property
    def waiting_bytes(self) -> int:
        return sum(map(len, self.waiting))

    def push(self, frame: bytes) -> None:
        (self.taken if self.reads else self.waiting).append(frame)

    def on_drained(self, call: Callable[[], None]) -> None:
        self._call = call

    async def drain(self) -> None:
        return

    def abandon(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def read_all(self) -> None:
        self.taken += self.waiting
        self.waiting.clear()
        self.reads = True
        self._call()

    def messages(self) -> list[dict[str, Any]]:
        return [msgpack.unpackb(payload(frame)) for frame in self.taken]


def payload(frame: bytes) -> bytes:
    """Take a server's frame apart by RFC 6455."""
    assert frame[0] == 0x82
    size = frame[1]
    head = {126: 4, 127: 10}.get(size, 2)
    told = int.from_bytes(frame[2:head], "big") if head > 2 else size
    assert len(frame) == head + told
    return frame[head:]


def a_frame(number: int, codes: int, rows: int = 1) -> Frame:
    made = [
        Row(f"{600_000 + code}.SH", "", f"{1000 + number * rows + row}-0", encode_tick({"pe": row}))
        for code in range(codes)
        for row in range(rows)
    ]
    marks = {"SH": ("e", f"{number}-0")}
    return Frame(MSGPACK.live("live", marks, made), made, marks)


def test_who_keeps_up_gets_every_frame_in_order() -> None:
    sink = FakeSink(reads=True)
    subscriber = Subscriber(sink, MSGPACK, MAX_BYTES)
    for number in range(5):
        subscriber.push(a_frame(number, 2))
    assert [told["position"]["SH"] for told in sink.messages()] == [
        ["e", f"{number}-0"] for number in range(5)
    ]
    assert all(
        [row[0] for row in told["ticks"]] == ["600000.SH", "600001.SH"] for told in sink.messages()
    )


def test_who_does_not_keeps_the_newest_row_of_each_code_and_is_told() -> None:
    sink = FakeSink(reads=False)
    subscriber = Subscriber(sink, MSGPACK, MAX_BYTES)
    pushed = 0
    for number in range(1_000):
        frame = a_frame(number, 50 if number % 2 else 20, rows=3)
        pushed += len(frame.rows)
        subscriber.push(frame)
        assert sink.waiting_bytes <= MAX_BYTES
    assert subscriber.is_behind
    sink.read_all()
    assert not subscriber.is_behind
    told = sink.messages()
    (skipped,) = (one for one in told if one["type"] == "skipped")
    live = [one for one in told if one["type"] == "live"]
    assert sum(len(one["ticks"]) for one in live) + skipped["ticks"] == pushed
    assert skipped["ticks"] == sum(skipped["codes"].values())
    assert {row[0]: row[1] for row in live[-1]["ticks"]}["600049.SH"] == f"{1000 + 2_999}-0"
    assert live[-1]["position"] == {"SH": ["e", "999-0"]}
    assert skipped["to_ms"] < 1000 + 3_000
    subscriber.push(a_frame(7, 1))
    assert len(sink.messages()) == len(told) + 1


def test_one_frame_beyond_the_bound_is_still_delivered() -> None:
    sink = FakeSink(reads=False)
    Subscriber(sink, MSGPACK, MAX_BYTES).push(a_frame(0, 1_000))
    assert len(sink.waiting) == 1


def test_close_codes_are_those_of_the_wire() -> None:
    for wire, code in ((JSON, 4503), (REALTIME, 1013)):
        sink = FakeSink(reads=True)
        subscriber = Subscriber(sink, wire, MAX_BYTES)
        subscriber.close(CloseCode.UNAVAILABLE, "方" * 100)
        assert sink.closed is not None
        assert sink.closed[0] == code
        assert len(sink.closed[1].encode()) <= 123


def test_bars_and_ticks_are_spliced_as_they_are() -> None:
    rows = [
        Row("1.SH", "", "5-0", encode_tick({"time": 5})),
        Row("1.SH", "1m", "6-0", b"\x93\1\2\3"),
    ]
    told = msgpack.unpackb(payload(MSGPACK.live("live", {"SH": MARK}, rows)))
    assert told["ticks"] == [["1.SH", "5-0", [5, *[None] * 22, 0]]]
    assert told["bars"] == [["1.SH", "1m", "6-0", [1, 2, 3]]]
    many = [rows[0]] * 70_000
    assert len(msgpack.unpackb(payload(MSGPACK.live("live", {}, many)))["ticks"]) == 70_000


def test_the_feeds_own_bytes_make_the_frame_that_its_rows_make() -> None:
    ticks = [(f"{number}.SH", f"{number}-0", encode_tick({"time": number})) for number in range(20)]
    b1 = msgpack.packb([[code, at, msgpack.unpackb(t1)] for code, at, t1 in ticks])
    passed, made = (
        msgpack.unpackb(payload(MSGPACK.live("live", {"SH": MARK}, Rows(ticks), raw)))
        for raw in (b1, None)
    )
    assert passed == made
    assert passed["ticks"] == msgpack.unpackb(b1)
    assert passed["bars"] == []


def test_a_late_tick_is_delivered_and_never_the_newest() -> None:
    late = encode_tick({"time": 1, "lastPrice": 1.0}, TickFlag.LATE)
    ticks = [("1.SH", "5-0", encode_tick({"time": 5})), ("1.SH", "5-1", late)]
    for ask_for_rows in (False, True):
        market = Market("SH")
        market.begin([("2.SH", "3-0", encode_tick({"time": 3}))], MARK)
        rows = Rows(ticks)
        if ask_for_rows:
            assert [row.id for row in rows] == ["5-0", "5-1"]
        market.take_ticks(rows)
        assert [(row.code, row.id) for row in market.newest_ticks()] == [
            ("2.SH", "3-0"),
            ("1.SH", "5-0"),
        ]
        assert market.newest("1.SH") is market.newest("1.SH")
        assert market.newest("3.SH") is None
