"""Stored ticks and bars over Redis: archive and streams as one sequence, each row once.

The streams are read first, then the manifest: what was trimmed before the streams were read is in
the archive by then. What both hold is known by code and entry id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow as pa

from qmt_protocol.archive import Missing
from qmt_protocol.bars import Bar, decode_bar
from qmt_protocol.columns import bars_table, ticks_table
from qmt_protocol.cursor.batch import Row
from qmt_protocol.cursor.gaps import unreadable
from qmt_protocol.cursor.position import just_before
from qmt_protocol.decoding import printable
from qmt_protocol.errors import CodecError, Gap, Unavailable
from qmt_protocol.feed import decode_rows, is_code_of
from qmt_protocol.ids import BEGINNING, id_key
from qmt_protocol.keys import Keys
from qmt_protocol.times import day_of, to_datetime
from qmt_reading.callbacks import OnGap
from qmt_reading.processes import read_status
from qmt_reading.requests import StoredRequest
from qmt_reading.transport import StoredSource
from qmt_runtime.connections import redis_call, to_its_end
from qmt_runtime.retry import Retry

from .archive import ArchivedBars, ArchivedTicks, ArchiveReader
from .ordering import Key, behind, in_order, last_key, newest, split
from .streams import read_stored

if TYPE_CHECKING:
    import redis.asyncio

__all__ = ["RedisStored", "finished", "resumed"]

_LAST_NUMBER: Final = 2**64 - 1
_DECODED_ROWS: Final = 4_096
_T = TypeVar("_T")


def _codes_among(names: Iterable[bytes], market: str) -> list[str]:
    """Return the fields of a market's ``latest`` that are codes of it, sorted."""
    found = (printable(name) for name in names)
    return sorted(code for code in found if is_code_of(code, market))


class RedisStored:
    """Reads the archive, where there is one, and the streams.

    Parameters
    ----------
    connection, keys, address
        The streams.
    archive_url
        The archive; empty: none.
    """

    def __init__(
        self, connection: redis.asyncio.Redis, keys: Keys, *, archive_url: str, address: str
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._address = address
        self._reader = ArchiveReader(archive_url) if archive_url else None

    async def missing(self, request: StoredRequest) -> list[Missing]:
        """Return what is known to be absent; see `StoredSource`.

        Raises
        ------
        ArchiveUnavailable, ArchiveDamaged
        """
        if self._reader is None or request.period != "tick":
            return []
        return request.concerned((await finished(self._reader.manifest)).missing)

    async def batches(
        self, request: StoredRequest, on_gap: OnGap
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """Yield stored rows; see `StoredSource`.

        Raises
        ------
        RedisUnavailable, ArchiveUnavailable, ArchiveDamaged
        Gap
            When there is no archive and the streams do not reach back to the start.
        """
        archived = self._archived(request)
        try:
            async with aclosing(self._streamed(request, on_gap)) as streamed:
                async for rest, to_ms in streamed:
                    if archived is not None:
                        await finished(archived.refresh)
                        while part := await finished(archived.until, to_ms):
                            due, rest = split(rest, part[1])
                            for batch in await finished(_joined, [part[0], due], request.period):
                                yield batch
                    for batch in await finished(_joined, [rest], request.period):
                        yield batch
        finally:
            if archived is not None:
                archived.close()

    def _archived(self, request: StoredRequest) -> ArchivedTicks | ArchivedBars | None:
        if self._reader is None:
            return None
        markets = request.markets or None
        of: dict[str, Any] = {"markets": markets, "columns": request.columns}
        if request.period == "tick":
            return self._reader.ticks(request.codes, request.start_ms, request.end_ms, **of)
        return self._reader.bars(
            request.period, request.codes, request.start_ms, request.end_ms, **of
        )

    async def _streamed(
        self, request: StoredRequest, on_gap: OnGap
    ) -> AsyncGenerator[tuple[pa.Table, int | None], None]:
        """Yield what the streams hold, and up to when (exclusive) that is complete."""
        codes = await self._codes(request)
        after = BEGINNING if request.start_ms is None else just_before(request.start_ms)
        until = "+" if request.end_ms is None else f"{request.end_ms}-{_LAST_NUMBER}"

        def on_trimmed(trimmed: dict[str, tuple[str, str]]) -> None:
            if self._reader is None and request.start_ms is not None:
                _refuse_trimmed(trimmed, request.start_ms)

        chunks = read_stored(
            self._connection,
            self._keys,
            dict.fromkeys(codes, after),
            on_trimmed=on_trimmed,
            on_unreadable=lambda error: on_gap(unreadable(error)),
            until=until,
            period=request.period,
            address=self._address,
        )
        make = _ticks if request.period == "tick" else _bars
        rest = request.schema.empty_table()
        async with aclosing(chunks) as read:
            async for rows in read:
                # Of the last ms more may come: of another code.
                to_ms = id_key(rows[-1][1])[0]
                made, gaps = await finished(_in_parts, make, rows, request)
                rows.clear()  # a reader that waits holds nothing twice
                for gap in gaps:
                    on_gap(gap)
                due, rest = split(in_order([rest, made]), to_ms)
                del made
                yield due, to_ms
        yield rest, None

    async def _codes(self, request: StoredRequest) -> Sequence[str]:
        if request.codes is not None:
            return request.codes
        async with (
            redis_call(self._address),
            self._connection.pipeline(transaction=False) as pipe,
        ):
            for market in request.markets:
                pipe.hkeys(self._keys.latest(market))
            found = zip(request.markets, await pipe.execute(), strict=True)
            return [code for market, names in found for code in _codes_among(names, market)]

    async def markets(self) -> list[str]:
        """Return the markets that are archived.

        Raises
        ------
        ArchiveUnavailable, ArchiveDamaged
        """
        if self._reader is None:
            return []
        manifest = await finished(self._reader.manifest)
        return sorted({*manifest.markets, *(one.market for one in manifest.files)})

    async def simulated_markets(self) -> frozenset[str]:
        """Return the simulator's markets; see `StoredSource`.

        Raises
        ------
        RedisUnavailable, ArchiveUnavailable, ArchiveDamaged
        """
        status = await read_status(self._connection, self._keys, self._address)
        if self._reader is None:
            return status.simulated_markets
        manifest = await finished(self._reader.manifest)
        return status.simulated_markets | manifest.simulated_markets


async def resumed(
    source: StoredSource, request: StoredRequest, on_gap: OnGap, *, give_up_after_s: float
) -> AsyncGenerator[pa.RecordBatch, None]:
    """Yield what a source has; when it goes away, try again behind the last row for some time.

    Raises
    ------
    Unavailable
        At the start at once, later after ``give_up_after_s``.
    QMTError
        Whatever else the source raises.
    """
    last: Key | None = None
    retry = Retry(give_up_after_s)
    while True:
        try:
            async with aclosing(source.batches(request, on_gap)) as batches:
                async for batch in batches:
                    news = batch if last is None else behind(batch, last)
                    if len(news):
                        last = last_key(news)
                        retry.succeeded()
                        yield news
            return
        except Unavailable as error:
            if last is None:
                raise
            await retry.wait(error)
        request = replace(request, start_ms=last[0])


async def finished(call: Callable[..., _T], *arguments: Any) -> _T:
    """Run a call in a thread; when cancelled, wait for its end, since it cannot be interrupted."""
    return await to_its_end(asyncio.to_thread(call, *arguments))


def _joined(tables: Sequence[pa.Table], period: str) -> list[pa.RecordBatch]:
    whole = in_order(tables)
    return list((whole if period == "tick" else newest(whole)).to_batches())


_Make = Callable[[Sequence[Row], StoredRequest], tuple[pa.Table, list[Gap]]]


def _in_parts(
    make: _Make, rows: Sequence[Row], request: StoredRequest
) -> tuple[pa.Table, list[Gap]]:
    """Make a table some rows at a time: decoded they take ten times as much."""
    tables: list[pa.Table] = []
    unreadable: list[Gap] = []
    for start in range(0, len(rows), _DECODED_ROWS):
        table, gap = make(rows[start : start + _DECODED_ROWS], request)
        tables.append(table.select(request.schema.names))
        unreadable += gap
    return pa.concat_tables(tables), unreadable


def _ticks(rows: Sequence[Row], request: StoredRequest) -> tuple[pa.Table, list[Gap]]:
    decoded, errors = decode_rows(rows)
    return ticks_table(decoded), [unreadable(error) for error in errors]


def _bars(rows: Sequence[Row], request: StoredRequest) -> tuple[pa.Table, list[Gap]]:
    bars: list[Bar] = []
    gaps: list[Gap] = []
    for code, entry_id, k1 in rows:
        try:
            bar = decode_bar(k1, code, request.period, entry_id)
        except CodecError as error:
            gaps.append(unreadable(error))
            continue
        if bar.closed:
            bars.append(bar)
    return bars_table(bars), gaps


def _refuse_trimmed(trimmed: Mapping[str, tuple[str, str]], start_ms: int) -> None:
    """Raise when streams begin later than what is asked for, and no archive has what is before."""
    begins = {code: id_key(first)[0] for code, (_, first) in trimmed.items() if first}
    if not begins:
        return
    code, begin_ms = max(begins.items(), key=lambda pair: pair[1])
    more = f" and {len(begins) - 1} more" if len(begins) > 1 else ""
    day = day_of(begin_ms)
    raise Gap(
        f"The streams of {code}{more} hold nothing before {to_datetime(begin_ms):%Y-%m-%d}, and no "
        f"archive is set; asked for was {to_datetime(start_ms):%Y-%m-%d}.",
        hint="Ask from that day on, or set QMT_ARCHIVE_URL to the archive's folder or bucket.",
        reason="trimmed",
        from_day=day,
        codes={code: list(ids) for code, ids in trimmed.items()},
    )
