"""uvicorn's WebSocket protocol with a way to send frames that are made, and to be rid of who
does not read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .connections import CONNECTION, Connection
from .incoming import Incoming

__all__ = ["SINK", "WebSocketProtocol", "close_reason"]

SINK: Final = "qmt.sink"
"""ASGI extension: the protocol itself, as a `qmt_gateway.subscriber.Sink`."""
_GRACE_S: Final = 5.0
_REASON_BYTES: Final = 123


def close_reason(text: str) -> str:
    """Return a text cut to what a close frame holds."""
    return text.encode()[:_REASON_BYTES].decode(errors="ignore")


class WebSocketProtocol(Incoming):
    """Sends whole frames as they are, without waiting, and closes without waiting.

    Closing by ASGI waits until the client has read what was sent; a stalled one would stay for
    ever. `abandon` puts the close frame behind what the client has not read yet, and drops the
    connection when it is not taken within `_GRACE_S`.
    """

    _on_drained: Callable[[], None] | None = None

    async def run_asgi(self) -> None:
        """Run the application with the extension in its scope."""
        extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
        extensions[SINK] = self
        self._connection.socket = self
        await super().run_asgi()

    @property
    def _connection(self) -> Connection:
        connection: Connection = self.app_state[CONNECTION]
        return connection

    def connection_lost(self, exc: Exception | None) -> None:
        """Called when the client is gone."""
        self._connection.lost()
        super().connection_lost(exc)

    def push(self, frame: bytes | memoryview) -> None:
        """Send a frame, or the next whole fragments of one."""
        if not self.gone:
            self.transport.write(frame)

    @property
    def paused(self) -> bool:
        """Whether the connection takes no more for now."""
        return not self.writable.is_set()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the client's connection has not taken yet."""
        return self.transport.get_write_buffer_size()

    @property
    def gone(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.close_sent or self.disconnected or self.transport.is_closing()

    def on_drained(self, call: Callable[[], None]) -> None:
        """Have a function called whenever little is left waiting."""
        self._on_drained = call

    def resume_writing(self) -> None:
        """Called by the transport when most of what waited has gone."""
        super().resume_writing()
        if self._on_drained is not None:
            self._on_drained()

    async def drain(self) -> None:
        """Wait until the client has taken most of what was sent, or is gone."""
        await self.writable.wait()

    def abandon(self, code: int, reason: str) -> None:
        """Close without waiting for room to write."""
        if self.gone:
            return
        if not self.handshake_complete:  # there is nothing yet that could be closed with a code
            self.transport.abort()
            return
        self.conn.send_close(code, close_reason(reason))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(_GRACE_S, self.transport.abort)
