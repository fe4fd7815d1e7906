"""A batch as the ring keeps it: what would be published of it if all were new.

Its ids are candidates, ``<ms>-0``: which ids ticks and bars really have is decided by who holds
the market, so a standby's ring holds none. Where all of a batch is new, its body goes out as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, Literal

import msgspec

from qmt_protocol.keys import parse_series

__all__ = ["Candidates", "Entry", "Kind", "body_of", "head_of", "packed", "text"]

Kind = Literal["tick", "bar"]
Entry = tuple[str, int | str, bytes]
"""A tick: code, ms that orders it, ``t1``. A bar: its series, its label, ``k1``. What was
published before, elsewhere, has its whole entry id in place of the ms."""

text: Final = msgspec.msgpack.Encoder().encode
"""Encodes a code, a period or an entry id as it stands in a batch."""
_FEW, _MANY = 0x90, 0xDC  # how msgpack begins an array
_MOST_FEW: Final = 15


class Candidates(msgspec.Struct, array_like=True, frozen=True):
    """One batch, all ticks or all bars.

    Attributes
    ----------
    names : list of str
        Code of each tick, want of each bar.
    ats : list of int or str
        The ms of each, or its whole entry id.
    starts, sizes : bytes
        Where each ``t1`` or ``k1`` begins in the body, and its length in bytes; u32, the highest
        byte first.
    body : bytes
        ``b1`` or ``c1``.
    """

    names: list[str]
    ats: list[int | str]
    starts: bytes
    sizes: bytes
    body: bytes

    @classmethod
    def of(cls, kind: Kind, entries: Iterable[Entry]) -> Candidates:
        """Encode entries."""
        names, ats, data = zip(*entries, strict=True)
        parts: list[bytes] = []
        starts, at = [], _head_bytes(len(names))
        for name, ms, piece in zip(names, ats, data, strict=True):
            head = head_of(kind, name)
            entry_id = text(ms if isinstance(ms, str) else f"{ms}-0")
            at += len(head) + len(entry_id)
            starts.append(at)
            at += len(piece)
            parts += (head, entry_id, piece)
        sizes = packed([len(piece) for piece in data])
        return cls(list(names), list(ats), packed(starts), sizes, body_of(parts, len(names)))

    @property
    def first(self) -> int:
        """Where the first piece begins."""
        return _head_bytes(len(self.names))

    @property
    def entries(self) -> list[Entry]:
        """What it was made of."""
        return [
            (name, at, self.body[start : start + size])
            for name, at, start, size in zip(self.names, self.ats, *self.spans(), strict=True)
        ]

    def spans(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return starts and sizes as numbers."""
        form = f">{len(self.names)}I"
        return struct.unpack(form, self.starts), struct.unpack(form, self.sizes)


def _head_bytes(count: int) -> int:
    return 1 if count <= _MOST_FEW else 3


def body_of(parts: Sequence[bytes], count: int) -> bytes:
    """Put encoded pieces together to a batch of so many."""
    few = count <= _MOST_FEW
    return b"".join((bytes((_FEW + count,)) if few else struct.pack(">BH", _MANY, count), *parts))


def packed(numbers: Sequence[int]) -> bytes:
    """Return numbers as the feed has sizes: u32, the highest byte first."""
    return struct.pack(f">{len(numbers)}I", *numbers)


@lru_cache(maxsize=65_536)
def head_of(kind: Kind, name: str) -> bytes:
    """Return how the piece of a code, or of a bar's want, begins in a batch."""
    if kind == "tick":
        return b"\x93" + text(name)
    period, code = parse_series(name)
    return b"\x94" + text(code) + text(period)
