"""Reading the feeds of markets: every entry once, and a break told where that cannot be."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import redis
import redis.asyncio

from qmt_protocol.decoding import printable
from qmt_protocol.errors import CodecError
from qmt_protocol.events import decode_event
from qmt_protocol.feed import is_code_of, is_entry_id
from qmt_protocol.ids import is_stream_id
from qmt_protocol.keys import Keys
from qmt_protocol.limits import MAX_UNREADABLE
from qmt_protocol.schema import FEED, check_version

from .connections import BLOCK_S, redis_call
from .position import BEGINNING, EVENTS, Mark, id_key

__all__ = ["Break", "FeedEntry", "FeedReader", "Reading"]

_ENTRIES_PER_READ: Final = 16  # times at most 500 ticks: what one read may hold in memory
_EVENTS_PER_READ: Final = 100
_LOOK_AFTER_S: Final = 0.1
_LONGEST_EPOCH: Final = 64
_NEWEST: Final = "99999999999999-999999999"
"""The last id that `is_entry_id` takes."""


@dataclass(frozen=True)
class FeedEntry:
    """One published batch."""

    market: str
    id: str
    ticks: bytes | None
    """``b1``."""
    bars: bytes | None
    """``c1``."""


@dataclass(frozen=True)
class Break:
    """What lay behind a position can no longer be read from the feed."""

    market: str
    reason: Literal["trimmed", "epoch"]
    after: Mark
    """Where the reader stood."""
    epoch: str
    """Identity of the history that follows."""
    to_ms: int
    """Redis time of the first entry behind the break; 0 where there is none."""
    rewound: bool
    """Whether the new history's feed lies wholly before the old position."""


@dataclass
class Reading:
    """What one read found; breaks come before the entries of their market."""

    breaks: list[Break] = field(default_factory=list)
    entries: list[FeedEntry] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """The producers' events since the last read, each with its entry id."""


class FeedReader:
    """One reader over the feeds of some markets, and over the producers' events.

    A position is good while its epoch is the feed's and its entry still exists. Whenever that is
    not known from the read before, the look at both travels with the read in one transaction.

    Parameters
    ----------
    connection
        Streams server, asyncio; stays the caller's to close.
    keys
        Key names of the prefix.
    markets
        Markets to follow, such as ``["SH", "SZ"]``.
    marks
        Market (and `EVENTS`) to the position to go on from; the others begin with `begin`.
    events
        Follow the producers' events too.
    address
        ``host:port`` for messages.

    Attributes
    ----------
    positions : dict
        Market to the id of the last entry read.
    epochs : dict
        Market to the identity of the history that the position belongs to.
    events_id : str
        Id of the last event read; empty: events are not followed.
    limits : dict
        Market to the entry id beyond which nothing is read.
    strange : list
        What `begin` found among the latest ticks of a market and is none of it.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        keys: Keys,
        markets: Iterable[str],
        *,
        marks: Mapping[str, Mark] | None = None,
        events: bool = False,
        address: str = "Redis",
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._address = address
        self.markets = list(dict.fromkeys(markets))
        marks = marks or {}
        self.positions: dict[str, str] = {m: marks[m][1] for m in self.markets if m in marks}
        self.epochs: dict[str, str] = {m: marks[m][0] for m in self.markets if m in marks}
        self.events_id = marks[EVENTS][1] if events and EVENTS in marks else ""
        self._with_events = events
        self.limits: dict[str, str] = {}
        self.strange: list[CodecError] = []
        self._market_of_feed = {keys.feed(market): market for market in self.markets}
        self._trusted: set[str] = set()
        self._sure = False
        self._strange_event = ""
        """The id of no date that the events end with: nothing can be added behind it."""
        self._read_at = 0.0

    def mark(self, market: str) -> Mark:
        """Return where the reader stands in a market."""
        return self.epochs[market], self.positions[market]

    async def begin(self, wanted: Mapping[str, Sequence[str] | None]) -> dict[str, bytes]:
        """Take the place up to which markets are filed as position, and ``latest`` as it is there.

        What was published behind it, and is not filed yet, is read from the feed.

        Parameters
        ----------
        wanted
            Market to the codes whose ``latest`` is wanted; ``None``: all of them.

        Returns
        -------
        dict
            Code to the value of ``latest``, read in the same transaction as the position.

        Raises
        ------
        RedisUnavailable
            When the server does not answer.
        WrongVersion
            When another version of the wire lies there.
        """
        await self._check_version()
        latest: dict[str, bytes] = {}
        self.strange.clear()
        for market, codes in wanted.items():
            async with redis_call(self._address), self._connection.pipeline() as pipe:
                pipe.get(self._keys.epoch(market))
                pipe.get(self._keys.filed(market))
                if codes is None:
                    pipe.hgetall(self._keys.latest(market))
                elif codes:
                    pipe.hmget(self._keys.latest(market), list(codes))
                replies = _checked(await pipe.execute(raise_on_error=False))
            self._check_types(market, replies)
            epoch, filed, *found = replies
            self.epochs[market] = self._epoch(market, epoch)
            self.positions[market] = self._filed(market, filed)
            if codes is None:
                latest |= self._of_market(market, found[0])
            elif codes:
                latest |= {
                    code: data
                    for code, data in zip(codes, found[0], strict=True)
                    if data is not None
                }
        if self._with_events and not self.events_id:
            async with redis_call(self._address):
                tail = await self._connection.xrevrange(self._keys.events, max=_NEWEST, count=1)
            self.events_id = _text(tail[0][0]) if tail else BEGINNING
        return latest

    async def _check_version(self) -> None:
        async with redis_call(self._address), self._connection.pipeline(transaction=False) as pipe:
            pipe.hget(self._keys.schema, FEED)
            (document,) = _checked(await pipe.execute(raise_on_error=False))
        if isinstance(document, Exception):  # no hash: it says nothing of versions
            return
        check_version(document, self._keys.prefix, self._address)

    def go_to(self, market: str, entry_id: str) -> None:
        """Read on behind an id that need not exist."""
        self.positions[market] = entry_id
        self._trusted.add(market)
        self._sure = False

    async def read(self, *, block: bool = True) -> Reading:
        """Return what was published behind the positions, and move them.

        Parameters
        ----------
        block
            Wait up to `BLOCK_S` for something new, and then return nothing.

        Raises
        ------
        RedisUnavailable
            When the server does not answer; the same read may be done again.
        CodecError
            When a market's epoch or feed is not what it must be.
        """
        try:
            # Between reads that follow at once nothing can be trimmed: a feed is kept for longer.
            if not self._sure or not block or time.monotonic() - self._read_at > _LOOK_AFTER_S:
                found = await self._look()
                if found.entries or found.breaks or found.events or not block:
                    return found
            return await self._wait()
        except BaseException:
            self._sure = False
            raise
        finally:
            self._read_at = time.monotonic()

    async def _look(self) -> Reading:
        markets = [market for market in self.markets if not self._is_beyond_limit(market)]
        async with redis_call(self._address), self._connection.pipeline() as pipe:
            for market in markets:
                pipe.get(self._keys.epoch(market))
                pipe.xrange(
                    self._keys.feed(market),
                    self.positions[market],
                    self.limits.get(market, "+"),
                    count=_ENTRIES_PER_READ + 1,
                )
                if self.positions[market] == BEGINNING:
                    pipe.xinfo_stream(self._keys.feed(market))
            if self.events_id:
                pipe.xrange(self._keys.events, f"({self.events_id}", count=_EVENTS_PER_READ)
            replies = iter(_checked(await pipe.execute(raise_on_error=False)))
        found = Reading()
        for market in markets:
            epoch, entries = next(replies), next(replies)
            at_start = self.positions[market] == BEGINNING
            stream = next(replies) if at_start else None
            self._check_types(market, (epoch, entries, stream))
            whole = _is_whole(stream) if at_start else None
            await self._judge(market, self._epoch(market, epoch), entries, whole, found)
        strange, self._strange_event = self._strange_event, ""
        if self.events_id:
            self._take_events(next(replies), found, known=strange)
        self._sure = len(markets) == len(self.markets) and not self._strange_event
        return found

    def _is_beyond_limit(self, market: str) -> bool:
        limit = self.limits.get(market)
        return limit is not None and id_key(limit) < id_key(self.positions[market])

    async def _judge(
        self, market: str, epoch: str, entries: list[Any], whole: bool | None, found: Reading
    ) -> None:
        """Check one market's position and take the entries behind it."""
        known, at = self.mark(market)
        there = bool(entries) and _text(entries[0][0]) == at
        behind = entries[1:] if there else entries
        to_ms = id_key(_text(behind[0][0]))[0] if behind else 0
        trusted = market in self._trusted
        self._trusted.discard(market)
        self.epochs[market] = epoch
        reason: Literal["trimmed", "epoch"] | None = None
        rewound = False
        if known and epoch != known:
            reason = "epoch"
            if not entries:
                last = await self._last_generated(market)
                rewound = id_key(last) < id_key(at)
                self.positions[market] = last
        elif there or trusted or whole:
            pass
        elif behind:
            reason = "trimmed"
        else:
            last = await self._last_generated(market)
            if id_key(last) > id_key(at):
                # All of it was trimmed. (A shorter feed is a loss that its publisher will name
                # with a new epoch; until then nothing can come behind our id.)
                reason = "trimmed"
                self.positions[market] = last
        if reason is not None:
            found.breaks.append(Break(market, reason, (known, at), epoch, to_ms, rewound))
        self._take(market, behind, found)

    async def _last_generated(self, market: str) -> str:
        """Return the id of the last entry ever published, or the limit of reading."""
        async with redis_call(self._address):
            try:
                last = _last_id(await self._connection.xinfo_stream(self._keys.feed(market)))
            except redis.ResponseError as error:
                last = _last_id(*_checked([error]))
        return min(last, self.limits.get(market, last), key=id_key)

    async def _wait(self) -> Reading:
        ids = {feed: self.positions[market] for feed, market in self._market_of_feed.items()}
        if self.events_id and not self._strange_event:  # or XREAD would return at once, each time
            ids[self._keys.events] = self.events_id
        async with (
            redis_call(self._address),
            self._connection.pipeline(transaction=False) as pipe,
        ):
            pipe.xread(
                ids,  # type: ignore[arg-type]
                count=_ENTRIES_PER_READ,
                block=int(BLOCK_S * 1000),
            )
            for market in self.markets:
                pipe.get(self._keys.epoch(market))
            read, *epochs = await pipe.execute()
        found = Reading()
        renewed = {
            market
            for market, epoch in zip(self.markets, epochs, strict=True)
            if self._epoch(market, epoch) != self.epochs[market]
        }
        if renewed:
            self._sure = False  # what was read of these may belong to either history: look
        for key, entries in _pairs(read):
            name = _text(key)
            if name == self._keys.events:
                self._take_events(entries, found)
            elif self._market_of_feed[name] not in renewed:
                self._take(self._market_of_feed[name], entries, found)
        return found

    def _take(self, market: str, entries: Iterable[Any], found: Reading) -> None:
        for entry_id, fields in entries:
            self.positions[market] = at = _text(entry_id)
            found.entries.append(FeedEntry(market, at, fields.get(b"b1"), fields.get(b"c1")))

    def _take_events(self, entries: Any, found: Reading, known: str = "") -> None:
        """Take events; one whose id is of no date is named once, and never a position."""
        for entry_id, fields in entries:
            if not is_entry_id(_text(entry_id)):
                self._strange_event = _text(entry_id)
                if self._strange_event != known:
                    message = f"{self._strange_event} in {self._keys.events} is no id of an event"
                    event = {"kind": "gap", "reason": "unreadable", "message": f"{message}."}
                    found.events.append((self.events_id, event))
                return
            self.events_id = _text(entry_id)
            try:
                event = decode_event(fields.get(b"e", b""), self.events_id)
            except CodecError as error:  # it may have named a gap
                event = {"kind": "gap", "reason": "unreadable", "message": error.message}
            found.events.append((self.events_id, event))

    def _check_types(self, market: str, replies: Iterable[Any]) -> None:
        """Raise for a market whose keys are not what they must be."""
        for reply in replies:
            if isinstance(reply, Exception) and "wrongtype" in str(reply).lower():
                raise CodecError(
                    f"A key of {market} in Redis at {self._address} is not of the type that it "
                    f"should be: {reply}.",
                    hint="Something else writes under this prefix; see docs/wire.md for its keys.",
                    market=market,
                )

    def _of_market(self, market: str, found: Mapping[bytes, bytes]) -> dict[str, bytes]:
        """Return what has the name of a code of a market, and note what has not."""
        named = {printable(code): data for code, data in found.items()}
        self.strange += [
            CodecError(f"{name!r} has a latest tick and is no code of {market}.", code=name)
            for name in named
            if not is_code_of(name, market)
        ][:MAX_UNREADABLE]
        return {code: data for code, data in named.items() if is_code_of(code, market)}

    def _epoch(self, market: str, epoch: bytes | None) -> str:
        """Return a market's epoch as text.

        Raises
        ------
        CodecError
            When it cannot be one.
        """
        if epoch is None:
            return ""
        name = printable(epoch, _LONGEST_EPOCH)
        if len(epoch) > _LONGEST_EPOCH or name.encode() != epoch:
            raise CodecError(
                f"{self._keys.epoch(market)} in Redis at {self._address} is no epoch: {name!r}.",
                hint="Remove the key: who takes the market's lease next writes a new one.",
                market=market,
            )
        return name

    def _filed(self, market: str, filed: bytes | None) -> str:
        """Return up to where a market is filed.

        Raises
        ------
        CodecError
            When it cannot be an entry's id.
        """
        name = BEGINNING if filed is None else printable(filed)
        if not is_stream_id(name):
            raise CodecError(
                f"{self._keys.filed(market)} in Redis at {self._address} is no entry id: {name!r}.",
                hint="The producer puts it right when it takes the market's lease next.",
                market=market,
            )
        return name


_EXPECTED: Final = ("no such key", "wrongtype")


def _checked(replies: list[Any]) -> list[Any]:
    """Raise the first error among replies; that a key is not there, or no stream, is none."""
    for reply in replies:
        if isinstance(reply, Exception) and not any(
            expected in str(reply).lower() for expected in _EXPECTED
        ):
            raise reply
    return replies


def _last_id(stream: Any) -> str:
    """Return a stream's last id from XINFO's answer."""
    return BEGINNING if isinstance(stream, Exception) else _text(stream["last-generated-id"])


def _is_whole(stream: Any) -> bool:
    """Whether nothing was ever trimmed from a stream, by XINFO's answer."""
    if _last_id(stream) == BEGINNING:
        return True
    return bool(stream["entries-added"] == stream["length"])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _pairs(reply: Any) -> Iterable[tuple[Any, Any]]:
    if not reply:
        return ()
    pairs: Iterable[tuple[Any, Any]] = reply.items() if isinstance(reply, dict) else reply
    return pairs
