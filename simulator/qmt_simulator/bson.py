"""The part of BSON that travels between xtdata.py and its native side, without a dependency.

Integers become int32 where they fit and int64 otherwise; `Int64` forces int64, as the terminal
does for times and volumes.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

_INT32 = struct.Struct("<i")
_INT64 = struct.Struct("<q")
_DOUBLE = struct.Struct("<d")


class BsonError(ValueError):
    """The bytes are not the BSON this module understands."""


class Int64(int):
    """An integer that is written with eight bytes whatever its size."""


def encode(document: Mapping[str, Any]) -> bytes:
    """Return the BSON bytes of `document`."""
    body = b"".join(_element(name, value) for name, value in document.items())
    return _INT32.pack(len(body) + 5) + body + b"\0"


def decode(data: bytes) -> dict[str, Any]:
    """Return the document in `data`; `BsonError` where it is malformed."""
    try:
        document, end = _read_document(data, 0, as_list=False)
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise BsonError(f"malformed document: {error}") from error
    if end != len(data):
        raise BsonError(f"{len(data) - end} bytes after the document")
    assert isinstance(document, dict)
    return document


def _element(name: str, value: Any) -> bytes:
    key = name.encode() + b"\0"
    if isinstance(value, bool):
        return b"\x08" + key + (b"\1" if value else b"\0")
    if isinstance(value, int):
        if isinstance(value, Int64) or not -(1 << 31) <= value < 1 << 31:
            return b"\x12" + key + _INT64.pack(value)
        return b"\x10" + key + _INT32.pack(value)
    if isinstance(value, float):
        return b"\x01" + key + _DOUBLE.pack(value)
    if isinstance(value, str):
        text = value.encode()
        return b"\x02" + key + _INT32.pack(len(text) + 1) + text + b"\0"
    if isinstance(value, bytes):
        return b"\x05" + key + _INT32.pack(len(value)) + b"\0" + value
    if value is None:
        return b"\x0a" + key
    if isinstance(value, Mapping):
        return b"\x03" + key + encode(value)
    if isinstance(value, Iterable):
        return b"\x04" + key + encode({str(i): item for i, item in enumerate(value)})
    raise BsonError(f"no BSON type for {type(value).__name__}")


def _read_document(data: bytes, start: int, *, as_list: bool) -> tuple[Any, int]:
    end = start + _INT32.unpack_from(data, start)[0]
    if end > len(data) or end < start + 5:
        raise BsonError("length beyond the data")
    position = start + 4
    document: dict[str, Any] = {}
    while data[position]:
        kind = data[position]
        stop = data.index(b"\0", position + 1)
        name = data[position + 1 : stop].decode()
        document[name], position = _read_value(data, stop + 1, kind)
    if position + 1 != end:
        raise BsonError("document ends early")
    return (list(document.values()) if as_list else document), end


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (0x03, 0x04):
        return _read_document(data, at, as_list=kind == 0x04)
    if kind == 0x01:
        return _DOUBLE.unpack_from(data, at)[0], at + 8
    if kind == 0x10:
        return _INT32.unpack_from(data, at)[0], at + 4
    if kind in (0x12, 0x09):
        return _INT64.unpack_from(data, at)[0], at + 8
    if kind == 0x08:
        return data[at] == 1, at + 1
    if kind == 0x0A:
        return None, at
    if kind == 0x02:
        length = _INT32.unpack_from(data, at)[0]
        return data[at + 4 : at + 3 + length].decode(), at + 4 + length
    if kind == 0x05:
        length = _INT32.unpack_from(data, at)[0]
        return data[at + 5 : at + 5 + length], at + 5 + length
    raise BsonError(f"element type 0x{kind:02x}")
