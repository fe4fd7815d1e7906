"""Following live data over Redis: snapshot, stored, missed and live, each once and in order."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import redis.asyncio

from qmt_protocol.codes import market_of
from qmt_protocol.decoding import printable
from qmt_protocol.errors import CodecError, Gap, RedisUnavailable
from qmt_protocol.feed import (
    EncodedBar,
    EncodedTick,
    is_code_of,
    is_entry_id,
    split_bar_batch,
    split_batch,
    split_latest,
)
from qmt_protocol.keys import Keys, want
from qmt_protocol.limits import MAX_UNREADABLE
from qmt_protocol.ticks import decode_row

from .connections import redis_call
from .feed import Break, FeedEntry, FeedReader, Reading
from .position import BEGINNING, EVENTS, Mark, Place, id_key, just_before
from .stored import Row, read_stored
from .transport import OnGap

__all__ = ["BarRow", "Batch", "Follower", "Kind", "Scope", "codes_among", "gap_of_event"]

_BACKOFF_S: Final = 0.1
_BACKOFF_CAP_S: Final = 2.0

Kind = Literal["begin", "snapshot", "stored", "missed", "now", "live"]
"""``stored``: from the codes' own streams; ``missed``: from before the reading began."""
BarRow = tuple[str, str, str, Any]
"""Code, period, entry id, ``k1``."""


@dataclass(frozen=True)
class Scope:
    """What a reader wants.

    Attributes
    ----------
    markets : tuple of str
        Markets whose feeds are read.
    codes : frozenset or None
        Codes whose ticks are wanted; ``None``: all of the markets.
    bars : frozenset or None
        (code, period) of the bars wanted; ``None``: all.
    """

    markets: tuple[str, ...]
    codes: frozenset[str] | None = None
    bars: frozenset[tuple[str, str]] | None = frozenset()

    @classmethod
    def of(
        cls, codes: Iterable[str] | None, markets: Iterable[str] = (), periods: Sequence[str] = ()
    ) -> Scope:
        """Return the scope of ticks of codes or markets; with periods: of these codes' bars."""
        if codes is None:
            return cls(tuple(dict.fromkeys(markets)))
        codes = list(codes)
        of_codes = tuple(dict.fromkeys(market_of(code) for code in codes))
        if periods:
            bars = frozenset((code, period) for code in codes for period in periods)
            return cls(of_codes, frozenset(), bars)
        return cls(of_codes, frozenset(codes))

    def holds(self, code: str) -> bool:
        """Whether ticks or bars of a code are wanted."""
        if self.codes is None:
            return code.rpartition(".")[2] in self.markets
        return code in self.codes or any(code == of for of, _ in self.bars or ())

    def codes_of(self, market: str) -> list[str] | None:
        """Return the codes of a market whose ticks are wanted; ``None``: all."""
        if self.codes is None:
            return None
        return sorted(code for code in self.codes if market_of(code) == market)


@dataclass(frozen=True)
class Batch:
    """Some rows, and where a reader stands who has taken them."""

    kind: Kind
    rows: Sequence[Row] = ()
    bars: Sequence[BarRow] = ()
    marks: Mapping[str, Mark] = field(default_factory=dict)
    """Only what moved."""
    data: bytes | None = None
    """The feed's own ``b1`` where the rows are all of it."""
    ids: Mapping[str, str] | None = None
    """With ``begin``: the last entry id of each code, where all are known."""


class Follower:
    """Follows the feeds in a scope and heals, where it can, what the feeds no longer hold.

    Parameters
    ----------
    connection, keys, address
        See `FeedReader`.
    scope
        What is wanted.
    place
        Where to go on; markets that it does not name begin at their present end.
    start_ms
        Begin with the ticks stored since this exchange time, then the batch ``now``.
    snapshot
        Begin with the latest tick of each code, read together with the position.
    conflate
        Of what waits, only the latest tick of each code.
    on_gap
        Told what can no longer be had. Reading goes on behind the gap.
    give_up_after_s
        How long a lost connection is tried again; ``None``: without limit.
    check
        Called between reads; what it raises ends the iteration.
    events
        Follow the producers' events, and tell the gaps among them.

    Attributes
    ----------
    settled : dict
        Market to where its feed holds nothing any more that the streams gave already.
    last_ids : dict
        Code to its last entry id delivered, or, where nothing was yet, the one at the beginning.
    connected : bool
        Whether the last read was answered.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        keys: Keys,
        scope: Scope,
        *,
        place: Place | None = None,
        start_ms: int | None = None,
        snapshot: bool = False,
        conflate: bool = False,
        on_gap: OnGap | None = None,
        give_up_after_s: float | None = None,
        check: Callable[[], None] | None = None,
        events: bool = True,
        address: str = "Redis",
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._address = address
        self.scope = scope
        self._start_ms = start_ms
        self._snapshot = snapshot
        self._conflate = conflate
        self._on_gap = on_gap
        self._give_up_after_s = give_up_after_s
        self._check = check or (lambda: None)
        place = place or Place()
        self.reader = FeedReader(
            connection, keys, scope.markets, marks=place.marks, events=events, address=address
        )
        self.last_ids: dict[str, str] = dict(place.codes or {})
        # What was delivered already, of codes that may come once more: known by their ids.
        self._told = {code: id_key(last) for code, last in (self.last_ids | place.seen).items()}
        resumed = set(self.reader.positions)
        self._complete = set(scope.markets) - resumed
        """Markets of which `last_ids` knows every code."""
        if place.codes is not None:
            self._complete |= resumed
        self.settled: dict[str, tuple[int, int]] = {}
        self._missed_up_to: dict[str, tuple[int, int]] = {}
        self._healing: dict[str, Mark] = {}
        self._first: list[Row] = []
        self.connected = False
        self._begun = False

    def marks(self) -> dict[str, Mark]:
        """Return where it stands in all its markets."""
        reader = self.reader
        marks = {m: self._healing.get(m) or reader.mark(m) for m in reader.positions}
        if reader.events_id:
            marks[EVENTS] = ("", reader.events_id)
        return marks

    async def begin(self) -> None:
        """Take up the position: what is published from here on will be delivered.

        Raises
        ------
        RedisUnavailable
            When the server does not answer.
        """
        reader = self.reader
        resumed = list(reader.positions)
        fresh = {m: self.scope.codes_of(m) for m in reader.markets if m not in resumed}
        if resumed:
            tails = FeedReader(self._connection, self._keys, resumed, address=self._address)
            await tails.begin(dict.fromkeys(resumed, ()))
            self._missed_up_to = {m: id_key(tails.positions[m]) for m in resumed}
        latest = await reader.begin(fresh)
        for error in reader.strange:
            self._tell_left_out(error)
        for market in fresh:
            for code in self.scope.codes_of(market) or ():
                self.last_ids.setdefault(code, BEGINNING)
        for code, data in latest.items():
            try:
                entry_id, t1 = split_latest(data, code)
                decode_row(t1, code, entry_id)
            except CodecError as error:  # the code's next tick puts it right
                self._tell_left_out(error)
                continue
            self.last_ids[code] = entry_id
            self._told[code] = id_key(entry_id)
            if self._snapshot:
                self._first.append((code, entry_id, t1))
        if self._start_ms is not None:
            bound = just_before(self._start_ms)
            for code in [code for code in self.last_ids if code.rpartition(".")[2] in fresh]:
                self.last_ids[code] = bound
                self._told.pop(code, None)
            self._healing = {m: (reader.epochs[m], BEGINNING) for m in fresh}
        self._begun = self.connected = True

    async def batches(self, *, block: bool = True) -> AsyncGenerator[Batch, None]:
        """Yield what is wanted, in order; see `Batch`.

        Nothing is read ahead of the caller but the entries of one read.

        Parameters
        ----------
        block
            ``False``: an empty batch is yielded where nothing new was found.

        Raises
        ------
        RedisUnavailable
            When Redis does not answer at the start, or stays away for ``give_up_after_s``.
        """
        if not self._begun:
            await self.begin()
        retry = _Retry(self._give_up_after_s)
        async for batch in self._opening(retry):
            yield batch
        waiting: Batch | None = None
        while True:
            reading = await self._read(block and waiting is None, retry)
            if waiting is not None and (reading.breaks or not reading.entries):
                yield waiting
                waiting = None
            for _, event in reading.events:
                gap = gap_of_event(event, self.scope)
                if gap is not None and self._on_gap is not None:
                    self._on_gap(gap)
            broken = self._judge(reading.breaks)
            async for batch in self._heal(broken, retry):
                yield batch
            batches = map(self._take, self._in_order(reading, broken))
            if self._conflate:
                waiting = self._newest(waiting, batches) if reading.entries else None
                continue
            for batch in batches:  # one without rows moves the position
                yield batch
            if not block and not reading.entries:
                yield Batch("missed", marks=self.marks())

    async def _opening(self, retry: _Retry) -> AsyncGenerator[Batch, None]:
        """Yield what comes before the feed."""
        known = self.last_ids if self._complete.issuperset(self.scope.markets) else None
        yield Batch("begin", marks=self.marks(), ids=known)
        if self._snapshot:
            bars = await self._last_bars()
            yield Batch("snapshot", self._first, bars, marks=self.marks())
            self._first = []
        if self._start_ms is not None:
            async for batch in self._heal(list(self._healing), retry):
                yield batch
            yield Batch("now", marks=self.marks())

    async def _last_bars(self) -> list[BarRow]:
        """Return the last stored bar of what is wanted; the feed's older ones are then dropped."""
        bars: list[BarRow] = []
        wanted = sorted(self.scope.bars or ())
        async with (
            redis_call(self._address),
            self._connection.pipeline(transaction=False) as pipe,
        ):
            for code, period in wanted:
                pipe.xrevrange(self._keys.bar(period, code), count=1)
            for (code, period), entries in zip(wanted, await pipe.execute(), strict=True):
                for raw_id, fields in entries:
                    entry_id = raw_id.decode()
                    self._told[want(period, code)] = id_key(entry_id)
                    if b"k1" in fields and is_entry_id(entry_id):
                        bars.append((code, period, entry_id, fields[b"k1"]))
        return bars

    async def _read(self, block: bool, retry: _Retry) -> Reading:
        while True:
            self._check()
            try:
                reading = await self.reader.read(block=block)
            except RedisUnavailable as error:
                self.connected = False
                await retry.pause(error)
                continue
            self.connected = True
            retry.done()
            return reading

    @staticmethod
    def _in_order(reading: Reading, broken: Sequence[str]) -> list[FeedEntry]:
        entries = [entry for entry in reading.entries if entry.market not in broken]
        if len({entry.market for entry in entries}) > 1:
            entries.sort(key=lambda entry: id_key(entry.id))
        return entries

    @staticmethod
    def _newest(first: Batch | None, batches: Iterable[Batch]) -> Batch:
        """Put batches together to the latest row of each code."""
        rows: dict[str, Row] = {}
        bars: dict[tuple[str, str], BarRow] = {}
        marks: dict[str, Mark] = {}
        kind: Kind = "live"
        for batch in (*(() if first is None else (first,)), *batches):
            for row in batch.rows:
                rows.pop(row[0], None)  # the order is that of the latest
                rows[row[0]] = row
            for bar in batch.bars:
                bars.pop(bar[:2], None)
                bars[bar[:2]] = bar
            marks |= batch.marks
            kind = batch.kind
        return Batch(kind, list(rows.values()), list(bars.values()), marks)

    # Entries

    def _take(self, entry: FeedEntry) -> Batch:
        """Take what is wanted out of one feed entry."""
        market, mark = entry.market, (self.reader.epochs[entry.market], entry.id)
        marks = {market: mark}
        if self.reader.events_id:
            marks[EVENTS] = ("", self.reader.events_id)
        rows: list[Row] = []
        bars: list[BarRow] = []
        whole = False
        unreadable: list[CodecError] = []
        try:
            if entry.ticks is not None:
                every, unreadable = split_batch(entry.ticks, market)
                rows = self._wanted_ticks(every)
                whole = len(rows) == len(every) and not unreadable
            elif entry.bars is not None:
                every_bar, unreadable = split_bar_batch(entry.bars, market)
                bars = self._wanted_bars(every_bar)
            else:
                raise CodecError(f"A feed entry of {market} has neither ticks nor bars.")
        except CodecError as error:
            unreadable = [error]
        self._tell_unreadable(unreadable, entry, mark)
        limit = self._missed_up_to.get(market)
        if limit is not None and id_key(entry.id) > limit:
            del self._missed_up_to[market]
            limit = None
        kind: Kind = "live" if limit is None else "missed"
        return Batch(kind, rows, bars, marks, entry.ticks if whole else None)

    def _tell_left_out(self, error: CodecError) -> None:
        """Name a stored tick that cannot be read."""
        code, entry_id = (str(error.data.get(name, "")) for name in ("code", "id"))
        market = code.rpartition(".")[2]
        facts: dict[str, Any] = {}
        if is_entry_id(entry_id):
            at_ms = id_key(entry_id)[0]
            facts = {"from_ms": at_ms, "to_ms": at_ms, "codes": {code: [entry_id, entry_id]}}
        self._tell(
            error.message,
            "Its writer may be of another version.",
            market=market if market in self.scope.markets else "",
            reason="unreadable",
            **facts,
        )

    def _tell_unreadable(self, errors: Sequence[CodecError], entry: FeedEntry, after: Mark) -> None:
        """Name what of an entry cannot be read, and count it where it is much."""
        for error in errors[:MAX_UNREADABLE]:
            self._tell(
                f"In feed entry {entry.id} of {entry.market}: {error.message}",
                "Producer and reader may be of different versions.",
                market=entry.market,
                reason="unreadable",
                after=after,
            )
        if len(errors) > MAX_UNREADABLE:
            self._tell(
                f"Feed entry {entry.id} of {entry.market} has {len(errors)} things that cannot be "
                "read.",
                "",
                market=entry.market,
                reason="unreadable",
                after=after,
            )

    def _wanted_ticks(self, every: list[EncodedTick]) -> list[Row]:
        codes, told = self.scope.codes, self._told
        rows: list[Row] = every if codes is None else [row for row in every if row[0] in codes]
        if told:
            rows = [row for row in rows if self._is_news(row[0], row[1])]
        last_ids = self.last_ids
        for code, entry_id, _ in rows:
            last_ids[code] = entry_id
        return rows

    def _wanted_bars(self, every: list[EncodedBar]) -> list[BarRow]:
        wanted = self.scope.bars
        return [
            row
            for row in every
            if (wanted is None or (row[0], row[1]) in wanted)
            and self._is_news(want(row[1], row[0]), row[2])
        ]

    def _is_news(self, key: str, entry_id: str) -> bool:
        told = self._told.get(key)
        if told is None:
            return True
        if id_key(entry_id) <= told:
            return False
        del self._told[key]
        return True

    # Breaks

    def _judge(self, breaks: Iterable[Break]) -> list[str]:
        """Tell what is lost; return the markets that can be healed."""
        healed: list[str] = []
        for one in breaks:
            market = one.market
            if one.reason == "epoch":
                self._told |= {
                    code: id_key(last)
                    for code, last in self.last_ids.items()
                    if code.rpartition(".")[2] == market
                }
                if one.rewound and market in self._complete:
                    self.reader.go_to(market, BEGINNING)
            elif market in self._complete and self.scope.codes != frozenset():
                self._healing[market] = one.after
                healed.append(market)
                if not self.scope.bars:
                    continue
            what = "Bars" if market in healed else "Data"
            why = "the history is another one" if one.reason == "epoch" else "they were trimmed"
            self._tell(
                f"{what} of {market} after feed entry {one.after[1]} can no longer be had: {why}.",
                "Read them from the codes' own streams, or as history.",
                market=market,
                reason=one.reason,
                after=one.after,
                epoch=one.epoch,
                from_ms=id_key(one.after[1])[0],
                to_ms=one.to_ms,
                **({"bars": True} if market in healed else {}),
            )
        return healed

    async def _heal(self, markets: Sequence[str], retry: _Retry) -> AsyncGenerator[Batch, None]:
        """Yield from the codes' own streams what the feed no longer holds."""
        after: dict[str, str] = {}
        while markets:
            try:
                # The feed's end first: what is published while we read the streams is in both.
                await self.reader.begin(dict.fromkeys(markets, ()))
                after.clear()
                for market in markets:
                    codes = self.scope.codes_of(market)
                    if codes is None:
                        async with redis_call(self._address):
                            names: Any = await self._connection.hkeys(self._keys.latest(market))
                        codes = codes_among(names, market)
                    default = BEGINNING
                    if self._start_ms is not None:
                        default = just_before(self._start_ms)
                        strange: list[str] = []
                    else:
                        strange = [code for code in codes if code not in self.last_ids]
                        self._tell_strange(market, strange)
                    after |= {
                        code: self.last_ids.get(code, default)
                        for code in codes
                        if code not in strange
                    }
                async for rows in read_stored(
                    self._connection,
                    self._keys,
                    after,
                    on_trimmed=self._tell_trimmed,
                    on_unreadable=self._tell_left_out,
                    address=self._address,
                ):
                    self.last_ids.update((code, entry_id) for code, entry_id, _ in rows)
                    marks = {m: self._healing[m] for m in markets}
                    yield Batch("stored", rows, marks=marks)
                ends = FeedReader(self._connection, self._keys, markets, address=self._address)
                await ends.begin(dict.fromkeys(markets, ()))
                self.settled |= {m: id_key(ends.positions[m]) for m in markets}
                break
            except RedisUnavailable as error:
                self.connected = False
                await retry.pause(error)
        self.connected = True
        retry.done()
        for market in markets:
            del self._healing[market]
        if after:
            told = {code: id_key(last) for code, last in self.last_ids.items() if code in after}
            self._told |= told

    def _tell_strange(self, market: str, codes: Sequence[str]) -> None:
        if codes:
            epoch, at = self._healing[market]
            self._tell(
                f"{len(codes)} code(s) of {market} are not in the position: it cannot be gone on.",
                "Begin with start=... to read their stored ticks.",
                market=market,
                reason="trimmed",
                after=(epoch, at),
                from_ms=id_key(at)[0],
                codes={code: ["", ""] for code in codes},
            )

    def _tell_trimmed(self, codes: dict[str, tuple[str, str]]) -> None:
        firsts = [id_key(after)[0] for after, _ in codes.values()]
        ends = [id_key(first)[0] for _, first in codes.values()]
        self._tell(
            f"The streams of {len(codes)} code(s) no longer reach back far enough.",
            "Read them as history.",
            reason="trimmed",
            codes={code: list(ids) for code, ids in codes.items()},
            from_ms=min(firsts),
            to_ms=max(ends),
        )

    def _tell(self, message: str, hint: str, **facts: Any) -> None:
        if self._on_gap is not None:
            self._on_gap(Gap(message, hint=hint, **facts))


def codes_among(names: Iterable[bytes], market: str) -> list[str]:
    """Return the fields of a market's ``latest`` that are codes of it, sorted."""
    found = (printable(name) for name in names)
    return sorted(code for code in found if is_code_of(code, market))


def gap_of_event(event: Mapping[str, Any], scope: Scope | None = None) -> Gap | None:
    """Return the gap that a producer's event names, where it concerns a scope (unless ``None``)."""
    if event.get("kind") != "gap":
        return None
    market, codes = event.get("market"), event.get("codes")
    concerned = codes if isinstance(codes, dict) else {}
    ticks = event.get("ticks", 0)
    if concerned and scope is not None:
        concerned = {code: told for code, told in concerned.items() if scope.holds(code)}
        if not concerned:
            return None
        ticks = sum(told[2] for told in concerned.values())
    elif scope is not None and market is not None and market not in scope.markets:
        return None
    reason = str(event.get("reason", "unknown"))
    return Gap(
        str(event.get("message", f"Ticks were lost before they were published: {reason}.")),
        hint="Read them as history.",
        market=market or "",
        reason=reason,
        from_ms=event.get("from_ms", 0),
        to_ms=event.get("to_ms", 0),
        ticks=ticks,
        codes=concerned,
    )


class _Retry:
    """Waits between attempts, ever longer, and gives up in the end."""

    def __init__(self, give_up_after_s: float | None) -> None:
        self._give_up_after_s = give_up_after_s
        self._lost_at: float | None = None
        self._pause_s = _BACKOFF_S

    async def pause(self, error: Exception) -> None:
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if self._give_up_after_s is not None and now - self._lost_at >= self._give_up_after_s:
            raise error
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(self._pause_s * 2, _BACKOFF_CAP_S)

    def done(self) -> None:
        self._lost_at, self._pause_s = None, _BACKOFF_S
