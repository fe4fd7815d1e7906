"""`AsyncQMTClient`: all reading, with the logic that both clients share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from qmt_protocol.amounts import parse_seconds
from qmt_protocol.codes import parse_codes
from qmt_protocol.errors import (
    InstrumentNotFound,
    InvalidRequest,
    NotFound,
)
from qmt_protocol.jobs import Manifest, job_spec, parse_params
from qmt_protocol.periods import parse_adjust, parse_period
from qmt_protocol.times import CHINA, parse_end, parse_start
from qmt_reading.arguments import Codes, is_one, parse_names, parse_one, parse_rows
from qmt_reading.processes import Status
from qmt_reading.transport import Transport

from .async_stored import AsyncStored
from .async_ticks import AsyncTicks
from .history_frames import HistoryFrames
from .progress import ShowProgress, shown
from .settings import find_target
from .types import Downloaded, InstrumentDetail, TimeLike
from .user_warnings import warn_absent

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from typing_extensions import Self

__all__ = ["GET_HISTORY_COUNT", "AsyncQMTClient"]

_LIVE_RETRY_S: Final = 300.0  # a restart of Redis or the gateway is over by then
GET_HISTORY_COUNT: Final = 100


class AsyncQMTClient(AsyncTicks, AsyncStored):
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
            from qmt_reading.redis_transport import RedisTransport

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
        kind = "Redis" if target.over_redis else "the gateway"
        self._server = f"{kind} at {transport.address}"
        self._timeout_s = parse_seconds(timeout_s, "timeout_s")
        self._progress = progress

    def __repr__(self) -> str:
        return f"AsyncQMTClient({self._server})"

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

    @overload
    async def history(
        self,
        codes: Codes,
        period: str = ...,
        *,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        count: int | None = ...,
        fields: Codes | None = ...,
        adjust: str | None = ...,
        download: Literal["auto", "never"] = ...,
        fill: bool = ...,
        layout: Literal["long", "wide"],
        progress: ShowProgress = ...,
        timeout_s: float | None = ...,
    ) -> pd.DataFrame: ...

    @overload
    async def history(  # type: ignore[overload-overlap]
        self,
        codes: str,
        period: str = ...,
        *,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        count: int | None = ...,
        fields: Codes | None = ...,
        adjust: str | None = ...,
        download: Literal["auto", "never"] = ...,
        fill: bool = ...,
        layout: None = ...,
        progress: ShowProgress = ...,
        timeout_s: float | None = ...,
    ) -> pd.DataFrame: ...

    @overload
    async def history(
        self,
        codes: Iterable[str],
        period: str = ...,
        *,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        count: int | None = ...,
        fields: Codes | None = ...,
        adjust: str | None = ...,
        download: Literal["auto", "never"] = ...,
        fill: bool = ...,
        layout: None = ...,
        progress: ShowProgress = ...,
        timeout_s: float | None = ...,
    ) -> HistoryFrames: ...

    async def history(
        self,
        codes: Codes,
        period: str = "1d",
        *,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        count: int | None = None,
        fields: Codes | None = None,
        adjust: str | None = "none",
        download: Literal["auto", "never"] = "auto",
        fill: bool = False,
        layout: Literal["long", "wide"] | None = None,
        progress: ShowProgress = None,
        timeout_s: float | None = None,
    ) -> pd.DataFrame | HistoryFrames:
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
            ``none``; ``front`` or ``qfq``, ``back`` or ``hfq``: xtquant's additive kinds, which add
            what was paid out and so change returns; ``front_ratio``, ``back_ratio``: by factors,
            as most other sources adjust. docs/tables.md has the formulas.
        download
            ``auto``: fetch what the terminal's cache lacks, up to a million rows; ``never``: do
            not.
        fill
            Keep rows that the terminal makes up for missing bars.
        layout
            ``'long'``: one frame for all codes, with a first column ``code``. ``'wide'``: one frame
            with a column for each code; with several ``fields`` columns of (field, code).
        progress
            See the class.
        timeout_s
            How long this request may take, in place of the client's.

        Returns
        -------
        pandas.DataFrame or HistoryFrames
            For one code a frame; for several a dict of frames in the order asked for, whose
            ``absent`` names the codes left out. The index ``time`` is
            ``datetime64[ns, Asia/Shanghai]`` (naive with ``tz=None``); columns, dtypes and units
            are those of docs/tables.md, also of an empty frame. ``attrs`` has ``simulated``,
            ``source``, ``absent``, ``period``, ``adjust`` and ``adjust_method`` (``additive``,
            ``ratio`` or empty).

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
        if layout not in (None, "long", "wide"):
            raise InvalidRequest(
                f"layout={layout!r} is not served.",
                hint="Choose 'long', 'wide' or None.",
                field="layout",
            )
        requested = parse_codes(codes)
        period = parse_period(period)
        if layout == "wide" and period == "tick":
            raise InvalidRequest(
                "Ticks have no wide layout: their times repeat.",
                hint="layout='long'",
                field="layout",
            )
        adjust = parse_adjust(adjust)
        columns = parse_names(fields)
        manifest, table = await self._job(
            "history",
            {
                "codes": requested,
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
            timeout_s,
        )
        assert table is not None  # the catalogue says so
        from .frames import frames_of, long_frame_of, wide_frame_of

        one = layout is None and is_one(codes)
        absent: Mapping[str, str] = manifest.meta.get("absent") or {}
        if one and requested[0] in absent:
            raise NotFound(
                f"{requested[0]}: {absent[requested[0]].rstrip('.')}.",
                hint="Check the code, the period and the range.",
                code=requested[0],
            )
        warn_absent(absent, "history")
        make = {"long": long_frame_of, "wide": wide_frame_of}.get(layout or "", frames_of)
        answer: pd.DataFrame | HistoryFrames = await asyncio.to_thread(
            make, table, manifest, requested, period, fields=columns, adjust=adjust, tz=self._tz
        )
        return answer[requested[0]] if one and isinstance(answer, HistoryFrames) else answer

    async def get_history(
        self,
        stock: str,
        period: str = "1d",
        count: int = GET_HISTORY_COUNT,
        fields: Codes | None = None,
        *,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        adjust: str | None = "none",
    ) -> pd.DataFrame:
        """Return the last ``count`` rows of one code; -1 means all. See `history`."""
        return await self.history(
            parse_one(stock),
            period,
            start=start,
            end=end,
            count=parse_rows(count),
            fields=fields,
            adjust=adjust,
        )

    async def get_batch_history(
        self,
        stocks: Codes,
        period: str = "1d",
        count: int = GET_HISTORY_COUNT,
        fields: Codes | None = None,
        *,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        adjust: str | None = "none",
    ) -> HistoryFrames:
        """Return the last ``count`` rows of each code; -1 means all. See `history`."""
        return await self.history(
            parse_codes(stocks),
            period,
            start=start,
            end=end,
            count=parse_rows(count),
            fields=fields,
            adjust=adjust,
        )

    async def download(
        self,
        codes: Codes | None = None,
        period: str = "1d",
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        stock: str | None = None,
        stocks: Codes | None = None,
        progress: ShowProgress = None,
        timeout_s: float | None = None,
    ) -> dict[str, Downloaded]:
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
            Code to what can be read back now: ``rows`` and more. Codes without a row, such as
            suspended ones, are told by a `QMTWarning`.

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
        warn_absent(manifest.meta.get("absent") or {}, "download")
        downloaded: dict[str, Downloaded] = manifest.document
        return downloaded

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

    @overload
    async def instrument_detail(self, codes: str) -> InstrumentDetail: ...  # type: ignore[overload-overlap]

    @overload
    async def instrument_detail(self, codes: Iterable[str]) -> dict[str, InstrumentDetail]: ...

    async def instrument_detail(
        self, codes: Codes
    ) -> InstrumentDetail | dict[str, InstrumentDetail]:
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
        requested = parse_codes(codes)
        manifest, _ = await self._job("instrument_detail", {"codes": requested}, False)
        known: dict[str, InstrumentDetail | None] = manifest.document
        found = {code: known.get(code) for code in requested}
        absent = [code for code, document in found.items() if not document]
        if len(absent) == len(requested):
            raise InstrumentNotFound(
                f"The terminal knows no instrument {', '.join(absent[:5])}.",
                hint="Check the code and its market.",
                codes=absent,
            )
        if is_one(codes) and (only := found[requested[0]]) is not None:
            return only
        warn_absent(dict.fromkeys(absent, "no such instrument"), "instrument_detail")
        return {code: document for code, document in found.items() if document}

    async def get_instrument_detail(self, stock: str) -> InstrumentDetail:
        """Return what the terminal knows about one instrument; see `instrument_detail`."""
        return await self.instrument_detail(parse_one(stock))

    # The bridge itself

    async def status(self) -> Status:
        """Return who is alive: producers, workers, gateways, and the state of their terminals."""
        return await self.transport.status()
