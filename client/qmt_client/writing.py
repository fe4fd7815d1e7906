"""Where ``qmt`` writes: a file that is there when it is whole, or a pipe whose reader may leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from qmt_protocol.ticks import Tick
from qmt_protocol.times import to_datetime

__all__ = [
    "ReaderLeft",
    "json_line",
    "leave_quietly",
    "say",
    "tick_document",
    "timeless",
    "written",
]

_json: Final = msgspec.json.Encoder().encode


class ReaderLeft(Exception):
    """Who read standard output has had enough; no `OSError`, which Typer takes for a failure."""


def say(text: str) -> None:
    """Print a line at once.

    Raises
    ------
    ReaderLeft
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as error:
        raise ReaderLeft from error


def leave_quietly() -> None:
    """Have the interpreter flush into nothing at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def written(output: Path | None) -> Iterator[IO[bytes]]:
    """Give the file to write into; it takes its name only when all is in it."""
    if output is None:
        pipe = _Pipe(sys.stdout.buffer)
        yield pipe  # type: ignore[misc]
        pipe.flush()
        return
    part = output.with_name(f"{output.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


class _Pipe:
    """Standard output, whose reader may leave: what follows its first refusal goes nowhere."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._left = False
        self.closed = False

    def write(self, data: Any) -> int:
        if self._left:
            return len(data)
        try:
            return self._out.write(data)
        except OSError as error:
            self._left = True
            raise ReaderLeft from error

    def flush(self) -> None:
        try:
            if not self._left:
                self._out.flush()
        except OSError as error:
            self._left = True
            raise ReaderLeft from error

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def json_line(document: Any) -> str:
    """Return a document as a line of JSON; NaN and infinities, which it does not have, as null."""
    return _json(document).decode()


def tick_document(tick: Tick, *, naive: bool = False) -> dict[str, Any]:
    """Return a tick as `write_batches` writes it as JSON."""
    at = to_datetime(tick.time_ms)
    at = at.replace(tzinfo=None) if naive else at
    head = {"code": tick.code, "id": tick.id, "flags": int(tick.flags)}
    return {**head, "time": at.isoformat(timespec="milliseconds"), **timeless(tick)}


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its time, which is written in another way."""
    return {name: value for name, value in row.items() if name != "time"}
