"""Writes a 64-bit Windows DLL that hands each of its functions on to another DLL.

Wine 8 lacks `bcryptprimitives.dll`, which every Windows since 8 has and from which Rust's standard
library takes random bytes. A DLL of forwarders is an export table and no code, so no compiler is
needed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

__all__ = ["RANDOM", "forwarding_dll"]

RANDOM: Final = ("bcryptprimitives.dll", {"ProcessPrng": "ADVAPI32.SystemFunction036"})
"""The missing DLL; both functions take a buffer and its length and return true."""

_RVA: Final = 0x1000
_PAGE: Final = 0x200
_EXPORTS: Final = 40


def forwarding_dll(name: str, functions: Mapping[str, str]) -> bytes:
    """Return a DLL's bytes.

    Parameters
    ----------
    functions
        Each function's name and where it is, as ``OTHER.Function``.
    """
    table = _export_table(name, functions)
    size = -(-len(table) // _PAGE) * _PAGE
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 240, 0x2022)
    optional = struct.pack("<HBBIIIII", 0x20B, 14, 0, 0, size, 0, 0, _RVA)
    optional += struct.pack("<QII", 0x180000000, 0x1000, _PAGE)
    optional += struct.pack("<HHHHHHI", 6, 0, 0, 0, 6, 0, 0)
    optional += struct.pack("<IIIHH", _RVA + 0x1000, _PAGE, 0, 3, 0x160)
    optional += struct.pack("<QQQQII", 0x100000, 0x1000, 0x100000, 0x1000, 0, 16)
    optional += struct.pack("<II", _RVA, len(table)) + bytes(8 * 15)
    section = struct.pack(
        "<8sIIIIIIHHI", b".edata", len(table), _RVA, size, _PAGE, 0, 0, 0, 0, 0x40000040
    )
    return (dos + coff + optional + section).ljust(_PAGE, b"\0") + table.ljust(size, b"\0")


def _export_table(name: str, functions: Mapping[str, str]) -> bytes:
    names = sorted(functions)
    count = len(names)
    addresses = _RVA + _EXPORTS
    name_pointers = addresses + 4 * count
    ordinals = name_pointers + 4 * count
    texts_at = ordinals + 2 * count
    texts = b""
    places = []
    for text in [name, *names, *(functions[one] for one in names)]:
        places.append(texts_at + len(texts))
        texts += text.encode("ascii") + b"\0"
    head = struct.pack(
        "<IIHHIIIIIII",
        *(0, 0, 0, 0, places[0], 1, count, count, addresses, name_pointers, ordinals),
    )
    head += struct.pack(f"<{count}I", *places[1 + count :])
    head += struct.pack(f"<{count}I", *places[1 : 1 + count])
    return head + struct.pack(f"<{count}H", *range(count)) + texts
