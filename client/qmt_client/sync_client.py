"""`QMTClient`: the same names without ``await``. Written by scripts/sync-client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from qmt_protocol.bars import Bar
from qmt_protocol.ticks import Tick
from qmt_reading.processes import Status
from qmt_reading.replay.engine import Replay

from .answers import Latest, Ticks
from .async_client import GET_HISTORY_COUNT
from .async_stored import SKIP_IDLE_S
from .history_frames import HistoryFrames
from .live import Live
from .sync_base import SyncBase
from .types import (
    Codes,
    Downloaded,
    InstrumentDetail,
    OnBars,
    OnGap,
    OnTicks,
    SavedPosition,
    ShowProgress,
    StoredForm,
    TimeLike,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["QMTClient"]


class QMTClient(SyncBase):
    """Reads A-share market data from the bridge: history, latest, live and stored ticks.

    Every method has the same name and arguments on `AsyncQMTClient`. It may be used from scripts,
    notebooks and several threads. Use it as ``with``, or call `close`; at the end of the program
    it closes by itself.

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

    @overload
    def history(
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
    def history(  # type: ignore[overload-overlap]
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
    def history(
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

    def history(
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
        call: Any = self._client.history
        answer: pd.DataFrame | HistoryFrames = self._run(
            call(
                codes,
                period,
                start=start,
                end=end,
                count=count,
                fields=fields,
                adjust=adjust,
                download=download,
                fill=fill,
                layout=layout,
                progress=progress,
                timeout_s=timeout_s,
            )
        )
        return answer

    def get_history(
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
        return self._run(
            self._client.get_history(
                stock, period, count, fields, start=start, end=end, adjust=adjust
            )
        )

    def get_batch_history(
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
        return self._run(
            self._client.get_batch_history(
                stocks, period, count, fields, start=start, end=end, adjust=adjust
            )
        )

    def download(
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
        return self._run(
            self._client.download(
                codes,
                period,
                start,
                end,
                stock=stock,
                stocks=stocks,
                progress=progress,
                timeout_s=timeout_s,
            )
        )

    def sector_stocks(self, sector: str) -> list[str]:
        """Return the codes of a sector, such as ``沪深A股`` (``xtdata.get_stock_list_in_sector``).

        Raises
        ------
        SectorNotFound
            When the terminal knows no such sector.
        """
        return self._run(self._client.sector_stocks(sector))

    def get_sector_stocks(self, sector: str) -> list[str]:
        """Return the codes of a sector; the same as `sector_stocks`."""
        return self._run(self._client.get_sector_stocks(sector))

    @overload
    def instrument_detail(  # type: ignore[overload-overlap]
        self, codes: str
    ) -> InstrumentDetail: ...

    @overload
    def instrument_detail(self, codes: Iterable[str]) -> dict[str, InstrumentDetail]: ...

    def instrument_detail(self, codes: Codes) -> InstrumentDetail | dict[str, InstrumentDetail]:
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
        call: Any = self._client.instrument_detail
        answer: InstrumentDetail | dict[str, InstrumentDetail] = self._run(call(codes))
        return answer

    def get_instrument_detail(self, stock: str) -> InstrumentDetail:
        """Return what the terminal knows about one instrument; see `instrument_detail`."""
        return self._run(self._client.get_instrument_detail(stock))

    def status(self) -> Status:
        """Return who is alive: producers, workers, gateways, and the state of their terminals."""
        return self._run(self._client.status())

    def full_tick(self, codes: Codes) -> Ticks:
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
        return self._run(self._client.full_tick(codes))

    def get_full_tick(self, stocks: Codes) -> Ticks:
        """Return the latest tick of each code; the same as `full_tick`."""
        return self._run(self._client.get_full_tick(stocks))

    def latest(self, codes: Codes | None = None, *, markets: Sequence[str] = ()) -> Latest:
        """Return the stored latest ticks of codes, or of whole markets, and nothing else.

        Unlike `full_tick` it asks nobody whether they are fresh, and codes without a tick are
        just not there. Codes whose tick cannot be read are named by ``unreadable``.
        """
        return self._run(self._client.latest(codes, markets=markets))

    def ticks(
        self,
        codes: Codes | None = None,
        *,
        markets: Sequence[str] = (),
        start: TimeLike | None = None,
        position: SavedPosition | None = None,
        snapshot: bool = False,
        conflate: bool = False,
        on_gap: OnGap | None = None,
    ) -> Live[Tick]:
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
        Live
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
        return Live(
            self._client.ticks(
                codes,
                markets=markets,
                start=start,
                position=position,
                snapshot=snapshot,
                conflate=conflate,
                on_gap=on_gap,
            ),
            self._run,
            self._end,
        )

    def bars(
        self,
        codes: Codes,
        period: str = "1m",
        *,
        position: SavedPosition | None = None,
        snapshot: bool = False,
        on_gap: OnGap | None = None,
    ) -> Live[Bar]:
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
        Live
            An iterator of `Bar`, a dict with xtquant's keys and ``closed``.

        Raises
        ------
        Unavailable
            When the producer refuses, with its reason.
        InvalidRequest, NoProducer, RedisUnavailable, GatewayUnavailable
            As in `ticks`.
        """
        return Live(
            self._client.bars(codes, period, position=position, snapshot=snapshot, on_gap=on_gap),
            self._run,
            self._end,
        )

    @overload
    async def subscribe_realtime(
        self, stocks: Codes, callback: OnTicks, period: Literal["tick"] = ...
    ) -> None: ...

    @overload
    async def subscribe_realtime(self, stocks: Codes, callback: OnBars, period: str) -> None: ...

    async def subscribe_realtime(
        self, stocks: Codes, callback: OnTicks | OnBars, period: str = "tick"
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
        # On the caller's own loop, where the callback belongs.
        async with self._make() as client:
            subscribe: Any = client.subscribe_realtime
            await subscribe(stocks, callback, period)

    @overload
    def stored_ticks(
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
    def stored_ticks(
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
    def stored_ticks(
        self,
        codes: Codes | None = ...,
        start: TimeLike | None = ...,
        end: TimeLike | None = ...,
        *,
        markets: Sequence[str] = ...,
        sectors: Sequence[str] = ...,
        fields: Codes | None = ...,
        as_: Literal["batches"],
    ) -> Iterator[pa.RecordBatch]: ...

    def stored_ticks(
        self,
        codes: Codes | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        markets: Sequence[str] = (),
        sectors: Sequence[str] = (),
        fields: Codes | None = None,
        as_: StoredForm = "frame",
    ) -> pd.DataFrame | pa.Table | Iterator[pa.RecordBatch]:
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
        call: Any = self._client.stored_ticks
        answer: pd.DataFrame | pa.Table | Iterator[pa.RecordBatch] = self._stepped(
            self._run(
                call(codes, start, end, markets=markets, sectors=sectors, fields=fields, as_=as_)
            )
        )
        return answer

    @overload
    def stored_bars(
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
    def stored_bars(
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
    def stored_bars(
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
    ) -> Iterator[pa.RecordBatch]: ...

    def stored_bars(
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
    ) -> pd.DataFrame | pa.Table | Iterator[pa.RecordBatch]:
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
        call: Any = self._client.stored_bars
        answer: pd.DataFrame | pa.Table | Iterator[pa.RecordBatch] = self._stepped(
            self._run(
                call(
                    codes,
                    period,
                    start,
                    end,
                    markets=markets,
                    sectors=sectors,
                    fields=fields,
                    as_=as_,
                )
            )
        )
        return answer

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
    ) -> Replay[Tick]: ...

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
    ) -> Replay[Bar]: ...

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
    ) -> Replay[Tick] | Replay[Bar]:
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
        Replay
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
        call: Any = self._client.replay
        answer: Replay[Tick] | Replay[Bar] = Replay(
            call(
                codes,
                start,
                end,
                speed,
                markets=markets,
                sectors=sectors,
                period=period,
                skip_idle_s=skip_idle_s,
                on_gap=on_gap,
            ),
            self._run,
            self._end,
        )
        return answer
