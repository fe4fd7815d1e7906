"""Downloads: progress as the terminal reports it, and data that arrives a little later."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from qmt_simulator import bson
from qmt_simulator.cache import BASE_PERIOD, Cache, Span
from qmt_simulator.clock import DAY_MS, day_of, day_start_ms
from qmt_simulator.history import BoundError, parse_bound
from qmt_simulator.phases import NO_QUOTE_SERVER

if TYPE_CHECKING:
    from qmt_simulator.clock import Clock
    from qmt_simulator.faults import Faults
    from qmt_simulator.market import Market
    from qmt_simulator.phases import Phases
    from qmt_simulator.profiles import Profile

CODE_S: Final = (0.005, 0.02)
"""How long one code takes."""

Progress = Callable[[dict[str, Any]], None]


class Downloads:
    """Runs downloads into the cache.

    Parameters
    ----------
    delay_s : (float, float)
        Data become readable that long after the download reported its end.
    """

    def __init__(
        self,
        market: Market,
        cache: Cache,
        profile: Profile,
        clock: Clock,
        faults: Faults,
        phases: Phases,
        delay_s: tuple[float, float],
    ) -> None:
        self._market = market
        self._cache = cache
        self._profile = profile
        self._clock = clock
        self._faults = faults
        self._phases = phases
        self._delay_s = delay_s
        self._random = random.Random()

    async def run(
        self, codes: list[str], period: str, start: str, end: str, progress: Progress
    ) -> bool:
        """Download and report; False when it failed. `stuck_download` never ends."""
        total = max(len(codes), 1)
        if "stuck_download" in self._faults.download:
            progress({"finished": 0, "total": total, "stockcode": "", "message": ""})
            await asyncio.Event().wait()
        message = self._refusal(start, end)
        if message is not None:
            progress({"finished": -1, "total": -1, "stockcode": "", "message": message})
            return False
        result: dict[str, Any] = {}
        spans: list[tuple[str, Span]] = []
        for number, code in enumerate(codes, 1):
            await asyncio.sleep(self._random.uniform(*CODE_S))
            span = self._span(code, period, start, end)
            if span is not None:
                spans.append((code, span))
                result[code] = {
                    "start_time": bson.Int64(span.start_ms),
                    "end_time": bson.Int64(span.end_ms),
                }
            if number < total:
                progress({"finished": number, "total": total, "stockcode": code, "message": ""})
        delay_s = self._random.uniform(*self._delay_s)
        for code, span in spans:
            self._cache.add(code, BASE_PERIOD[period], span, delay_s)
        progress(
            {
                "finished": total,
                "total": total,
                "stockcode": codes[-1] if codes else "",
                "message": "",
                "result": bson.encode(result),
            }
        )
        self._cache.save()
        return True

    def _refusal(self, start: str, end: str) -> str | None:
        if not self._phases.quotes_up:
            return NO_QUOTE_SERVER
        if "empty_failure_download" in self._faults.download:
            return ""
        if "failed_download" in self._faults.download:
            return self._faults.download["failed_download"]
        try:
            parse_bound(start, end=False)
        except BoundError:
            return f"起始时间错误 {start}"
        try:
            parse_bound(end, end=True)
        except BoundError:
            return f"结束时间错误 {end}"
        return None

    def _span(self, code: str, period: str, start: str, end: str) -> Span | None:
        """Return what a download brings of one code; None for what the market does not have."""
        base = BASE_PERIOD.get(period)
        if base is None or code not in self._market.index:
            return None
        now_ms = self._clock.now_ms()
        today_ms = day_start_ms(day_of(now_ms))
        floor_ms = today_ms - self._profile.history_days[base] * DAY_MS
        start_ms = parse_bound(start, end=False) or floor_ms
        end_ms = min(parse_bound(end, end=True) or now_ms, now_ms)
        if base == "1d":
            start_ms = day_start_ms(day_of(start_ms))
        start_ms = max(start_ms, floor_ms)
        return Span(start_ms, end_ms, now_ms) if start_ms <= end_ms else None
