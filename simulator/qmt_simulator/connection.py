"""One client of the terminal: its socket's sending side and what it has running."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

SEND_BUFFER_BYTES: Final = 512 << 20
"""A client that is so far behind is cut off."""

_log = logging.getLogger(__name__)


class Connection:
    """A connected native stub or controller, told apart by `role`."""

    def __init__(self, number: int, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.role = ""
        self.pid = 0
        self.downloads: set[asyncio.Task[Any]] = set()
        self.tasks: set[asyncio.Task[Any]] = set()
        self._writer = writer
        self._draining = asyncio.Lock()

    def send(self, frame: bytes) -> None:
        """Queue a frame; a client that does not read is cut off."""
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > SEND_BUFFER_BYTES:
            _log.warning("client %d (%s) does not read: cut off", self.pid, self.role)
            transport.abort()
            return
        self._writer.write(frame)

    async def drain(self) -> None:
        """Wait until the client has taken most of what was sent; ConnectionError if it is gone."""
        async with self._draining:
            await self._writer.drain()

    def close(self) -> None:
        """Drop the connection and what was still to be sent."""
        self._writer.transport.abort()
