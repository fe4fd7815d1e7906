"""From a market's feed into its streams and `latest`, inside Redis, entry by entry.

The feed is the log: what stands in it is published. Filing it comes behind the batches that wait,
each entry in a call of its own, so that readers of the feed wait for no more than one. It may be
done again by anybody: what is filed already stays as it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from qmt_protocol.decoding import printable
from qmt_protocol.errors import CodecError
from qmt_protocol.feed import split_bar_batch, split_batch
from qmt_protocol.ids import id_key, is_stream_id
from qmt_protocol.keys import Keys, parse_series, series_of
from qmt_protocol.limits import MAX_BATCH

from .candidates import Kind
from .functions import Functions
from .redis_link import ask_redis

__all__ = ["Filed", "Filing"]

_LOOK: Final = 8
"""Entries of others read at once, to know the streams that they go to."""


@dataclass(frozen=True)
class _Entry:
    id: str
    kind: Kind
    streams: list[str]
    """Code of each tick, want of each bar."""


@dataclass(frozen=True)
class Filed:
    """What became of one entry."""

    entry_id: str
    kind: Kind
    damaged: bool = False
    refused: list[str] = field(default_factory=list)
    """Codes, of bars wants, of what Redis did not take, one for each piece."""
    words: str = ""


class Filing:
    """One market's filing.

    Attributes
    ----------
    filed : str
        Feed entry id up to which all is filed.
    broken : bool
        Whether the feed lacks an entry that was appended to it and not filed.
    """

    def __init__(self, market: str, keys: Keys, functions: Functions) -> None:
        self._market = market
        self._keys = keys
        self._functions = functions
        self._stem = keys.tick(f"@.{market}").removesuffix(f"@.{market}")
        self._names = [keys.filed(market), keys.feed(market), keys.latest(market)]
        self._entries: deque[_Entry] = deque()
        self._more = False
        self.filed = ""
        self.broken = False

    def begin(self, filed: str) -> None:
        """Go on behind an entry, with whatever the feed holds."""
        self.clear()
        self.filed = filed
        self._more = True

    def clear(self) -> None:
        """Leave it to who holds the lease."""
        self._entries.clear()
        self._more = self.broken = False

    def add(self, entry_id: str, kind: Kind, streams: list[str]) -> None:
        """Note an entry that was appended."""
        self._entries.append(_Entry(entry_id, kind, streams))

    def __len__(self) -> int:
        """How many entries are known that are not filed."""
        return len(self._entries)

    @property
    def oldest_ms(self) -> int:
        """Redis time of the first entry that is not filed; 0: none."""
        try:  # another thread may be asking
            return id_key(self._entries[0].id)[0]
        except IndexError:
            return 0

    @property
    def has_more(self) -> bool:
        """Whether the feed may hold entries that are not known here."""
        return self._more

    def look(self) -> bool:
        """Read what others have left to be filed; return whether there is any.

        Raises
        ------
        RedisUnavailable
        """
        if self._more and not self._entries:
            feed, connection = self._keys.feed(self._market), self._functions.connection
            found: Any = ask_redis(lambda: connection.xrange(feed, f"({self.filed}", count=_LOOK))
            self._more = len(found) == _LOOK
            for raw_id, fields in found:
                self.add(raw_id.decode(), *self._read(fields))
        return bool(self._entries)

    def _read(self, fields: dict[bytes, bytes]) -> tuple[Kind, list[str]]:
        """Return what an entry holds, and the streams of it; none where it is damaged."""
        kind: Kind = "tick"
        try:
            if b"b1" in fields:
                ticks, bad = split_batch(fields[b"b1"], self._market)
                streams = [code for code, _, _ in ticks]
            else:
                bars, bad = split_bar_batch(fields.get(b"c1", b""), self._market)
                kind, streams = "bar", [series_of(period, code) for code, period, _, _ in bars]
        except CodecError:
            return "tick", []
        return kind, [] if bad or len(streams) > MAX_BATCH else streams

    def file(self) -> Filed | None:
        """File the next entry that is known; none: it is not the next any more.

        Raises
        ------
        RedisUnavailable
            The same may be done again.
        """
        entry = self._entries[0]
        streams = [self.stream(entry.kind, one) for one in entry.streams]
        answer = self._functions.call("file", [*self._names, *streams], [entry.id])
        state, filed, refused, words, *spans = answer
        if state == b"other":
            found = printable(filed)
            self.broken = is_stream_id(found) and id_key(found) < id_key(entry.id)
            return None
        self._entries.popleft()
        self.filed = filed.decode()
        if state == b"damaged":
            return Filed(entry.id, entry.kind, damaged=True)
        which = [entry.streams[int(at) - 1] for at in spans[0]] if refused else []
        return Filed(entry.id, entry.kind, refused=which, words=printable(words))

    def stream(self, kind: Kind, name: str) -> str:
        """Return the key of a code's, or of a bar's want's, stream."""
        return self._stem + name if kind == "tick" else self._keys.bar(*parse_series(name))
