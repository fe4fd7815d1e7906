"""Reading the feeds of markets: every entry once, and a break told where that cannot be."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis
import redis.asyncio

from qmt_protocol.cursor.batch import Snapshot
from qmt_protocol.cursor.feed_offset import Break, FeedEntry, FeedOffset
from qmt_protocol.cursor.position import EVENTS, Offset
from qmt_protocol.decoding import printable
from qmt_protocol.errors import CodecError
from qmt_protocol.events import decode_event
from qmt_protocol.feed import is_code_of, is_entry_id
from qmt_protocol.ids import BEGINNING, id_key, is_stream_id
from qmt_protocol.keys import Keys
from qmt_protocol.limits import MAX_UNREADABLE
from qmt_protocol.schema import FEED, check_version
from qmt_runtime.connections import BLOCK_S, redis_call

from .transactions import Transactions

__all__ = ["FeedReader", "Reading"]

_ENTRIES_PER_READ: Final = 16  # times at most 500 ticks: what one read may hold in memory
_EVENTS_PER_READ: Final = 100
_LOOK_AFTER_S: Final = 0.1
_KEPT_S: Final = 30.0
"""For so long nothing is trimmed behind where a market was filed: feeds are kept for longer."""
_LONGEST_EPOCH: Final = 64
_NEWEST: Final = "99999999999999-999999999"
"""The last id that `is_entry_id` takes."""


@dataclass
class Reading:
    """What one read found; breaks come before the entries of their market."""

    breaks: list[Break] = field(default_factory=list)
    entries: list[FeedEntry] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """The producers' events since the last read, each with its entry id."""


class FeedReader:
    """One reader over the feeds of some markets, and over the producers' events.

    Whether a position still follows on is looked at in one transaction with the read, unless the
    read before says so. Each market has a transaction of its own: feed, epoch and position of one
    say nothing of another, and in a Redis Cluster they lie on different servers.

    Parameters
    ----------
    connection
        Streams server, asyncio; stays the caller's to close.
    keys
        Key names of the prefix.
    markets
        Markets to follow, such as ``["SH", "SZ"]``.
    offsets
        Market (and `EVENTS`) to the position to go on from; the others begin with `begin`.
    events
        Follow the producers' events too.
    address
        ``host:port`` for messages.

    Attributes
    ----------
    positions : dict
        Market to where its feed is read.
    events_id : str
        Id of the last event read; empty: events are not followed.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        keys: Keys,
        markets: Iterable[str],
        *,
        offsets: Mapping[str, Offset] | None = None,
        events: bool = False,
        address: str = "Redis",
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._address = address
        self.markets = list(dict.fromkeys(markets))
        offsets = offsets or {}
        self.positions = {m: FeedOffset(m, offsets[m]) for m in self.markets if m in offsets}
        self.events_id = offsets[EVENTS][1] if events and EVENTS in offsets else ""
        self._with_events = events
        self._market_of_feed = {keys.feed(market): market for market in self.markets}
        self._sure = False
        self._unreadable_event = ""
        """The id of no date that the events end with: nothing can be added behind it."""
        self._read_at = self._begun_at = 0.0
        self._read_ms = 0  # Redis time

    async def begin(self, requested: Mapping[str, Sequence[str] | None]) -> Snapshot:
        """Stand where markets are filed, and return ``latest`` as it is there.

        Parameters
        ----------
        wanted
            See `snapshot`.

        Raises
        ------
        WrongVersion
            When another version of the wire lies there.
        RedisUnavailable, CodecError
            See `snapshot`.
        """
        await self._check_version()
        found = await self.snapshot(requested)
        self.positions |= {name: FeedOffset(name, offset) for name, offset in found.offsets.items()}
        self._sure, self._begun_at = False, time.monotonic()
        async with redis_call(self._address), self._connection.pipeline(transaction=False) as pipe:
            for market, (_, at) in found.offsets.items():
                pipe.xrange(self._keys.feed(market), at, at)
            replies = _checked(await pipe.execute(raise_on_error=False))
        for market, there in zip(found.offsets, replies, strict=True):
            self.positions[market].has_entry = bool(there) and not isinstance(there, Exception)
        if self._with_events and not self.events_id:
            async with redis_call(self._address):
                tail = await self._connection.xrevrange(self._keys.events, max=_NEWEST, count=1)
            self.events_id = _text(tail[0][0]) if tail else BEGINNING
        return found

    async def snapshot(self, requested: Mapping[str, Sequence[str] | None]) -> Snapshot:
        """Return markets as each is at one moment.

        Parameters
        ----------
        wanted
            Market to the codes whose ``latest`` is wanted; ``None``: all of them.

        Raises
        ------
        RedisUnavailable
            When the server does not answer.
        CodecError
            When a market's keys are not what they must be.
        """
        found = Snapshot()
        for market, codes in requested.items():
            async with redis_call(self._address), self._connection.pipeline() as pipe:
                pipe.get(self._keys.epoch(market))
                pipe.get(self._keys.filed(market))
                if codes is None:
                    pipe.hgetall(self._keys.latest(market))
                elif codes:
                    pipe.hmget(self._keys.latest(market), list(codes))
                replies = _checked(await pipe.execute(raise_on_error=False))
            self._check_types(market, replies)
            epoch, filed, *latest = replies
            found.offsets[market] = self._epoch(market, epoch), self._filed(market, filed)
            if codes is None:
                self._take_latest(market, latest[0], found)
            elif codes:
                pairs = zip(codes, latest[0], strict=True)
                found.latest.update({code: data for code, data in pairs if data is not None})
        return found

    async def filed(self, markets: Iterable[str]) -> dict[str, Offset]:
        """Return up to where markets are filed now; see `snapshot`."""
        return (await self.snapshot(dict.fromkeys(markets, ()))).offsets

    async def _check_version(self) -> None:
        async with redis_call(self._address), self._connection.pipeline(transaction=False) as pipe:
            pipe.hget(self._keys.schema, FEED)
            (document,) = _checked(await pipe.execute(raise_on_error=False))
        if isinstance(document, Exception):  # no hash: it says nothing of versions
            return
        check_version(document, self._keys.prefix, self._address)

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
        positions = [self.positions[market] for market in self.markets]
        positions = [one for one in positions if not one.is_beyond_limit]
        if time.monotonic() - self._begun_at > _KEPT_S:
            for one in positions:
                one.has_entry = True
        asked = Transactions(self._connection)
        asked.begin().time()
        for one in positions:
            feed, pipe = self._keys.feed(one.market), asked.begin()
            pipe.get(self._keys.epoch(one.market))
            pipe.xrange(feed, one.at, one.limit or "+", count=_ENTRIES_PER_READ + 1)
            if one.at == BEGINNING:
                pipe.xinfo_stream(feed)
        if self.events_id:
            asked.begin().xrange(self._keys.events, f"({self.events_id}", count=_EVENTS_PER_READ)
        async with redis_call(self._address):
            (redis_time,), *replies = [_checked(some) for some in await asked.execute()]
        self._read_ms = _ms(redis_time)
        found = Reading()
        for one, (epoch, raw, *stream) in zip(positions, replies, strict=False):
            self._check_types(one.market, (epoch, raw, *stream))
            of_stream = stream[0] if stream else None
            await self._look_at(one, self._epoch(one.market, epoch), raw, of_stream, found)
        foreign, self._unreadable_event = self._unreadable_event, ""
        if self.events_id:
            self._take_events(replies[-1][0], found, known=foreign)
        self._sure = len(positions) == len(self.markets) and not self._unreadable_event
        return found

    async def _look_at(
        self, position: FeedOffset, epoch: str, raw: Any, stream: Any, found: Reading
    ) -> None:
        entries = _entries(position.market, raw)
        is_whole = stream is not None and _is_whole(stream)
        end = BEGINNING
        if position.needs_end(epoch, entries, is_whole=is_whole):
            end = await self._end_of(position)
        broken, behind = position.look(epoch, entries, is_whole=is_whole, end=end)
        if broken is not None:
            found.breaks.append(broken)
        found.entries += behind

    async def _end_of(self, position: FeedOffset) -> str:
        """Return the id of the last entry ever published, or the limit of reading."""
        async with redis_call(self._address):
            try:
                feed = self._keys.feed(position.market)
                last = _last_id(await self._connection.xinfo_stream(feed))
            except redis.ResponseError as error:
                last = _last_id(*_checked([error]))
        return min(last, position.limit or last, key=id_key)

    async def _wait(self) -> Reading:
        ids = {feed: self.positions[market].at for feed, market in self._market_of_feed.items()}
        if (
            self.events_id and not self._unreadable_event
        ):  # or XREAD would return at once, each time
            ids[self._keys.events] = self.events_id
        async with (
            redis_call(self._address),
            self._connection.pipeline(transaction=False) as pipe,
        ):
            pipe.time()
            pipe.xread(
                ids,  # type: ignore[arg-type]
                count=_ENTRIES_PER_READ,
                block=int(BLOCK_S * 1000),
            )
            for market in self.markets:
                pipe.get(self._keys.epoch(market))
            pipe.time()
            begun, read, *epochs, ended = await pipe.execute()
        # This process may have stood still, its clock too, while the read before lay answered.
        away_ms, self._read_ms = _ms(begun) - self._read_ms, _ms(ended)
        if not 0 <= away_ms <= _LOOK_AFTER_S * 1000:
            return await self._look()
        found = Reading()
        renewed = {
            market
            for market, epoch in zip(self.markets, epochs, strict=True)
            if self._epoch(market, epoch) != self.positions[market].epoch
        }
        if renewed:
            self._sure = False  # what was read of these may belong to either history: look
        for key, raw in _pairs(read):
            name = _text(key)
            if name == self._keys.events:
                self._take_events(raw, found)
            elif (market := self._market_of_feed[name]) not in renewed:
                entries = _entries(market, raw)
                self.positions[market].read(entries)
                found.entries += entries
        return found

    def _take_events(self, entries: Any, found: Reading, known: str = "") -> None:
        """Take events; one whose id is of no date is named once, and never a position."""
        for entry_id, fields in entries:
            if not is_entry_id(_text(entry_id)):
                self._unreadable_event = _text(entry_id)
                if self._unreadable_event != known:
                    message = (
                        f"{self._unreadable_event} in {self._keys.events} is no id of an event"
                    )
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

    def _take_latest(self, market: str, latest: Mapping[bytes, bytes], found: Snapshot) -> None:
        """Take what has the name of a code of a market, and note what has not."""
        named = {printable(code): data for code, data in latest.items()}
        mine = {code: data for code, data in named.items() if is_code_of(code, market)}
        found.latest.update(mine)
        foreign = [name for name in named if name not in mine][:MAX_UNREADABLE]
        found.unreadable.extend(
            CodecError(f"{name!r} has a latest tick and is no code of {market}.", code=name)
            for name in foreign
        )

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


def _entries(market: str, raw: Iterable[Any]) -> list[FeedEntry]:
    return [
        FeedEntry(market, _text(entry_id), fields.get(b"b1"), fields.get(b"c1"))
        for entry_id, fields in raw
    ]


def _ms(redis_time: tuple[int, int]) -> int:
    """Return in ms what Redis answered to TIME."""
    seconds, microseconds = redis_time
    return seconds * 1000 + microseconds // 1000


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _pairs(reply: Any) -> Iterable[tuple[Any, Any]]:
    if not reply:
        return ()
    pairs: Iterable[tuple[Any, Any]] = reply.items() if isinstance(reply, dict) else reply
    return pairs
