"""Retention: old trading days of the per-code streams go, by number of days and by memory.

Days are counted among those that a market's own streams hold, back from the newest, so a replay
does not trim itself and a holiday takes nothing away. All streams of a market are cut at the same
day, those of codes that stopped trading too. What an archive has not stored yet stays, as long as
one was heard of in the last day, unless memory forces it; then an event says so. Only the producer
that holds a market trims it. ``latest`` is never trimmed.

Nothing here blocks Redis for more than about a millisecond: keys are found by SCAN, streams are
cut in steps at the borders of their nodes, whole ones are unlinked.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

import structlog

from qmt_protocol.decoding import printable
from qmt_protocol.errors import CodecError, RedisUnavailable
from qmt_protocol.feed import split_bar_batch, split_batch
from qmt_protocol.ids import is_stream_id
from qmt_protocol.keys import Keys
from qmt_protocol.times import DAY_MS, day_of, day_start_ms

from .redis_link import ask_redis, connect, end_soon

__all__ = ["Sweeper"]

log: Final = structlog.get_logger(__name__)

_CHUNK: Final = 100
_STEP_ENTRIES: Final = 1000
_PAUSE_S: Final = 0.002
_SAMPLES: Final = 8
_MAX_DAYS: Final = 60
_PART_MS: Final = 30 * 60_000
"""How much of the only day left goes at a time when memory forces it, and how much stays."""
_FORCED_STEPS: Final = 50
_ARCHIVE_SEEN_MS: Final = DAY_MS
_FEED_LOOK: Final = 20


@dataclass(frozen=True)
class _Stream:
    key: bytes
    kind: str
    entries: int
    first_ms: int
    last_ms: int


@dataclass
class _Market:
    """What a market's streams hold."""

    name: str
    streams: list[_Stream]
    days: list[int]
    """Days with data, newest first, as far back as was looked."""
    first_ms: int
    last_ms: int


class Sweeper:
    """A thread that trims the streams of the markets that this producer holds.

    Parameters
    ----------
    markets
        Tells which markets are published here.
    holder
        Name under which this process holds leases.
    keep_days
        Trading days kept.
    max_memory_share
        Part of Redis' ``maxmemory`` beyond which the oldest goes early; without a ``maxmemory``
        days alone count.
    on_event
        Called with an event document when memory forced something out.
    every_s, memory_every_s
        How often streams and memory are looked at.
    """

    def __init__(
        self,
        *,
        keys: Keys,
        url: str,
        markets: Callable[[], list[str]],
        holder: str,
        keep_days: int,
        max_memory_share: float,
        on_event: Callable[[dict[str, Any]], None],
        every_s: float = 300.0,
        memory_every_s: float = 5.0,
    ) -> None:
        self._keys = keys
        self._markets = markets
        self._holder = holder
        self._keep_days = keep_days
        self._max_memory_share = max_memory_share
        self._on_event = on_event
        self._every_s = every_s
        self._memory_every_s = memory_every_s
        self._redis = connect(url)
        self._name = re.compile(
            rb"\{" + re.escape(keys.prefix.encode()) + rb":([^}]+)\}:(tick|bar):.+", re.DOTALL
        )
        self._cut_ms: dict[str, int] = {}
        self._unreadable: dict[str, str] = {}
        self._trimmed = 0
        self.figures: dict[str, Any] = {}
        """Memory, entries, days kept per market; for the heartbeat."""
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        end_soon(self.thread, self._redis)

    def _run(self) -> None:
        next_sweep, failure = 0.0, ""
        while not self._stopping.is_set():
            try:
                due = time.monotonic() >= next_sweep
                if ask_redis(self._is_full):
                    ask_redis(partial(self.sweep, full=True))
                elif due:
                    ask_redis(self.sweep)
                if due and self.figures.get("streams"):  # else the lease is still to be taken
                    next_sweep = time.monotonic() + self._every_s
            except RedisUnavailable as error:
                if error.message != failure:  # the same every few seconds is no news
                    log.warning("nothing is swept", error=error.message)
                failure = error.message
            self._stopping.wait(self._memory_every_s)

    def _is_full(self) -> bool:
        memory: dict[str, Any] = self._redis.info("memory")
        used = int(memory["used_memory"]) - int(memory.get("mem_not_counted_for_evict", 0))
        limit = int(memory.get("maxmemory", 0))
        self.figures = {**self.figures, "memory_bytes": used, "max_memory_bytes": limit}
        return limit > 0 and used > limit * self._max_memory_share

    def sweep(self, *, full: bool = False) -> None:
        """Look at all streams once and trim what is due; `full`: memory is short."""
        begun = time.monotonic()
        # When Redis refuses writes the lease runs out; whoever can must make room then.
        allowed = (self._holder, "") if full else (self._holder,)
        ours = [name for name in self._markets() if self._holder_of(name) in allowed]
        found = [self._look(name, streams) for name, streams in self._find(ours).items() if streams]
        for market in found:
            if len(market.days) > self._keep_days:
                self._trim_due(market)
        if full:
            self._make_room(found)
        self._report(found, time.monotonic() - begun)

    def _holder_of(self, market: str) -> str:
        """Return who holds a market's lease; empty: nobody."""
        term: Any = self._redis.get(self._keys.lease(market))
        return printable(term or b"").partition(" ")[0]

    # -- looking ------------------------------------------------------------------------------

    def _find(self, markets: list[str]) -> dict[str, list[_Stream]]:
        found: dict[str, list[_Stream]] = {market: [] for market in markets}
        names = self._redis.scan_iter(
            match=f"{{{self._keys.prefix}:*}}:*", count=200, _type="stream"
        )
        requested = (
            (printable(match.group(1)), printable(match.group(2)), name)
            for name in names
            if (match := self._name.fullmatch(name)) and printable(match.group(1)) in found
        )
        while chunk := list(islice(requested, _CHUNK)):
            if self._stopping.wait(_PAUSE_S):
                return {}
            pipe = self._redis.pipeline(transaction=False)
            for _, _, name in chunk:
                pipe.xinfo_stream(name)
            for (market, kind, name), info in zip(
                chunk, pipe.execute(raise_on_error=False), strict=True
            ):
                if isinstance(info, dict) and info.get("last-entry"):
                    first_ms, last_ms = _ms(info["first-entry"][0]), _ms(info["last-entry"][0])
                    found[market].append(_Stream(name, kind, info["length"], first_ms, last_ms))
        return found

    def _look(self, name: str, streams: list[_Stream]) -> _Market:
        ticks = [stream for stream in streams if stream.kind == "tick"] or streams
        newest = sorted(ticks, key=lambda stream: (stream.last_ms, stream.entries))[-_SAMPLES:]
        days: set[int] = set()
        for stream in newest:
            at_ms, seen = stream.last_ms, 0
            while at_ms >= stream.first_ms and seen < _MAX_DAYS:
                day = day_of(at_ms)
                days.add(day)
                seen += 1
                end_ms = day_start_ms(day) - 1
                before: Any = self._redis.xrevrange(stream.key, max=end_ms, count=1)
                if not before:
                    break
                at_ms = _ms(before[0][0])
        first_ms = min(stream.first_ms for stream in newest)
        last_ms = max(stream.last_ms for stream in newest)
        return _Market(name, streams, sorted(days, reverse=True), first_ms, last_ms)

    def _unarchived_ms(self, market: str) -> int | None:
        """Return the exchange ms from which on an archive still needs entries; None: no bound."""
        seconds, _ = self._redis.time()
        seen: Any = self._redis.zrangebyscore(
            self._keys.seen, seconds * 1000 - _ARCHIVE_SEEN_MS, "+inf"
        )
        if not any(member.startswith(b"archive:") for member in seen):
            return None
        archived: Any = self._redis.get(self._keys.archived(market))
        if archived is None:
            return 0
        position = printable(archived)
        if not is_stream_id(position):
            self._report_unreadable(market, position)
            return 0
        needed_ms: int | None = None
        feed = self._keys.feed(market)
        behind: Any = self._redis.xrange(feed, min=f"({position}", count=_FEED_LOOK)
        for _, fields in behind:
            for entry_id in _ids(market, fields):
                needed_ms = min(_ms(entry_id), _ms(position), needed_ms or _ms(entry_id))
        return needed_ms

    def _report_unreadable(self, market: str, position: str) -> None:
        """Name, once, a position of the archive that is none: as if nothing were archived."""
        if self._unreadable.get(market) != position:
            self._unreadable[market] = position
            key = self._keys.archived(market)
            log.error("the archive's position cannot be read", key=key, position=position)
            self._on_event({"kind": "unreadable", "market": market, "key": key, "value": position})

    # -- trimming -----------------------------------------------------------------------------

    def _trim_due(self, market: _Market) -> None:
        cut_ms = day_start_ms(market.days[self._keep_days - 1])
        needed_ms = self._unarchived_ms(market.name)
        if needed_ms is not None:
            cut_ms = min(cut_ms, needed_ms)
        if cut_ms > self._cut_ms.get(market.name, 0):
            gone = self._trim(market.streams, cut_ms)
            log.info("trimmed", market=market.name, up_to_ms=cut_ms, entries=gone)
            self._cut_ms[market.name] = cut_ms
            self._forget(market, cut_ms)

    def _trim(self, streams: Iterable[_Stream], cut_ms: int) -> int:
        gone = 0
        for stream in streams:
            if self._stopping.is_set():
                break
            if stream.last_ms < cut_ms:
                gone += stream.entries * int(self._redis.unlink(stream.key))
                continue
            went = _STEP_ENTRIES if stream.first_ms < cut_ms else 0
            while went:
                time.sleep(_PAUSE_S)
                went = int(
                    self._redis.xtrim(
                        stream.key, minid=cut_ms, approximate=True, limit=_STEP_ENTRIES
                    )
                )
                gone += went
        self._trimmed += gone
        return gone

    def _forget(self, market: _Market, cut_ms: int) -> None:
        market.days = [day for day in market.days if day_start_ms(day) + DAY_MS > cut_ms]
        market.streams = [stream for stream in market.streams if stream.last_ms >= cut_ms]
        market.first_ms = max(market.first_ms, cut_ms)

    def _make_room(self, markets: list[_Market]) -> None:
        for _ in range(_FORCED_STEPS):
            left = [market for market in markets if market.streams]
            if not left or self._stopping.is_set() or not self._is_full():
                return
            oldest = min(left, key=lambda market: market.first_ms)
            if len(oldest.days) > 1:
                cut_ms = day_start_ms(oldest.days[-2])
            else:
                cut_ms = min(oldest.first_ms + _PART_MS, oldest.last_ms - _PART_MS)
            if cut_ms <= oldest.first_ms:
                markets = [market for market in markets if market is not oldest]
                continue
            needed_ms = self._unarchived_ms(oldest.name)
            past_archive = needed_ms is not None and cut_ms > needed_ms
            gone = self._trim(oldest.streams, cut_ms)
            self._forget(oldest, cut_ms)
            log.warning("memory is short: trimmed early", market=oldest.name, up_to_ms=cut_ms)
            self._on_event(
                {
                    "kind": "trimmed",
                    "market": oldest.name,
                    "up_to_ms": cut_ms,
                    "entries": gone,
                    "reason": "memory",
                    "past_archive": past_archive,
                }
            )
            time.sleep(0.05)  # unlinked streams are freed beside
        log.error("memory is short and little is left to trim")

    def _report(self, markets: list[_Market], took_s: float) -> None:
        streams = [stream for market in markets for stream in market.streams]
        ticks = [stream for stream in streams if stream.kind == "tick"]
        self._is_full()  # for the memory's figures
        self.figures = {
            **self.figures,
            "streams": len(streams),
            "ticks": sum(stream.entries for stream in ticks),
            "bars": sum(stream.entries for stream in streams if stream.kind == "bar"),
            "bytes_per_tick": self._bytes_per_tick(ticks),
            "trimmed": self._trimmed,
            "took_s": round(took_s, 2),
            "oldest_day": {market.name: market.days[-1] for market in markets if market.days},
            "newest_day": {market.name: market.days[0] for market in markets if market.days},
        }

    def _bytes_per_tick(self, ticks: list[_Stream]) -> float | None:
        longest = sorted(ticks, key=lambda stream: stream.entries)[-_SAMPLES:]
        entries = size_bytes = 0
        for stream in longest:
            now = int(self._redis.xlen(stream.key))
            size = self._redis.memory_usage(stream.key)
            if now and size:
                entries, size_bytes = entries + now, size_bytes + int(size)
        return round(size_bytes / entries, 1) if entries else None


def _ms(entry_id: bytes | str) -> int:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    return int(text.partition("-")[0])


def _ids(market: str, fields: dict[bytes, bytes]) -> list[str]:
    """Return the entry ids that a feed entry names."""
    try:
        if b"b1" in fields:
            rows, unreadable = split_batch(fields[b"b1"], market)
            found = [entry_id for _, entry_id, _ in rows]
        else:
            bars, unreadable = split_bar_batch(fields[b"c1"], market)
            found = [entry_id for _, _, entry_id, _ in bars]
    except (CodecError, KeyError):
        log.error("a feed entry cannot be read", market=market)
        return ["0-0"]  # then nothing is safe to trim
    for error in unreadable[:1]:
        log.error("part of a feed entry cannot be read", error=error.message)
    return found
