"""Reference data as the native calls answer it: instruments, sectors, days, dividends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qmt_simulator import bson
from qmt_simulator.clock import DAY_MS, day_of, day_start_ms
from qmt_simulator.history import parse_bound

if TYPE_CHECKING:
    from qmt_simulator.market import Market
    from qmt_simulator.profiles import Profile

_Tradings = tuple[tuple[int, int, int], ...]

PERIODS: Final = (
    ("tick", "分笔"),
    ("1m", "1分钟"),
    ("5m", "5分钟"),
    ("15m", "15分钟"),
    ("30m", "30分钟"),
    ("1h", "1小时"),
    ("1d", "日线"),
    ("1w", "周线"),
    ("1mon", "月线"),
    ("1q", "季线"),
    ("1hy", "半年线"),
    ("1y", "年线"),
)
_STOCK_TRADINGS: Final[_Tradings] = (
    (2, 91500, 92500),
    (3, 93000, 113000),
    (3, 130000, 145700),
    (8, 145700, 150000),
)
_FUTURE_TRADINGS: Final[_Tradings] = ((2, 92500, 93000), (3, 93000, 113000), (3, 130000, 150000))
_WHOLE_DAY: Final[_Tradings] = ((3, 0, 240000),)


class Reference:
    """Answers everything that is neither a quote nor a bar.

    Times are market times in ms since the epoch; days are YYYYMMDD.
    """

    def __init__(self, market: Market, profile: Profile, *, around_the_clock: bool) -> None:
        self._market = market
        self._profile = profile
        self._around_the_clock = around_the_clock
        self._sectors: tuple[int, dict[str, list[str]]] = (0, {})
        self._suffixes = {code.rpartition(".")[2] for code in market.codes}

    def sectors(self, now_ms: int) -> dict[str, list[str]]:
        """Return the codes of every sector as of today."""
        today = day_of(now_ms)
        if self._sectors[0] != today:
            self._sectors = (today, self._market.sectors(now_ms))
        return self._sectors[1]

    def detail(self, code: str, now_ms: int) -> bytes:
        """Return the instrument document, b'' for an unknown code."""
        document = self._market.detail(code, now_ms)
        return b"" if document is None else bson.encode(document)

    def bond(self, code: str, now_ms: int) -> bytes:
        """Return a convertible bond's document, b'' for anything else."""
        document = self._market.detail(code, now_ms)
        if document is None or not self._market.types(code).get("convertible_bond"):
            return b""
        return bson.encode(
            {
                "bondCode": code,
                "bondName": document["InstrumentName"],
                "listDate": int(document["OpenDate"]),
                "maturityDate": int(document["ExpireDate"]),
                "bondParValue": 100.0,
            }
        )

    def trading_dates(
        self, market: str, start: str | int, end: str | int, count: int, now_ms: int
    ) -> list[int]:
        """Return trading days as ms of 00:00 China time; [] for an unknown market."""
        if market not in self._suffixes:
            return []
        start_ms, end_ms = parse_bound(start, end=False), parse_bound(end, end=True)
        first = 19900101 if start_ms is None else day_of(start_ms)
        last = day_of(now_ms) if end_ms is None else day_of(end_ms)
        days = [day_start_ms(day) for day in self._market.trading_days(first, last, now_ms)]
        return days[-count:] if count > 0 else ([] if count == 0 else days)

    def dividend_factors(
        self, code: str, start: str | int, end: str | int, now_ms: int
    ) -> dict[str, dict[str, float]]:
        """Return one row per ex-date, keyed by date (research) or by ms (others)."""
        if code not in self._market.index:
            return {}
        start_ms, end_ms = parse_bound(start, end=False), parse_bound(end, end=True)
        result = {}
        for item in self._market.dividends(code, now_ms):
            at_ms = day_start_ms(item.ex_date)
            if (start_ms is None or at_ms >= start_ms) and (end_ms is None or at_ms <= end_ms):
                key = item.ex_date if self._profile.dividends_by_date else at_ms
                result[str(key)] = {
                    "time": float(at_ms),
                    "interest": item.interest,
                    "stockBonus": item.stockBonus,
                    "stockGift": item.stockGift,
                    "allotNum": item.allotNum,
                    "allotPrice": item.allotPrice,
                    "gugai": item.gugai,
                    "dr": item.dr,
                }
        return result

    def main_contract(self, code: str, now_ms: int) -> str:
        """Return the nearest running contract of a continuous code, '' when there is none.

        `IF00.IF` asks for the main contract, `IF001.IF` for the one after it.
        """
        name, _dot, market = code.rpartition(".")
        product, following = name.rstrip("0123456789"), name.endswith("001")
        if market not in self._suffixes or not product:
            return ""
        if not following:
            return self._market.main_contract(product, now_ms).partition(".")[0]
        today = day_of(now_ms)
        running = []
        for other in self._market.codes:
            stem, _dot, suffix = other.rpartition(".")
            if suffix == market and stem.rstrip("0123456789") == product:
                detail = self._market.detail(other, now_ms)
                if detail is not None and int(detail["ExpireDate"]) >= today:
                    running.append((int(detail["ExpireDate"]), stem))
        return sorted(running)[1][1] if len(running) > 1 else ""

    def trading_period(self, code: str) -> dict[str, Any]:
        """Return the sessions of an instrument as getopenclosetradetimebystock does."""
        market = code.rpartition(".")[2]
        tradings = _FUTURE_TRADINGS if market == "IF" else _STOCK_TRADINGS
        if self._around_the_clock:
            tradings = _WHOLE_DAY
        return {
            "market": market,
            "codeRegex": "",
            "product": [],
            "category": [],
            "tradings": [
                {"status": status, "time": [0, [begin, 0], [end, 0 if end < 240000 else -1]]}
                for status, begin, end in tradings
            ],
        }

    def ipos(self, start: str | int, end: str | int, now_ms: int) -> list[dict[str, Any]]:
        """Return the listings between two dates (by default the last year), newest last."""
        start_ms, end_ms = parse_bound(start, end=False), parse_bound(end, end=True)
        start_ms = now_ms - 365 * DAY_MS if start_ms is None else start_ms
        end_ms = now_ms if end_ms is None else min(end_ms, now_ms)
        name = "沪深京A股"
        before = set(self._market.sectors(start_ms - 1).get(name, []))
        found = []
        for code in self._market.sectors(end_ms).get(name, []):
            detail = None if code in before else self._market.detail(code, now_ms)
            if detail is not None:
                found.append(
                    {
                        "securityCode": code,
                        "codeName": detail["InstrumentName"],
                        "market": code.rpartition(".")[2],
                        "listedDate": str(detail["OpenDate"]),
                    }
                )
        return sorted(found, key=lambda item: str(item["listedDate"]))


def period_list() -> list[dict[str, str]]:
    """Return what getperiodlist answers."""
    return [{"name": name, "desc": text} for name, text in PERIODS]
