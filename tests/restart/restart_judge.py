"""Judges what a restart left: by plain commands, the writers' logs and the append-only files.

Nothing here uses the code under test. What the Windows box pushed is accounted for by
`crash_accounting`, as in the crash tests.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
from crash_accounting import Pushed, Stored, Verdict, account
from crash_evidence import gaps_of
from restart_aof import entries_of, units
from restart_stack import Server, Stack
from restart_writers import MULTI_KEYS, QUEUE, WAYS, Write

__all__ = ["Ledger", "Ticks", "account_ticks", "compare_ticks", "entries_cut", "read_push_log"]

MARKETS = ("SH", "SZ")
_SHOWN = 4


@dataclass
class Ticks:
    """What the streams server holds of market data, raw."""

    streams: dict[str, list[tuple[str, bytes]]]
    """Code to (entry id, t1), in order."""
    fed: dict[str, list[tuple[str, str, bytes]]]
    """Market to (code, entry id, t1), in order of the feed, as far as it is filed."""
    latest: dict[str, tuple[str, bytes]]

    @property
    def count(self) -> int:
        """Ticks stored."""
        return sum(map(len, self.streams.values()))

    @classmethod
    def read(cls, server: Server) -> Ticks:
        """Read all of it; a transaction would be refused by Redis 7.0 while its memory is full."""
        judge = server.judge
        keys = sorted(judge.scan_iter(match="{qmt:S[HZ]}:tick:*", count=1000))
        with judge.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.xrange(key)
            for market in MARKETS:
                pipe.xrange(f"{{qmt:{market}}}:feed")
                pipe.hgetall(f"{{qmt:{market}}}:latest")
                pipe.get(f"{{qmt:{market}}}:filed")
            *found, feed_sh, latest_sh, filed_sh, feed_sz, latest_sz, filed_sz = pipe.execute()
        ends = (_id(filed_sh or b"0-0"), _id(filed_sz or b"0-0"))
        streams = {
            key.decode().split(":tick:")[1]: [(one.decode(), row[b"t1"]) for one, row in entries]
            for key, entries in zip(keys, found, strict=True)
        }
        fed = {
            market: [entry for one, row in entries if _id(one) <= end for entry in _fed(row[b"b1"])]
            for market, entries, end in zip(MARKETS, (feed_sh, feed_sz), ends, strict=True)
        }
        latest = {
            code.decode(): _latest(value) for code, value in {**latest_sh, **latest_sz}.items()
        }
        return cls(streams, fed, latest)

    def disagreements(self) -> list[str]:
        """Return where stream, feed and latest, which one call files, do not agree."""
        wrong = []
        for market in MARKETS:
            fed: dict[str, list[tuple[str, bytes]]] = {}
            for code, entry_id, t1 in self.fed[market]:
                fed.setdefault(code, []).append((entry_id, t1))
            held = {code: rows for code, rows in self.streams.items() if code.endswith(market)}
            wrong += [
                f"{code}: {len(held.get(code, []))} in its stream, {len(fed.get(code, []))} fed"
                for code in sorted({*fed, *held})
                if fed.get(code) != held.get(code)
            ]
        wrong += [
            f"{code}: the latest is not the stream's last"
            for code, rows in self.streams.items()
            if rows and self.latest.get(code) != rows[-1]
        ]
        return wrong


def _id(entry_id: bytes) -> tuple[int, int]:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)


def _fed(body: bytes) -> list[tuple[str, str, bytes]]:
    """Split a feed's entry; each tick's bytes are cut out as they are."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    found, at = [], 0
    for _ in range(unpacker.read_array_header()):
        unpacker.read_array_header()
        code, entry_id = unpacker.unpack(), unpacker.unpack()
        at = unpacker.tell()
        unpacker.skip()
        found.append((code, entry_id, body[at : unpacker.tell()]))
    return found


def _latest(body: bytes) -> tuple[str, bytes]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)
    unpacker.read_array_header()
    entry_id = unpacker.unpack()
    return entry_id, body[unpacker.tell() :]


def compare_ticks(
    before: Ticks,
    after: Ticks,
    pushed: dict[str, list[Pushed]],
    may_lack: set[tuple[str, str]],
    held: set[tuple[str, str]],
) -> tuple[list[str], int]:
    """Hold what is there after a restart, with nobody to refill it, against what was before.

    Parameters
    ----------
    may_lack
        Stream keys and ids that were never on disk, or were cut off: they are gone.
    held
        Those that were not yet on disk at the kill: they may be.

    Returns
    -------
    tuple
        Problems, and how many entries of `before` lie in `may_lack` and are gone.
    """
    wrong, gone = [], 0
    for code, rows in before.streams.items():
        key = f"{{qmt:{code.rpartition('.')[2]}}}:tick:{code}"
        there = set(after.streams.get(code, ()))
        missing = [row for row in rows if row not in there]
        lost = [row for row in missing if (key, row[0]) not in may_lack | held]
        gone += len(missing) - len(lost)
        if lost:
            wrong.append(f"{code}: {len(lost)} of {len(rows)} entries lost, first {lost[0][0]}")
    for code, rows in after.streams.items():
        made = [(f"{tick.at_ms}-0", tick.content) for tick in pushed.get(code, ())]
        store = {row: number for number, row in enumerate(made)}
        places = [store.get(row, -1) for row in rows]
        if -1 in places:
            wrong.append(f"{code}: an entry that nobody pushed")
        elif places != sorted(set(places)):
            wrong.append(f"{code}: repeated or out of order")
        present = set(rows)
        back = [one for one in may_lack if one[0].endswith(code) and one[1] in {r[0] for r in rows}]
        if back and present:
            wrong.append(f"{code}: {len(back)} entries are there that were not on disk")
    return wrong + after.disagreements(), gone


def read_push_log(path: Path, stored: Ticks) -> dict[str, list[Pushed]]:
    """Return what was pushed; what a killed box had not yet kept counts where it is stored."""
    pushed: dict[str, list[Pushed]] = {}
    waiting: list[tuple[str, Pushed]] = []
    held = {(code, t1) for code, rows in stored.streams.items() for _, t1 in rows}
    for line in [*path.read_text("utf-8").splitlines(), "begin"]:
        kind, *rest = line.split(" ")
        if kind == "push" and len(rest) == 3:
            at_ms, content = int(rest[1]), bytes.fromhex(rest[2])
            waiting.append((rest[0], Pushed(content, at_ms, at_ms)))
        elif kind in {"kept", "begin"}:
            for code, tick in waiting:
                if kind == "kept" or (code, tick.content) in held:
                    pushed.setdefault(code, []).append(tick)
            waiting = []
    return pushed


def account_ticks(server: Server, pushed: dict[str, list[Pushed]], stored: Ticks) -> Verdict:
    """Account for every tick pushed: stored once, in order and equal, or named by a gap event."""
    events = [json.loads(row[b"e"]) for _, row in server.judge.xrange("qmt:events")]
    held: dict[str, list[Stored]] = {}
    for code, rows in stored.streams.items():
        for entry_id, t1 in rows:
            at_ms = int(entry_id.partition("-")[0])
            held.setdefault(code, []).append(Stored(t1, at_ms, at_ms))
    return account(pushed, held, gaps_of(events))


def entries_cut(data: bytes, cut: int) -> tuple[set[tuple[str, str]], int]:
    """Return the entries of an append-only file that do not lie whole before a cut, and where the
    last whole unit ends."""
    gone: set[tuple[str, str]] = set()
    boundary = 0
    for end, commands in units(data):
        if end <= cut:
            boundary = end
        else:
            gone.update(entries_of(commands))
    return gone, boundary


@dataclass
class Ledger:
    """The Linux side's writes over all rounds: what must be there, and what may."""

    expected: dict[str, set[str]] = field(default_factory=lambda: {way: set() for way in WAYS})
    cut: int = 0
    """Acknowledged writes that went with a cut tail, or were never on disk."""

    def settle(
        self,
        stack: Stack,
        writes: Iterable[Write],
        may_lack: dict[str, set[str]],
        held: dict[str, set[str]],
    ) -> list[str]:
        """Compare a round's writes with what is there now; what is there is expected from now on.

        Parameters
        ----------
        may_lack
            Server's kind to the texts that were cut off, or never on disk: they are gone.
        held
            Those that were not yet on disk at the kill: they may be.
        """
        present, wrong = _present(stack)
        tried: dict[str, set[str]] = {way: set() for way in WAYS}
        for one in writes:
            tried[one.way].add(one.text)
            there = one.text in present[one.way]
            if one.state == "acknowledged":
                self.expected[one.way].add(one.text)
            elif one.state == "refused" and there:
                wrong.append(f"{one.text} was refused and is there")
        for way, server in WAYS.items():
            missing = self.expected[way] - present[way]
            gone = missing & (may_lack[server] | held[server])
            lost, back = sorted(missing - gone), sorted(present[way] & may_lack[server])
            invented = sorted(present[way] - self.expected[way] - tried[way])
            self.cut += len(gone)
            for what, texts in (("lost", lost), ("invented", invented), ("not cut off", back)):
                if texts:
                    wrong.append(f"{way}: {len(texts)} {what}, {texts[:_SHOWN]}")
            self.expected[way] = present[way]
        return wrong

    @property
    def count(self) -> int:
        """Writes that are there."""
        return sum(map(len, self.expected.values()))


def _present(stack: Stack) -> tuple[dict[str, set[str]], list[str]]:
    """Return each way's texts that are there, and where a write is there by half or twice."""
    streams, jobs = stack.streams.judge, stack.jobs.judge
    notes = [json.loads(row[b"e"]) for _, row in streams.xrange("qmt:events:archive")]
    found = {"XADD": [one["text"] for one in notes]}
    first, second = ([row[b"t1"].decode() for _, row in streams.xrange(key)] for key in MULTI_KEYS)
    wrong = [] if first == second else [f"MULTI: {len(first)} and {len(second)}, by half"]
    found["MULTI"] = first
    seen = (one.decode() for one in streams.zrange("qmt:seen", 0, -1))
    found["ZADD"] = [one for one in seen if one.startswith("ZADD-")]
    found["job"] = [one.decode() for one in jobs.lrange(f"rq:queue:{QUEUE}", 0, -1)]
    hashes = {key.decode()[7:] for key in jobs.scan_iter(match="rq:job:job-*", count=5000)}
    by_half = sorted(hashes ^ set(found["job"]))
    if by_half:
        wrong.append(f"job: {len(by_half)} by half, {by_half[:_SHOWN]}")
    results = [key.decode()[11:] for key in jobs.scan_iter(match="qmt:result:*", count=5000)]
    with jobs.pipeline(transaction=False) as pipe:
        for text in results:
            pipe.get(f"qmt:result:{text}")
            pipe.xrange(f"qmt:job:{text}:progress")
        answers = pipe.execute()
    for text, value, rows in zip(results, answers[::2], answers[1::2], strict=True):
        if value != text.encode() or [row[b"p"] for _, row in rows] != [text.encode()]:
            wrong.append(f"result: {text} by half")
    found["result"] = sorted(set(results))
    for way, texts in found.items():
        twice = [text for text, times in Counter(texts).items() if times > 1]
        if twice:
            wrong.append(f"{way}: twice {twice[:_SHOWN]}")
    return {way: set(texts) for way, texts in found.items()}, wrong
