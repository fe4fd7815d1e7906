"""uvicorn's HTTP protocol, each connection of which is known to `Connections`."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .connections import CONNECTION, CONNECTIONS, Connections

__all__ = ["HttpProtocol"]


class HttpProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # h11's or httptools'
    """Takes its connection into `Connections`, and puts it into the state of each request."""

    app_state: dict[str, Any]
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when a client has connected."""
        super().connection_made(transport)
        connections: Connections = self.app_state[CONNECTIONS]
        self.app_state = {**self.app_state, CONNECTION: connections.opened(self.transport)}

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the client is gone; not of one that has become a WebSocket."""
        self.app_state[CONNECTION].lost()
        super().connection_lost(exc)
