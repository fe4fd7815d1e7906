"""Following the feeds of markets: every batch once, across lost connections, gaps told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from typing import Any, Final

import msgspec
import redis
import redis.asyncio

from qmt_protocol.errors import CodecError, Gap, RedisUnavailable
from qmt_protocol.feed import decode_batch
from qmt_protocol.keys import Keys
from qmt_protocol.ticks import Tick, decode_tick

from .connections import BLOCK_S, redis_call
from .transport import OnGap

__all__ = ["FeedReader", "id_key"]

_ENTRIES_PER_READ: Final = 16  # times at most 500 ticks: what one read may hold in memory
_LOOK_AFTER_S: Final = 0.1
_BACKOFF_S: Final = 0.1
_BACKOFF_CAP_S: Final = 2.0
_NOTHING: Final = "0-0"
_outer: Final = msgspec.msgpack.Decoder(list[tuple[str, str, msgspec.Raw]]).decode


def id_key(entry_id: str) -> tuple[int, int]:
    """Return an entry id as numbers that compare as Redis orders them."""
    ms, _, number = entry_id.partition("-")
    return int(ms or 0), int(number or 0)


class FeedReader:
    """One reader over the feeds of some markets.

    Parameters
    ----------
    connection
        Streams server, asyncio; stays the caller's to close.
    keys
        Key names of the prefix.
    markets
        Markets to follow, such as ``["SH", "SZ"]``.
    codes
        Only ticks of these codes are decoded and delivered; ``None``: all.
    positions
        Market to the feed entry id after which to go on; markets not named begin at the end.
    on_gap
        Told of ticks that can no longer be had: the entry at the position is gone, the history is
        another one (new epoch), or an entry cannot be decoded. Reading goes on behind the gap.
    give_up_after_s
        How long a lost connection is tried again; ``None``: as long as the caller iterates.
    address
        ``host:port`` for messages.

    Attributes
    ----------
    positions : dict
        Market to the id of the last entry delivered; a new reader can go on from there.
    epochs : dict
        Market to the identity of the history that the position belongs to.
    connected : bool
        Whether the last read was answered.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        keys: Keys,
        markets: Iterable[str],
        *,
        codes: Collection[str] | None = None,
        positions: Mapping[str, str] | None = None,
        on_gap: OnGap | None = None,
        give_up_after_s: float | None = None,
        address: str = "Redis",
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._markets = list(dict.fromkeys(markets))
        self._market_of_feed = {keys.feed(market): market for market in self._markets}
        self._codes = None if codes is None else frozenset(codes)
        self._on_gap = on_gap
        self._give_up_after_s = give_up_after_s
        self._address = address
        self.positions: dict[str, str] = dict(positions or {})
        self.epochs: dict[str, str] = {}
        self.connected = False
        self._started = False
        self._read_at = 0.0
        # After a new epoch the publisher tells part of the story again: what was delivered of it
        # is recognised by the ids of the codes' own streams.
        self._last_ids: dict[str, str] = {}
        self._told: dict[str, tuple[int, int]] = {}

    async def start(self) -> None:
        """Read the end of each feed: what is published from here on will be delivered.

        Raises
        ------
        RedisUnavailable
            When the server does not answer.
        """
        async with (
            redis_call(self._address),
            self._connection.pipeline(transaction=True) as pipe,
        ):
            for market in self._markets:
                pipe.get(self._keys.epoch(market))
                pipe.xrevrange(self._keys.feed(market), count=1)
            replies = await pipe.execute()
        for market, epoch, tail in zip(self._markets, replies[::2], replies[1::2], strict=True):
            self.epochs.setdefault(market, _text(epoch))
            self.positions.setdefault(market, _text(tail[0][0]) if tail else _NOTHING)
        self._started = True
        self.connected = True

    async def batches(self) -> AsyncGenerator[list[Tick], None]:
        """Yield the ticks of one feed entry after the other, in published order.

        Nothing is read ahead of the caller but the entries of one read, so a slow caller holds
        no more than these.

        Raises
        ------
        RedisUnavailable
            When Redis does not answer at the start, or stays away for ``give_up_after_s``.
        """
        if not self._started:
            await self.start()
        lost_at: float | None = None
        pause_s = _BACKOFF_S
        while True:
            try:
                async with redis_call(self._address):
                    entries = await self._read()
            except RedisUnavailable:
                self.connected = False
                now = time.monotonic()
                lost_at = now if lost_at is None else lost_at
                if self._give_up_after_s is not None and now - lost_at >= self._give_up_after_s:
                    raise
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, _BACKOFF_CAP_S)
                continue
            self.connected = True
            lost_at, pause_s = None, _BACKOFF_S
            for market, entry_id, data in entries:
                ticks = self._decode(market, entry_id, data)
                self.positions[market] = entry_id
                if ticks:
                    yield ticks

    async def _read(self) -> list[tuple[str, str, bytes]]:
        # A feed is kept for minutes, so between reads that follow at once nothing can be trimmed.
        # After a pause the look at the positions travels with the read: Redis runs both without
        # another command between, so what is there then was there when reading began.
        look = time.monotonic() - self._read_at > _LOOK_AFTER_S
        async with self._connection.pipeline(transaction=False) as pipe:
            for feed, market in self._market_of_feed.items():
                if look:
                    pipe.xrange(feed, self.positions[market], self.positions[market], count=1)
            pipe.xread(
                {feed: self.positions[market] for feed, market in self._market_of_feed.items()},
                count=_ENTRIES_PER_READ,
                block=int(BLOCK_S * 1000),
            )
            for market in self._markets:
                pipe.get(self._keys.epoch(market))
            replies = await pipe.execute()
        several = len(self._markets)
        found = [bool(one) for one in replies[:several]] if look else [True] * several
        read, epochs = replies[-several - 1], replies[-several:]
        broken = [
            market
            for market, epoch, there in zip(self._markets, epochs, found, strict=True)
            if await self._is_broken(market, _text(epoch), there)
        ]
        self._read_at = time.monotonic()
        entries = [
            (self._market_of_feed[_text(feed)], _text(entry_id), fields[b"b1"])
            for feed, of_feed in _pairs(read)
            for entry_id, fields in of_feed
            if b"b1" in fields
        ]
        # A reset position made the read of that market meaningless.
        return [entry for entry in entries if entry[0] not in broken]

    async def _is_broken(self, market: str, epoch: str, there: bool) -> bool:
        """Check one market's position; on a gap tell it. True: what was read is not to be used."""
        known, at = self.epochs[market], self.positions[market]
        self.epochs[market] = epoch
        renewed = bool(known) and epoch != known
        if not renewed and (there or at == _NOTHING):
            return False
        feed = self._keys.feed(market)
        last = await self._last_generated(feed)
        if not renewed and last == at:
            return False  # nothing was published since, only old entries were trimmed
        self._told |= {code: id_key(of_code) for code, of_code in self._last_ids.items()}
        self._tell(
            Gap(
                f"Ticks of {market} after feed entry {at} can no longer be had: "
                + ("the history is another one." if renewed else "they were trimmed."),
                hint="Read them from the codes' own streams, or as history.",
                market=market,
                after=at,
                epoch=epoch,
            )
        )
        if id_key(last) < id_key(at) or (
            renewed and not await self._connection.xrange(feed, at, at, count=1)
        ):
            self.positions[market] = _NOTHING
            return True
        return renewed

    async def _last_generated(self, feed: str) -> str:
        try:
            told = await self._connection.xinfo_stream(feed)
        except redis.ResponseError:  # no such stream
            return _NOTHING
        return _text(told["last-generated-id"])

    def _decode(self, market: str, entry_id: str, data: bytes) -> list[Tick]:
        try:
            ticks = decode_batch(data) if self._codes is None else self._decode_wanted(data)
        except CodecError as error:
            self._tell(
                Gap(
                    f"Feed entry {entry_id} of {market} cannot be read: {error.message}",
                    hint="Producer and reader may be of different versions.",
                    market=market,
                    after=self.positions[market],
                )
            )
            return []
        if self._told:
            ticks = [tick for tick in ticks if self._is_news(tick)]
        self._last_ids.update((tick.code, tick.id) for tick in ticks)
        return ticks

    def _decode_wanted(self, data: bytes) -> list[Tick]:
        wanted = self._codes or ()
        try:
            rows = _outer(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise CodecError(f"Not a b1 batch: {error}.") from error
        return [
            decode_tick(bytes(raw), code, entry_id)
            for code, entry_id, raw in rows
            if code in wanted
        ]

    def _is_news(self, tick: Tick) -> bool:
        told = self._told.get(tick.code)
        if told is None:
            return True
        if id_key(tick.id) <= told:
            return False
        del self._told[tick.code]
        return True

    def _tell(self, gap: Gap) -> None:
        if self._on_gap is not None:
            self._on_gap(gap)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _pairs(reply: Any) -> Iterable[tuple[Any, Any]]:
    if not reply:
        return ()
    pairs: Iterable[tuple[Any, Any]] = reply.items() if isinstance(reply, dict) else reply
    return pairs
