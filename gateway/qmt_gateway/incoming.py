"""What a WebSocket client sends, bounded: pieces of a message, pings, and text that is none."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.protocol import State

__all__ = ["Incoming"]

_MOST_FRAGMENTS: Final = 4_096
_OBJECT_BYTES: Final = 60
_MESSAGE_BYTES: Final = 400
_LINGER_S: Final = 1.0
"""How long a client that is refused may take to read why."""


class Incoming(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which bounds the length of a message, bounded in the rest too.

    An empty fragment adds nothing to that length and is kept all the same; a pong is written for
    every ping, though the client reads none of them.
    """

    _pong: bytes = b""
    """The newest, while the client takes nothing."""
    _refused: bool = False

    @property
    def incoming_bytes(self) -> int:
        """Bytes that came and that nobody has looked at: of messages, and of one not whole yet."""
        fragments = sum(len(part) + _OBJECT_BYTES for part in self.frames)
        return len(self.conn.reader.buffer) + fragments + self.queue.qsize() * _MESSAGE_BYTES

    def handle_cont(self, event: Frame) -> None:
        """Take a further fragment."""
        if len(self.frames) >= _MOST_FRAGMENTS:
            self._refuse(CloseCode.MESSAGE_TOO_BIG)
        else:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answer a ping; who does not read gets the newest answer alone, as RFC 6455 allows."""
        if self.writable.is_set() or self.conn.state is not State.OPEN:
            super().handle_ping()
            return
        pongs = self.conn.data_to_send()
        self._pong = pongs[-1] if pongs else self._pong

    def resume_writing(self) -> None:
        """Called by the transport when most of what waited has gone."""
        super().resume_writing()
        pong, self._pong = self._pong, b""
        if pong and not self.transport.is_closing():
            self.transport.write(pong)

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message on; text that is not UTF-8 is the client's fault, and no error."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._refuse(CloseCode.INVALID_DATA)
                return
        super().send_receive_event_to_app()

    def data_received(self, data: bytes) -> None:
        """Take bytes; what comes behind a refused message is thrown away."""
        if not self._refused:
            super().data_received(data)

    def handle_parser_exception(self) -> None:
        """Tell the client why, and go when it has gone.

        A socket closed over bytes that nobody read is reset, and what it was told is lost.
        """
        if not self.transport.can_write_eof():
            super().handle_parser_exception()
            return
        sent = self.conn.close_sent
        assert sent is not None
        self._refused = self.close_sent = True
        self.close_timer = self.loop.call_later(_LINGER_S, self.transport.close)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.write_eof()
        self.queue.put_nowait(
            {"type": "websocket.disconnect", "code": sent.code, "reason": sent.reason}
        )

    def _refuse(self, code: CloseCode) -> None:
        self.frames = []
        if self.conn.state is State.OPEN and not self.transport.is_closing():
            self.conn.send_close(code)
            self.handle_parser_exception()
