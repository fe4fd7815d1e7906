"""The private line between native stub, control client and simulated terminal.

A frame is a little-endian uint32 length and a msgpack array. The first item tells its kind:
`REQUEST` [kind, id, function, args], `RESPONSE` [kind, id, ok, value, native stdout lines],
`PUSH` [kind, subscription id, bytes], `PROGRESS` [kind, download id, dict], `EVENT`
[kind, name, bytes], `PART` [kind, request id, list]: what a long answer's value begins with.
"""

import socket
import struct
from typing import Any, Final

import msgpack  # type: ignore[import-untyped, unused-ignore]

REQUEST: Final = 0
RESPONSE: Final = 1
PUSH: Final = 2
PROGRESS: Final = 3
EVENT: Final = 4
PART: Final = 5

MAX_FRAME_BYTES: Final = 1 << 30

_LENGTH = struct.Struct("<I")


class FrameError(ConnectionError):
    """The other side sent something that is not a frame."""


def pack(*items: Any) -> bytes:
    """Return one frame holding `items`."""
    body: bytes = msgpack.packb(items, use_bin_type=True)
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes | bytearray | memoryview) -> list[Any]:
    """Return the items of one frame's body."""
    items = msgpack.unpackb(body, raw=False, strict_map_key=False)
    if not isinstance(items, list) or not items:
        raise FrameError("frame without a kind")
    return items


def body_length(prefix: bytes) -> int:
    """Return the length that a frame's four-byte prefix announces."""
    length: int = _LENGTH.unpack(prefix)[0]
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes")
    return length


def receive(sock: socket.socket) -> list[Any]:
    """Read one frame from a blocking socket; ConnectionError at its end."""
    return unpack(_receive_exactly(sock, body_length(bytes(_receive_exactly(sock, 4)))))


def _receive_exactly(sock: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view.nbytes:
        got = sock.recv_into(view)
        if not got:
            raise ConnectionResetError("terminal closed the connection")
        view = view[got:]
    return data
