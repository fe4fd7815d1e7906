"""`Terminal`: every xtdata call that the project makes, behind one lock."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from qmt_protocol.codes import parse_code
from qmt_protocol.errors import (
    CodecError,
    ConfigurationError,
    DownloadIncomplete,
    InvalidRequest,
    SectorNotFound,
    TerminalRefused,
    TimedOut,
)
from qmt_protocol.periods import BAR_PERIODS, DAILY_PERIODS, parse_adjust, parse_period
from qmt_protocol.settings import TerminalSettings
from qmt_protocol.times import DAY_MS, day_of, xt_time

from .clean import clean, clean_frame
from .failures import not_connected, translate
from .loading import load_xtdata, xtquant_version

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Terminal", "TerminalInfo", "TradingSession"]

ProgressCallback = Callable[[int, int, str, str], None]
"""Called with codes finished, codes in total, the code just done, and a message."""

# One per process: xtdata has one client for all, and concurrent calls abort the process.
_LOCK: Final = threading.Lock()
_LOCK_TIMEOUT_S: Final = 170.0  # the native side gives a call up after 150 s
_CLOSE_TIMEOUT_S: Final = 2.0
_SECTOR_REJECTS: Final = frozenset('\\/:*?"<>|')  # xtdata would drop them without a word


@dataclasses.dataclass(frozen=True)
class TerminalInfo:
    """What a terminal says of itself."""

    address: str
    edition: str
    version: str
    xtquant_version: str
    simulated: bool


@dataclasses.dataclass(frozen=True)
class TradingSession:
    """One part of an instrument's trading day."""

    status: int
    """2 opening auction, 3 continuous, 8 closing auction, 15 matching (Hong Kong)."""
    start_s: int
    """Seconds from 00:00 of the trading day; negative: the evening before."""
    end_s: int


@dataclasses.dataclass
class _Link:
    """One connection's life, as its status callback tells it."""

    lost: bool = False
    drops: int = 0

    def on_status(self, status: dict[str, Any]) -> None:
        self.lost = status.get("status") != "connected"
        self.drops += self.lost


@dataclasses.dataclass(frozen=True)
class _Clock:
    """A simulated terminal's market time as a linear function of the wall clock."""

    now_ms: int
    wall_ms: int
    speed: float

    def at(self, wall_ms: int) -> int:
        return self.now_ms + int((wall_ms - self.wall_ms) * self.speed)


class Terminal:
    """The connection to the QMT terminal on this machine.

    Every method that asks the terminal holds the process's one lock for the time of the call, and
    raises `TerminalNotConnected` when the connection is gone: it is never rebuilt in passing,
    because that would silently end all subscriptions. Call `connect` again for that.

    Parameters
    ----------
    settings
        Where the terminal listens, which copy of xtquant to load, which native module to use.

    Raises
    ------
    WrongTimezone
        When this process is not on China Standard Time.
    ConfigurationError
        When xtquant cannot be loaded, or a remote host is named without a port.
    """

    def __init__(self, settings: TerminalSettings) -> None:
        self._host = settings.terminal_host
        self._port = settings.terminal_port
        if self._host not in ("", "127.0.0.1", "localhost") and self._port is None:
            raise ConfigurationError(
                f"The terminal's host {self._host} is set without its port.",
                hint="Set QMT_TERMINAL_PORT too.",
            )
        self._xtdata = load_xtdata(settings)
        self._xtquant_version = xtquant_version(self._xtdata)
        self._replaced_native = bool(settings.native_module)
        self._client: Any = None
        self._link = _Link()
        self._connects = 0
        self._clock: _Clock | None = None
        self.info: TerminalInfo | None = None
        """The connected terminal, or the last one that was."""

    # -- connection ---------------------------------------------------------------------------

    def connect(self) -> TerminalInfo:
        """Connect unless connected, and return what the terminal says of itself.

        Subscriptions of an earlier connection are gone when `generation` has changed.

        Raises
        ------
        TerminalNotConnected
            When no terminal answers.
        """
        with self._locked("connect"):
            if self._alive() and self.info is not None:
                return self.info
            self._client = None
            link = _Link()
            try:
                # xtdata hands the callback to a client while it is made, so it comes first.
                self._xtdata.watch_xtquant_status(link.on_status)
                client = self._xtdata.reconnect(self._host, self._port)
                info = self._describe(client)
                clock = self._read_clock(client) if info.simulated else None
            except Exception as error:
                raise translate(error, "connect", connected=False) from error
            self._client, self._link, self._clock, self.info = client, link, clock, info
            self._connects += 1
            return info

    def close(self) -> None:
        """End the connection and all its subscriptions; connecting again is possible."""
        if not _LOCK.acquire(timeout=_CLOSE_TIMEOUT_S):
            return  # a native call hangs; the connection ends with the process
        try:
            self._client = None
            self._xtdata.disconnect()
        finally:
            _LOCK.release()

    @property
    def connected(self) -> bool:
        """Whether the kept client is alive; while a call runs, whether it was not reported lost."""
        if not _LOCK.acquire(blocking=False):
            return self._client is not None and not self._link.lost
        try:
            return self._alive()
        finally:
            _LOCK.release()

    @property
    def generation(self) -> tuple[int, int]:
        """Changes whenever the connection was rebuilt or broke: subscriptions may be gone."""
        return self._connects, self._link.drops

    def _alive(self) -> bool:
        return self._client is not None and bool(self._client.is_connected())

    def _describe(self, client: Any) -> TerminalInfo:
        tag = self._xtdata._BSON_.BSON.decode(client.get_server_tag())
        return TerminalInfo(
            address=str(client.get_peer_addr()),
            edition=str(tag.get("edition") or tag.get("tag") or ""),
            version=str(tag.get("version") or ""),
            xtquant_version=self._xtquant_version,
            simulated=bool(tag.get("simulated")) or self._replaced_native,
        )

    def _read_clock(self, client: Any) -> _Clock:
        bson = self._xtdata._BSON_.BSON
        answer = bson.decode(client.commonControl("simulatorclock", bson.encode({})))
        return _Clock(int(answer["now_ms"]), int(answer["wall_ms"]), float(answer["speed"]))

    def now_ms(self) -> int:
        """Return the market's time, ms since the epoch: a simulated terminal has its own."""
        wall_ms = time.time_ns() // 1_000_000
        return wall_ms if self._clock is None else self._clock.at(wall_ms)

    @contextlib.contextmanager
    def _locked(self, call: str) -> Iterator[None]:
        if not _LOCK.acquire(timeout=_LOCK_TIMEOUT_S):
            raise TimedOut(
                f"{call} waited {_LOCK_TIMEOUT_S:.0f} s for another call to the terminal to end.",
                hint="Look whether the terminal hangs.",
                call=call,
            )
        try:
            yield
        finally:
            _LOCK.release()

    def _ask(self, call: str, *arguments: Any, of: Any = None) -> Any:
        """Call the function of that name, xtdata's or `of`'s, with its failures translated."""
        with self._locked(call):
            if not self._alive():
                raise not_connected(f"{call}: the connection is gone")
            try:
                return getattr(of or self._xtdata, call)(*arguments)
            except Exception as error:
                raise translate(error, call, connected=self._alive()) from error

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
        wanted = _strings(markets, "markets")
        return self._subscribed("subscribe_whole_quote", wanted, callback)

    def subscribe_pushes(self, markets: list[str], callback: Callable[[bytes], None]) -> int:
        """Subscribe as `subscribe_whole_quote` does, and get every push as its BSON bytes.

        It makes the same native call without the decoder that xtdata puts in front of a callback:
        on a machine without C BSON that decoder takes most of the time of the whole way. The
        callback must not raise. `decode_push` is xtdata's decoder.
        """
        wanted = _strings(markets, "markets")
        parameters = self._xtdata._BSON_.BSON.encode({"needCallback": True})
        return self._subscribed(
            "subscribe_whole_quote", wanted, parameters, callback, of=self._client
        )

    def decode_push(self, push: bytes) -> dict[str, Any]:
        """Decode a push's BSON, or a part of it, as xtdata does.

        Raises
        ------
        CodecError
            When the bytes are not BSON.
        """
        try:
            document: dict[str, Any] = self._xtdata._BSON_.BSON.decode(push)
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
        _integer(count, "count")
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
        _integer(seq, "seq")
        if self.connected:
            self._ask("unsubscribe_quote", seq)

    # -- reading ------------------------------------------------------------------------------

    def full_tick(self, codes: list[str]) -> dict[str, dict[str, Any]]:
        """Return the current tick of each code (or of whole markets) that the terminal knows."""
        answer = self._ask("get_full_tick", _strings(codes, "codes"))
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
        wanted = [parse_code(code) for code in _strings(codes, "codes")]
        if count is not None and _integer(count, "count") < 1:
            raise InvalidRequest(f"count={count} is not a number of rows.", field="count")
        bounds = _bounds(period, start_ms, end_ms)
        arguments = (wanted, period, *bounds, -1 if count is None else count, adjust, fill)
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
        wanted = [parse_code(code) for code in _strings(codes, "codes")]
        # Some terminals leave the end itself out; a later end costs nothing.
        later_ms = None if end_ms is None else end_ms + DAY_MS
        bounds = _bounds(parse_period(period), start_ms, later_ms)
        tell = on_progress or (lambda finished, total, code, message: None)
        if self._xtdata.__dict__.get("__download_version") is None:
            for done, code in enumerate(wanted):
                self._ask("download_history_data", code, period, *bounds)
                tell(done + 1, len(wanted), code, "")
            return
        last = {"finished": 0, "total": -1}

        def progressed(data: dict[str, Any]) -> None:
            last.update(finished=int(data["finished"]), total=int(data["total"]))
            message = str(data.get("message") or "")
            tell(last["finished"], last["total"], str(data.get("stockcode") or ""), message)

        self._ask("download_history_data2", wanted, period, *bounds, progressed)
        if not self.connected:
            raise not_connected("the connection broke during the download")
        if last["total"] < 0 or last["finished"] < last["total"]:
            raise DownloadIncomplete(
                "The terminal gave the download up without a reason.",
                hint="Look whether the terminal is connected to a quote server, and try again.",
                codes=wanted,
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
        bounds = _bounds("1d", _integer(start_ms, "start_ms"), _integer(end_ms, "end_ms"))
        days = self._ask("get_trading_dates", market, *bounds, -1)
        return sorted(day_of(int(at_ms)) for at_ms in days or [])

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
                    _clock_s(part["time"][0], part["time"][1][0]),
                    _clock_s(part["time"][0], part["time"][2][0]),
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


def _clock_s(day_offset: int, clock: int) -> int:
    """Read ``[-]HMMSS``: the sign belongs to the hour alone, so -45500 is 20:55 the day before."""
    digits = abs(int(clock))
    hours = digits // 10_000 * (-1 if clock < 0 else 1)
    return int(day_offset) * 86_400 + hours * 3600 + digits // 100 % 100 * 60 + digits % 100


def _bounds(period: str, start_ms: int | None, end_ms: int | None) -> tuple[str, str]:
    """Return both bounds as text: xtdata takes two strings or two datetimes, no mixture."""
    for value, name in ((start_ms, "start_ms"), (end_ms, "end_ms")):
        if value is not None:
            _integer(value, name)
    start, end = xt_time(start_ms), xt_time(end_ms)
    return (start[:8], end[:8]) if period in DAILY_PERIODS else (start, end)


def _integer(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{field}={value!r} is not a whole number.", field=field)
    return value


def _strings(values: object, field: str) -> list[str]:
    """Check for a list of text: given one string, the native side would take its letters."""
    if not isinstance(values, (list, tuple)) or not values:
        raise InvalidRequest(f"{field} must be a list with at least one entry.", field=field)
    for value in values:
        if not isinstance(value, str) or not value:
            raise InvalidRequest(f"{value!r} in {field} is not text.", field=field)
    return list(values)
