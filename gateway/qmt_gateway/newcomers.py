"""Connections that have said nothing yet: only sockets are held, so that a flood costs little.

A protocol, a transport and all that counts a connection are made when its first byte is there.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Newcomers"]

_LOOK_S: Final = 1.0


class Newcomers:
    """Waits for the first byte of each connection.

    Parameters
    ----------
    patience_s
        How long it may take.
    most
        How many may wait; beyond it the oldest goes.
    on_spoken
        Takes a connection whose first byte is there.
    on_dropped
        Told when one was closed for want of room.
    """

    def __init__(
        self,
        patience_s: float,
        most: int,
        on_spoken: Callable[[socket.socket], None],
        on_dropped: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience_s = patience_s
        self._most = most
        self._on_spoken = on_spoken
        self._on_dropped = on_dropped
        self._until: dict[socket.socket, float] = {}
        """Until when each may wait; the oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._until)

    def add(self, client: socket.socket) -> None:
        """Wait for its first byte, where the event loop can: that of Windows cannot."""
        client.setblocking(False)
        try:
            self._loop.add_reader(client, self._readable, client)
        except NotImplementedError:
            self._on_spoken(client)
            return
        if len(self._until) >= self._most:
            self.drop_oldest()
        self._until[client] = time.monotonic() + self._patience_s
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def close(self) -> None:
        """Close all of them."""
        if self._timer is not None:
            self._timer.cancel()
        for client in list(self._until):
            self._close(client)

    def drop_oldest(self) -> bool:
        """Close the oldest; whether there was one."""
        oldest = next(iter(self._until), None)
        if oldest is None:
            return False
        self._close(oldest)
        self._on_dropped()
        return True

    def _readable(self, client: socket.socket) -> None:
        try:
            spoken = bool(client.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return
        except OSError:
            spoken = False
        if not spoken:  # it has gone
            self._close(client)
            return
        del self._until[client]
        self._loop.remove_reader(client)
        self._on_spoken(client)

    def _close(self, client: socket.socket) -> None:
        del self._until[client]
        self._loop.remove_reader(client)
        client.close()

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        for client, until in list(self._until.items()):
            if until > now:
                break
            self._close(client)
        if self._until:
            self._timer = self._loop.call_later(_LOOK_S, self._look)
