"""The clients' connections: who waits without having asked, and who goes when there is no room.

A connection is admitted once it has sent a request that was let in. Until then it is one of a
bounded number, and the oldest of them goes when another comes. Between requests each has so long to
send the next one's head, admitted or not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from qmt_protocol.live import CloseCode

from .rare_log import Rarely

__all__ = ["CONNECTION", "CONNECTIONS", "Connection", "Connections", "Tracked"]

CONNECTIONS: Final = "qmt.connections"
"""Name of the `Connections` in the lifespan's state."""
CONNECTION: Final = "qmt.connection"
"""Name of a request's own `Connection` in its state."""
_log: Final = structlog.get_logger(__name__)


class Caller(Protocol):
    """Who is admitted, and what he has."""

    connections: set[Connection]

    def take_in(self, connection: Connection) -> None:
        """Check whether one more may be his, and add it."""


class EndedByCode(Protocol):
    """A WebSocket."""

    def abandon(self, code: int, reason: str) -> None:
        """Close it without waiting for room to write."""


class Connection:
    """One TCP connection of a client."""

    __slots__ = ("_all", "_unread_bytes", "codes", "socket", "transport", "unread", "usage")

    def __init__(self, all_: Connections, transport: asyncio.Transport) -> None:
        self._all = all_
        self._unread_bytes = 0
        self.transport = transport
        self.usage: Caller | None = None
        """Whose it is; none as long as it is not admitted."""
        self.socket: EndedByCode | None = None
        """Its WebSocket, where it has become one."""
        self.codes: Callable[[], int] = _none
        """Tells how many codes, bars and markets its WebSocket is subscribed to."""
        self.unread: Callable[[], int] = _none
        """Tells how many bytes wait for its WebSocket."""

    @property
    def unread_bytes(self) -> int:
        """Bytes that its WebSocket has not taken yet."""
        return self.unread()

    def admit(self, usage: Caller) -> None:
        """Count it among a caller's.

        Raises
        ------
        LimitExceeded
            When the caller has as many as it may.
        """
        if self.usage is usage:
            return
        usage.take_in(self)
        if self.usage is not None:
            self.usage.connections.discard(self)
        self.usage = usage
        self._all.admitted(self)

    def end(self, code: CloseCode, reason: str) -> None:
        """End it: a WebSocket with a code and a reason, another at once."""
        if self.socket is not None:
            self.socket.abandon(code, reason)
        else:
            self.transport.abort()

    def lost(self) -> None:
        """Called when it is gone."""
        if self.usage is not None:
            self.usage.connections.discard(self)
        self._all.lost(self)

    def still_reads(self) -> bool:
        """Whether what was written to it goes away, since this was last asked."""
        before, self._unread_bytes = self._unread_bytes, self.transport.get_write_buffer_size()
        return self._unread_bytes > 0 and self._unread_bytes != before


def _none() -> int:
    return 0


class Connections:
    """All connections of this process.

    Parameters
    ----------
    head_s
        Time in which the head of a request must be there, from the connection's beginning or from
        the answer before it.
    most
        How many there may be in all; 0: as many as come.
    most_unadmitted
        How many there may be that were not let in yet.
    """

    def __init__(self, *, head_s: float, most: int, most_unadmitted: int) -> None:
        self.head_s = head_s
        self.most = most
        self.most_unadmitted = most_unadmitted
        self._all: set[Connection] = set()
        self._unadmitted: dict[Connection, None] = {}
        """The oldest first."""
        self._waiting: dict[Connection, float] = {}
        """Those without a request, and until when; the first to be due first."""
        self._rarely = Rarely()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def unadmitted(self) -> int:
        """How many were not let in yet."""
        return len(self._unadmitted)

    def opened(self, transport: asyncio.Transport) -> Connection:
        """Take a new one in; beyond the number that may be unadmitted the oldest goes."""
        connection = Connection(self, transport)
        if len(self._unadmitted) >= self.most_unadmitted:
            self.make_room()
        self._all.add(connection)
        self._unadmitted[connection] = None
        self._wait(connection)
        return connection

    def make_room(self) -> bool:
        """End the oldest that was not let in, an idle one if there is one; whether there was."""
        found = next((one for one in self._unadmitted if one in self._waiting), None)
        found = found or next(iter(self._unadmitted), None)
        if found is None:
            return False
        found.transport.abort()
        found.lost()
        self.notify_room()
        return True

    def notify_room(self) -> None:
        """Say now and then that connections without a key are ended."""
        self._rarely.log(_log.warning, "unauthenticated connections ended to make room")

    def admitted(self, connection: Connection) -> None:
        """Note that one was let in."""
        self._unadmitted.pop(connection, None)

    def lost(self, connection: Connection) -> None:
        """Forget one."""
        self._all.discard(connection)
        self._unadmitted.pop(connection, None)
        self._waiting.pop(connection, None)

    def began(self, connection: Connection) -> None:
        """Note that one's request is being answered."""
        self._waiting.pop(connection, None)

    def finished(self, connection: Connection) -> None:
        """Note that one's request was answered."""
        if connection in self._all:
            self._wait(connection)

    def _wait(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)
        self._waiting[connection] = time.monotonic() + self.head_s

    def sweep(self) -> None:
        """End those whose next request's head has not come in time."""
        now = time.monotonic()
        for connection, until in list(self._waiting.items()):
            if until > now:
                break
            admitted = connection.usage is not None
            unread = connection.transport.get_write_buffer_size() > 0
            # An answer may be taken slowly; by whom nobody knows it must be taken at all.
            if unread and (connection.still_reads() or admitted):
                self._wait(connection)
            else:
                self.lost(connection)
                connection.transport.abort()


class Tracked:
    """Tells `Connections` when a request is being answered; the outermost layer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the application."""
        connection: Connection | None = scope.get("state", {}).get(CONNECTION)
        if connection is None:
            await self.app(scope, receive, send)
            return
        connections: Connections = scope["state"][CONNECTIONS]
        connections.began(connection)
        try:
            await self.app(scope, receive, send)
        finally:
            connections.finished(connection)
