"""What waits for a client stays within its bound, and nothing of it vanishes uncounted."""

from __future__ import annotations

import asyncio
import json

from qmt_gateway.subscriber import Frame, Subscriber, join_rows

MAX_BYTES = 10_000


def a_frame(number: int, codes: int, rows: int = 1) -> Frame:
    encoded = {
        f"{600_000 + code}.SH": [b'{"volume":%d}' % (number * rows + row) for row in range(rows)]
        for code in range(codes)
    }
    return Frame(
        join_rows(encoded),
        {code: of[-1] for code, of in encoded.items()},
        {code: len(of) for code, of in encoded.items()},
    )


async def read(subscriber: Subscriber) -> dict[str, list[dict[str, int]]]:
    text = await asyncio.wait_for(subscriber.next_frame(), 1)
    assert text is not None
    decoded: dict[str, list[dict[str, int]]] = json.loads(text)
    return decoded


async def test_who_keeps_up_gets_every_frame_in_order() -> None:
    subscriber = Subscriber(MAX_BYTES)
    for number in range(5):
        subscriber.push(a_frame(number, 2))
    seen = [(await read(subscriber))["600001.SH"] for _ in range(5)]
    assert seen == [[{"volume": number}] for number in range(5)]
    assert not subscriber.skipped
    assert subscriber.waiting_bytes == 0


async def test_who_does_not_keeps_the_newest_row_of_each_code_and_no_more() -> None:
    subscriber = Subscriber(MAX_BYTES)
    most = 0
    for number in range(1_000):
        subscriber.push(a_frame(number, 50 if number % 2 else 20, rows=3))
        most = max(most, subscriber.waiting_bytes)
    assert most <= MAX_BYTES
    told = await read(subscriber)
    assert len(told) == 50
    assert told["600000.SH"] == [{"volume": 2_999}]
    assert told["600049.SH"] == [{"volume": 2_999}]
    assert subscriber.skipped["600000.SH"] == 2_999
    assert subscriber.skipped["600049.SH"] == 1_499
    subscriber.push(a_frame(7, 1))
    assert await read(subscriber) == {"600000.SH": [{"volume": 7}]}


async def test_one_frame_beyond_the_bound_is_still_delivered() -> None:
    subscriber = Subscriber(MAX_BYTES)
    subscriber.push(a_frame(0, 1_000))
    assert len(await read(subscriber)) == 1_000
    assert not subscriber.skipped


async def test_a_closed_one_still_gets_what_waits() -> None:
    subscriber = Subscriber(MAX_BYTES)
    subscriber.push(a_frame(1, 1))
    subscriber.close("over")
    assert await read(subscriber)
    assert await subscriber.next_frame() is None


async def test_a_wake_without_frames_is_empty() -> None:
    subscriber = Subscriber(MAX_BYTES)
    subscriber.tell_gap("SH")
    assert await asyncio.wait_for(subscriber.next_frame(), 1) == ""
    assert subscriber.gaps == {"SH"}


async def test_a_code_that_json_must_escape_does_not_break_the_frame() -> None:
    assert json.loads(join_rows({'a"b.SH': [b"1", b"2"]})) == {'a"b.SH': [1, 2]}
