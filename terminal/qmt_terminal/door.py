"""`Terminal`: every xtdata call that the project makes, behind one lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from qmt_protocol.codes import parse_code
from qmt_protocol.errors import (
    CodecError,
    DownloadIncomplete,
    InvalidRequest,
    SectorNotFound,
    TerminalRefused,
)
from qmt_protocol.periods import BAR_PERIODS, parse_adjust, parse_period
from qmt_protocol.times import DAY_MS, day_of

from .arguments import bounds_of, clock_s, integer, strings
from .clean import clean, clean_frame
from .connection import Connection
from .facts import TerminalInfo, TradingSession
from .failures import not_connected

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Terminal", "TerminalInfo", "TradingSession"]

ProgressCallback = Callable[[int, int, str, str], None]
"""Called with codes finished, codes in total, the code just done, and a message."""

_SECTOR_REJECTS: Final = frozenset('\\/:*?"<>|')  # xtdata would drop them without a word


class Terminal(Connection):
    """Every question to the QMT terminal on this machine; see `Connection` for its connection."""

    # -- subscriptions ------------------------------------------------------------------------

    def subscribe_whole_quote(
        self, markets: list[str], callback: Callable[[dict[str, dict[str, Any]]], None]
    ) -> int:
        """Subscribe to all ticks of markets (``SH``) or of codes (``600519.SH``).

        Parameters
        ----------
        callback
            Gets ``{code: tick}`` on a native thread. It must be quick, must not call this object,
            and what it raises is swallowed by xtdata. Values are as the terminal sends them.

        Returns
        -------
        int
            The subscription's number, for `unsubscribe`.
        """
        requested = strings(markets, "markets")
        return self._subscribed("subscribe_whole_quote", requested, callback)

    def subscribe_pushes(self, markets: list[str], callback: Callable[[bytes], None]) -> int:
        """Subscribe as `subscribe_whole_quote` does, and get every push as its BSON bytes.

        It makes the same native call without the decoder that xtdata puts in front of a callback:
        on a machine without C BSON that decoder takes most of the time of the whole way. The
        callback must not raise. `decode_push` is xtdata's decoder.
        """
        requested = strings(markets, "markets")
        parameters = self._bson.BSON.encode({"needCallback": True})
        return self._subscribed(
            "subscribe_whole_quote", requested, parameters, callback, of=self._client
        )

    def decode_push(self, push: bytes) -> dict[str, Any]:
        """Decode a push's BSON, or a part of it, as xtdata does.

        Raises
        ------
        CodecError
            When the bytes are not BSON.
        """
        try:
            document: dict[str, Any] = self._bson.BSON.decode(push)
        except Exception as error:
            raise CodecError(f"Not the BSON of a push: {error}.") from error
        return document

    def subscribe_quote(
        self,
        code: str,
        period: str,
        *,
        count: int = 0,
        callback: Callable[[dict[str, list[dict[str, Any]]]], None] | None = None,
    ) -> int:
        """Subscribe to one code's ticks or bars; the callback gets ``{code: [row, ...]}``.

        ``count=-1`` makes the terminal load and keep history too; without a callback the data
        only land in the terminal's cache. At most about 50 at once, says the vendor.
        """
        integer(count, "count")
        arguments = (parse_code(code), parse_period(period), "", "", count, callback)
        return self._subscribed("subscribe_quote", *arguments)

    def _subscribed(self, call: str, *arguments: Any, of: Any = None) -> int:
        number = int(self._ask(call, *arguments, of=of))
        if number < 0:
            raise TerminalRefused(
                f"The terminal refused {call} of {arguments[0]}.",
                hint="It may hold too many subscriptions already.",
                call=call,
                number=number,
            )
        return number

    def unsubscribe(self, seq: int) -> None:
        """End a subscription; nothing happens when its connection is gone."""
        integer(seq, "seq")
        if self.connected:
            self._ask("unsubscribe_quote", seq)

    # -- reading ------------------------------------------------------------------------------

    def full_tick(self, codes: list[str]) -> dict[str, dict[str, Any]]:
        """Return the current tick of each code (or of whole markets) that the terminal knows."""
        answer = self._ask("get_full_tick", strings(codes, "codes"))
        ticks: dict[str, dict[str, Any]] = clean(answer or {})
        return ticks

    def bars(
        self,
        codes: list[str],
        period: str,
        *,
        start_ms: int | None,
        end_ms: int | None,
        count: int | None,
        adjust: str,
        fill: bool,
    ) -> dict[str, pd.DataFrame]:
        """Read bars from the terminal's cache.

        Parameters
        ----------
        start_ms, end_ms
            Bounds of the labels, both included; ``None``: open. Daily and longer periods look at
            the date alone.
        count
            The last so many bars up to the end; ``None``: all.
        fill
            Whether the terminal may invent rows for missing bars.

        Returns
        -------
        dict of DataFrame
            xtquant's columns, an int64 ``time`` (ms) among them; codes without rows are absent.
        """
        if parse_period(period, bars_only=True) not in BAR_PERIODS:
            raise InvalidRequest(f"{period!r} has no bars.", field="period")
        frames = self._history(codes, period, start_ms, end_ms, count, parse_adjust(adjust), fill)
        return {code: clean_frame(frame) for code, frame in frames.items() if len(frame)}

    def history_ticks(
        self, codes: list[str], *, start_ms: int | None, end_ms: int | None, count: int | None
    ) -> dict[str, pd.DataFrame]:
        """Read ticks from the terminal's cache, as `bars`; ``askPrice`` and so on hold lists."""
        try:
            frames = self._history(codes, "tick", start_ms, end_ms, count, "none", False)
        except TerminalRefused as error:
            if not isinstance(error.__cause__, KeyError):
                raise
            # xtdata trips over an answer without columns, which is how 'no ticks' may look.
            if len(codes) == 1:
                return {}
            frames = {}
            for code in codes:
                frames |= self.history_ticks([code], start_ms=start_ms, end_ms=end_ms, count=count)
        return {code: frame for code, frame in frames.items() if len(frame)}

    def _history(
        self,
        codes: list[str],
        period: str,
        start_ms: int | None,
        end_ms: int | None,
        count: int | None,
        adjust: str,
        fill: bool,
    ) -> dict[str, pd.DataFrame]:
        requested = [parse_code(code) for code in strings(codes, "codes")]
        if count is not None and integer(count, "count") < 1:
            raise InvalidRequest(f"count={count} is not a number of rows.", field="count")
        bounds = bounds_of(period, start_ms, end_ms)
        arguments = (requested, period, *bounds, -1 if count is None else count, adjust, fill)
        try:
            frames: dict[str, pd.DataFrame] = self._ask("get_market_data_ex", [], *arguments)
        except TerminalRefused as error:
            # Some terminals answer None where there is nothing, and xtdata iterates over it.
            if isinstance(error.__cause__, TypeError) and "not iterable" in str(error.__cause__):
                return {}
            raise
        return frames or {}

    def download(
        self,
        codes: list[str],
        period: str,
        *,
        start_ms: int | None,
        end_ms: int | None,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        """Make the terminal fetch history into its cache.

        It has no time limit of its own: run it where it can be killed. That it returns does not
        prove that the data can be read, not even some seconds later.

        Parameters
        ----------
        start_ms
            ``None``: continue behind what the cache has.
        on_progress
            Called on a native thread; it must not call this object.

        Raises
        ------
        DownloadIncomplete
            When the terminal stops before the last code, or fails without a reason.
        TerminalRefused
            When it fails with a reason.
        TerminalNotConnected
            When the connection breaks meanwhile.
        """
        requested = [parse_code(code) for code in strings(codes, "codes")]
        # Some terminals leave the end itself out; a later end costs nothing.
        later_ms = None if end_ms is None else end_ms + DAY_MS
        bounds = bounds_of(parse_period(period), start_ms, later_ms)
        report = on_progress or (lambda finished, total, code, message: None)
        if self._xtdata.__dict__.get("__download_version") is None:
            for done, code in enumerate(requested):
                self._ask("download_history_data", code, period, *bounds)
                report(done + 1, len(requested), code, "")
            return
        last = {"finished": 0, "total": -1}

        def progressed(data: dict[str, Any]) -> None:
            last.update(finished=int(data["finished"]), total=int(data["total"]))
            message = str(data.get("message") or "")
            report(last["finished"], last["total"], str(data.get("stockcode") or ""), message)

        self._ask("download_history_data2", requested, period, *bounds, progressed)
        if not self.connected:
            raise not_connected("the connection broke during the download")
        if last["total"] < 0 or last["finished"] < last["total"]:
            raise DownloadIncomplete(
                "The terminal gave the download up without a reason.",
                hint="Look whether the terminal is connected to a quote server, and try again.",
                codes=requested,
                period=period,
                finished=last["finished"],
                total=max(0, last["total"]),
            )

    # -- reference data -----------------------------------------------------------------------

    def instrument_detail(self, code: str) -> dict[str, Any] | None:
        """Return what the terminal knows about an instrument; None when it knows none such."""
        document = self._ask("get_instrument_detail", parse_code(code))
        cleaned: dict[str, Any] | None = clean(document) if document else None
        return cleaned

    def sector_list(self) -> list[str]:
        """Return the names of all sectors."""
        return [str(name) for name in self._ask("get_sector_list") or []]

    def sector_stocks(self, sector: str) -> list[str]:
        """Return the codes of a sector.

        Raises
        ------
        SectorNotFound
            When the terminal has no sector of that name.
        """
        if not isinstance(sector, str) or not sector:
            raise InvalidRequest(f"{sector!r} is not a sector's name.", field="sector")
        if not _SECTOR_REJECTS.intersection(sector):
            codes = [str(code) for code in self._ask("get_stock_list_in_sector", sector) or []]
            if codes:
                return codes
        known = self.sector_list()
        if sector in known:
            return []
        raise SectorNotFound(
            f"The terminal has no sector {sector!r}.",
            hint=f"It has {len(known)} sectors, such as {', '.join(known[:5])}."
            if known
            else "It has no sectors at all yet: download the sector data in QMT.",
            sector=sector,
        )

    def trading_days(self, market: str, start_ms: int, end_ms: int) -> list[int]:
        """Return the market's trading days from start to end as ``YYYYMMDD``, sorted.

        Days to come are not in it; a market that the terminal does not know has none.
        """
        if not isinstance(market, str) or not market:
            raise InvalidRequest(f"{market!r} is not a market.", field="market")
        bounds = bounds_of("1d", integer(start_ms, "start_ms"), integer(end_ms, "end_ms"))
        days = self._ask("get_trading_dates", market, *bounds, -1)
        return sorted(day_of(int(at_ms)) for at_ms in days or [])

    def holidays(self) -> list[int]:
        """Return the weekdays without trading that the terminal knows, ``YYYYMMDD``, sorted.

        Raises
        ------
        TerminalUnsupported
            When the terminal or this copy of xtquant lacks the function.
        """
        days = self._ask("get_holidays") or []
        return sorted(int(day) for day in days if str(day).isdigit())

    def download_holidays(self) -> None:
        """Make the terminal fetch the holidays of this year, and of the next where announced."""
        self._ask("download_holiday_data")

    def trading_sessions(self, code: str) -> list[TradingSession]:
        """Return the parts of an instrument's trading day, in order.

        Raises
        ------
        TerminalUnsupported
            When the terminal lacks the function.
        """
        document = self._ask("get_trading_period", parse_code(code)) or {}
        try:
            sessions = [
                TradingSession(
                    int(part["status"]),
                    clock_s(part["time"][0], part["time"][1][0]),
                    clock_s(part["time"][0], part["time"][2][0]),
                )
                for part in document.get("tradings") or []
            ]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TerminalRefused(
                f"The terminal's trading sessions of {code} cannot be read.",
                call="get_trading_period",
                kind=type(error).__name__,
            ) from error
        return sorted(sessions, key=lambda session: session.start_s)
