"""uvicorn's WebSocket protocol with a way to be rid of a client that does not read."""

from __future__ import annotations

from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

__all__ = ["ABANDON", "WebSocketProtocol"]

ABANDON: Final = "qmt.abandon"
"""ASGI extension: a function of close code and reason."""
_GRACE_S: Final = 5.0


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Closing waits until the client has read what was sent; a stalled one would stay for ever.

    `abandon` puts the close frame behind what the client has not read yet, and drops the
    connection when it is not taken within `_GRACE_S`.
    """

    async def run_asgi(self) -> None:
        """Run the application with the extension in its scope."""
        extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
        extensions[ABANDON] = self.abandon
        await super().run_asgi()

    def abandon(self, code: int, reason: str) -> None:
        """Close without waiting for room to write."""
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(_GRACE_S, self.transport.abort)
