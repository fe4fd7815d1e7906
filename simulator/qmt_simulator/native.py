"""Stands in for xtquant's native module: put it at `sys.modules["xtquant.datacenter"]`.

It offers what xtdata.py and xtdatacenter.py touch, and connects over TCP to the simulated
terminal. Threads, errors and their wording follow the real module as far as it is known: pushes
and download progress come on dispatcher threads (one subscription always on the same one), a
failed call is a RuntimeError `func:<name>, error:<text>`, and what the real library prints
itself goes to file descriptor 1, past `sys.stdout`. There is no reconnect of its own.
"""

import contextlib
import itertools
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from qmt_simulator import bson, wire

__all__ = [
    "IPythonApiClient",
    "get_local_server_port",
    "register_create_nparray",
    "rpc_init",
]

DISPATCHER_THREADS: Final = 2
DISPATCH_QUEUE_BYTES: Final = 256 << 20
CONNECT_TIMEOUT_S: Final = 3.0
HELLO_TIMEOUT_S: Final = 15.0
NOT_REALIZED: Final = "function not realize"

_log = logging.getLogger(__name__)
_array_factory: list[Callable[..., Any]] = []


def rpc_init(config_dir: str) -> int:
    """Return 0: there is nothing to start."""
    _need(isinstance(config_dir, str), "rpc_init")
    return 0


def register_create_nparray(create: Callable[..., Any]) -> bool:
    """Keep the array factory that the real library would call."""
    _array_factory[:] = [create]
    return True


def get_local_server_port() -> int:
    """Return 0: this process never serves quotes itself."""
    return 0


def request_timeout_s() -> float:
    """Return how long a call may take (`QMT_SIMULATOR_REQUEST_TIMEOUT_S`, default 150)."""
    return float(os.environ.get("QMT_SIMULATOR_REQUEST_TIMEOUT_S", "150"))


def _need(condition: bool, function: str) -> None:
    if not condition:
        raise TypeError(
            f"{function}(): incompatible function arguments. "
            "The following argument types are supported: see the caller"
        )


def _is_codes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _print_native(lines: Sequence[str]) -> None:
    for line in lines:
        with contextlib.suppress(OSError):
            os.write(1, line.encode() + b"\n")


class _Pending:
    """One request in flight: what its caller waits for."""

    def __init__(self, on_value: Callable[[Any], None] | None) -> None:
        self.done = threading.Event()
        self.on_value = on_value
        self.ok = False
        self.value: Any = "connection lost"
        self.parts: list[Any] = []
        self.lines: list[str] = []


class _Dispatcher:
    """A thread that runs callbacks in the order they were handed over, bounded by bytes."""

    def __init__(self, number: int) -> None:
        self._items: queue.SimpleQueue[tuple[Callable[[Any], Any], Any, int] | None] = (
            queue.SimpleQueue()
        )
        self._bytes = 0
        self._room = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, name=f"native-dispatcher-{number}", daemon=True
        )
        self._thread.start()

    def submit(self, callback: Callable[[Any], Any], value: Any, size_bytes: int) -> None:
        with self._room:
            # The reader waits here when callbacks are slow: TCP then holds the terminal back.
            while self._bytes > DISPATCH_QUEUE_BYTES and not self._closed:
                self._room.wait(1.0)
            self._bytes += size_bytes
        self._items.put((callback, value, size_bytes))

    def close(self, *, drop: bool) -> None:
        """End after what is queued, or with `drop` without it."""
        with self._room:
            self._closed = drop
            self._room.notify_all()
        self._items.put(None)

    def _run(self) -> None:
        while True:
            item = self._items.get()
            if item is None:
                return
            callback, value, size_bytes = item
            if not self._closed:
                try:
                    callback(value)
                except Exception:  # noqa: BLE001 - a callback never ends the native thread
                    _log.exception("native callback failed")
            with self._room:
                self._bytes -= size_bytes
                self._room.notify_all()


class IPythonApiClient:
    """The client object that xtdata.py holds; one TCP connection to the simulated terminal."""

    def __init__(self) -> None:
        self._address = "127.0.0.1:58610"
        self._sock: socket.socket | None = None
        self._send_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._subscriptions: dict[int, Callable[[bytes], Any]] = {}
        self._downloads: dict[int, Callable[[dict[str, Any]], Any]] = {}
        self._events: dict[str, Callable[[bytes], Any]] = {}
        self._dispatchers: list[_Dispatcher] = []
        self._connected = False

    # -- connection ---------------------------------------------------------------------------

    def init(self) -> int:
        return 0

    def load_config(self, path: str, section: str) -> int:
        _need(isinstance(path, str) and isinstance(section, str), "load_config")
        return 0

    def set_config_addr(self, address: str) -> None:
        _need(isinstance(address, str), "set_config_addr")
        self._address = address

    def connect(self) -> tuple[int, str]:
        host, _, port = self._address.rpartition(":")
        try:
            sock = socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S)
        except (OSError, ValueError) as error:
            return -1, f"connect {self._address} failed: {error}"
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._connected = True
        self._dispatchers = [_Dispatcher(number) for number in range(DISPATCHER_THREADS)]
        threading.Thread(target=self._read, args=(sock,), name="native-reader", daemon=True).start()
        try:
            role = os.environ.get("QMT_SIMULATOR_ROLE", "")
            self._call("hello", role, os.getpid(), timeout_s=HELLO_TIMEOUT_S)
        except RuntimeError as error:
            self._close(drop=True)
            return -1, str(error)
        self._report_status("connected")
        return 0, ""

    def is_connected(self) -> bool:
        return self._connected

    def shutdown(self) -> None:
        self._close(drop=True)

    def get_peer_addr(self) -> str:
        return self._address if self._connected else ""

    def registerCommonControlCallback(  # noqa: N802 - the native name
        self, name: str, callback: Callable[[bytes], Any] | None
    ) -> bool:
        _need(isinstance(name, str), "registerCommonControlCallback")
        if callback is None:
            self._events.pop(name, None)
        else:
            self._events[name] = callback
        return True

    def _close(self, *, drop: bool) -> None:
        with self._state_lock:
            sock, self._sock = self._sock, None
            was_connected, self._connected = self._connected, False
            pending, self._pending = dict(self._pending), {}
            dispatchers, self._dispatchers = self._dispatchers, []
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for waiting in pending.values():
            waiting.done.set()
        self._subscriptions.clear()
        self._downloads.clear()
        if was_connected:
            self._report_status("disconnected")
        for dispatcher in dispatchers:
            dispatcher.close(drop=drop)

    def _report_status(self, status: str) -> None:
        callback = self._events.get("watchxtquantstatus")
        if callback is not None:
            document = bson.encode({"address": self._address, "status": status})
            # Not a dispatcher: those end with the connection, and this is news of its end.
            threading.Thread(target=callback, args=(document,), daemon=True).start()

    # -- reading ------------------------------------------------------------------------------

    def _read(self, sock: socket.socket) -> None:
        try:
            while True:
                self._take(wire.receive(sock))
        except (OSError, ValueError) as error:
            _log.debug("native reader ends: %s", error)
        finally:
            # What had arrived before the line broke is still delivered.
            self._close(drop=False)

    def _take(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == wire.PUSH:
            callback = self._subscriptions.get(frame[1])
            if callback is not None:
                self._dispatch(frame[1], callback, frame[2], len(frame[2]))
        elif kind == wire.RESPONSE:
            self._answer(*frame[1:])
        elif kind == wire.PART:
            waiting = self._pending.get(frame[1])
            if waiting is not None:
                waiting.parts += frame[2]
        elif kind == wire.PROGRESS:
            self._dispatch(frame[1], self._on_progress, (frame[1], frame[2]), 1024)
        elif kind == wire.EVENT:
            self._event(frame[1], frame[2])

    def _dispatch(self, key: int, callback: Callable[[Any], Any], value: Any, size: int) -> None:
        dispatchers = self._dispatchers
        if dispatchers:
            dispatchers[key % len(dispatchers)].submit(callback, value, size)

    def _answer(self, number: int, ok: bool, value: Any, lines: list[str]) -> None:
        waiting = self._pending.pop(number, None)
        if waiting is None:
            return
        waiting.ok, waiting.value, waiting.lines = ok, value, lines
        if ok and waiting.on_value is not None:
            # Before the next frame is read, so that a first push finds its callback.
            waiting.on_value(value)
        waiting.done.set()

    def _on_progress(self, item: tuple[int, dict[str, Any]]) -> None:
        number, data = item
        callback = self._downloads.get(number)
        if callback is not None and callback(data):
            self._downloads.pop(number, None)

    def _event(self, name: str, document: bytes) -> None:
        if name == "abort":
            # What a failed native assertion does: no Python cleanup, no exception.
            os.abort()
        callback = self._events.get(name)
        if callback is not None:
            self._dispatch(0, callback, document, len(document))

    # -- calling ------------------------------------------------------------------------------

    def _call(
        self,
        function: str,
        *args: Any,
        on_value: Callable[[Any], None] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        waiting = _Pending(on_value)
        number = next(self._ids)
        frame = wire.pack(wire.REQUEST, number, function, args)
        with self._state_lock:
            sock = self._sock
            if sock is None:
                raise RuntimeError(f"func:{function}, error:not connected")
            self._pending[number] = waiting
        try:
            with self._send_lock:
                sock.sendall(frame)
        except OSError as error:
            self._pending.pop(number, None)
            raise RuntimeError(f"func:{function}, error:{error}") from error
        if not waiting.done.wait(request_timeout_s() if timeout_s is None else timeout_s):
            self._pending.pop(number, None)
            raise RuntimeError(f"func:{function}, error:timeout")
        _print_native(waiting.lines)
        if waiting.ok:
            return waiting.parts or waiting.value
        if waiting.value == NOT_REALIZED:
            name = args[0] if function == "commonControl" else function
            raise RuntimeError(
                "当前客户端未支持此功能，请更新客户端或升级投研版 "
                f"func:{name}, error:{NOT_REALIZED}"
            )
        raise RuntimeError(f"func:{function}, error:{waiting.value}")

    def commonControl(self, function: str, param: bytes) -> bytes:  # noqa: N802 - native name
        _need(isinstance(function, str) and isinstance(param, bytes), "commonControl")
        return bytes(self._call("commonControl", function, param))

    def get_server_tag(self) -> bytes:
        return bytes(self._call("get_server_tag"))

    def get_data_dir(self) -> str:
        return str(self._call("get_data_dir"))

    def get_app_dir(self) -> str:
        return str(self._call("get_app_dir"))

    # -- quotes -------------------------------------------------------------------------------

    def subscribe_quote(
        self, meta: bytes, region: bytes, param: bytes, callback: Callable[[bytes], Any] | None
    ) -> int:
        _need(all(isinstance(item, bytes) for item in (meta, region, param)), "subscribe_quote")
        return self._subscribe("subscribe_quote", (meta, region, param), callback)

    def subscribe_whole_quote(
        self, codes: list[str], param: bytes, callback: Callable[[bytes], Any] | None
    ) -> int:
        _need(_is_codes(codes) and isinstance(param, bytes), "subscribe_whole_quote")
        return self._subscribe("subscribe_whole_quote", (list(codes), param), callback)

    def _subscribe(
        self, function: str, args: tuple[Any, ...], callback: Callable[[bytes], Any] | None
    ) -> int:
        def keep(value: Any) -> None:
            if callback is not None and value >= 0:
                self._subscriptions[value] = callback

        return int(self._call(function, *args, on_value=keep))

    def unsubscribe_quote(self, number: int) -> None:
        _need(isinstance(number, int), "unsubscribe_quote")
        self._subscriptions.pop(number, None)
        self._call("unsubscribe_quote", number)

    def get_full_tick(self, codes: list[str]) -> str:
        _need(_is_codes(codes), "get_full_tick")
        return str(self._call("get_full_tick", list(codes)))

    def get_market_data3(
        self,
        fields: list[str],
        codes: list[str],
        period: str,
        start: str | int,
        end: str | int,
        count: int,
        dividend_type: str,
        fill: bool,
        version: str,
        from_local: bool,
        from_server: bool,
        debug: int,
        data_dir: str,
    ) -> Any:
        name = "get_market_data3"
        _need(_is_codes(fields) and _is_codes(codes) and isinstance(period, str), name)
        _need(isinstance(start, str) == isinstance(end, str), name)
        _need(isinstance(start, (str, int)) and isinstance(end, (str, int)), name)
        _need(isinstance(count, int) and isinstance(dividend_type, str), name)
        answer = self._call(
            name, list(fields), list(codes), period, start, end, count, dividend_type,
            bool(fill), version, bool(from_server),
        )  # fmt: skip
        if not answer:
            return {} if period == "tick" else []
        # numpy is loaded only by who reads tables, as in xtdata.py itself.
        from qmt_simulator import native_tables

        return native_tables.shape(answer, period, version)

    # -- downloads ----------------------------------------------------------------------------

    def supply_history_data(self, code: str, period: str, start: str, end: str) -> bool:
        _need(all(isinstance(item, str) for item in (code, period, start, end)),
              "supply_history_data")  # fmt: skip
        return bool(self._call("supply_history_data", code, period, start, end))

    def supply_history_data2(
        self,
        codes: list[str],
        period: str,
        start: str,
        end: str,
        param: bytes,
        callback: Callable[[dict[str, Any]], Any],
    ) -> bool:
        _need(_is_codes(codes) and isinstance(period, str), "supply_history_data2")
        _need(isinstance(start, str) and isinstance(end, str), "supply_history_data2")

        def keep(number: Any) -> None:
            self._downloads[number] = callback

        self._call("supply_history_data2", list(codes), period, start, end, param, on_value=keep)
        return False

    def stop_supply_history_data2(self) -> bool:
        self._downloads.clear()
        return bool(self._call("stop_supply_history_data2"))

    # -- reference data -----------------------------------------------------------------------

    def get_instrument_detail(self, code: str) -> bytes:
        _need(isinstance(code, str), "get_instrument_detail")
        return bytes(self._call("get_instrument_detail", code))

    def get_cb_info(self, code: str) -> bytes:
        _need(isinstance(code, str), "get_cb_info")
        return bytes(self._call("get_cb_info", code))

    def get_stock_list_in_sector(self, name: str, timetag: int) -> list[str]:
        _need(isinstance(name, str) and isinstance(timetag, int), "get_stock_list_in_sector")
        return list(self._call("get_stock_list_in_sector", name, timetag))

    def get_sector_list(self) -> list[str]:
        return list(self._call("get_sector_list"))

    def get_weight_in_index(self, code: str) -> dict[str, float]:
        _need(isinstance(code, str), "get_weight_in_index")
        return dict(self._call("get_weight_in_index", code))

    def get_trading_dates_by_market(
        self, market: str, start: str, end: str, count: int
    ) -> list[int]:
        _need(isinstance(market, str) and isinstance(count, int), "get_trading_dates_by_market")
        return list(self._call("get_trading_dates_by_market", market, start, end, count))

    def get_market_last_trade_date(self, market: str) -> int:
        _need(isinstance(market, str), "get_market_last_trade_date")
        return int(self._call("get_market_last_trade_date", market))

    def get_holidays(self) -> list[int]:
        return list(self._call("get_holidays"))

    def get_divid_factors(
        self, code: str, start: str, end: str = ""
    ) -> dict[str, dict[str, float]]:
        _need(isinstance(code, str), "get_divid_factors")
        return dict(self._call("get_divid_factors", code, start, end))

    def get_financial_data(
        self, codes: list[str], tables: list[str], start: str, end: str, kind: str
    ) -> dict[str, Any]:
        _need(_is_codes(codes) and _is_codes(tables), "get_financial_data")
        return dict(self._call("get_financial_data", list(codes), list(tables), start, end, kind))

    def get_ipo_info(self, start: str, end: str) -> list[dict[str, Any]]:
        return list(self._call("get_ipo_info", start, end))

    def get_main_contract(self, code: str) -> str:
        _need(isinstance(code, str), "get_main_contract")
        return str(self._call("get_main_contract", code))

    def get_stock_type(self, code: str) -> dict[str, bool]:
        _need(isinstance(code, str), "get_stock_type")
        return dict(self._call("get_stock_type", code))

    def is_stock_type(self, code: str, tag: str) -> bool:
        _need(isinstance(code, str) and isinstance(tag, str), "is_stock_type")
        return bool(self._call("get_stock_type", code).get(tag, False))

    def read_local_data(self, path: str, start: Any, end: Any, count: int) -> list[bytes]:
        _need(isinstance(path, str) and isinstance(count, int), "read_local_data")
        return []

    def down_index_weight(self) -> None:
        self._call("down_index_weight")

    def down_cb_data(self) -> None:
        self._call("down_cb_data")

    def down_history_contracts(self, incrementally: bool = True) -> None:
        self._call("down_history_contracts", bool(incrementally))
