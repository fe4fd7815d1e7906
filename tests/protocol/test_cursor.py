"""The cursor over a model of Redis and of a gateway, against everything that was published.

The judge holds the whole log and knows only this: per code the user gets rising ids, each once;
and whatever of the log it never gets was named by a gap.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from typing import Any

import msgpack
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from qmt_protocol.cursor.batch import Batch, Snapshot
from qmt_protocol.cursor.conflation import Conflation
from qmt_protocol.cursor.cursor import Cursor
from qmt_protocol.cursor.feed_offset import Break, FeedEntry, FeedOffset
from qmt_protocol.cursor.position import Offset, Position, just_before
from qmt_protocol.cursor.progress import Progress
from qmt_protocol.cursor.scope import Scope
from qmt_protocol.errors import Gap
from qmt_protocol.ids import BEGINNING, id_key
from qmt_protocol.ticks import encode_tick

T0 = 1_763_697_600_000
CODES = ("600000.SH", "600001.SH", "510050.SH")
SCOPES = (Scope(("SH",)), Scope.of(CODES[:2], ()), Scope.of(CODES[2:], ()))
T1 = msgpack.unpackb(encode_tick({"time": T0, "lastPrice": 10.0, "volume": 1}))

Put = tuple[str, str]
"""Code and entry id."""


def key(entry_id: str) -> tuple[int, int]:
    ms, number = entry_id.split("-")
    return int(ms), int(number)


class Redis:
    """A market's keys, and all that was ever published."""

    def __init__(self) -> None:
        self.log: list[Put] = []
        self.epoch = "e1"
        self.feed: list[tuple[str, list[Put]]] = []
        self.trimmed = 0
        self.end = BEGINNING
        self.filed = BEGINNING
        self.streams: dict[str, list[str]] = {}
        self.latest: dict[str, str] = {}
        self._ms = T0
        self._entry_ms = T0

    def publish(self, codes: list[str]) -> None:
        self._ms += 1000
        puts = [(code, f"{self._ms}-{number}") for number, code in enumerate(sorted(codes))]
        self.log += puts
        self._append(puts)

    def _append(self, puts: list[Put]) -> None:
        self._entry_ms += 10
        self.end = f"{self._entry_ms}-0"
        self.feed.append((self.end, puts))

    def file(self, entries: int) -> None:
        for entry_id, puts in self.unfiled()[:entries]:
            for code, at in puts:
                if key(at) > key(self.latest.get(code, BEGINNING)):
                    self.streams.setdefault(code, []).append(at)
                    self.latest[code] = at
            self.filed = entry_id

    def unfiled(self) -> list[tuple[str, list[Put]]]:
        return [one for one in self.feed if key(one[0]) > key(self.filed)]

    def trim_feed(self, keep: int) -> None:
        gone = len(self.feed) - len(self.unfiled()) - keep
        if gone > 0:
            del self.feed[:gone]
            self.trimmed += gone

    def trim_stream(self, code: str, keep: int) -> None:
        if code in self.streams:
            del self.streams[code][: len(self.streams[code]) - keep]

    def unlink(self, code: str) -> None:
        self.streams.pop(code, None)

    def lose(self, entries: int, restored: bool) -> None:
        """Lose the feed's tail; the holder publishes it again, under a new epoch.

        ``restored``: Redis's own clock, too, is back where it was.
        """
        self.file(len(self.feed))
        batches = [puts for _, puts in self.feed]
        kept = max(0, len(batches) - entries)
        del self.feed[kept:]
        self.end = self.feed[-1][0] if self.feed else BEGINNING
        self.filed = self.end
        lost = [put for puts in batches[kept:] for put in puts]
        for code, at in lost:
            if at in self.streams.get(code, ()):
                self.streams[code].remove(at)
        for code in {code for code, _ in lost}:
            before = [at for other, at in self.log if other == code and (code, at) not in lost]
            self.latest.pop(code, None)
            if before:
                self.latest[code] = before[-1]
        if restored:
            self._entry_ms = key(self.end)[0] or T0
        self.epoch += "'"
        for puts in batches[kept:]:
            self._append(puts)

    def entries(self, position: FeedOffset, count: int) -> list[FeedEntry]:
        behind = [one for one in self.feed if key(one[0]) >= key(position.at)]
        return [entry_of(*one) for one in behind[:count]]

    def in_feed(self, from_ms: int | None) -> set[Put]:
        """Return what the feed holds from a time on, or, with ``None``, from now on."""
        entries = [] if from_ms is None else self.feed
        return {put for at, puts in entries if key(at)[0] >= (from_ms or 0) for put in puts}

    def snapshot(self) -> Snapshot:
        latest = {code: msgpack.packb([at, T1]) for code, at in self.latest.items()}
        return Snapshot({"SH": (self.epoch, self.filed)}, latest)


def entry_of(entry_id: str, puts: list[Put]) -> FeedEntry:
    rows = [[code, at, T1] for code, at in puts]
    return FeedEntry("SH", entry_id, msgpack.packb(rows), None)


class User:
    """Takes rows, is told gaps, and is compared with the log."""

    def __init__(self, redis: Redis, scope: Scope) -> None:
        self.redis, self.scope = redis, scope
        self.taken: dict[str, list[str]] = defaultdict(list)
        self.last: dict[str, str] = {}
        self.known: dict[str, str] = {}
        """What the reader knows of that, by its position."""
        self.has_lost_history = False
        self.held: dict[str, list[str]] = {}
        """The streams as they were read last: a gap of codes is told of these."""
        self.excused: set[Put] = set()
        self.begins: dict[str, str] = {}
        self.progress = Progress(None)

    def on_gap(self, gap: Gap) -> None:
        published, codes = self.redis.log, gap.data.get("codes")
        if not codes:
            self.has_lost_history |= gap.data["reason"] == "epoch"
            self.forget()
            to_ms = gap.data["to_ms"] if not self.progress.knows_all else 1
            gone = set(published) - self.redis.in_feed(to_ms or None)
            if self.progress.knows_all:  # its streams are read
                gone -= {(code, at) for code, held in self.redis.streams.items() for at in held}
            assert gone or gap.data["reason"] == "epoch", gap.message
            self.excused |= gone
            return
        for code, (after, first) in codes.items():
            least, most = key(after or BEGINNING), key(first or f"{10**14}-0")
            still_there = {(code, at) for at in self.held.get(code, ())}
            named = {
                put for put in published if put[0] == code and least < key(put[1]) <= most
            } - still_there
            if after:
                assert named, f"named without a reason: {gap.data}"
            self.excused |= named

    def forget(self) -> None:
        """In a new history a short position does not tell what was given of the old one."""
        if self.has_lost_history:
            self.last = {code: at for code, at in self.last.items() if code in self.known}

    def give(self, batch: Batch, take: int | None = None) -> bool:
        """Take a batch, or its first rows; whether all of it was taken."""
        self.progress.enter(batch)
        for count, row in enumerate(batch.rows):
            if count == take:
                return False
            code, at, _ = row
            if batch.kind == "snapshot":
                continue
            assert code in CODES
            assert self.scope.codes is None or code in self.scope.codes
            assert key(at) > key(self.last.get(code, BEGINNING)), "each once, in order"
            self.last[code] = at
            self.taken[code].append(at)
            self.progress.take(row)
        self.progress.leave()
        return True

    def check(self) -> None:
        missing = {
            (code, at)
            for code, at in self.redis.log
            if (self.scope.codes is None or code in self.scope.codes)
            and key(at) > key(self.begins.get(code, BEGINNING))
            and at not in self.taken[code]
        }
        assert missing <= self.excused, "whatever is skipped has a name"


class Reader:
    """The shell around the cursor, over the model."""

    def __init__(
        self, user: User, position: Position | None = None, start_ms: int | None = None
    ) -> None:
        self.redis, self.user = user.redis, user
        self.cursor = Cursor(user.scope, position, on_gap=user.on_gap, start_ms=start_ms)
        user.known = self.cursor.last_ids
        user.forget()
        found = self.redis.snapshot()
        if position is not None and position.offsets:
            self.position = FeedOffset("SH", position.offsets["SH"])
            self.cursor.begin(Snapshot(), found.offsets)
        else:
            if start_ms is None:
                user.begins = dict(self.redis.latest)
            self.position = FeedOffset("SH", found.offsets["SH"])
            self.cursor.begin(found, {}, with_snapshot=True)
        self.batches = self._batches()

    def read(self, count: int) -> None:
        """Read once, and take what comes."""
        self.count = count
        for _ in range(count):
            batch = next(self.batches)
            if not self.user.give(batch):
                break

    def _batches(self) -> Iterator[Batch]:
        cursor = self.cursor
        yield cursor.opening()
        if self.cursor.recovering:
            yield from self._recover()
        while True:
            entries = self.redis.entries(self.position, 2)
            is_whole = self.position.at == BEGINNING and not self.redis.trimmed
            broken, behind = self.position.look(
                self.redis.epoch, entries, is_whole=is_whole, end=self.redis.end
            )
            if broken is not None:
                cursor.break_off(broken)
            if cursor.recovering:
                yield from self._recover()
                continue
            for entry in behind:
                yield cursor.take(entry, self.position.epoch)
            if not behind:
                yield Batch("missed", offsets=dict(cursor.offsets))

    def _recover(self) -> Iterator[Batch]:
        found = self.redis.snapshot()
        self.position = FeedOffset("SH", found.offsets["SH"])
        yield self.cursor.take_stored([])  # time passes
        after = self.cursor.recover(found)
        self.user.held = {code: list(held) for code, held in self.redis.streams.items()}
        lost: dict[str, tuple[str, str]] = {}
        due: list[Put] = []
        for code, last in after.items():
            held = self.redis.streams.get(code)
            if held is None:
                continue
            of_code = {at for other, at in self.redis.log if other == code}
            gone = {at for at in of_code - set(held) if key(at) > key(last)}
            gone -= {at for _, puts in self.redis.unfiled() for other, at in puts if other == code}
            if gone:
                lost[code] = (last, held[0] if held else "")
            due += [(code, at) for at in held if key(at) > key(last)]
        if lost:
            self.cursor.trim(lost)
        due.sort(key=lambda put: key(put[1]))
        for start in range(0, len(due), 2):
            yield self.cursor.take_stored([(code, at, T1) for code, at in due[start : start + 2]])
        yield self.cursor.recovered(self.redis.snapshot().offsets)


counts = st.integers(0, 5)
codes = st.lists(st.sampled_from(CODES), min_size=1, max_size=3, unique=True)
of_redis = st.one_of(
    st.tuples(st.just("publish"), codes),
    st.tuples(st.just("file"), counts),
    st.tuples(st.just("trim_feed"), counts),
    st.tuples(st.just("trim_stream"), st.sampled_from(CODES), st.integers(0, 2)),
    st.tuples(st.just("unlink"), st.sampled_from(CODES)),
    st.tuples(st.just("lose"), counts, st.booleans()),
)
of_reader = st.one_of(
    st.tuples(st.just("read"), st.integers(1, 6)),
    st.tuples(st.just("restart"), st.integers(0, 2), st.sampled_from(("short", "full"))),
)
often = st.one_of(st.tuples(st.just("publish"), codes), st.tuples(st.just("file"), counts))
stories = st.lists(
    st.one_of(often, of_redis, of_reader),
    min_size=4,
    max_size=40,
)


@settings(max_examples=800, deadline=None, report_multiple_bugs=False)
@given(stories, st.sampled_from(SCOPES), st.sampled_from((None, 0, 3)), codes)
def test_each_once_or_a_gap_with_a_name(
    story: list[tuple[Any, ...]], scope: Scope, start_s: int | None, first: list[str]
) -> None:
    note(f"{story} {scope} {start_s} {first}")
    run(story, scope, start_s, first)


SOME: tuple[tuple[Any, ...], ...] = (("publish", list(CODES)),) * 3
HEALS = {
    "stored since a time": (0, (("read", 2),)),
    "what was trimmed": (None, (("read", 1), *SOME, ("file", 9), ("trim_feed", 1), ("read", 1))),
    "another history": (None, (("read", 2), *SOME, ("lose", 2, False), ("read", 1))),
}


@pytest.mark.parametrize("what", HEALS)
@pytest.mark.parametrize("meanwhile", [(), (*SOME, ("file", 2)), (*SOME, ("file", 9))])
def test_wherever_a_reader_of_streams_is_cut(
    what: str, meanwhile: tuple[tuple[Any, ...], ...]
) -> None:
    """In the midst of streams, in what the feed has of them still, and behind; and once more."""
    start_s, before = HEALS[what]
    for reads, take, again, how in product(range(12), range(3), range(7), ("short", "full")):
        read = (("read", reads),) if reads else ()
        cut = ("restart", take, how)
        more = (("read", again),) if again else ()
        run(
            [*before, *meanwhile, *read, cut, *more, ("restart", 0, "short")],
            SCOPES[0],
            start_s,
            list(CODES),
        )


def test_a_short_position_beyond_the_feed() -> None:
    gone = (*SOME, ("file", 9), ("trim_feed", 1))
    for take, how in product(range(4), ("short", "full")):
        run([("read", 3), ("restart", take, how), *gone], SCOPES[0], None, list(CODES))


def run(story: list[tuple[Any, ...]], scope: Scope, start_s: int | None, first: list[str]) -> None:
    """Follow a story; ``first``: the codes that are there at the beginning."""
    redis = Redis()
    for _ in range(3):
        redis.publish(first)
    redis.file(2)
    user = User(redis, scope)
    start_ms = None if start_s is None else T0 + 1000 * start_s
    if start_ms is not None:
        user.begins = dict.fromkeys(CODES, just_before(start_ms))
    reader = Reader(user, None, start_ms)
    for what, *arguments in story:
        if what == "read":
            reader.read(*arguments)
        elif what == "restart":
            reader = restarted(reader, *arguments)
        else:
            getattr(redis, what)(*arguments)
    redis.file(100)
    for _ in range(100):
        reader.read(1)
    user.check()
    assert not reader.cursor.recovering
    assert not reader.cursor.settling
    assert reader.cursor.offsets["SH"] == reader.position.offset


def restarted(reader: Reader, take: int, how: str) -> Reader:
    """Go on, in another process, behind the row that the user took last."""
    user, start_ms = reader.user, reader.cursor._start_ms
    user.give(next(reader.batches), take)
    position = user.progress.position(with_codes=how == "full")
    position = Position.parse(json.loads(json.dumps(position.to_dict())))
    user.progress = Progress(position)
    # Before the first offset there is no position: it begins again, as the user sees.
    if not position.offsets and start_ms is None:
        user.taken.clear()
        user.last.clear()
        user.excused.clear()
    return Reader(user, position, None if position.offsets else start_ms)


# Through a gateway


class Gateway:
    """Sends what lies behind a client's position, again and again, and cuts it off anywhere."""

    def __init__(self, log: list[list[Put]]) -> None:
        self.frames = [(f"{T0 + number}-0", puts) for number, puts in enumerate(log, 1)]

    def behind(self, offset: Offset | None) -> Iterator[tuple[list[Put], dict[str, Offset]]]:
        at = key(BEGINNING if offset is None else offset[1])
        for entry_id, puts in self.frames:
            if key(entry_id) <= at:
                continue
            for start in range(0, len(puts), 2):  # the last part of a batch has the position
                is_last = start + 2 >= len(puts)
                yield puts[start : start + 2], {"SH": ("e1", entry_id)} if is_last else {}


@settings(max_examples=400, deadline=None)
@given(
    st.lists(codes, min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6),
    st.sampled_from(SCOPES),
)
def test_whatever_a_gateway_sends_again_comes_once(
    story: list[list[str]], cuts: list[tuple[int, bool]], scope: Scope
) -> None:
    redis = Redis()
    for of in story:
        redis.publish(of)
    gateway = Gateway([puts for _, puts in redis.feed])
    user = User(redis, scope)
    position = Position({"SH": ("e1", BEGINNING)}, dict.fromkeys(CODES, BEGINNING))
    user.progress = Progress(position)
    cursor = Cursor(
        scope, Position(dict(position.offsets), dict(position.codes or {})), on_gap=user.on_gap
    )
    user.give(cursor.opening())
    for frames, is_new_process in [*cuts, (1000, False)]:
        for sent, (puts, offsets) in enumerate(gateway.behind(cursor.offsets.get("SH"))):
            if sent == frames:
                break
            rows = [(code, at, T1) for code, at in puts]
            user.give(cursor.receive("live", rows, (), offsets))
        if is_new_process:
            saved = Position.parse(user.progress.position(with_codes=True).to_dict())
            user.progress.leave()
            saved = Position.parse(user.progress.position(with_codes=False).to_dict())
            cursor = Cursor(scope, saved, on_gap=user.on_gap)
    user.check()
    assert not user.excused


# Conflation


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from(CODES), st.integers(1, 99)))))
def test_conflation_keeps_the_newest_and_counts_the_rest(
    frames: list[list[tuple[str, int]]],
) -> None:
    kept: Conflation[tuple[str, int]] = Conflation(lambda row: row[1])
    parts = [Conflation[tuple[str, int]](lambda row: row[1]) for _ in frames]
    for frame, part in zip(frames, parts, strict=True):
        for one in (kept, part):
            one.add(((row[0], row) for row in frame), {"SH": ("e1", f"{len(frame)}-0")})
    joined: Conflation[tuple[str, int]] = Conflation(lambda row: row[1])
    for part in parts:
        joined.take_over(part)
    every = [row for frame in frames for row in frame]
    newest = {row[0]: row for row in every}
    left_out = [row for row in every if row is not newest[row[0]]]
    for one in (kept, joined):
        assert one.rows == newest
        skipped = one.skipped()
        assert (skipped.ticks if skipped else 0) == len(left_out)
        if skipped:
            assert (skipped.from_ms, skipped.to_ms) == (
                min(row[1] for row in left_out),
                max(row[1] for row in left_out),
            )


# The feed's position, by what is known of it


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_a_position_follows_on_or_is_broken(
    at: int, first: int, length: int, is_other: bool
) -> None:
    """Entries 1 to 6 were published, those from ``first`` on are there, some of them read."""
    position = FeedOffset("SH", ("e1", f"{at}-0"))
    there = [entry_of(f"{number}-0", []) for number in range(max(first, at, 1), 7)][:length]
    there = there if at <= 6 else []
    epoch = "e2" if is_other else "e1"
    is_whole = at == 0 and first <= 1
    broken, behind = position.look(epoch, there, is_whole=is_whole, end="6-0")
    had = bool(there) and there[0].id == f"{at}-0" and not is_other
    assert list(behind) == there[had:]
    assert position.epoch == epoch
    if is_other:
        assert broken is not None
        assert broken.reason == "epoch"
    elif had or is_whole or at == 6:
        assert broken is None
    else:
        assert broken is not None
        assert broken.reason == "trimmed"
    if behind:
        assert position.at == behind[-1].id
    elif broken is not None:
        assert position.at == "6-0", "nothing is looked for where nothing can come"
    if broken is not None:
        assert broken.after == ("e1", f"{at}-0")
        assert id_key(broken.at[1]) >= id_key(f"{at}-0")


def test_a_position_without_an_entry_is_good_until_it_has_one() -> None:
    position = FeedOffset("SH", ("e1", "3-0"))
    position.has_entry = False
    assert position.look("e1", [], is_whole=False) == (None, [])
    assert position.look("e1", [entry_of("5-0", [])], is_whole=False)[0] is None
    broken, _ = position.look("e1", [entry_of("9-0", [])], is_whole=False)
    assert broken is not None


def test_a_code_that_the_position_does_not_name_is_a_gap() -> None:
    gaps: list[Gap] = []
    position = Position({"SH": ("e1", "1-0")}, {CODES[0]: f"{T0}-0"})
    cursor = Cursor(Scope.of(CODES, ()), position, on_gap=gaps.append)
    cursor.break_off(Break("SH", "trimmed", ("e1", "1-0"), ("e1", "8-0"), 8))
    for _ in range(2):  # the second time after a cut
        assert cursor.recover(Snapshot({"SH": ("e1", "8-0")})) == {CODES[0]: f"{T0}-0"}
    (gap,) = gaps
    assert gap.data["codes"] == {code: ["", ""] for code in CODES[1:]}
