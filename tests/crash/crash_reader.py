"""A reader as a user would write it: each tick becomes a line, and a position stands behind.

Run as a process, and killed as one. What it appends to its file in one write is lines and then
the position behind them, so after a restart both agree; a write cut off by a kill is thrown away.
Lines: ``T code content``, ``G gap as JSON``, ``P position as JSON``, ``N`` (now live).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from crash_evidence import tick_content

from qmt_client import NOW_LIVE, AsyncQMTClient
from qmt_protocol.errors import Gap, QMTError

_FLUSH_S = 0.05
_LONG_AGO = "20000101"


class Notebook:
    """The reader's file."""

    def __init__(self, path: Path) -> None:
        self.position: dict[str, Any] | None = None
        end = 0
        if path.exists():
            raw = path.read_bytes()
            at = raw.rfind(b"\nP ")
            if at >= 0 and (line_end := raw.find(b"\n", at + 1)) >= 0:
                end = line_end + 1
                self.position = json.loads(raw[at + 3 : line_end])
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        self._lines: list[str] = []

    def note(self, line: str) -> None:
        self._lines.append(line)

    def write(self, position: dict[str, Any]) -> None:
        """Append what was noted, and the position behind it."""
        if self._lines:
            lines, self._lines = self._lines, []
            data = "\n".join([*lines, "P " + json.dumps(position), ""]).encode()
            while data:
                data = data[os.write(self._file, data) :]


async def read(options: argparse.Namespace) -> None:
    """Follow until ended from outside; QMT errors are tried again, as a supervisor would."""
    book = Notebook(options.file)
    while True:
        try:
            async with AsyncQMTClient(options.url) as client:
                await follow(client, book, options)
        except QMTError as error:
            print(f"reader: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(0.3)


async def follow(client: AsyncQMTClient, book: Notebook, options: argparse.Namespace) -> None:
    def on_gap(gap: Gap) -> None:
        book.note("G " + json.dumps({"message": gap.message, **gap.data}, default=str))

    live = client.ticks(
        options.codes.split(",") if options.codes else None,
        markets=options.markets.split(",") if options.markets else (),
        position=book.position,
        start=_LONG_AGO if options.stored and book.position is None else None,
        on_gap=on_gap,
    )

    def keep() -> None:
        position = live.full_position if options.full else live.position
        if not position:
            return  # nothing was read yet: begin again as at first
        book.position = position
        if set(options.markets.split(",")) <= book.position.keys() or options.codes:
            book.write(book.position)

    async def keep_on() -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            keep()

    keeper = asyncio.create_task(keep_on())
    left = 0
    try:
        async for tick in live:
            book.note("N" if tick is NOW_LIVE else f"T {tick.code} {tick_content(tick)}")
            left -= 1
            if left <= 0:
                keep()
                left = random.randint(1, options.block)
    finally:
        keeper.cancel()
        await live.aclose()


def end_with_stdin() -> None:
    """End with the process that started this one, however it ended."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--codes", default="")
    parser.add_argument("--markets", default="")
    parser.add_argument("--full", action="store_true", help="save the full position")
    parser.add_argument("--stored", action="store_true", help="begin with all that is stored")
    parser.add_argument("--block", type=int, default=2000, help="most ticks between two writes")
    warnings.simplefilter("ignore")
    end_with_stdin()
    asyncio.run(read(parser.parse_args()))


if __name__ == "__main__":
    main()
