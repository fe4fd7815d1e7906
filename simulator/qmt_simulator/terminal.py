"""The simulated terminal's process: a TCP server that answers native stubs and controllers.

Quick calls are answered on the event loop, reads of history in two threads, so that a long read
does not hold the pushes back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from qmt_simulator import bson, wire
from qmt_simulator.cache import BASE_PERIOD, Cache
from qmt_simulator.calls import NOT_REALIZED, QUOTE_SERVER, Calls, NativeError
from qmt_simulator.clock import Clock, wall_ms
from qmt_simulator.connection import Connection
from qmt_simulator.downloads import Downloads
from qmt_simulator.faults import FaultError, Faults
from qmt_simulator.history import BoundError, History
from qmt_simulator.market import Market
from qmt_simulator.phases import Phases
from qmt_simulator.profiles import load_profile
from qmt_simulator.pushes import PushEngine, PushLog, SingleQuote
from qmt_simulator.reads import Reads
from qmt_simulator.reference import Reference

_log = logging.getLogger(__name__)

_LOOK_S: Final = 0.02
_SLOW: Final = frozenset({"get_full_tick", "get_ipo_info"})


Answer = tuple[Any, Callable[[], None] | None]
Own = Callable[..., Awaitable[Answer]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How this terminal runs; see `qmt-simulator --help`."""

    host: str = "127.0.0.1"
    port: int = 58610
    seed: int = 20260101
    profile: str = "research"
    clock: Clock = dataclasses.field(default_factory=Clock)
    real_hours: bool = False
    interval_ms: int = 3000
    push_ms: int = 250
    cache_delay_s: tuple[float, float] = (0.5, 2.0)
    push_log: Path | None = None
    data_dir: Path | None = None
    app_dir: str = ""
    broker: str = ""
    login_at_ms: int = 0
    quotes_at_ms: int = 0


class Terminal:
    """The terminal: market, cache, subscriptions, faults and the clients' connections."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._profile = load_profile(settings.profile)
        self._market = Market(
            settings.seed,
            interval_ms=settings.interval_ms,
            around_the_clock=not settings.real_hours,
        )
        self.clock = self._clock = settings.clock
        if settings.clock.wall_start_ms is None:
            # Building the market took a while; a fixed day starts now.
            self.clock = self._clock = dataclasses.replace(settings.clock, wall_start_ms=wall_ms())
        if settings.data_dir is not None:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._cache = Cache(settings.data_dir)
        self._faults = Faults(self._market.index)
        self._phases = Phases(
            self._clock,
            self._faults,
            login_at_ms=settings.login_at_ms,
            quotes_at_ms=settings.quotes_at_ms,
        )
        self._history = History(self._market, self._cache, self._profile)
        self._threads = concurrent.futures.ThreadPoolExecutor(2, "reads")
        self._reads = Reads(self._history, self._phases, self._threads)
        self._engine = PushEngine(
            self._market,
            self._clock,
            self._profile,
            self._faults,
            self._phases,
            push_ms=settings.push_ms,
            interval_ms=settings.interval_ms,
            log=PushLog(settings.push_log),
        )
        self._calls = Calls(
            self._market,
            self._clock,
            self._profile,
            self._faults,
            self._phases,
            self._history,
            Reference(self._market, self._profile, around_the_clock=not settings.real_hours),
            self._engine.mask_of,
            settings.broker,
        )
        self._downloads = Downloads(
            self._market,
            self._cache,
            self._profile,
            self._clock,
            self._faults,
            self._phases,
            settings.cache_delay_s,
        )
        self._numbers = itertools.count(1)
        self._download_numbers = itertools.count(1)
        self._connections: set[Connection] = set()

    async def serve(self, ready: asyncio.Future[int]) -> None:
        """Serve until cancelled; `ready` gets the port."""
        server = await asyncio.start_server(
            self._client, self.settings.host, self.settings.port, limit=1 << 20
        )
        pushing = asyncio.create_task(self._engine.run())
        following = asyncio.create_task(self._follow_the_day())
        ready.set_result(server.sockets[0].getsockname()[1])
        try:
            async with server:
                await asyncio.gather(pushing, following)
        finally:
            pushing.cancel()
            following.cancel()
            for connection in list(self._connections):
                connection.close()
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._engine.log.close()
            self._cache.save()

    async def _follow_the_day(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self._look_at_the_day()

    def _look_at_the_day(self) -> None:
        if not self._phases.logged_in:
            for connection in list(self._connections):
                if connection.pid and connection.role != "control":
                    connection.close()
        if news := self._phases.news():
            self._report_quote_server(news)

    # -- connections --------------------------------------------------------------------------

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(next(self._numbers), writer)
        self._connections.add(connection)
        try:
            while True:
                length = wire.body_length(await reader.readexactly(4))
                kind, number, function, args = wire.unpack(await reader.readexactly(length))
                if kind != wire.REQUEST:
                    raise wire.FrameError(f"frame of kind {kind} from a client")
                task = asyncio.create_task(self._serve(connection, number, function, args))
                connection.tasks.add(task)
                task.add_done_callback(connection.tasks.discard)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            _log.debug("client %d leaves: %s", connection.pid, error)
        finally:
            self._connections.discard(connection)
            for task in connection.tasks | connection.downloads:
                task.cancel()
            for single in self._engine.forget(connection):
                self._end_live(single)
            connection.close()

    async def _serve(
        self, connection: Connection, number: int, function: str, args: list[Any]
    ) -> None:
        value: Any = []
        lines: list[str] = []
        after = None
        try:
            await asyncio.sleep(self._latency_s(function, args))
            self._check_realized(function)
            if function == "get_market_data3":
                lines = await self._reads.answer(connection, number, *args)
            else:
                value, after = await self._answer(connection, function, args)
            ok = True
        except ConnectionError:
            return
        except (NativeError, FaultError) as error:
            value, ok = str(error), False
        except BoundError as error:
            value, ok = f"时间错误 {error}", False
        except Exception as error:  # noqa: BLE001 - ends this call only, logged and answered
            _log.exception("%s failed", function)
            value, ok = f"{type(error).__name__}: {error}", False
        connection.send(wire.pack(wire.RESPONSE, number, ok, value, lines))
        if after is not None:
            after()

    def _latency_s(self, function: str, args: list[Any]) -> float:
        waits = self._faults.latency_s
        name = args[0] if function == "commonControl" and args else function
        return waits.get(str(name), waits.get(function, 0.0))

    async def _answer(self, connection: Connection, function: str, args: list[Any]) -> Answer:
        """Return the value, and what to do once the answer is on its way."""
        if function.startswith(("control.", "oracle.")):
            if connection.role != "control":
                raise NativeError(NOT_REALIZED)
            return await self._control(function, args), None
        own: Own | None = getattr(self, f"_on_{function}", None)
        if own is not None:
            return await own(connection, *args)
        if function == "commonControl" and args[0] == "getcurrentsubinfo":
            return bson.encode({"result": self._subscriptions(connection)}), None
        if function in _SLOW or (function == "commonControl" and args[0] == "getfullkline"):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads, self._calls.answer, function, args
            ), None
        return self._calls.answer(function, args), None

    def _check_realized(self, function: str) -> None:
        if function in self._faults.not_realized:
            raise NativeError(NOT_REALIZED)

    # -- calls that touch the connection ------------------------------------------------------

    async def _on_hello(self, connection: Connection, role: str, pid: int) -> Answer:
        if role != "control" and not self._phases.logged_in:
            connection.close()  # as if nobody listened
            raise ConnectionError("nobody has logged in")
        connection.role, connection.pid = role, pid
        return os.getpid(), None

    async def _on_get_data_dir(self, _connection: Connection) -> Answer:
        folder = self.settings.data_dir
        return ("" if folder is None else str(folder.absolute())), None

    async def _on_get_app_dir(self, _connection: Connection) -> Answer:
        return self.settings.app_dir or str(Path.cwd()), None

    async def _on_subscribe_whole_quote(
        self, connection: Connection, codes: list[str], param: bytes
    ) -> Answer:
        pushes = bool(bson.decode(param).get("needCallback", False))
        number = self._engine.subscribe_whole(connection, codes, pushes=pushes)
        return number, lambda: self._engine.first_push(number)

    async def _on_subscribe_quote(
        self, connection: Connection, meta: bytes, region: bytes, param: bytes
    ) -> Answer:
        subscription = bson.decode(meta)
        code, period = str(subscription.get("stockCode", "")), str(subscription.get("period", ""))
        held = sum(1 for sub in self._engine.single.values() if sub.peer is connection)
        if (
            code not in self._market.index
            or period not in BASE_PERIOD
            or held >= self._profile.single_subscriptions
        ):
            return -1, None
        self._cache.go_live(
            code, BASE_PERIOD[period], self._history.live_day_ms(self._clock.now_ms())
        )
        pushes = bool(bson.decode(param).get("needCallback", False))
        number = self._engine.subscribe_single(
            connection, code, period, str(subscription.get("dividendtype") or "none"), pushes=pushes
        )
        return number, lambda: self._engine.first_push(number)

    async def _on_unsubscribe_quote(self, connection: Connection, number: int) -> Answer:
        single = self._engine.unsubscribe(connection, number)
        if single is not None:
            self._end_live(single)
        return None, None

    def _end_live(self, single: SingleQuote) -> None:
        self._cache.end_live(single.code, BASE_PERIOD[single.period], self._clock.now_ms())

    def _subscriptions(self, connection: Connection) -> list[dict[str, Any]]:
        return [
            {"subId": sub.number, "stockCode": sub.code, "period": sub.period, "isSub": True}
            for sub in self._engine.single.values()
            if sub.peer is connection
        ]

    async def _on_supply_history_data(
        self, _connection: Connection, code: str, period: str, start: str, end: str
    ) -> Answer:
        last: dict[str, Any] = {}
        if not await self._downloads.run([code], period, start, end, last.update):
            raise NativeError(str(last.get("message") or "download failed"))
        return True, None

    async def _on_supply_history_data2(
        self,
        connection: Connection,
        codes: list[str],
        period: str,
        start: str,
        end: str,
        _param: bytes,
    ) -> Answer:
        number = next(self._download_numbers)

        def progress(data: dict[str, Any]) -> None:
            connection.send(wire.pack(wire.PROGRESS, number, data))

        def begin() -> None:
            task = asyncio.create_task(self._downloads.run(codes, period, start, end, progress))
            connection.downloads.add(task)
            task.add_done_callback(connection.downloads.discard)

        return number, begin

    async def _on_stop_supply_history_data2(self, connection: Connection) -> Answer:
        for task in connection.downloads:
            task.cancel()
        return True, None

    # -- the control channel ------------------------------------------------------------------

    async def _control(self, function: str, args: list[Any]) -> Any:
        channel, _, name = function.partition(".")
        if channel == "oracle":
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._calls.oracle, name, args)
        if name == "now":
            return self._clock.now_ms()
        if name == "set_fault":
            return self._set_fault(*args)
        if name == "clear_fault":
            self._faults.clear(*args)
            return self._look_at_the_day()
        if name == "burst":
            return await self._engine.burst()
        if name == "status":
            return self._status()
        raise NativeError(f"no control command {name}")

    def _set_fault(self, name: str, params: dict[str, Any]) -> int:
        if name == "server_switch":
            self._report_quote_server("disconnected")
            sent = self._engine.switch_server(int(params.get("back_ms", 30_000)))
            self._report_quote_server("connected")
            return sent
        if name in ("abort_client", "drop_connection"):
            return self._hit_clients(name, params.get("role"), params.get("pid"))
        self._faults.set(name, params)
        self._look_at_the_day()
        return 0

    def _hit_clients(self, name: str, role: str | None, pid: int | None) -> int:
        hit = [
            item
            for item in self._connections
            if item.role != "control" and role in (None, item.role) and pid in (None, item.pid)
        ]
        for connection in hit:
            if name == "abort_client":
                connection.send(wire.pack(wire.EVENT, "abort", b""))
            else:
                connection.close()
        return len(hit)

    def _report_quote_server(self, status: str) -> None:
        document = bson.encode({"address": "{}:{}".format(*QUOTE_SERVER), "status": status})
        for connection in self._connections:
            if connection.role != "control":
                connection.send(wire.pack(wire.EVENT, "watchquoteserverstatus", document))

    def _status(self) -> dict[str, Any]:
        log = self._engine.log
        return {
            "pid": os.getpid(),
            "profile": self._profile.name,
            "seed": self.settings.seed,
            "now_ms": self._clock.now_ms(),
            "logged_in": self._phases.logged_in,
            "quotes_up": self._phases.quotes_up,
            "last_seq": log.last_seq,
            "push_log": None if log.path is None else str(log.path.absolute()),
            "instruments": len(self._market.codes),
            "clients": [
                {"role": item.role, "pid": item.pid, "number": item.number}
                for item in self._connections
                if item.role != "control"
            ],
            "whole_subscriptions": len(self._engine.whole),
            "single_subscriptions": len(self._engine.single),
        }


async def watch_stdin() -> None:
    """Return when standard input ends: its other end is gone, however it went."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set_result, None)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    await ended
