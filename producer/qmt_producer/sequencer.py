"""What a batch is beside what was published before: new, seen already, late. No I/O.

A memory of one market holds, of each code, the last entry id, the newest tick and what was
published in the last `WINDOW_MS` before it. Where that does not reach it says which streams must be
read (`unknown`), and is told what they hold (`learn`); then it sequences, and remembers what it let
through. What it lets through must be published in that order, or the memory thrown away.

The rules are those of docs/decisions/0011.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from qmt_protocol.errors import CodecError
from qmt_protocol.feed import is_entry_id, split_latest
from qmt_protocol.ids import id_key
from qmt_protocol.ticks import TickFlag

from .candidates import Candidates, body_of, head_of, packed, text

__all__ = ["LOOK", "WINDOW_MS", "BarSequencer", "Sequenced", "Stored", "TickSequencer"]

WINDOW_MS: Final = 30_000
"""How far back a code's ticks are remembered: what a taker of the lease sequences again."""
LOOK: Final = 64
"""Stored entries read, from either end."""
_WINDOW_TICKS: Final = 4_096
_LABELS: Final = 8
"""Labels of a bar that are remembered."""
_NAMED: Final = 20

Stored = tuple[str, bytes]
"""Entry id and ``t1`` or ``k1``, as read from a stream."""

_VOLUME: Final = 7
_BOOK: Final = slice(15, 19)
_BAR_VOLUME, _BAR_CLOSED = 5, 11
_decode: Final = msgspec.msgpack.Decoder(list[Any]).decode


@dataclass
class Sequenced:
    """What of a batch is to be published.

    Attributes
    ----------
    streams : list of str
        Code of each tick, want of each bar, in order.
    body : bytes
        ``b1`` or ``c1``; empty where nothing is new.
    lengths, sizes : list of int, bytes
        Length of each ``t1`` or ``k1`` in bytes, as u32, the highest byte first.
    greatest_ms : int
        The newest exchange time among the ids that were given here.
    words : str
        Which were rejected, and why; of bars, which came late.
    """

    streams: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    body: bytes = b""
    sizes: bytes = b""
    greatest_ms: int = 0
    repeated: int = 0
    late: int = 0
    clamped: int = 0
    rejected: int = 0
    words: str = ""

    @property
    def added(self) -> int:
        """How many are new."""
        return len(self.streams)

    def say(self, what: str) -> None:
        """Add to the words, if they are not many yet."""
        if self.late + self.rejected <= _NAMED:
            self.words = f"{self.words}; {what}" if self.words else what

    def as_it_was(self, batch: Candidates) -> Sequenced:
        """All is new, under the ids that were candidates."""
        self.streams, self.body, self.sizes = batch.names, batch.body, batch.sizes
        return self

    def of(self, pieces: list[bytes]) -> Sequenced:
        """Put together what is new."""
        if self.streams:
            self.body = body_of(pieces, len(self.streams))
            self.sizes = packed(self.lengths)
        return self


class _Code:
    """What is known of one code's stream."""

    __slots__ = ("entries", "from_ms", "ms", "newest", "number")

    def __init__(self) -> None:
        self.ms, self.number = -1, -1
        """The last entry id."""
        self.newest: bytes | None = None
        """The newest ``t1`` that was not late, where it is at the last id's ms."""
        self.from_ms = 0
        """Whatever was published with this ms or later is among the entries."""
        self.entries: deque[tuple[int, int, bytes]] = deque()


class TickSequencer:
    """One market's ticks.

    Parameters
    ----------
    latest
        Code to the value of ``latest``, when everything published is filed.
    future_ms
        How far ahead of Redis time a tick may be before it is clamped.
    """

    def __init__(self, latest: Mapping[str, bytes], future_ms: int) -> None:
        self._future_ms = future_ms
        self._codes: dict[str, _Code] = {}
        for code, data in latest.items():
            try:
                entry_id, raw = split_latest(data, code)
            except CodecError:
                continue  # as if there were none: its stream is read
            known = self._codes[code] = _Code()
            known.ms, known.number = id_key(entry_id)
            known.from_ms = known.ms + 1
            known.newest = bytes(raw)
            known.entries.append((known.ms, known.number, known.newest))

    def unknown(self, batch: Candidates, now_ms: int) -> dict[str, int]:
        """Return the codes whose streams must be read before it is sequenced, and from which ms.

        Parameters
        ----------
        now_ms
            Redis time.
        """
        needed: dict[str, int] = {}
        limit_ms, codes = now_ms + self._future_ms, self._codes
        for code, at in zip(batch.names, batch.ats, strict=True):
            ms = at if isinstance(at, int) else id_key(at)[0]
            if ms > limit_ms and ms is at:
                ms = now_ms
            known = codes.get(code)
            if known is None or ms < known.from_ms:
                needed[code] = min(ms, needed.get(code, ms))
        return needed

    def learn(self, code: str, from_ms: int, stored: Iterable[Stored]) -> None:
        """Take what a code's stream holds: its first `LOOK` entries from a ms on, and its last."""
        known = self._codes.setdefault(code, _Code())
        found = {(ms, number): t1 for ms, number, t1 in known.entries}
        found.update((id_key(entry_id), t1) for entry_id, t1 in stored)
        tail = max(found, default=(-1, -1))
        if tail[0] > known.ms:
            known.newest = None
        if tail > (known.ms, known.number):
            known.ms, known.number = tail
        known.from_ms = from_ms
        known.entries = deque((*at, found[at]) for at in sorted(found))

    def forget(self, code: str) -> None:
        """Read a code's stream before it is sequenced again: Redis refused what was let through."""
        self._codes.pop(code, None)

    def sequence(self, batch: Candidates, now_ms: int) -> Sequenced:
        """Judge a batch, of which nothing is `unknown`, and remember what is let through."""
        sequenced = Sequenced()
        pieces: list[bytes] = []  # from the first on that is not as it was
        limit_ms, codes, body = now_ms + self._future_ms, self._codes, batch.body
        starts, sizes = batch.spans()
        outgrown: list[_Code] = []
        as_it_was, end, greatest_ms = True, 0, 0
        for code, at, start, size in zip(batch.names, batch.ats, starts, sizes, strict=True):
            known = codes[code]
            t1 = body[start : start + size]
            if isinstance(at, int) and known.ms < at <= limit_ms:
                ms, number, piece = at, 0, b""
                known.newest = t1
            else:
                if as_it_was:
                    as_it_was, count = False, starts.index(start)
                    sequenced.streams, sequenced.lengths = batch.names[:count], list(sizes[:count])
                    pieces.append(body[batch.first : end])
                found = self._settle(known, code, at, t1, now_ms, sequenced)
                if found is None:
                    end = start + size
                    continue
                ms, number, t1 = found
                piece = head_of("tick", code) + text(f"{ms}-{number}") + t1
            if not as_it_was:
                pieces.append(piece or body[end : start + size])
                sequenced.streams.append(code)
                sequenced.lengths.append(len(t1))
            end = start + size
            if ms > greatest_ms and isinstance(at, int):
                greatest_ms = ms
            known.ms, known.number = ms, number
            kept = known.entries
            kept.append((ms, number, t1))
            if kept[0][0] < ms - WINDOW_MS or len(kept) > _WINDOW_TICKS:
                outgrown.append(known)
        for known in outgrown:  # not before: `unknown` was asked for the whole batch
            _cut(known)
        sequenced.greatest_ms = greatest_ms
        return sequenced.as_it_was(batch) if as_it_was else sequenced.of(pieces)

    def _settle(
        self, known: _Code, code: str, at: int | str, t1: bytes, now_ms: int, sequenced: Sequenced
    ) -> tuple[int, int, bytes] | None:
        """Return id and ``t1`` of a tick that is not simply the next of its code; none: drop it."""
        if isinstance(at, str):
            return self._again(known, code, at, t1, sequenced)
        ms, flags = at, t1[-1]
        if ms > now_ms + self._future_ms:
            ms, flags = now_ms, flags | TickFlag.CLAMPED
            sequenced.clamped += 1
        number, behind = 0, False
        if ms <= known.ms:
            row = _decode(t1)
            content = _content(row)
            if any(one[0] >= ms and _content_of(one[2]) == content for one in known.entries):
                sequenced.repeated += 1
                return None
            if ms < known.ms:
                behind, ms = True, known.ms
            else:
                behind = _went_back(row, known.newest)
            number = known.number + 1
        if not is_entry_id(f"{ms}-{number}"):
            sequenced.rejected += 1
            sequenced.say(f"{code}: its stream ends with the id {known.ms}-{known.number}")
            return None
        if behind:
            sequenced.late += 1
            flags |= TickFlag.LATE
        t1 = t1 if flags == t1[-1] else t1[:-1] + bytes((flags,))
        if not behind:
            known.newest = t1
        return ms, number, t1

    def _again(
        self, known: _Code, code: str, entry_id: str, t1: bytes, sequenced: Sequenced
    ) -> tuple[int, int, bytes] | None:
        """Return a tick under the id, and as late, as it was when it was first published."""
        ms, number = id_key(entry_id)
        if (ms, number) <= (known.ms, known.number):
            if any(one[:2] == (ms, number) for one in known.entries):
                sequenced.repeated += 1
            else:
                sequenced.rejected += 1
                sequenced.say(f"{code}: {entry_id} lies before {known.ms}-{known.number}")
            return None
        if t1[-1] & TickFlag.LATE:
            sequenced.late += 1
        else:
            known.newest = t1
        return ms, number, t1


class _Bars:
    """What is known of one stream of bars."""

    __slots__ = ("from_ms", "labels", "ms", "number")

    def __init__(self) -> None:
        self.ms, self.number = -1, -1
        """The last entry id."""
        self.from_ms = 0
        """Whatever was published under this label or a later one is in `labels`."""
        self.labels: dict[int, deque[bytes]] = {}
        """Label to the last ``k1`` under it, in order."""

    def under(self, label_ms: int) -> deque[bytes]:
        """Return what was published under a label, to add to it."""
        return self.labels.setdefault(label_ms, deque(maxlen=LOOK))

    def cut(self) -> None:
        """Forget all but the last labels."""
        while len(self.labels) > _LABELS:
            oldest = min(self.labels)
            del self.labels[oldest]
            self.from_ms = oldest + 1


class BarSequencer:
    """One market's bars; see `TickSequencer`."""

    def __init__(self) -> None:
        self._series: dict[str, _Bars] = {}

    def unknown(self, batch: Candidates, now_ms: int) -> dict[str, int]:
        """Return the wants whose streams must be read, and from which label."""
        needed: dict[str, int] = {}
        for series, label in zip(batch.names, batch.ats, strict=True):
            ms, known = _label_ms(label), self._series.get(series)
            if known is None or ms < known.from_ms:
                needed[series] = min(ms, needed.get(series, ms))
        return needed

    def learn(self, series: str, from_ms: int, stored: Iterable[Stored]) -> None:
        """Take what a stream holds: its first `LOOK` entries from a label on, and its last."""
        known = self._series[series] = _Bars()
        known.from_ms = from_ms
        for (ms, number), k1 in sorted({id_key(one): k1 for one, k1 in stored}.items()):
            known.under(ms).append(k1)
            known.ms, known.number = ms, number

    def forget(self, series: str) -> None:
        """Read a stream before it is sequenced again."""
        self._series.pop(series, None)

    def sequence(self, batch: Candidates, now_ms: int) -> Sequenced:
        """Judge a batch, of which nothing is `unknown`, and remember what is let through."""
        sequenced = Sequenced()
        pieces: list[bytes] = []
        for series, label, k1 in batch.entries:
            known, ms = self._series[series], _label_ms(label)
            number = known.number + 1 if ms == known.ms else 0
            if isinstance(label, str):
                number = id_key(label)[1]
            if ms <= known.ms and _is_older(k1, known.labels.get(ms, ())):
                sequenced.repeated += 1
            elif ms < known.ms:
                sequenced.late += 1
                sequenced.say(f"{series} {label}")
            elif (ms, number) <= (known.ms, known.number) or not is_entry_id(f"{ms}-{number}"):
                sequenced.rejected += 1
                sequenced.say(f"{series}: its stream ends with the id {known.ms}-{known.number}")
            else:
                known.ms, known.number = ms, number
                known.under(ms).append(k1)
                pieces.append(head_of("bar", series) + text(f"{ms}-{number}") + k1)
                sequenced.streams.append(series)
                sequenced.lengths.append(len(k1))
        for series in set(sequenced.streams):
            self._series[series].cut()
        return sequenced.of(pieces)


def _cut(known: _Code) -> None:
    """Forget what lies before the window."""
    kept = known.entries
    while len(kept) > 1 and (kept[0][0] < known.ms - WINDOW_MS or len(kept) > _WINDOW_TICKS):
        known.from_ms = max(known.from_ms, kept.popleft()[0] + 1)


def _label_ms(label: int | str) -> int:
    return id_key(label)[0] if isinstance(label, str) else label


def _row(data: bytes | None) -> list[Any] | None:
    """Return what stands in a stream, which may be of others; none where it is no array."""
    if data is None:
        return None
    try:
        return _decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _content(row: list[Any]) -> tuple[Any, ...]:
    """Return what any terminal reports alike: time, price, volume and the first of the book."""
    row = [*row, *[None] * (19 - len(row))]
    firsts = (one[0] if isinstance(one, list) and one else None for one in row[_BOOK])
    return row[0], row[1], row[_VOLUME], *firsts


def _content_of(data: bytes | None) -> tuple[Any, ...] | None:
    row = _row(data)
    return None if row is None else _content(row)


def _number(row: list[Any] | None, at: int) -> int | float:
    value = row[at] if row is not None and at < len(row) else 0
    return value if isinstance(value, int | float) else 0


def _went_back(row: list[Any], newest: bytes | None) -> bool:
    """Whether a tick is an older state of the same moment: its volume is less."""
    held = _row(newest)
    return held is not None and _number(row, _VOLUME) < _number(held, _VOLUME)


def _is_older(k1: bytes, held: Sequence[bytes]) -> bool:
    """Whether a bar is none but an older state of what was published under its label."""
    if not held:
        return False
    if k1 in held:
        return True
    new, last = _decode(k1), _row(held[-1])
    if last is None or len(last) <= _BAR_CLOSED or new[_BAR_CLOSED]:
        return False
    return bool(last[_BAR_CLOSED]) or _number(new, _BAR_VOLUME) < _number(last, _BAR_VOLUME)
