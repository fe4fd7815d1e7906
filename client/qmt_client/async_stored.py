"""Stored ticks and bars, and their replay: the part of `AsyncQMTClient` that reads what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from qmt_protocol.archive import simulated_label
from qmt_protocol.bars import Bar
from qmt_protocol.codes import parse_codes, parse_markets
from qmt_protocol.errors import Gap, InvalidRequest
from qmt_protocol.jobs import parse_params
from qmt_protocol.periods import parse_period
from qmt_protocol.tables import table_of
from qmt_protocol.ticks import Tick
from qmt_protocol.times import parse_end, parse_start
from qmt_reading.arguments import Codes, is_all, parse_names
from qmt_reading.callbacks import OnGap
from qmt_reading.replay.engine import AsyncReplay
from qmt_reading.stored.gaps import gap_of

from .connected import Connected
from .types import StoredForm, TimeLike
from .user_warnings import warn_absent, warn_gap

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from qmt_reading.requests import StoredRequest
    from qmt_reading.transport import StoredSource

__all__ = ["SKIP_IDLE_S", "AsyncStored"]

_FORMS: Final = ("frame", "arrow", "batches")
SKIP_IDLE_S: Final = 1800.0
_SECTOR_S: Final = 60.0
_RETRY_S: Final = 10.0
_REPLAY_RETRY_S: Final = 300.0


class AsyncStored(Connected):
    """What `AsyncQMTClient` reads from archive and streams."""

    @overload
    async def stored_ticks(
        self,
        codes: Codes | None = ...,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        *,
        markets: Sequence[str] = ...,
        sectors: Sequence[str] = ...,
        fields: Codes | None = ...,
        as_: Literal["frame"] = ...,
    ) -> pd.DataFrame: ...

    @overload
    async def stored_ticks(
        self,
        codes: Codes | None = ...,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        *,
        markets: Sequence[str] = ...,
        sectors: Sequence[str] = ...,
        fields: Codes | None = ...,
        as_: Literal["arrow"],
    ) -> pa.Table: ...

    @overload
    async def stored_ticks(
        self,
        codes: Codes | None = ...,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        *,
        markets: Sequence[str] = ...,
        sectors: Sequence[str] = ...,
        fields: Codes | None = ...,
        as_: Literal["batches"],
    ) -> AsyncGenerator[pa.RecordBatch, None]: ...

    async def stored_ticks(
        self,
        codes: Codes | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        markets: Sequence[str] = (),
        sectors: Sequence[str] = (),
        fields: Codes | None = None,
        as_: StoredForm = "frame",
    ) -> pd.DataFrame | pa.Table | AsyncGenerator[pa.RecordBatch, None]:
        """Return the ticks that were collected, from archive and streams as one.

        No terminal is asked: this works while the Windows machine is off.

        Parameters
        ----------
        codes
            One code, a comma-separated string, a list, or ``'*'`` for all that is stored.
        start, end
            First and last exchange time wanted, both included, as in `history`; unless given,
            from the oldest, to the newest stored.
        markets, sectors
            Whole markets, or the codes of sectors, in place of codes or beside them.
        fields
            Columns wanted; all of them unless given. Few are read several times faster.
        as_
            ``'frame'``: a DataFrame; ``'arrow'``: a pyarrow Table; ``'batches'``: an iterator of
            pyarrow record batches, for ranges that memory does not hold.

        Returns
        -------
        pandas.DataFrame, pyarrow.Table or iterator of pyarrow.RecordBatch
            Ordered by exchange time, then code, then number, each tick once. The frame has the
            column ``code`` and those of docs/tables.md, its index is the exchange time; ``attrs``
            has ``absent`` (codes without a tick in the range), ``missing`` and ``simulated``
            (the simulator invented rows). Arrow has the
            archive's columns: the entry id as ``id_ms`` and ``id_seq``, all fields that xtdata
            pushes, ``extra``, ``flags``, ``source``. Without a tick both are empty, their columns
            as always. What is known to be missing in the range, and that the rows begin later or
            end earlier than asked, is told by a `QMTWarning`.

        Raises
        ------
        InvalidRequest
            A wrong argument, or the end before the start.
        Gap
            There is no archive, and the streams do not reach back to ``start``; ``from_day``
            is the day from which they do.
        ArchiveUnavailable, ArchiveDamaged, RedisUnavailable, GatewayUnavailable
            The archive cannot be read; a damaged file is named by ``path``.
        """
        _check_form(as_)
        request = await self._stored_request("tick", codes, start, end, markets, sectors, fields)
        if as_ == "batches":
            return self._opened(self._stored_batches(request))
        return await self._stored(request, as_, parse_names(fields))

    @overload
    async def stored_bars(
        self,
        codes: Codes | None = ...,
        period: str = ...,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        *,
        markets: Sequence[str] = ...,
        sectors: Sequence[str] = ...,
        fields: Codes | None = ...,
        as_: Literal["frame"] = ...,
    ) -> pd.DataFrame: ...

    @overload
    async def stored_bars(
        self,
        codes: Codes | None = ...,
        period: str = ...,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        *,
        markets: Sequence[str] = ...,
        sectors: Sequence[str] = ...,
        fields: Codes | None = ...,
        as_: Literal["arrow"],
    ) -> pa.Table: ...

    @overload
    async def stored_bars(
        self,
        codes: Codes | None = ...,
        period: str = ...,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        *,
        markets: Sequence[str] = ...,
        sectors: Sequence[str] = ...,
        fields: Codes | None = ...,
        as_: Literal["batches"],
    ) -> AsyncGenerator[pa.RecordBatch, None]: ...

    async def stored_bars(
        self,
        codes: Codes | None = None,
        period: str = "1m",
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        markets: Sequence[str] = (),
        sectors: Sequence[str] = (),
        fields: Codes | None = None,
        as_: StoredForm = "frame",
    ) -> pd.DataFrame | pa.Table | AsyncGenerator[pa.RecordBatch, None]:
        """Return the closed bars that were collected, from archive and streams as one.

        A bar is collected when somebody wants it live (see `bars`); of a bar that was closed
        twice the newest counts. Bars of any range come from a terminal by `history`.

        Parameters
        ----------
        codes, start, end, markets, sectors, fields, as_
            As in `stored_ticks`; start and end are labels.
        period
            ``1m``, ``5m``, ``1d`` and so on; see `history`.

        Returns
        -------
        pandas.DataFrame, pyarrow.Table or iterator of pyarrow.RecordBatch
            As of `stored_ticks`, ordered by label, then code.

        Raises
        ------
        InvalidRequest, Gap, ArchiveUnavailable, ArchiveDamaged, RedisUnavailable
        GatewayUnavailable
        """
        _check_form(as_)
        period = parse_period(period, bars_only=True)
        request = await self._stored_request(period, codes, start, end, markets, sectors, fields)
        if as_ == "batches":
            return self._opened(self._stored_batches(request))
        return await self._stored(request, as_, parse_names(fields))

    @overload
    def replay(  # type: ignore[overload-overlap]
        self,
        codes: Codes | None = ...,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        speed: float | Literal["max"] = ...,
        *,
        markets: Sequence[str] = ...,
        sectors: Sequence[str] = ...,
        period: Literal["tick"] = ...,
        skip_idle_s: float | None = ...,
        on_gap: OnGap | None = ...,
    ) -> AsyncReplay[Tick]: ...

    @overload
    def replay(
        self,
        codes: Codes | None = ...,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        speed: float | Literal["max"] = ...,
        *,
        markets: Sequence[str] = ...,
        sectors: Sequence[str] = ...,
        period: str,
        skip_idle_s: float | None = ...,
        on_gap: OnGap | None = ...,
    ) -> AsyncReplay[Bar]: ...

    def replay(
        self,
        codes: Codes | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        speed: float | Literal["max"] = 1.0,
        *,
        markets: Sequence[str] = (),
        sectors: Sequence[str] = (),
        period: str = "tick",
        skip_idle_s: float | None = SKIP_IDLE_S,
        on_gap: OnGap | None = None,
    ) -> AsyncReplay[Tick] | AsyncReplay[Bar]:
        """Give stored ticks again as if they were live, at any speed.

        Parameters
        ----------
        codes, start, end, markets, sectors
            As in `stored_ticks`.
        speed
            1 as it was, 10 ten times as fast, ``'max'`` without any waiting.
        period
            ``tick``, or a bar's period: closed bars, at the time of their label.
        skip_idle_s
            Pauses in market time that are longer (the night, lunch) take no time; ``None``: they
            take theirs. Half an hour unless given.
        on_gap
            Called with a `Gap` when the replay comes to where ticks are known to be missing.
            Unless given, a `QMTWarning` tells it.

        Returns
        -------
        AsyncReplay
            An iterator of `Tick`, exactly as `ticks` gave them live, by exchange time over all
            codes, then code, then number. It has ``batches()`` (Arrow), ``pause()``,
            ``resume()``, ``seek(time)``, ``step(n)``, ``speed``, ``late_ms`` and a
            `subscribe_realtime` of the same signature as the client's.

        Raises
        ------
        InvalidRequest
            For arguments that do not go together.
        Gap, ArchiveUnavailable, ArchiveDamaged, RedisUnavailable, GatewayUnavailable
            At the first step or later, as of `stored_ticks`.
        """
        period = parse_period(period)
        _, end_ms = _parse_range(start, end)
        parse_scope_of(codes, markets, sectors)
        request_made: list[StoredRequest] = []

        async def request() -> StoredRequest:
            if not request_made:
                request_made.append(
                    await self._stored_request(period, codes, start, end, markets, sectors, None)
                )
            return request_made[0]

        report = on_gap or warn_gap

        async def read(from_ms: int | None) -> AsyncGenerator[pa.RecordBatch, None]:
            requested = await request()
            if from_ms is not None:
                if end_ms is not None and from_ms > end_ms:
                    return
                requested = replace(requested, start_ms=from_ms)
            async with aclosing(self._batches_of(requested, report, _REPLAY_RETRY_S)) as batches:
                async for batch in batches:
                    yield batch

        def decode(batch: pa.RecordBatch) -> list[Any]:
            from qmt_protocol.columns import bars_from, ticks_from

            made: list[Tick] | list[Bar] = (ticks_from if period == "tick" else bars_from)(batch)
            return list(made)

        async def missing() -> Any:
            return await self._source().missing(await request())

        async def is_simulated() -> bool:
            return await self._simulated(await request())

        is_named = codes is not None and not is_all(codes) and not markets and not sectors
        replay: AsyncReplay[Any] = AsyncReplay(
            read,
            decode,
            speed=speed,
            skip_idle_s=skip_idle_s,
            period=period,
            codes=tuple(parse_codes(codes)) if is_named and codes is not None else None,
            missing=missing,
            is_simulated=is_simulated,
            on_gap=report,
            on_open=self._open.add,
            on_close=self._open.discard,
        )
        return replay

    # Within

    def _source(self) -> StoredSource:
        return self.transport.stored()

    def _batches_of(
        self, request: StoredRequest, on_gap: OnGap, give_up_after_s: float
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        from qmt_reading.stored.edges import read_whole

        return read_whole(self._source(), request, on_gap, give_up_after_s=give_up_after_s)

    async def _codes_of(self, sector: str) -> list[str]:
        manifest, _ = await self.transport.run_job(
            "sector_stocks",
            parse_params("sector_stocks", {"sector": sector}),
            timeout_s=_SECTOR_S,
        )
        return list(manifest.document)

    async def _stored_request(
        self,
        period: str,
        codes: Codes | None,
        start: Any,
        end: Any,
        markets: Sequence[str],
        sectors: Sequence[str],
        fields: Codes | None,
    ) -> StoredRequest:
        from qmt_reading.requests import StoredRequest

        start_ms, end_ms = _parse_range(start, end)
        named, markets, sectors = parse_scope_of(codes, markets, sectors)
        for sector in sectors:
            named = [*(named or ()), *await self._codes_of(sector)]
        if named is None and not markets:
            markets = await self._all_markets()
        return StoredRequest(
            None if named is None else tuple(dict.fromkeys(named)),
            tuple(markets),
            period,
            start_ms,
            end_ms,
            _columns(period, parse_names(fields)),
        )

    async def _all_markets(self) -> list[str]:
        archived, status = await asyncio.gather(self._source().markets(), self.transport.status())
        published = [market for one in status.processes for market in one.beat.markets]
        return sorted({*archived, *published})

    async def _stored_batches(self, request: StoredRequest) -> AsyncGenerator[pa.RecordBatch, None]:
        await self._report_missing(request)
        simulated = await self._simulated(request)
        async with aclosing(self._batches_of(request, warn_gap, _RETRY_S)) as batches:
            async for batch in batches:
                metadata = {**(batch.schema.metadata or {}), **simulated_label(simulated)}
                yield batch.replace_schema_metadata(metadata)
                self._guard.check()

    async def _simulated(self, request: StoredRequest) -> bool:
        return request.concerns(await self._source().simulated_markets())

    async def _report_missing(self, request: StoredRequest) -> list[Any]:
        missing = await self._source().missing(request)
        for one in missing:
            warn_gap(gap_of(one))
        return missing

    async def _stored(
        self, request: StoredRequest, as_: StoredForm, fields: list[str] | None
    ) -> Any:
        import pyarrow as pa

        from qmt_reading.stored.edges import NOTHING_STORED

        at_ends: list[Gap] = []

        def report(gap: Gap) -> None:
            warn_gap(gap)
            if gap.data.get("reason") == NOTHING_STORED:
                at_ends.append(gap)

        async with aclosing(self._batches_of(request, report, _RETRY_S)) as batches:
            found = [batch async for batch in batches]
        table = pa.Table.from_batches(found, schema=request.schema).unify_dictionaries()
        missing = await self._report_missing(request)
        simulated = await self._simulated(request)
        metadata = {**(table.schema.metadata or {}), **simulated_label(simulated)}
        if as_ == "arrow":
            return table.replace_schema_metadata(metadata)
        from .frames import stored_frame

        frame = await asyncio.to_thread(
            stored_frame, table, request.codes, request.period, fields=fields, tz=self._tz
        )
        gaps = [*(gap_of(one) for one in missing), *at_ends]
        frame.attrs["missing"] = [gap.data for gap in gaps]
        frame.attrs["simulated"] = simulated
        absent = frame.attrs["absent"]
        if absent:
            warn_absent(absent, "stored_ticks" if request.period == "tick" else "stored_bars")
        return frame


def _check_form(as_: str) -> None:
    if as_ not in _FORMS:
        raise InvalidRequest(
            f"as_={as_!r} is not served.", hint=f"Choose one of {', '.join(_FORMS)}.", field="as_"
        )


def _parse_range(start: TimeLike | None, end: TimeLike | None) -> tuple[int | None, int | None]:
    start_ms, end_ms = parse_start(start), parse_end(end)
    if start_ms is not None and end_ms is not None and end_ms < start_ms:
        raise InvalidRequest(
            f"The end, {end}, lies before the start, {start}.",
            hint="Exchange them.",
            field="end",
        )
    return start_ms, end_ms


def parse_scope_of(
    codes: Codes | None, markets: Sequence[str], sectors: Sequence[str]
) -> tuple[list[str] | None, list[str], list[str]]:
    """Check what is named; no codes and no markets mean everything.

    Raises
    ------
    InvalidCode
        For a code that is none.
    InvalidRequest
        When nothing is named, or both codes and markets.
    """
    of_markets, of_sectors = parse_markets(markets), parse_names(sectors, "sectors") or []
    if codes is None and not of_markets and not of_sectors:
        raise InvalidRequest(
            "Give codes, markets or sectors.", hint="codes='*' means all.", field="codes"
        )
    if codes is not None and is_all(codes):
        return None, [], []
    if of_markets and (codes is not None or of_sectors):
        raise InvalidRequest("Give codes and sectors, or markets, not both.", field="markets")
    return (None if codes is None else parse_codes(codes)), of_markets, of_sectors


def _columns(period: str, fields: list[str] | None) -> tuple[str, ...] | None:
    if fields is None:
        return None
    from qmt_protocol.columns import BAR_COLUMNS, TICK_COLUMNS

    known = (TICK_COLUMNS if period == "tick" else BAR_COLUMNS).names
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise InvalidRequest(
            f"{', '.join(unknown)}: no such column.",
            hint=f"Choose of {', '.join(column.name for column in table_of(period))}.",
            field="fields",
        )
    return ("time", *fields)
