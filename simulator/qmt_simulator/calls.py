"""The native calls that need no connection state: from arguments to an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from qmt_simulator import bson
from qmt_simulator.clock import DAY_MS, day_of, wall_ms
from qmt_simulator.history import BAR_COLUMNS, History, stamps
from qmt_simulator.phases import DOWNLOADS, NO_QUOTE_SERVER
from qmt_simulator.reference import Reference, period_list
from qmt_simulator.tickrows import DEPTH, SCALARS, SPEEDS

if TYPE_CHECKING:
    import numpy.typing as npt

    from qmt_simulator.clock import Clock
    from qmt_simulator.faults import Faults
    from qmt_simulator.market import Market
    from qmt_simulator.phases import Phases
    from qmt_simulator.profiles import Profile

NOT_REALIZED: Final = "function not realize"
QUOTE_SERVER: Final = ("127.0.0.1", 55300)
_QUOTED: Final = ("SH", "SZ", "BJ", "IF")


class NativeError(Exception):
    """The call fails with this text, as the terminal words it."""


class Calls:
    """Answers stateless native calls.

    Parameters
    ----------
    mask_of
        Turns a list of markets and codes into a mask of instruments.
    broker
        Named in the server's tag.
    """

    def __init__(
        self,
        market: Market,
        clock: Clock,
        profile: Profile,
        faults: Faults,
        phases: Phases,
        history: History,
        reference: Reference,
        mask_of: Callable[[list[str]], npt.NDArray[np.bool_]],
        broker: str = "",
    ) -> None:
        self._market = market
        self._clock = clock
        self._profile = profile
        self._faults = faults
        self._phases = phases
        self._broker = broker
        self._history = history
        self._reference = reference
        self._mask_of = mask_of
        now = clock.now_ms
        self._plain: dict[str, Callable[..., Any]] = {
            "get_server_tag": self._server_tag,
            "get_full_tick": self._full_tick,
            "get_instrument_detail": lambda code: reference.detail(code, now()),
            "get_cb_info": lambda code: reference.bond(code, now()),
            "get_sector_list": lambda: list(reference.sectors(now())),
            "get_stock_list_in_sector": lambda name, _at: reference.sectors(now()).get(name, []),
            "get_weight_in_index": market.index_weights,
            "get_trading_dates_by_market": self._trading_dates,
            "get_market_last_trade_date": self._last_trade_date,
            "get_holidays": market.holidays,
            "get_divid_factors": self._dividend_factors,
            "get_financial_data": lambda codes, *_rest: {code: {} for code in codes},
            "get_ipo_info": lambda start, end: reference.ipos(start, end, now()),
            "get_main_contract": lambda code: reference.main_contract(code, now()),
            "get_stock_type": lambda code: market.types(code) if code in market.index else {},
            "down_index_weight": lambda: None,
            "down_cb_data": lambda: None,
            "down_history_contracts": lambda _incrementally: None,
        }
        self._common: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "getapiversion": lambda _p: {"downloadversion": profile.download_version},
            "downloadholidaydata": lambda _p: {},
            "downloadhisstdata": lambda _p: {},
            "downloadmetadata": lambda _p: {},
            "getperiodlist": lambda _p: {"result": period_list()},
            "getfullkline": self._full_kline,
            "getdatafilepath": lambda _p: {"result": {}},
            "getopenclosetradetimebystock": lambda p: reference.trading_period(p["stockcode"]),
            "getauthorizedmarketlist": lambda _p: {"result": ["SH", "SZ", "BJ", "IF", "SHO"]},
            "getquoteserverstatus": self._quote_servers,
            "watchquoteserverstatus": lambda _p: {},
            "getcomingtradedate": lambda _p: {"result": []},
            "simulatorclock": lambda _p: {
                "now_ms": bson.Int64(now()),
                "wall_ms": bson.Int64(wall_ms()),
                "speed": float(clock.speed),
            },
        }

    def answer(self, function: str, args: list[Any]) -> Any:
        """Return the value of a call; `NativeError` where it fails."""
        if function == "commonControl":
            return bson.encode(self._control(*args))
        handler = self._plain.get(function)
        if handler is None:
            raise NativeError(NOT_REALIZED)
        self._check_quotes(function)
        return handler(*args)

    def _control(self, name: str, param: bytes) -> dict[str, Any]:
        handler = self._common.get(name)
        lacking = self._profile.not_realized | self._faults.not_realized
        if handler is None or name in lacking:
            raise NativeError(NOT_REALIZED)
        self._check_quotes(name)
        return handler(bson.decode(param))

    def _check_quotes(self, name: str) -> None:
        if name in DOWNLOADS and not self._phases.quotes_up:
            raise NativeError(NO_QUOTE_SERVER)

    def _quote_servers(self, _param: dict[str, Any]) -> dict[str, Any]:
        if not self._phases.quotes_up:
            return {"result": []}
        ip, port = QUOTE_SERVER
        return {
            "result": [
                {"key": f"0_{market}_L1", "info": {"ip": ip, "port": port}} for market in _QUOTED
            ]
        }

    def _server_tag(self) -> bytes:
        profile = self._profile
        return bson.encode(
            {
                "tag": f"sim-{profile.name}",
                "version": profile.version,
                "simulated": True,
                "edition": profile.name,
                "broker": self._broker,
            }
        )

    def _trading_dates(self, market: str, start: str, end: str, count: int) -> list[int]:
        return self._reference.trading_dates(market, start, end, count, self._clock.now_ms())

    def _dividend_factors(
        self, code: str, start: str | int, end: str | int
    ) -> dict[str, dict[str, float]]:
        return self._reference.dividend_factors(code, start, end, self._clock.now_ms())

    def _last_trade_date(self, market: str) -> int:
        days = self._reference.trading_dates(market, "", "", 1, self._clock.now_ms())
        return days[-1] if days else 0

    def _full_tick(self, names: list[str]) -> str:
        now_ms = self._phases.now_ms()
        ticks = self._market.snapshot(now_ms)
        ticks = self._profile.apply(ticks.take(self._mask_of(names)[ticks.idx]))
        codes = [self._market.codes[number] for number in ticks.idx.tolist()]
        seconds = list(map(str, stamps(ticks.time, daily=False).tolist()))
        columns: dict[str, list[Any]] = {}
        modern = self._profile.full_tick_has_time
        if modern:
            columns["time"] = ticks.time.tolist()
        millis = ".000" if self._profile.full_tick_millis else ""
        columns["timetag"] = [
            f"{at[:8]} {at[8:10]}:{at[10:12]}:{at[12:]}{millis}" for at in seconds
        ]
        for name in (*SCALARS, *DEPTH, *SPEEDS):
            if name == "time" or (not modern and name in ("transactionNum", "pe", *SPEEDS)):
                continue
            columns[name] = _whole_as_int(getattr(ticks, name))
            if modern and name == "pvolume":
                columns["tickvol"] = [0] * len(codes)
        rows = zip(*columns.values(), strict=True)
        document = {
            code: dict(zip(columns, row, strict=True))
            for code, row in zip(codes, rows, strict=True)
        }
        return msgspec.json.encode(document).decode()

    def _full_kline(self, param: dict[str, Any]) -> dict[str, Any]:
        now_ms = self._phases.now_ms()
        day_ms = self._history.live_day_ms(now_ms)
        period, count = str(param["period"]), int(param["count"])
        tables = {
            code: self._market.bars(code, period, day_ms, day_ms + DAY_MS, now_ms)
            for code in param["stocklist"]
            if code in self._market.index
        }
        times = np.unique(
            np.concatenate([np.empty(0, dtype=np.int64), *(bars.time for bars in tables.values())])
        )
        if count > 0:
            times = times[-count:]
        fields = [name for name in (param["fields"] or BAR_COLUMNS) if name in BAR_COLUMNS]
        result = {}
        for field in fields:
            rows = []
            for bars in tables.values():
                values = dict(zip(bars.time.tolist(), getattr(bars, field).tolist(), strict=True))
                rows.append([values.get(at, float("nan")) for at in times.tolist()])
            result[field] = rows
        return {
            "result": result,
            "stock": list(tables),
            "stime": list(map(str, stamps(times, daily=period == "1d").tolist())),
        }

    def oracle(self, what: str, args: list[Any]) -> Any:
        """Return what is true, straight from the market, for the control channel."""
        now_ms = self._clock.now_ms()
        if what == "bars":
            code, period, start_ms, end_ms, adjust, at_ms = args
            at_ms = now_ms if at_ms is None else at_ms
            bars = self._market.bars(code, period, start_ms, end_ms, at_ms)
            if adjust not in ("", "none"):
                bars = self._market.adjusted(code, bars, adjust)
            return [
                [name, kind, getattr(bars, name).astype(kind).tobytes()]
                for name, kind in BAR_COLUMNS.items()
            ]
        if what == "ticks":
            code, day, at_ms = args
            at_ms = now_ms if at_ms is None else at_ms
            day = day_of(at_ms) if day is None else day
            ticks = self._market.day_ticks(code, day, at_ms)
            return [
                [name, kind, getattr(ticks, name).astype(kind).tobytes()]
                for name, kind in (*SCALARS.items(), *DEPTH.items(), *SPEEDS.items())
            ]
        if what == "trading_days":
            start, end = args
            return self._market.trading_days(start, end, now_ms)
        if what == "codes":
            return self._market.codes
        raise NativeError(f"oracle does not know {what}")


def _whole_as_int(values: npt.NDArray[Any]) -> list[Any]:
    """Return numbers as JSON of the terminal has them: 12.0 is written 12."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    whole = values == np.floor(values)
    mixed = values.astype(object)
    mixed[whole] = values[whole].astype(np.int64).astype(object)
    return list(mixed.tolist())
