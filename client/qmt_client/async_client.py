"""`AsyncQMTClient`: all reading, with the logic that both clients share."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from qmt_protocol.amounts import parse_seconds
from qmt_protocol.bars import Bar
from qmt_protocol.codes import market_of, parse_codes
from qmt_protocol.errors import (
    CodecError,
    InstrumentNotFound,
    InvalidRequest,
    NoProducer,
    NotFound,
    QMTError,
)
from qmt_protocol.jobs import Manifest, job_spec, parse_params
from qmt_protocol.periods import parse_adjust, parse_period
from qmt_protocol.ticks import Tick
from qmt_protocol.times import CHINA, day_of, parse_end, parse_start

from .answers import HistoryFrames, Latest, Ticks
from .arguments import (
    Clock,
    Codes,
    is_one,
    parse_clock,
    parse_names,
    parse_one,
    parse_rows,
    parse_scope,
    warn,
    warn_absent,
    warn_gap,
)
from .async_stored import AsyncStored
from .follow import Batch
from .live import AsyncLive, bar_of, tick_of, unreadable
from .position import Place
from .processes import Status
from .progress import ShowProgress, shown
from .settings import find_target
from .transport import OnGap, Transport, Wish

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from typing_extensions import Self

__all__ = ["AsyncQMTClient"]

OnData = Callable[[dict[str, list[Any]]], Awaitable[None] | None]

_LIVE_RETRY_S: Final = 300.0  # a restart of Redis or the gateway is over by then
_WATCH_EVERY_S: Final = 2.0
_GET_HISTORY_COUNT: Final = 100


class AsyncQMTClient(AsyncStored):
    """Reads A-share market data from the bridge: history, latest, live and stored ticks.

    Every method has the same name and arguments on `QMTClient`. Use it as ``async with``, or call
    `close`.

    Parameters
    ----------
    url
        ``redis://...`` of the streams server, or ``http(s)://...`` of a gateway. Without it (and
        without ``host``) the variables ``QMT_URL``, then ``QMT_STREAMS_URL`` and
        ``QMT_JOBS_URL`` say where to read; else it is ``http://127.0.0.1:8000``.
    host, port
        A gateway's address, in place of ``url``; the port is 8000 unless given.
    jobs_url
        Redis of the jobs, needed for history and reference data over Redis; ``QMT_JOBS_URL``
        unless given.
    prefix
        Prefix of the keys in Redis, ``qmt`` unless given.
    api_key
        Key of the gateway; ``QMT_API_KEY`` unless given.
    archive_url
        Over Redis: folder or ``s3://`` address of the archive; ``QMT_ARCHIVE_URL`` unless given.
    tz
        ``'Asia/Shanghai'``: time indexes are timezone-aware; ``None``: naive China time.
    timeout_s
        How long a request may take before it is cancelled and `TimedOut` is raised.
    progress
        Default of every ``progress`` argument: ``None`` or ``True`` draws a bar where stderr is a
        terminal, ``False`` does not, a callback gets each `Progress`.

    Raises
    ------
    ConfigurationError
        When the address cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
        jobs_url: str | None = None,
        prefix: str | None = None,
        api_key: str | None = None,
        archive_url: str | None = None,
        tz: str | None = "Asia/Shanghai",
        timeout_s: float = 60.0,
        progress: ShowProgress = None,
    ) -> None:
        if tz is not None and tz != CHINA.key:
            raise InvalidRequest(
                f"tz={tz!r} is not served.",
                hint="Choose 'Asia/Shanghai' or None; convert the index afterwards.",
                field="tz",
            )
        target = find_target(
            url,
            host=host,
            port=port,
            jobs_url=jobs_url,
            prefix=prefix,
            api_key=api_key,
            archive_url=archive_url,
        )
        transport: Transport
        if target.over_redis:
            from .redis_transport import RedisTransport

            transport = RedisTransport(
                target.url,
                target.jobs_url,
                prefix=target.prefix,
                give_up_after_s=_LIVE_RETRY_S,
                archive_url=target.archive_url,
            )
        else:
            from .http_transport import HttpTransport

            transport = HttpTransport(
                target.url, api_key=target.api_key, give_up_after_s=_LIVE_RETRY_S
            )
        super().__init__(transport, tz=tz)
        self._timeout_s = parse_seconds(timeout_s, "timeout_s")
        self._progress = progress

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def _job(
        self,
        name: str,
        document: dict[str, Any],
        progress: ShowProgress,
        timeout_s: float | None = None,
    ) -> tuple[Manifest, pa.Table | None]:
        params = parse_params(name, document)
        if timeout_s is not None:
            parse_seconds(timeout_s, "timeout_s")
        with shown(self._progress if progress is None else progress, name) as on_progress:
            return await self.transport.run_job(
                name, params, timeout_s=timeout_s or self._timeout_s, on_progress=on_progress
            )

    # History

    async def history(
        self,
        codes: Codes,
        period: str = "1d",
        *,
        start: Any = None,
        end: Any = None,
        count: int | None = None,
        fields: Codes | None = None,
        adjust: str | None = "none",
        download: Literal["auto", "never"] = "auto",
        fill: bool = False,
        layout: Literal["long"] | None = None,
        progress: ShowProgress = None,
    ) -> Any:
        """Return bars, or ticks, of history.

        A worker reads them from its terminal (``xtdata.get_market_data_ex``), which fetches what
        its cache lacks. During the session the last bar is the forming one; its ``closed`` is
        False.

        Parameters
        ----------
        codes
            One code, a comma-separated string, or a list.
        period
            ``tick``, ``1m``, ``5m``, ``15m``, ``30m``, ``60m``, ``1h``, ``1d``, ``1w``,
            ``1mon``, ``1q``, ``1hy`` or ``1y``.
        start, end
            First and last label wanted, both included: dates, datetimes or strings such as
            ``'20260105'``, ``'2026-01-05 10:30'``. Naive means China time, a date as ``end``
            includes that whole day, and ``end`` may lie in the future.
        count
            Only the last so many rows of each code, up to ``end``.
        fields
            Columns wanted, in this order; all of them unless given.
        adjust
            ``none``, ``front``, ``back``, ``front_ratio``, ``back_ratio``, or ``qfq`` (front) and
            ``hfq`` (back).
        download
            ``auto``: fetch what the terminal's cache lacks, up to a million rows; ``never``: do
            not.
        fill
            Keep rows that the terminal makes up for missing bars.
        layout
            ``'long'``: one frame for all codes, with a first column ``code``.
        progress
            See the class.

        Returns
        -------
        pandas.DataFrame or HistoryFrames
            For one code a frame; for several a dict of frames in the order asked for, whose
            ``absent`` names the codes left out. The index ``time`` is
            ``datetime64[ns, Asia/Shanghai]`` (naive with ``tz=None``); columns, dtypes and units
            are those of docs/tables.md, also of an empty frame. ``attrs`` has ``simulated``,
            ``source``, ``absent``, ``period`` and ``adjust``.

        Raises
        ------
        InvalidRequest
            A wrong argument; nothing was asked.
        InstrumentNotFound
            The terminal knows none of the codes.
        NotFound
            One code was asked for, and it has no data in the range; the message says why.
        HistoryMissing
            Bars are not in the terminal's cache and were not fetched; it says how to.
        DownloadIncomplete, TerminalNotConnected, TerminalRefused, NoWorker, TimedOut
            The bridge could not answer.
        """
        if layout not in (None, "long"):
            raise InvalidRequest(
                f"layout={layout!r} is not served.", hint="Choose 'long' or None.", field="layout"
            )
        wanted = parse_codes(codes)
        period = parse_period(period)
        adjust = parse_adjust(adjust)
        columns = parse_names(fields)
        manifest, table = await self._job(
            "history",
            {
                "codes": wanted,
                "period": period,
                "start_ms": parse_start(start),
                "end_ms": parse_end(end),
                "count": count,
                "fields": columns,
                "adjust": adjust,
                "download": download,
                "fill": fill,
            },
            progress,
        )
        assert table is not None  # the catalogue says so
        from .frames import frames_of, long_frame_of

        one = layout is None and is_one(codes)
        absent: Mapping[str, str] = manifest.meta.get("absent") or {}
        if one and wanted[0] in absent:
            raise NotFound(
                f"{wanted[0]}: {absent[wanted[0]].rstrip('.')}.",
                hint="Check the code, the period and the range.",
                code=wanted[0],
            )
        warn_absent(absent, "history")
        make: Callable[..., Any] = long_frame_of if layout == "long" else frames_of
        answer = await asyncio.to_thread(
            make, table, manifest, wanted, period, fields=columns, adjust=adjust, tz=self._tz
        )
        return answer[wanted[0]] if one else answer

    async def get_history(
        self,
        stock: str,
        period: str = "1d",
        count: int = _GET_HISTORY_COUNT,
        fields: Codes | None = None,
        *,
        start: Any = None,
        end: Any = None,
        adjust: str | None = "none",
    ) -> pd.DataFrame:
        """Return the last ``count`` rows of one code; -1 means all. See `history`."""
        frame: pd.DataFrame = await self.history(
            parse_one(stock),
            period,
            start=start,
            end=end,
            count=parse_rows(count),
            fields=fields,
            adjust=adjust,
        )
        return frame

    async def get_batch_history(
        self,
        stocks: Codes,
        period: str = "1d",
        count: int = _GET_HISTORY_COUNT,
        fields: Codes | None = None,
        *,
        start: Any = None,
        end: Any = None,
        adjust: str | None = "none",
    ) -> HistoryFrames:
        """Return the last ``count`` rows of each code; -1 means all. See `history`."""
        frames: HistoryFrames = await self.history(
            parse_codes(stocks),
            period,
            start=start,
            end=end,
            count=parse_rows(count),
            fields=fields,
            adjust=adjust,
        )
        return frames

    async def download(
        self,
        codes: Codes | None = None,
        period: str = "1d",
        start: Any = None,
        end: Any = None,
        *,
        stock: str | None = None,
        stocks: Codes | None = None,
        progress: ShowProgress = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Fetch history into the terminal's cache and read it back.

        Parameters
        ----------
        codes, period, start, end
            As in `history`; ``stock`` and ``stocks`` are other names of ``codes``.
        progress
            See the class.
        timeout_s
            How long to wait; an hour unless given. Waiting longer, or Ctrl-C, cancels it.

        Returns
        -------
        dict
            Code to what can be read back now: ``rows`` and more.

        Raises
        ------
        DownloadIncomplete
            When the range still cannot be read whole.
        InvalidRequest, TerminalNotConnected, TerminalRefused, NoWorker, TimedOut
        """
        given = [one for one in (codes, stock, stocks) if one is not None]
        if len(given) != 1:
            raise InvalidRequest("Name the codes once.", hint="codes=[...].", field="codes")
        manifest, _ = await self._job(
            "download",
            {
                "codes": parse_codes(given[0]),
                "period": parse_period(period),
                "start_ms": parse_start(start),
                "end_ms": parse_end(end),
            },
            progress,
            timeout_s or job_spec("download").timeout_s,
        )
        return dict(manifest.document)

    # Reference data

    async def sector_stocks(self, sector: str) -> list[str]:
        """Return the codes of a sector, such as ``沪深A股`` (``xtdata.get_stock_list_in_sector``).

        Raises
        ------
        SectorNotFound
            When the terminal knows no such sector.
        """
        manifest, _ = await self._job("sector_stocks", {"sector": sector}, False)
        return list(manifest.document)

    async def get_sector_stocks(self, sector: str) -> list[str]:
        """Return the codes of a sector; the same as `sector_stocks`."""
        return await self.sector_stocks(sector)

    async def instrument_detail(self, codes: Codes) -> dict[str, Any]:
        """Return what the terminal knows about instruments (``xtdata.get_instrument_detail``).

        Parameters
        ----------
        codes
            One code, a comma-separated string, or a list.

        Returns
        -------
        dict
            For one code its document with xtquant's keys, ``None`` where the terminal has no
            value; for several a dict of documents by code, unknown codes left out with a
            `QMTWarning`.

        Raises
        ------
        InstrumentNotFound
            When the terminal knows none of the codes.
        """
        wanted = parse_codes(codes)
        manifest, _ = await self._job("instrument_detail", {"codes": wanted}, False)
        found = {code: manifest.document.get(code) for code in wanted}
        absent = [code for code, document in found.items() if not document]
        if len(absent) == len(wanted):
            raise InstrumentNotFound(
                f"The terminal knows no instrument {', '.join(absent[:5])}.",
                hint="Check the code and its market.",
                codes=absent,
            )
        if is_one(codes):
            return dict(found[wanted[0]])
        warn_absent(dict.fromkeys(absent, "no such instrument"), "instrument_detail")
        return {code: document for code, document in found.items() if document}

    async def get_instrument_detail(self, stock: str) -> dict[str, Any]:
        """Return what the terminal knows about one instrument; see `instrument_detail`."""
        return await self.instrument_detail(parse_one(stock))

    # Ticks

    async def full_tick(self, codes: Codes) -> Ticks:
        """Return the latest tick of each code, from Redis alone: no Windows machine is asked.

        Parameters
        ----------
        codes
            One code, a comma-separated string, or a list.

        Returns
        -------
        Ticks
            Code to tick, a dict with xtquant's keys (prices in yuan, volumes in lots); codes
            without one are named in ``absent`` with a `QMTWarning`. A warning also tells when
            the producer is away, so that the ticks are the last it published.

        Raises
        ------
        InstrumentNotFound
            One code was asked for, its market is published, and it has no tick.
        NoProducer
            None of the codes has a tick and nobody publishes; ``last_seen_ms`` tells since when.
        """
        wanted = parse_codes(codes)
        found, status = await asyncio.gather(self.transport.latest(wanted), self.transport.status())
        absent = [code for code in wanted if code not in found]
        try:
            status.require_producer(dict.fromkeys(market_of(code) for code in wanted))
        except NoProducer as error:
            if not found:
                raise
            warn(f"{error.message} These are the last ticks it published.")
        if absent and len(wanted) == 1:
            if found.unreadable:
                raise CodecError(found.unreadable[wanted[0]], code=wanted[0])
            raise InstrumentNotFound(
                f"No tick of {wanted[0]} was published.",
                hint="Check the code; or it was not traded since the producer began.",
                codes=absent,
            )
        reasons = dict.fromkeys(absent, "no tick was published") | found.unreadable
        warn_absent({code: reasons[code] for code in absent}, "full_tick")
        return Ticks(found, absent, simulated=status.simulated)

    async def get_full_tick(self, stocks: Codes) -> Ticks:
        """Return the latest tick of each code; the same as `full_tick`."""
        return await self.full_tick(stocks)

    async def latest(
        self, codes: Codes | None = None, *, markets: Sequence[str] = ()
    ) -> Latest[Tick]:
        """Return the stored latest ticks of codes, or of whole markets, and nothing else.

        Unlike `full_tick` it asks nobody whether they are fresh, and codes without a tick are
        just not there. Codes whose tick cannot be read are named by ``unreadable``.
        """
        wanted, markets = parse_scope(codes, markets)
        return await self.transport.latest(wanted, markets)

    def ticks(
        self,
        codes: Codes | None = None,
        *,
        markets: Sequence[str] = (),
        start: Any = None,
        position: Mapping[str, Any] | None = None,
        snapshot: bool = False,
        conflate: bool = False,
        on_gap: OnGap | None = None,
    ) -> AsyncLive[Tick]:
        """Iterate over ticks as they are published, without end.

        Each tick comes once, in published order. Memory is bounded: nothing is read ahead of the
        loop but a few batches. A lost connection is taken up again for five minutes, behind the
        last tick delivered. What the live feed no longer holds by then is read from the codes'
        own streams; what can no longer be had at all is told to ``on_gap``.

        Parameters
        ----------
        codes
            One code, a comma-separated string, or a list.
        markets
            Whole markets, such as ``["SH", "SZ", "BJ"]``, in place of codes.
        start
            Begin with the ticks stored since this exchange time: ``'09:15'`` is that of the
            newest trading day stored, other values are as in `history`. Where they end and the
            live ones begin, `NOW_LIVE` comes once.
        position
            Go on behind a saved ``.position`` or ``.full_position`` of an earlier iteration.
        snapshot
            Begin with the latest stored tick of each code.
        conflate
            A loop that is slower than the market gets the latest tick of each code only.
        on_gap
            Called with a `Gap` when ticks can no longer be had: the loop was away for too long,
            Redis lost its data, or the producer names ticks that it lost. Unless given, a
            `QMTWarning` tells it. The iteration goes on behind the gap.

        Returns
        -------
        AsyncLive
            An iterator of `Tick` with ``.position``, ``.full_position`` and `aclose`.

        Raises
        ------
        InvalidRequest
            For arguments that do not go together.
        NoProducer
            At the first step, when nobody publishes one of the markets; see its hint.
        RedisUnavailable, GatewayUnavailable
            At the start at once, later after five minutes.
        """
        wanted, markets = parse_scope(codes, markets)
        if position is not None and start is not None:
            raise InvalidRequest("Give start or position, not both.", field="start")
        wish = Wish(
            None if wanted is None else tuple(wanted),
            tuple(markets),
            place=None if position is None else Place.parse(position),
            snapshot=snapshot,
            conflate=conflate,
        )
        clock = parse_clock(start)
        tell = on_gap or warn_gap
        return AsyncLive(self._batches(wish, clock, tell), tick_of, wish.place, tell)

    def bars(
        self,
        codes: Codes,
        period: str = "1m",
        *,
        position: Mapping[str, Any] | None = None,
        snapshot: bool = False,
        on_gap: OnGap | None = None,
    ) -> AsyncLive[Bar]:
        """Iterate over bars as they form and close, without end.

        The producer subscribes to them while somebody wants them; that takes some seconds at
        first. Of the forming bar each change comes, then the closed bar with ``closed`` true.

        Parameters
        ----------
        codes
            One code, a comma-separated string, or a list.
        period
            ``1m``, ``5m``, ``1d`` and so on; see `history`.
        position, on_gap
            As in `ticks`.
        snapshot
            Begin with the last stored bar of each code that has one.

        Returns
        -------
        AsyncLive
            An iterator of `Bar`, a dict with xtquant's keys and ``closed``.

        Raises
        ------
        Unavailable
            When the producer refuses, with its reason.
        InvalidRequest, NoProducer, RedisUnavailable, GatewayUnavailable
            As in `ticks`.
        """
        wish = Wish(
            tuple(parse_codes(codes)),
            period=parse_period(period, bars_only=True),
            place=None if position is None else Place.parse(position),
            snapshot=snapshot,
        )
        tell = on_gap or warn_gap
        return AsyncLive(self._batches(wish, None, tell), bar_of, wish.place, tell)

    async def _batches(
        self, wish: Wish, start: Clock | int | None, on_gap: OnGap
    ) -> AsyncGenerator[Batch, None]:
        codes = wish.codes
        markets = list(wish.markets) or list(dict.fromkeys(market_of(code) for code in codes or ()))
        (await self.transport.status()).require_producer(markets)
        if codes is not None and wish.period == "tick":
            known = await self.transport.latest(codes)
            strange = {code: "no tick so far" for code in codes if code not in known}
            warn_absent(strange, "ticks", left_out=False)
        if isinstance(start, Clock):
            newest = (await self.transport.latest(codes, wish.markets)).values()
            day = max((day_of(int(tick.id.partition("-")[0])) for tick in newest), default=None)
            start = None if day is None else start.on(day)
            if start is None:  # nothing is stored
                start = 0
        watch = asyncio.create_task(self._watch_producer(markets))
        live = self.transport.live(replace(wish, start_ms=start), on_gap)
        try:
            async with aclosing(live) as batches:
                async for batch in batches:
                    yield batch
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _watch_producer(self, markets: Sequence[str]) -> None:
        """Warn when a producer goes away: silence must not look like a quiet market."""
        away = False
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            try:
                (await self.transport.status()).require_producer(markets)
                away = False
            except NoProducer as error:
                if not away:
                    warn(f"{error.message} No ticks come until it returns.")
                away = True
            except QMTError:
                continue  # a lost connection is the reader's to tell

    async def subscribe_realtime(
        self, stocks: Codes, callback: OnData, period: str = "tick"
    ) -> None:
        """Call back with ticks as they come; a coroutine on both clients.

        It runs until its task is cancelled (Ctrl-C does that under ``asyncio.run``), or until the
        callback raises.

        Parameters
        ----------
        stocks
            One code, a comma-separated string, or a list.
        callback
            A function or coroutine function, called with ``{code: [tick, ...]}``. The first call
            has the latest stored tick of each code, then each new tick comes once. While it
            runs nothing more is read; what it raises ends the subscription and is raised here.
        period
            ``tick``, or a bar's period: then the callback gets ``{code: [bar, ...]}``.

        Raises
        ------
        NoProducer, RedisUnavailable, GatewayUnavailable, Unavailable
            See `ticks` and `bars`.
        """
        wish = Wish(tuple(parse_codes(stocks)), period=parse_period(period), snapshot=True)
        decode: Callable[[Any], Tick | Bar] = tick_of if wish.period == "tick" else bar_of
        async with aclosing(self._batches(wish, None, warn_gap)) as batches:
            async for batch in batches:
                data: dict[str, list[Any]] = {}
                for row in batch.rows or batch.bars:
                    try:
                        data.setdefault(row[0], []).append(decode(row))
                    except CodecError as error:
                        warn_gap(unreadable(error))
                if not data:
                    continue
                waiting = callback(data)
                if inspect.isawaitable(waiting):
                    await waiting

    # The bridge itself

    async def status(self) -> Status:
        """Return who is alive: producers, workers, gateways, and the state of their terminals."""
        return await self.transport.status()
