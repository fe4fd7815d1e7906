"""Ticks and bars between the feed and a file: as columns, by market and trading day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qmt_protocol.archive import FeedRange, bar_span
from qmt_protocol.bars import Bar
from qmt_protocol.columns import bars_table, ticks_table
from qmt_protocol.ids import id_key
from qmt_protocol.ticks import TickRow
from qmt_protocol.times import trading_day

__all__ = ["Buffers", "Piece", "sort_bars"]

Row = tuple[str, str, TickRow]
_ROWS_PER_TABLE: Final = 1024
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True)
class Piece:
    """Rows for one file."""

    kind: Literal["tick", "bar"]
    market: str
    period: str
    day: int
    table: pa.Table
    ranges: list[FeedRange]


class Buffers:
    """What was read and is not yet in a file."""

    def __init__(self) -> None:
        self.rows = 0
        self._waiting: dict[str, list[Row]] = {}
        self._ticks: dict[tuple[str, int], list[pa.Table]] = {}
        self._bars: dict[tuple[str, str, int], list[Bar]] = {}
        self._ranges: dict[str, FeedRange] = {}

    def add_ticks(self, market: str, rows: Sequence[Row]) -> None:
        """Take ticks, as code, entry id and decoded ``t1``."""
        waiting = self._waiting.setdefault(market, [])
        waiting += rows
        self.rows += len(rows)
        if len(waiting) >= _ROWS_PER_TABLE:
            self._settle(market)

    def add_bars(self, market: str, bars: Sequence[Bar]) -> None:
        """Take closed bars."""
        for bar in bars:
            day = bar_span(bar.period, trading_day(id_key(bar.id)[0]))
            self._bars.setdefault((market, bar.period, day), []).append(bar)
        self.rows += len(bars)

    def add_entry(self, market: str, epoch: str, entry_id: str) -> None:
        """Note the feed entry that was taken last."""
        held = self._ranges.get(market)
        first = held.first if held is not None and held.epoch == epoch else entry_id
        self._ranges[market] = FeedRange(epoch=epoch, first=first, last=entry_id)

    def take(self) -> list[Piece]:
        """Return all of it, unsorted, and forget it."""
        for market in list(self._waiting):
            self._settle(market)
        pieces = [
            Piece("tick", market, "tick", day, pa.concat_tables(tables), self._of(market))
            for (market, day), tables in self._ticks.items()
        ]
        pieces += [
            Piece("bar", market, period, day, bars_table(bars), self._of(market))
            for (market, period, day), bars in self._bars.items()
        ]
        self.__init__()  # type: ignore[misc]
        return pieces

    def _of(self, market: str) -> list[FeedRange]:
        return [self._ranges[market]] if market in self._ranges else []

    def _settle(self, market: str) -> None:
        """Turn rows into columns, which take a fifth of the memory."""
        rows = self._waiting.pop(market)
        if not rows:
            return
        table = ticks_table(rows)
        hours = np.asarray(table.column("id_ms").to_numpy()) // _HOUR_MS
        days = {int(hour): trading_day(int(hour) * _HOUR_MS) for hour in np.unique(hours)}
        if len(set(days.values())) == 1:
            self._ticks.setdefault((market, next(iter(days.values()))), []).append(table)
            return
        for day in sorted(set(days.values())):
            of_day = [hour for hour, its in days.items() if its == day]
            mask = pa.array(np.isin(hours, of_day))
            self._ticks.setdefault((market, day), []).append(table.filter(mask))


def sort_bars(table: pa.Table) -> pa.Table:
    """Return bars by code, then label, of each the newest version: the order of bar files."""
    table = table.unify_dictionaries().combine_chunks()
    keys = [("code", "ascending"), ("id_ms", "ascending"), ("id_seq", "descending")]
    plain = pa.table(
        {
            "code": table.column("code").cast(pa.string()),
            "id_ms": table.column("id_ms"),
            "id_seq": table.column("id_seq"),
        }
    )
    order = pc.sort_indices(plain, sort_keys=keys)
    plain, table = plain.take(order), table.take(order)
    codes = plain.column("code").combine_chunks().dictionary_encode()
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.combine_chunks()
    numbers, labels = codes.indices.to_numpy(), plain.column("id_ms").to_numpy()
    if len(table) < 2:
        return table
    first = np.concatenate(([True], (numbers[1:] != numbers[:-1]) | (labels[1:] != labels[:-1])))
    return table if first.all() else table.filter(pa.array(first))
