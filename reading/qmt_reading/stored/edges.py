"""What a range of stored rows lacks at its ends, and which codes it lacks as a whole.

That the rows begin later than asked, or end earlier, is seen at the rows themselves: whatever the
reason, and wherever they come from.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import numpy as np

from qmt_protocol.codes import market_of
from qmt_protocol.errors import Gap
from qmt_protocol.times import DAY_MS, day_of, day_start_ms, is_weekday, to_datetime

from .ordering import ids_of
from .source import resumed

if TYPE_CHECKING:
    import pyarrow as pa

    from qmt_reading.callbacks import OnGap
    from qmt_reading.requests import StoredRequest
    from qmt_reading.transport import StoredSource

__all__ = ["NOTHING_STORED", "Edges", "read_whole"]

_CLOSE_MS: Final = 15 * 3_600_000
NOTHING_STORED: Final = "nothing is stored"
"""Reason of such a gap."""


class Edges:
    """Looks at the rows of one answer, batch after batch in the order of time.

    Parameters
    ----------
    request
        What was asked for.
    now_ms
        An end that is not before today asks for what is to come as well.
    """

    def __init__(self, request: StoredRequest, now_ms: int | None = None) -> None:
        self._request = request
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        self._today_ms = day_start_ms(day_of(now_ms))
        self._last_ms: dict[str, int] = {}
        self._codes: set[str] = set()

    def see(self, batch: pa.RecordBatch) -> list[Gap]:
        """Take the next rows; return where a market begins later than asked."""
        column = batch.column("code")
        names: list[str] = column.dictionary.to_pylist()
        numbers = np.asarray(column.indices.to_numpy(zero_copy_only=False))
        self._codes.update(names[number] for number in np.unique(numbers).tolist())
        markets, of_code = np.unique([market_of(name) for name in names], return_inverse=True)
        of_row, ids = of_code[numbers], ids_of(batch)
        gaps = []
        for number, market in enumerate(markets.tolist()):
            there = ids[of_row == number]
            if len(there):
                if market not in self._last_ms:
                    gaps += self._before(market, int(there[0]))
                self._last_ms[market] = int(there[-1])
        return gaps

    def end(self) -> list[Gap]:
        """Return where a market ends earlier than asked; call it behind the last row."""
        end_ms = self._request.end_ms
        if end_ms is None or end_ms >= self._today_ms:
            return []
        return [
            _gap(market, f"behind {_day(last_ms)}", last_ms + 1, end_ms)
            for market, last_ms in sorted(self._last_ms.items())
            if _weekday_in(day_start_ms(day_of(last_ms)) + DAY_MS, end_ms)
        ]

    @property
    def absent(self) -> list[str]:
        """Codes asked for that no row is of."""
        return [code for code in self._request.codes or () if code not in self._codes]

    def _before(self, market: str, first_ms: int) -> list[Gap]:
        start_ms = self._request.start_ms
        if start_ms is None:
            return []
        from_ms = start_ms if _is_before_close(start_ms) else start_ms + DAY_MS
        if not _weekday_in(from_ms, day_start_ms(day_of(first_ms)) - 1):
            return []
        return [_gap(market, f"before {_day(first_ms)}", start_ms, first_ms - 1)]


def _is_before_close(at_ms: int) -> bool:
    return at_ms - day_start_ms(day_of(at_ms)) < _CLOSE_MS


def _weekday_in(from_ms: int, to_ms: int) -> bool:
    """Whether Monday to Friday has a day in a range; no exchange trades on the others."""
    days = range(day_start_ms(day_of(from_ms)), to_ms + 1, DAY_MS)
    return any(is_weekday(day_of(at_ms)) for at_ms in days[:7])


def _day(at_ms: int) -> str:
    return f"{to_datetime(at_ms):%Y-%m-%d}"


def _gap(market: str, where: str, from_ms: int, to_ms: int) -> Gap:
    return Gap(
        f"Of {market} {NOTHING_STORED} {where}; asked for was also "
        f"{_day(from_ms)} to {_day(to_ms)}.",
        hint="`qmt-archive backfill` may fetch ticks, history() has bars.",
        market=market,
        reason=NOTHING_STORED,
        from_ms=from_ms,
        to_ms=to_ms,
        codes=[],
    )


async def read_whole(
    source: StoredSource, request: StoredRequest, on_gap: OnGap, *, give_up_after_s: float
) -> AsyncGenerator[pa.RecordBatch, None]:
    """Yield stored rows, as `resumed` does; what they lack at their ends is told as a gap."""
    edges = Edges(request)
    read = resumed(source, request, on_gap, give_up_after_s=give_up_after_s)
    async with aclosing(read) as batches:
        async for batch in batches:
            for gap in edges.see(batch):
                on_gap(gap)
            yield batch
    for gap in edges.end():
        on_gap(gap)
