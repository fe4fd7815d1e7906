"""Changes of valid bytes and of valid JSON: what a disk, a line or an enemy makes of them."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["changed", "changed_document", "deep", "encoded"]

_HEAD_BYTES: Final = 2_000
_EXTREMES: Final = (
    *(0, 1, -1, 2, 7, 8, 64, 127, 128, 255, 256, 32_767, 65_535, 65_536),
    *(2**24, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63)),
)


def changed(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return valid bytes with some change; rarely with none.

    Parameters
    ----------
    others
        Other valid inputs, to splice with.
    """
    if chance.random() < 0.04:
        return data
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(_CHANGES)(chance, data, others)
    return data


def _place(chance: random.Random, data: bytes) -> int:
    end = len(data) if chance.random() < 0.5 else min(len(data), _HEAD_BYTES)
    return chance.randrange(max(1, end))


def _flip(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if found:
            at = _place(chance, data)
            found[at] = (
                found[at] ^ (1 << chance.randrange(8))
                if chance.random() < 0.5
                else (chance.randrange(256))
            )
    return bytes(found)


def _length(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Write a number where one may be."""
    shape = chance.choice(("<i", "<q", "<H", ">I", ">H"))
    size = struct.calcsize(shape)
    if len(data) <= size:
        return data
    at = _place(chance, data) // 4 * 4
    at = min(at, len(data) - size)
    old = struct.unpack_from(shape, data, at)[0]
    new = chance.choice((*_EXTREMES, old + 1, old - 1, old * 2, len(data), len(data) * 2))
    packed = (new % (1 << 8 * size)).to_bytes(size, "little" if shape[0] == "<" else "big")
    return data[:at] + packed + data[at + size :]


def _cut(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _more(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    tail = chance.choice((b"\0" * 8, chance.randbytes(chance.randrange(1, 40)), data[-64:]))
    return data + tail


def _splice(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = chance.choice(others) if others else data
    step = chance.choice((1, 8, 64))
    begin = chance.randrange(len(data) // step + 1) * step
    end = chance.randrange(len(other) // step + 1) * step
    return data[:begin] + other[end:]


def _copy(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Put a block over another, of this or another input."""
    other = chance.choice(others) if others and chance.random() < 0.5 else data
    size = chance.choice((1, 4, 8, 16, 64, 256))
    if len(other) <= size or len(data) <= size:
        return data
    begin = chance.randrange(len(other) - size) // 4 * 4
    at = _place(chance, data)
    return (data[:at] + other[begin : begin + size] + data[at + size :])[: len(data)]


def _fill(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    size = chance.choice((1, 4, 8, 64, 512))
    at = _place(chance, data)
    return data[:at] + bytes([chance.choice((0, 0xFF, 0x80))]) * size + data[at + size :]


_CHANGES: Final = (_flip, _flip, _flip, _length, _length, _cut, _more, _splice, _copy, _fill)

_DEEP: Final = re.compile(r'"@deep:(\d+)"')
"""What stands in a changed document for one that is nested so deep."""


def changed_document(chance: random.Random, document: Any) -> Any:
    """Return a JSON document with some values replaced, removed, renamed or exchanged."""
    document = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            return _value(chance)
        holder, key = chance.choice(places)
        act = chance.randrange(8)
        if act == 0:
            del holder[key]
        elif act == 1 and isinstance(holder, dict):
            holder[_name(chance)] = holder.pop(key)
        elif act == 2:
            other_holder, other_key = chance.choice(places)
            holder[key] = copy.deepcopy(other_holder[other_key])
        elif act == 3 and isinstance(holder, dict):
            holder[_name(chance)] = _value(chance)
        else:
            holder[key] = _value(chance)
    return document


def _places(document: Any) -> Any:
    """Yield each container and key in a document."""
    if isinstance(document, dict):
        keys: Any = list(document)
    elif isinstance(document, list):
        keys = range(min(len(document), 50))
    else:
        return
    for key in keys:
        yield document, key
        yield from _places(document[key])


def _name(chance: random.Random) -> str:
    return str(
        chance.choice(
            (
                *("", "hint", "message", "data", "args", "self", "to_dict", "error", "code", "id"),
                *("time", "600519.SH", "SH", "é", "x" * 300, "\ud7ff", "__class__"),
            )
        )
    )


def _value(chance: random.Random) -> Any:
    return chance.choice(
        (
            *(None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**64), 10**30),
            *(0.5, -0.0, 1e308, "", "x", "0-0", "abc-def", "9" * 25, "99999999999999999-0"),
            *("600519.SH", "x" * 5_000, "\u0000", "é中"),
            *([], {}, [[]], {"": {}}, [1, 2, 3], {"a": 1}, [None] * 3, ["600519.SH"] * 3),
            f"@deep:{chance.choice((10, 40, 500, 2_000, 100_000))}",
        )
    )


def encoded(document: Any) -> bytes:
    """Return a changed document as JSON."""
    text = json.dumps(document, ensure_ascii=False)
    text = _DEEP.sub(lambda found: deep(int(found[1])), text)
    return text.encode("utf-8", "surrogatepass")


def deep(levels: int) -> str:
    """Return lists and objects within each other, as JSON."""
    pairs = levels // 2
    return '{"a":[' * pairs + "1" + "]}" * pairs
