"""Ticks as rows of bytes: the BSON documents of a push, and the records of the push log.

A tick's document has a fixed size, so a push is made by copying a template per instrument and
writing the numbers into place with numpy, with no Python code per tick.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from qmt_simulator import bson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmt_simulator.market import Ticks

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SCALARS: Final[dict[str, str]] = {
    "time": "<i8",
    "lastPrice": "<f8",
    "open": "<f8",
    "high": "<f8",
    "low": "<f8",
    "lastClose": "<f8",
    "amount": "<f8",
    "volume": "<i8",
    "pvolume": "<i8",
    "stockStatus": "<i4",
    "openInt": "<i4",
    "transactionNum": "<i4",
    "lastSettlementPrice": "<f8",
    "settlementPrice": "<f8",
    "pe": "<f8",
}
DEPTH: Final[dict[str, str]] = {
    "askPrice": "<f8",
    "bidPrice": "<f8",
    "askVol": "<i4",
    "bidVol": "<i4",
}
SPEEDS: Final[dict[str, str]] = {"volRatio": "<f8", "speed1Min": "<f8", "speed5Min": "<f8"}
FIELDS: Final[dict[str, str]] = {**SCALARS, **DEPTH, **SPEEDS}
"""The keys of a pushed tick in the terminal's order, with their types."""

LEVELS: Final = 5

FLAG_NO_TIME: Final = 1
FLAG_SNAPSHOT: Final = 2
FLAG_FAULT: Final = 4

LOG_DTYPE: Final = np.dtype(
    [
        ("seq", "<u8"),
        ("wall_ms", "<i8"),
        ("subscription", "<i4"),
        ("connection", "<i4"),
        ("flags", "<u4"),
        ("code", "S12"),
        *((name, kind) for name, kind in SCALARS.items()),
        *((name, kind, (LEVELS,)) for name, kind in DEPTH.items()),
        *((name, kind) for name, kind in SPEEDS.items()),
    ]
)
"""One record of the push log.

`seq` counts every tick delivered to a whole-quote subscription, in the order pushed. `flags`:
1 the tick was pushed without its `time` key, 2 it belongs to a snapshot, 4 a fault changed it.
"""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Ticks about to be pushed, with what the faults did to them."""

    ticks: Ticks
    flags: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.ticks.idx)

    def take(self, rows: Ints | Mask) -> Rows:
        return Rows(self.ticks.take(rows), self.flags[rows])


class TickEncoder:
    """Makes push documents and log records for the instruments of one market."""

    def __init__(self, codes: Sequence[str]) -> None:
        self._codes = np.array([code.encode() for code in codes], dtype="S12")
        lengths = np.array([len(code) for code in codes])
        self._length = lengths
        self._layouts = {
            (int(length), with_time): _Layout(int(length), with_time=with_time)
            for length in np.unique(lengths)
            for with_time in (True, False)
        }

    def groups(self, rows: Rows) -> list[tuple[Ints, npt.NDArray[np.uint8]]]:
        """Return (row numbers, bytes of shape (rows, size)) per layout."""
        no_time = (rows.flags & FLAG_NO_TIME) != 0
        lengths = self._length[rows.ticks.idx]
        result = []
        for (length, with_time), layout in self._layouts.items():
            members = np.flatnonzero((lengths == length) & (no_time != with_time))
            if len(members):
                part = rows.ticks.take(members) if len(members) < len(rows) else rows.ticks
                result.append((members, layout.fill(part, self._codes)))
        return result

    def records(self, rows: Rows, order: Ints) -> npt.NDArray[Any]:
        """Return log records of the rows in `order`, without seq and addressee."""
        records = np.zeros(len(order), dtype=LOG_DTYPE)
        records["code"] = self._codes[rows.ticks.idx[order]]
        records["flags"] = rows.flags[order]
        for field in FIELDS:
            records[field] = getattr(rows.ticks, field)[order]
        return records


class _Layout:
    """The bytes of `{code: tick}` entries of one code length, and where its numbers go."""

    def __init__(self, code_length: int, *, with_time: bool) -> None:
        fields = {name: kind for name, kind in FIELDS.items() if with_time or name != "time"}
        document: dict[str, Any] = {}
        names, formats, offsets = ["code"], [f"S{code_length}"], [1]
        start = 1 + code_length + 1
        at = start + 4
        for name, kind in fields.items():
            at += 1 + len(name) + 1
            zero: Any = {"<i8": bson.Int64(0), "<i4": 0, "<f8": 0.0}[kind]
            width = np.dtype(kind).itemsize
            if name in DEPTH:
                document[name] = [zero] * LEVELS
                # Each level is its type, its number as text, a zero byte and the value.
                step = 3 + width
                cell = np.dtype(
                    {"names": ["v"], "formats": [kind], "offsets": [3], "itemsize": step}
                )
                names.append(name)
                formats.append((cell, (LEVELS,)))  # type: ignore[arg-type]
                offsets.append(at + 4)
                at += 4 + step * LEVELS + 1
            else:
                document[name] = zero
                names.append(name)
                formats.append(kind)
                offsets.append(at)
                at += width
        body = b"\x03" + b"0" * code_length + b"\0" + bson.encode(document)
        if len(body) != at + 1:
            raise AssertionError("tick layout and BSON disagree")
        self._fields = list(fields)
        self._template = np.frombuffer(body, dtype=np.uint8)
        self._dtype = np.dtype(
            {"names": names, "formats": formats, "offsets": offsets, "itemsize": len(body)}
        )

    def fill(self, ticks: Ticks, codes: npt.NDArray[np.bytes_]) -> npt.NDArray[np.uint8]:
        count = len(ticks.idx)
        raw = np.empty((count, len(self._template)), dtype=np.uint8)
        raw[:] = self._template
        view = raw.view(self._dtype)[:, 0]
        view["code"] = codes[ticks.idx]
        for name in self._fields:
            values = getattr(ticks, name)
            if name in DEPTH:
                view[name]["v"] = values
            else:
                view[name] = values
        return raw


def document(parts: Sequence[bytes]) -> bytes:
    """Return the BSON document that holds the given entries."""
    body = b"".join(parts)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def list_document(code: str, entry: bytes) -> bytes:
    """Return `{code: [tick]}` from one entry `{code: tick}`, as subscribe_quote pushes it."""
    tick = entry[1 + len(code) + 1 :]
    rows = document([b"\x030\0" + tick])
    return document([b"\x04" + code.encode() + b"\0" + rows])


def rounds(idx: npt.NDArray[np.int32]) -> list[Ints]:
    """Split rows so that no instrument is twice in one document, each in its own order."""
    count = len(idx)
    order = np.argsort(idx, kind="stable")
    ordered = idx[order]
    first = np.ones(count, dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    if first.all():
        return [np.arange(count)]
    starts = np.flatnonzero(first)
    within = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    turn = np.empty(count, dtype=np.int64)
    turn[order] = within
    return [np.flatnonzero(turn == number) for number in range(int(within.max()) + 1)]
