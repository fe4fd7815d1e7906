"""What waits for a client stays within its bound, and nothing of it vanishes uncounted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from qmt_gateway.budget import Budget
from qmt_gateway.group import Group
from qmt_gateway.market import Market
from qmt_gateway.subscriber import Frame, Part, Subscriber
from qmt_gateway.wires import FRAGMENT_BYTES, JSON, MSGPACK, REALTIME, Row, Rows, Wire
from qmt_protocol.live import CloseCode, Failure, GapNotice
from qmt_protocol.ticks import TickFlag, encode_tick

MAX_BYTES = 10_000
MARK = ("e", "5-0")


class FakeSink:
    """A connection that takes nothing until it is told to; one piece more than nothing waits."""

    gone = False
    incoming_bytes = 0

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

    def push(self, frame: bytes | memoryview) -> None:
        (self.taken if self.reads else self.waiting).append(bytes(frame))

    def on_drained(self, call: Callable[[], None]) -> None:
        self._call = call

    async def drain(self) -> None:
        return

    def abandon(self, code: int, reason: str) -> None:
        self.closed = (code, reason)
        self.gone = True

    def read_some(self) -> None:
        self.taken += self.waiting
        self.waiting.clear()
        self._call()

    def read_all(self) -> None:
        self.reads = True
        self.read_some()

    def messages(self) -> list[dict[str, Any]]:
        return [msgpack.unpackb(payload) for payload in payloads(b"".join(self.taken))]


def payloads(data: bytes) -> Iterator[bytes]:
    """Take a server's messages apart by RFC 6455."""
    message = b""
    at = 0
    while at < len(data):
        first, size = data[at], data[at + 1]
        head = {126: 4, 127: 10}.get(size, 2)
        size = int.from_bytes(data[at + 2 : at + head], "big") if head > 2 else size
        assert first & 0x0F == (0x00 if message else 0x02), (
            "a fragment goes on, a message is binary"
        )
        message += data[at + head : at + head + size]
        at += head + size
        assert at <= len(data)
        if first & 0x80:
            yield message
            message = b""
    assert message == b""


def payload(frame: bytes) -> bytes:
    (only,) = payloads(frame)
    return only


def a_frame(number: int, codes: int, rows: int = 1) -> Frame:
    made = [
        Row(f"{600_000 + code}.SH", "", f"{1000 + number * rows + row}-0", encode_tick({"pe": row}))
        for code in range(codes)
        for row in range(rows)
    ]
    offsets = {"SH": ("e", f"{number}-0")}
    return Frame(MSGPACK.live("live", offsets, made), made, offsets)


class Crowd:
    """A group, and subscribers whose connections are there to look at."""

    def __init__(self, count: int, *, reads: bool = False, limit_bytes: int = 10**9) -> None:
        self.budget = Budget(limit_bytes)
        self.group = Group(frozenset(), "SH", MSGPACK, False, self.budget)
        self.sinks = [FakeSink(reads=reads) for _ in range(count)]
        self.subscribers = [
            Subscriber(sink, MSGPACK, MAX_BYTES, self.budget) for sink in self.sinks
        ]
        for one in self.subscribers:
            self.budget.join(one)
            self.group.subscribers.add(one)

    def send(self, frame: Frame) -> Frame:
        self.group.send(frame)
        self.budget.relieve()
        return frame


def test_who_keeps_up_gets_every_frame_in_order() -> None:
    crowd = Crowd(1, reads=True)
    for number in range(5):
        crowd.send(a_frame(number, 2))
    told = crowd.sinks[0].messages()
    assert [one["position"]["SH"] for one in told] == [["e", f"{number}-0"] for number in range(5)]
    assert all([row[0] for row in one["ticks"]] == ["600000.SH", "600001.SH"] for one in told)
    assert crowd.budget.held_bytes == 0


def test_who_does_not_keeps_the_newest_row_of_each_code_and_is_told() -> None:
    crowd = Crowd(1)
    (sink,), (subscriber,) = crowd.sinks, crowd.subscribers
    pushed = 0
    for number in range(1_000):
        frame = crowd.send(a_frame(number, 50 if number % 2 else 20, rows=3))
        pushed += len(frame.rows)
        assert subscriber.held_bytes <= MAX_BYTES + 50 * 400
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
    crowd.send(a_frame(7, 1))
    assert len(sink.messages()) == len(told) + 1
    assert crowd.budget.held_bytes == 0


def test_what_many_do_not_read_is_held_once() -> None:
    """Three hundred who fall behind at the same frame cost what one does, but for their buffers."""
    few, many = Crowd(1), Crowd(300)
    for number in range(100):
        for crowd in (few, many):
            crowd.send(a_frame(number, 50, rows=2))
    in_buffers = [sum(sink.waiting_bytes for sink in crowd.sinks) for crowd in (few, many)]
    assert in_buffers[1] == 300 * in_buffers[0]
    assert many.budget.held_bytes - in_buffers[1] == few.budget.held_bytes - in_buffers[0]
    few.sinks[0].read_all()
    for sink in many.sinks:
        sink.read_all()
        assert sink.messages() == few.sinks[0].messages()
    assert many.budget.held_bytes == few.budget.held_bytes == 0


def test_those_who_fall_behind_at_different_frames_miss_what_is_theirs() -> None:
    crowd = Crowd(2)
    early, late = crowd.sinks
    late.reads = True
    pushed = 0
    for number in range(40):
        late.reads = number < 20
        pushed += len(crowd.send(a_frame(number, 30)).rows)
    crowd.subscribers[0].leave_groups()  # as a change of its subscription has it
    pushed += len(crowd.send(a_frame(40, 30)).rows)
    for sink in (early, late):
        sink.read_all()
        told = sink.messages()
        skipped = sum(one["ticks"] for one in told if one["type"] == "skipped")
        rows = [row[1] for one in told if one["type"] == "live" for row in one["ticks"]]
        assert len(rows) + skipped == pushed
        assert rows[-30:] == ["1040-0"] * 30
    assert crowd.budget.held_bytes == 0


def test_beyond_the_budget_who_holds_most_is_told_and_cut_off() -> None:
    crowd = Crowd(3, limit_bytes=60_000)
    greedy, modest, reader = crowd.sinks
    reader.reads = True
    crowd.send(a_frame(0, 1))
    modest.read_some()
    rows = list(a_frame(1, 2_000).rows)
    crowd.subscribers[0].send_rows("snapshot", {}, rows)
    number = 1
    while greedy.closed is None:
        number += 1
        crowd.send(a_frame(number, 100))
        modest.read_some()
        assert number < 200
    assert greedy.closed[0] == CloseCode.OVERLOADED
    assert "do not read" in greedy.closed[1]
    assert (modest.closed, reader.closed) == (None, None)
    assert crowd.budget.cut_off == 1
    assert crowd.budget.held_bytes <= 60_000
    assert len(reader.messages()) == number


def test_messages_that_nobody_reads_end_the_connection() -> None:
    crowd = Crowd(1)
    notice = GapNotice(market="SH", reason="test", message="x" * 1_000)
    for _ in range(1_100):
        crowd.subscribers[0].send(notice)
        assert crowd.subscribers[0].held_bytes <= MAX_BYTES + 1_000_000
    closed = crowd.sinks[0].closed
    assert closed is not None
    assert closed[0] == CloseCode.OVERLOADED


def test_rows_are_made_into_frames_when_they_are_taken() -> None:
    crowd = Crowd(1)
    (sink,), (subscriber,) = crowd.sinks, crowd.subscribers
    made: list[int] = []

    def parts() -> Iterator[Part]:
        for number in range(5):
            made.append(number)
            frame = a_frame(number, 10)
            yield frame.offsets, frame.rows

    subscriber.send_parts("missed", parts(), 50)
    assert made == [0], "one waits, and the others are not there yet"
    sink.read_some()
    assert made == [0, 1]
    sink.read_all()
    assert [one["position"]["SH"] for one in sink.messages()] == [["e", f"{n}-0"] for n in range(5)]


def test_a_long_message_goes_in_fragments_and_no_more_of_it_than_is_taken() -> None:
    crowd = Crowd(1)
    (sink,) = crowd.sinks
    frame = crowd.send(a_frame(0, 5_000))
    assert len(frame.data) > 3 * FRAGMENT_BYTES
    assert sink.waiting_bytes == FRAGMENT_BYTES
    while sink.waiting:
        assert sink.waiting_bytes <= FRAGMENT_BYTES
        sink.read_some()
    (told,) = sink.messages()
    assert len(told["ticks"]) == 5_000


@pytest.mark.parametrize("size", [0, 125, 126, 65_531, 65_532, 65_533, 131_064, 131_065, 10**6])
def test_frames_of_every_length(size: int) -> None:
    frame = MSGPACK.message(Failure(id="x" * size, error={}))
    assert msgpack.unpackb(payload(frame))["id"] == "x" * size


def test_close_codes_are_those_of_the_wire() -> None:
    wires: tuple[tuple[Wire, int], ...] = ((JSON, 4503), (REALTIME, 1013))
    for wire, code in wires:
        sink = FakeSink(reads=True)
        subscriber = Subscriber(sink, wire, MAX_BYTES, Budget(10**9))
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
