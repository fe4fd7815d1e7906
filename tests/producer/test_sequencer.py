"""The judge against a naive one that holds everything, over restarts and whatever it must read."""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from qmt_producer.candidates import Candidates, Entry, Kind
from qmt_producer.sequencer import LOOK, WINDOW_MS, BarSequencer, Sequenced, TickSequencer
from qmt_protocol.bars import encode_bar
from qmt_protocol.ticks import encode_tick

LATE, CLAMPED = 1, 2
START_MS = 1_763_697_600_000
FUTURE_MS = 10_000
NOW_MS = START_MS + 200_000
CODES = ("600519.SH", "510050.SH", "A" * 24 + ".SH")

Put = tuple[str, int, float, int]
"""Code, ms behind the start, price, volume."""
puts = st.tuples(
    st.sampled_from(CODES),
    st.one_of(
        st.integers(0, 5),
        st.integers(0, 150).map(lambda seconds: 1000 * seconds),
        st.just(400_000),  # ahead of Redis time
    ),
    st.sampled_from((10.0, 10.01)),
    st.integers(1, 3),
)
stories = st.lists(
    st.one_of(st.lists(puts, min_size=1, max_size=6), st.just("another holder")), max_size=14
)


def t1_of(put: Put) -> bytes:
    _, at, price, volume = put
    return encode_tick({"time": START_MS + at, "lastPrice": price, "volume": volume})


def batch_of(entries: list[Entry], kind: Kind = "tick") -> Candidates:
    return Candidates.of(kind, entries)


class Naive:
    """Everything ever published, and the rules of decision 0011 in so many words."""

    def __init__(self) -> None:
        self.streams: dict[str, list[tuple[tuple[int, int], Put, int]]] = defaultdict(list)

    def take(self, put: Put) -> tuple[str, list[Any] | None]:
        code, at, _, volume = put
        stream = self.streams[code]
        ms, flags = START_MS + at, 0
        if ms > NOW_MS + FUTURE_MS:
            ms, flags = NOW_MS, CLAMPED
        number, how = 0, "new"
        if stream and ms <= stream[-1][0][0]:
            (last_ms, last_number), _, _ = stream[-1]
            if any(entry_id[0] >= ms and one == put for entry_id, one, _ in stream):
                return "repeated", None
            in_order = [one for _, one, told in stream if not told & LATE]
            if ms < last_ms or volume < in_order[-1][3]:
                flags, how = flags | LATE, "late"
            ms, number = last_ms, last_number + 1
        stream.append(((ms, number), put, flags))
        row = msgpack.unpackb(t1_of(put))
        return how, [code, f"{ms}-{number}", [*row[:-1], flags]]

    def stored(self, code: str) -> list[tuple[str, bytes]]:
        return [
            (f"{ms}-{number}", t1_of(put)[:-1] + bytes([flags]))
            for (ms, number), put, flags in self.streams[code]
        ]

    def memory(self) -> TickSequencer:
        """Return what a process knows that takes the lease now."""
        latest = {}
        for code, stream in self.streams.items():
            in_order = [entry for entry in stream if not entry[2] & LATE]
            if in_order:
                (ms, number), put, _ = in_order[-1]
                latest[code] = b"\x92" + msgpack.packb(f"{ms}-{number}") + t1_of(put)
        return TickSequencer(latest, FUTURE_MS)

    def teach(self, memory: TickSequencer, needed: dict[str, int]) -> None:
        """Give what a reader of the streams finds."""
        for code, from_ms in needed.items():
            stored = self.stored(code)
            behind = [one for one in stored if int(one[0].partition("-")[0]) >= from_ms]
            memory.learn(code, from_ms, (*behind[:LOOK], *stored[-LOOK:]))


def told(sequenced: Sequenced) -> list[list[Any]]:
    """Decode a body with the msgpack package; its sizes must cut it exactly."""
    rows: list[list[Any]] = msgpack.unpackb(sequenced.body) if sequenced.body else []
    sizes = struct.unpack(f">{len(rows)}I", sequenced.sizes)
    head = 1 if len(rows) < 16 else 3
    names = sum(1 + sum(len(msgpack.packb(part)) for part in row[:-1]) for row in rows)
    assert len(sequenced.body) == (head + names + sum(sizes) if rows else 0)
    assert [len(msgpack.packb(row[-1])) for row in rows] == list(sizes)
    return rows


@settings(max_examples=600, deadline=None)
@given(stories)
def test_ticks_are_judged_as_by_one_who_holds_everything(story: list[Any]) -> None:
    naive = Naive()
    memory = naive.memory()
    for batch in story:
        if batch == "another holder":
            memory = naive.memory()
            continue
        entries: list[Entry] = [(put[0], START_MS + put[1], t1_of(put)) for put in batch]
        naive.teach(memory, memory.unknown(batch_of(entries), NOW_MS))
        assert memory.unknown(batch_of(entries), NOW_MS) == {}
        expected = [naive.take(put) for put in batch]
        sequenced = memory.sequence(batch_of(entries), NOW_MS)
        assert told(sequenced) == [row for _, row in expected if row is not None]
        assert sequenced.streams == [row[0] for _, row in expected if row is not None]
        counts = (sequenced.added, sequenced.repeated, sequenced.late, sequenced.rejected)
        hows = [how for how, _ in expected]
        repeated, late = hows.count("repeated"), hows.count("late")
        assert counts == (len(hows) - repeated, repeated, late, 0)
        assert sequenced.greatest_ms <= NOW_MS + FUTURE_MS


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 25), min_size=1, max_size=40), st.data())
def test_what_has_its_id_already_is_published_once(jumps: list[int], data: st.DataObject) -> None:
    """A replay that breaks off and begins again some entries earlier."""
    ids, at, number = [], START_MS, 0
    for jump in jumps:  # 0: the same ms again
        at, number = (at + 2000 * jump, 0) if jump else (at, number + 1)
        ids.append(f"{at}-{number}")
    flags = [data.draw(st.sampled_from((0, 0, 0, LATE))) for _ in ids]
    rows = [encode_tick({"time": START_MS, "volume": n}, flag) for n, flag in enumerate(flags)]
    entries: list[Entry] = [(CODES[0], one, t1) for one, t1 in zip(ids, rows, strict=True)]
    published: list[tuple[str, bytes]] = []
    memory, begin = TickSequencer({}, FUTURE_MS), 0
    for _ in range(data.draw(st.integers(1, 4))):
        part = entries[begin : begin + data.draw(st.integers(1, 15))] or entries[-1:]
        needed = memory.unknown(batch_of(part), 0)
        for code, from_ms in needed.items():
            behind = [one for one in published if int(one[0].partition("-")[0]) >= from_ms]
            memory.learn(code, from_ms, (*behind[:LOOK], *published[-LOOK:]))
        sequenced = memory.sequence(batch_of(part), 0)
        seen = {one for one, _ in published}
        news = [(one, t1) for _, one, t1 in part if one not in seen]
        assert [(row[1], row[2]) for row in told(sequenced)] == [
            (one, msgpack.unpackb(t1)) for one, t1 in news
        ]
        assert sequenced.rejected == 0
        published += news
        begin = data.draw(st.integers(0, len(published)))
        if data.draw(st.booleans()):
            memory = TickSequencer({}, FUTURE_MS)


bars = st.tuples(
    st.sampled_from(("1m", "5m")), st.integers(0, 12), st.integers(1, 4), st.booleans()
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.one_of(st.lists(bars, min_size=1, max_size=6), st.just("another holder")), max_size=12
    )
)
def test_bars_are_judged_as_by_one_who_holds_everything(story: list[Any]) -> None:
    streams: dict[str, list[tuple[tuple[int, int], bytes, int, bool]]] = defaultdict(list)
    memory = BarSequencer()
    for batch in story:
        if batch == "another holder":
            memory = BarSequencer()
            continue
        entries: list[Entry] = []
        for period, minute, volume, closed in batch:
            at = START_MS + 60_000 * minute
            k1 = encode_bar({"time": at, "close": 1.0, "volume": volume, "closed": closed})
            entries.append((f"{period}|{CODES[0]}", at, k1))
        for series, from_ms in memory.unknown(batch_of(entries, "bar"), 0).items():
            stored = [(f"{ms}-{n}", k1) for (ms, n), k1, _, _ in streams[series]]
            behind = [one for one in stored if int(one[0].partition("-")[0]) >= from_ms]
            memory.learn(series, from_ms, (*behind[:LOOK], *stored[-LOOK:]))
        expected, hows = [], []
        for (series, at, k1), (period, _, volume, closed) in zip(entries, batch, strict=True):
            stream = streams[series]
            last = stream[-1][0] if stream else (-1, -1)
            under = [one for one in stream if one[0][0] == at]
            older = [one for one in under[-1:] if not closed and (one[3] or volume < one[2])]
            if older or any(one[1] == k1 for one in under):
                hows.append("repeated")
            elif at < last[0]:
                hows.append("late")
            else:
                number = last[1] + 1 if at == last[0] else 0
                stream.append(((int(at), number), k1, volume, closed))
                expected.append([CODES[0], period, f"{at}-{number}", msgpack.unpackb(k1)])
        sequenced = memory.sequence(batch_of(entries, "bar"), 0)
        assert told(sequenced) == expected
        assert (sequenced.repeated, sequenced.late) == (hows.count("repeated"), hows.count("late"))


def test_a_window_is_left_behind_and_read_again() -> None:
    code, memory = CODES[0], TickSequencer({}, FUTURE_MS)
    memory.learn(code, 0, [])
    old, new = (code, 0, 10.0, 1), (code, WINDOW_MS + 1, 10.0, 2)
    for put in (old, new):
        memory.sequence(batch_of([(code, START_MS + put[1], t1_of(put))]), NOW_MS)
    again = batch_of([(code, START_MS, t1_of(old))])
    assert memory.unknown(again, NOW_MS) == {code: START_MS}
    memory.learn(code, START_MS, [(f"{START_MS}-0", t1_of(old))])
    assert memory.sequence(again, NOW_MS).repeated == 1


def test_a_moment_that_does_not_end_is_bounded_and_no_tick_of_it_is_new_again() -> None:
    """A clock of the exchange that stands still: ever other books at one ms."""
    code, memory = CODES[0], TickSequencer({}, FUTURE_MS)
    memory.learn(code, 0, [])
    for volume in range(1, 5_000):
        batch = batch_of([(code, START_MS, t1_of((code, 0, 1.0, volume)))])
        if memory.unknown(batch, NOW_MS):
            break
        assert memory.sequence(batch, NOW_MS).added == 1
    assert volume == 4_098, "beyond that the stream is read"
    assert len(memory._codes[code].entries) == 4_096


def test_a_stream_that_ends_with_no_date_rejects_and_says_so() -> None:
    code, memory = CODES[0], TickSequencer({}, FUTURE_MS)
    memory.learn(code, 0, [(f"{10**15}-0", b"\x90")])
    sequenced = memory.sequence(batch_of([(code, START_MS, t1_of((code, 0, 1.0, 1)))]), NOW_MS)
    assert (sequenced.added, sequenced.rejected) == (0, 1)
    assert f"{10**15}-0" in sequenced.words
