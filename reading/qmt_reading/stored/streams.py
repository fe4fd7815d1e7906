"""Stored ticks or bars of many codes, from their own streams, merged by exchange time."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Final

import redis
import redis.asyncio

from qmt_protocol.cursor.batch import Row
from qmt_protocol.cursor.position import is_bound
from qmt_protocol.errors import CodecError
from qmt_protocol.feed import is_entry_id
from qmt_protocol.ids import BEGINNING, id_key
from qmt_protocol.keys import Keys
from qmt_protocol.times import day_of
from qmt_runtime.connections import redis_call, redis_errors

__all__ = ["read_stored"]

_BUFFERED: Final = 50_000
_LEAST, _MOST = 4, 1_000
_STREAMS_PER_CALL: Final = 50  # a larger answer holds up what else the event loop has to do

OnTrimmed = Callable[[dict[str, tuple[str, str]]], None]
OnUnreadable = Callable[[CodecError], None]


class _Stream:
    """What was read ahead of one code's stream."""

    __slots__ = ("after", "code", "ended", "rows")

    def __init__(self, code: str, after: str) -> None:
        self.code = code
        self.after = after
        self.ended = False
        self.rows: deque[tuple[tuple[int, int], Row]] = deque()

    def fill(
        self,
        entries: Iterable[tuple[bytes, dict[bytes, bytes]]],
        name: bytes,
        count: int,
        on_unreadable: OnUnreadable,
    ) -> None:
        for raw_id, fields in entries:
            self.after = raw_id.decode()
            if name in fields and is_entry_id(self.after):
                row = (self.code, self.after, fields[name])
                self.rows.append((id_key(self.after), row))
            else:
                what = "an id of no date" if name in fields else f"no {name.decode()}"
                on_unreadable(
                    CodecError(
                        f"{self.code} {self.after}: it has {what}.", code=self.code, id=self.after
                    )
                )
            count -= 1
        self.ended = count > 0

    def give_up(self, error: redis.ResponseError, on_unreadable: OnUnreadable) -> None:
        """End with a key that is no stream; whatever else is wrong is raised."""
        if "WRONGTYPE" not in str(error):
            raise error
        self.ended = True
        on_unreadable(
            CodecError(f"What {self.code} has in Redis is no stream: {error}.", code=self.code)
        )


async def read_stored(
    connection: redis.asyncio.Redis,
    keys: Keys,
    after: dict[str, str],
    *,
    on_trimmed: OnTrimmed,
    on_unreadable: OnUnreadable,
    until: str = "+",
    period: str = "tick",
    address: str = "Redis",
) -> AsyncGenerator[list[Row], None]:
    """Yield what the codes' streams hold behind given ids, until nothing is left.

    Each code's ticks come in stored order, all together in the order of their entry ids (exchange
    time). At most some 50,000 ticks are held.

    Parameters
    ----------
    after
        Code to the entry id behind which to begin.
    on_trimmed
        Told the codes whose streams no longer reach back so far: code to (id, first id left).
    on_unreadable
        Told what is there and cannot be a tick or bar; it is left out.
    until
        Last entry id wanted.
    period
        ``tick``, or the period of bars.

    Raises
    ------
    RedisUnavailable
        When the server does not answer.
    """
    count = max(_LEAST, min(_MOST, _BUFFERED // max(1, len(after))))
    streams = [_Stream(code, entry_id) for code, entry_id in after.items()]
    name = b"t1" if period == "tick" else b"k1"
    keys_of = {
        code: keys.tick(code) if period == "tick" else keys.bar(period, code) for code in after
    }
    trimmed = await _find_trimmed(connection, keys_of, after, address)
    if trimmed:
        on_trimmed(trimmed)
    while streams:
        thin = [one for one in streams if not one.ended and len(one.rows) < (count + 1) // 2]
        for start in range(0, len(thin), _STREAMS_PER_CALL):
            some = thin[start : start + _STREAMS_PER_CALL]
            async with redis_call(address), connection.pipeline(transaction=False) as pipe:
                for one in some:
                    pipe.xrange(keys_of[one.code], f"({one.after}", until, count=count)
                replies = await pipe.execute(raise_on_error=False)
                for one, entries in zip(some, replies, strict=True):
                    if isinstance(entries, redis.ResponseError):
                        one.give_up(entries, on_unreadable)
                    else:
                        one.fill(entries, name, count, on_unreadable)
        # Up to here every stream is known: later ones may still hold earlier ticks.
        known = (one.rows[-1][0] for one in streams if one.rows and not one.ended)
        horizon = min(known, default=None)
        due: list[tuple[tuple[int, int], Row]] = []
        for one in streams:
            while one.rows and (horizon is None or one.rows[0][0] <= horizon):
                due.append(one.rows.popleft())
        if due:
            due.sort(key=lambda pair: pair[0])
            rows_due = [row for _, row in due]
            due.clear()  # a reader that waits holds nothing twice
            yield rows_due
            del rows_due
        streams = [one for one in streams if one.rows or not one.ended]


async def _find_trimmed(
    connection: redis.asyncio.Redis,
    keys_of: dict[str, str],
    after: dict[str, str],
    address: str,
) -> dict[str, tuple[str, str]]:
    """Return the codes whose stream lost what lay behind their id."""
    trimmed: dict[str, tuple[str, str]] = {}
    codes = list(after)
    for start in range(0, len(codes), _STREAMS_PER_CALL):
        some = codes[start : start + _STREAMS_PER_CALL]
        async with redis_call(address), connection.pipeline(transaction=False) as pipe:
            for code in some:
                pipe.xrange(keys_of[code], after[code], count=1)
                pipe.xinfo_stream(keys_of[code])
            replies = await pipe.execute(raise_on_error=False)
        for code, reply in zip(some, replies[::2], strict=True):
            if isinstance(reply, Exception):
                with redis_errors(address, f"{keys_of[code]}, which is read,"):
                    raise reply
        for code, first, info in zip(some, replies[::2], replies[1::2], strict=True):
            if isinstance(info, Exception):
                continue  # no such stream
            first_id = first[0][0].decode() if first else ""
            if _lost(after[code], first_id, info):
                trimmed[code] = (after[code], first_id)
    return trimmed


def _lost(after: str, first_id: str, info: Any) -> bool:
    if first_id == after or id_key(info["last-generated-id"].decode()) <= id_key(after):
        return False
    if not is_bound(after):
        return True
    if info["entries-added"] == info["length"]:
        return False
    if after == BEGINNING or not info["first-entry"]:
        return True
    # Streams are trimmed by whole days; a day that memory cut short has a gap event of its own.
    begin_ms, oldest_ms = id_key(after)[0], id_key(info["first-entry"][0].decode())[0]
    return day_of(oldest_ms) > day_of(begin_ms + 1)
