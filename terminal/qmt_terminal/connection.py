"""The connection to the terminal: which one, since when, and one call at a time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from qmt_protocol.errors import ConfigurationError, QMTError, TerminalNotConnected, TimedOut
from qmt_protocol.settings import TerminalSettings

from .discovery import LOCAL, addresses, check_place
from .facts import Clock, Link, TerminalInfo, describe
from .failures import not_connected, translate
from .functions import Functions
from .loading import load_xtdata, xtquant_version
from .quotes import QuoteServers

__all__ = ["Connection"]

# One per process: xtdata has one client for all, and concurrent calls abort the process.
_LOCK: Final = threading.Lock()
_LOCK_TIMEOUT_S: Final = 170.0  # the native side gives a call up after 150 s
_CLOSE_TIMEOUT_S: Final = 2.0
_KNOCK_S: Final = 1.0


class Connection:
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
        self._path = settings.terminal_path
        if self._host not in ("", LOCAL, "localhost") and self._port is None:
            raise ConfigurationError(
                f"The terminal's host {self._host} is set without its port.",
                hint="Set QMT_TERMINAL_PORT too.",
            )
        self._xtdata = load_xtdata(settings)
        self._xtquant_version = xtquant_version(self._xtdata)
        self._xtquant_path = str(Path(self._xtdata.__file__).parent)
        self.functions = Functions(
            self._xtdata,
            xtquant_version=self._xtquant_version,
            xtquant_path=self._xtquant_path,
            file=settings.functions_file,
        )
        """What the loaded copy of xtquant and the terminal can do."""
        self._bson = self._find_bson()
        self._replaced_native = bool(settings.native_module)
        self._client: Any = None
        self._link = Link()
        self._quotes = QuoteServers()
        self._connects = 0
        self._failed = False
        self._clock: Clock | None = None
        self.info: TerminalInfo | None = None
        """The connected terminal, or the last one that was."""

    def _find_bson(self) -> Any:
        for name in ("_BSON_", "bson"):  # as it was called until 2023
            found = getattr(self._xtdata, name, None)
            if found is not None:
                return found
        missing = self.functions.missing("BSON")
        raise ConfigurationError(missing.message, hint=missing.hint)

    def connect(self) -> TerminalInfo:
        """Connect unless connected, and return what the terminal says of itself.

        Subscriptions of an earlier connection are gone when `generation` has changed.

        Raises
        ------
        TerminalNotConnected
            When no terminal answers.
        WrongTerminal
            When one answers that is not in the folder set by `terminal_path`.
        ConfigurationError
            When several run and nothing says which one is meant.
        """
        with self._locked("connect"):
            if self._alive() and self.info is not None:
                return self.info
            self._client = None
            failure: QMTError | None = None
            for host, port in addresses(self._host, self._port, self._path):
                try:
                    self._knock(host, port)
                    return self._connect_to(host, port)
                except QMTError as error:
                    self._failed = True
                    failure = error
            raise failure or not_connected()

    def _knock(self, host: str, port: int) -> None:
        """Find out without xtquant that nobody listens: each failure in it costs 0.14 MB for good.

        Its own words for that are worth having once; a terminal can be away for a whole night.
        """
        if not self._failed:
            return
        try:
            socket.create_connection((host, port), timeout=_KNOCK_S).close()
        except OSError as error:
            raise not_connected(f"nothing listens at {host}:{port}") from error

    def _connect_to(self, host: str, port: int) -> TerminalInfo:
        link = Link()
        client: Any = None
        try:
            client = self._new_client(host, port, link)
            info = self._describe(client)
            if self._path is not None:
                check_place(info.address, (info.app_dir, info.data_dir), self._path)
            clock = self._read_clock(client) if info.simulated else None
        except QMTError:
            self._disconnect(client)
            raise
        except Exception as error:
            raise translate(error, "connect", connected=False) from error
        self._client, self._link, self._clock, self.info = client, link, clock, info
        self._connects += 1
        self.functions.of_terminal(info.version, info.edition)
        return info

    def _new_client(self, host: str, port: int, link: Link) -> Any:
        if hasattr(self._xtdata, "watch_xtquant_status"):
            # xtdata hands the callback to a client while it is made, so it comes first.
            self._xtdata.watch_xtquant_status(link.on_status)
        if not hasattr(self._xtdata, "reconnect"):
            raise self.functions.missing("reconnect")
        # Copies of 2023 return nothing.
        return self._xtdata.reconnect(host, port) or self._xtdata.get_client()

    def _disconnect(self, client: Any) -> None:
        if hasattr(self._xtdata, "disconnect"):
            self._xtdata.disconnect()
        elif client is not None:
            client.shutdown()

    def close(self) -> None:
        """End the connection and all its subscriptions; connecting again is possible."""
        if not _LOCK.acquire(timeout=_CLOSE_TIMEOUT_S):
            return  # a native call hangs; the connection ends with the process
        try:
            self._disconnect(self._client)
            self._client = None
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
        translated = getattr(client, "get_server_tag", None)
        return describe(
            client,
            self._bson.BSON.decode(translated()) if translated is not None else {},
            xtquant_version=self._xtquant_version,
            xtquant_path=self._xtquant_path,
            simulated=self._replaced_native,
        )

    def _read_clock(self, client: Any) -> Clock:
        bson = self._bson.BSON
        answer = bson.decode(client.commonControl("simulatorclock", bson.encode({})))
        return Clock(int(answer["now_ms"]), int(answer["wall_ms"]), float(answer["speed"]))

    def now_ms(self) -> int:
        """Return the market's time, ms since the epoch: a simulated terminal has its own."""
        wall_ms = time.time_ns() // 1_000_000
        return wall_ms if self._clock is None else self._clock.at(wall_ms)

    @property
    def clock(self) -> Clock | None:
        """The market's clock where it is a simulated terminal's own; ``None``: the wall clock."""
        return self._clock

    def watch_quote_server(self) -> None:
        """Have this connection told when a quote server comes or goes, where that is supported."""
        self._quotes = quotes = QuoteServers()
        try:
            self._ask("watch_quote_server_status", quotes.on_status)
            quotes.watched = True
        except TerminalNotConnected:
            raise
        except QMTError:
            return  # it is asked instead

    def quote_server_up(self) -> bool | None:
        """Return whether the terminal has a quote server; ``None`` where it does not tell."""
        return self._quotes.up(lambda: self._ask("show_quote_server_status"))

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
            if of is None:
                self.functions.check(call)
            try:
                return getattr(of or self._xtdata, call)(*arguments)
            except Exception as error:
                raise self._translated(error, call) from error

    def _translated(self, error: Exception, call: str) -> QMTError:
        lacking = self.functions.lacks(error) if isinstance(error, AttributeError) else ""
        if lacking:
            return self.functions.missing(lacking)
        translated = translate(error, call, connected=self._alive())
        if translated.data.get("not_realized"):
            self.functions.note_refused(call)
        return translated
