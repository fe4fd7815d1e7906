"""Streams the answer of a history read, so that a long one neither blocks nor fills memory."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Final

from qmt_simulator import wire
from qmt_simulator.history import History, Query, QueryError, Table

if TYPE_CHECKING:
    from qmt_simulator.connection import Connection
    from qmt_simulator.phases import Phases

PART_BYTES: Final = 4 << 20


class Reads:
    """Answers `get_market_data3`, working in `threads` beside the pushes."""

    def __init__(self, history: History, phases: Phases, threads: Executor) -> None:
        self._history = history
        self._phases = phases
        self._threads = threads

    async def answer(
        self,
        connection: Connection,
        number: int,
        fields: list[str],
        codes: list[str],
        period: str,
        start: str | int,
        end: str | int,
        count: int,
        dividend_type: str,
        fill: bool,
        version: str,
        from_server: bool,
    ) -> list[str]:
        """Send the tables in parts; returns the lines for the native side's stdout."""
        if version not in ("v2", "v3", "v4"):
            return []
        try:
            query = self._history.query(
                fields, period, start, end, count, dividend_type, fill, from_server,
                self._phases.now_ms(),
            )  # fmt: skip
        except QueryError as error:
            return [str(error)]
        loop = asyncio.get_running_loop()
        lines: list[str] = []
        done = 0
        while done < len(codes):
            frame, done, more = await loop.run_in_executor(
                self._threads, self._part, number, codes, done, query
            )
            lines += more
            connection.send(frame)
            await connection.drain()
        return lines

    def _part(
        self, number: int, codes: list[str], done: int, query: Query
    ) -> tuple[bytes, int, list[str]]:
        tables: list[Table] = []
        lines: list[str] = []
        size_bytes = 0
        while done < len(codes) and size_bytes < PART_BYTES:
            try:
                table = self._history.table(codes[done], query)
            except QueryError as error:
                lines.append(str(error))
                table = None
            if table is not None:
                tables.append(table)
                size_bytes += sum(_size_of(column) for column in table[2])
            done += 1
        return wire.pack(wire.PART, number, tables), done, lines


def _size_of(column: list[Any]) -> int:
    return len(column[2])
