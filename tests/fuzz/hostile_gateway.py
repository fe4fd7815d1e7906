"""A gateway that answers what it is told to: a real listener, HTTP and WebSocket by the byte."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgpack

__all__ = ["HostileGateway", "http_answer", "pack"]

_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_DEEP: Final = "@deep:"
_LENGTH: Final = re.compile(rb"\r\nContent-Length: (\d{1,9})(?:\r\n|$)")

Answer = Callable[[str, str], bytes]
"""Method and path to the bytes that are sent; empty: the connection is closed without any."""


class HostileGateway:
    """Listens on loopback.

    Parameters
    ----------
    answer
        Makes HTTP answers. After one that it has not framed right the connection is closed.

    Attributes
    ----------
    frames : list of bytes
        Payloads that a WebSocket gets behind its handshake, then it is closed.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.frames: list[bytes] = []
        self.url = ""
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        await reader.readexactly(int(headers.get("content-length", 0)))
        if "sec-websocket-key" in headers:
            await self._socket(headers["sec-websocket-key"], reader, writer)
            return False
        answer = self._answer(method, path)
        writer.write(answer)
        await writer.drain()
        return _is_framed(answer)

    async def _socket(
        self, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        accept = base64.b64encode(hashlib.sha1(key.encode() + _MAGIC).digest()).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n"
            "Sec-WebSocket-Protocol: qmt.v1.msgpack\r\n\r\n".encode()
        )
        for frame in self.frames:
            writer.write(_framed(frame))
        await writer.drain()
        await reader.read()  # until the client goes


def _is_framed(answer: bytes) -> bool:
    """Whether it says how long it is, and is so long: then the connection may go on."""
    head, _, body = answer.partition(b"\r\n\r\n")
    told = _LENGTH.search(head)
    return told is not None and int(told[1]) == len(body)


def _framed(payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x82, size)
    elif size < 65_536:
        head = struct.pack("!BBH", 0x82, 126, size)
    else:
        head = struct.pack("!BBQ", 0x82, 127, size)
    return head + payload


def http_answer(body: bytes, status: int = 200, **headers: str) -> bytes:
    """Return an HTTP answer that is framed right."""
    told = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in told.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def pack(value: Any) -> bytes:
    """Return a value as msgpack; ``@deep:n`` is an array nested so deep."""
    if isinstance(value, str) and value.startswith(_DEEP):
        return b"\x91" * int(value[len(_DEEP) :]) + b"\x00"
    if isinstance(value, (list, tuple)):
        return msgpack.Packer().pack_array_header(len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        head: bytes = msgpack.Packer().pack_map_header(len(value))
        return head + b"".join(pack(one) for pair in value.items() for one in pair)
    if isinstance(value, int) and not isinstance(value, bool):
        value = max(-(2**63), min(value, 2**64 - 1))
    return bytes(msgpack.packb(value))
