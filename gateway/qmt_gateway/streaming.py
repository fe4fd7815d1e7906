"""Answers that are made while they are sent: a piece when the caller has taken the one before."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, Final

from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmt_protocol.errors import Overloaded

from .budget import Budget
from .problems import problem

__all__ = [
    "Backpressure",
    "Held",
    "Streamed",
    "end_connection",
    "streamed_or_whole",
]


_PIECE_BYTES: Final = 65_536
_WHOLE_BYTES: Final = 1_000_000
CONNECTION: Final = "qmt.connection"
"""Name of a request's own connection in its state."""


class Held:
    """What one answer, upload or replay takes of the memory budget until it has ended.

    Parameters
    ----------
    size_bytes
        How much; it may grow.

    Raises
    ------
    Overloaded
        When there is no room for it.
    """

    def __init__(self, budget: Budget, size_bytes: int) -> None:
        budget.make_room(size_bytes)
        self.own_bytes = size_bytes
        self.taken_at = time.monotonic()
        self.on_cut: Callable[[str], object] | None = None
        """Ends it."""
        self._budget = budget
        budget.join(self)

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for its caller."""
        return self.own_bytes

    def grow(self, size_bytes: int) -> None:
        """Take so much more; see the class."""
        self._budget.make_room(size_bytes)
        self.own_bytes += size_bytes
        self.taken()

    def taken(self) -> None:
        """Note that its caller has taken, or sent, something."""
        self.taken_at = time.monotonic()

    def cut(self, reason: str) -> None:
        """End it for want of room."""
        self.let_go()
        if self.on_cut is not None:
            self.on_cut(reason)

    def let_go(self) -> None:
        """Take nothing any more."""
        self._budget.part(self)
        self._budget.released(self.own_bytes)
        self.own_bytes = 0


class Streamed(StreamingResponse):
    """A streamed answer whose reading ends with it, also when the caller goes or is cut off."""

    def __init__(self, body: AsyncGenerator[bytes, None], held: Held, **more: Any) -> None:
        super().__init__(body, **more)
        self._body = body
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        self._held.on_cut = partial(end_connection, scope)

        async def noted(message: Message) -> None:
            await send(message)
            self._held.taken()

        try:
            await super().__call__(scope, receive, noted)
        finally:
            self._held.let_go()
            await self._body.aclose()


async def streamed_or_whole(body: AsyncGenerator[bytes, None], held: Held, **more: Any) -> Response:
    """Return an answer: a small one whole, so that its length is told; another streamed.

    Raises
    ------
    QMTError
        Whatever the body raises before so much is there.
    """
    begun: list[bytes] = []
    try:
        async for piece in body:
            begun.append(piece)
            if sum(map(len, begun)) > _WHOLE_BYTES:
                return Streamed(_from(begun, body), held, **more)
    except BaseException:
        held.let_go()
        await body.aclose()
        raise
    held.let_go()
    return Response(b"".join(begun), **more)


async def _from(
    begun: list[bytes], rest: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    try:
        while begun:
            yield begun.pop(0)
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()


class Backpressure:
    """Sends every answer in pieces that its caller takes, and counts what waits until then."""

    def __init__(self, app: ASGIApp, budget: Budget) -> None:
        self.app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(self._budget, scope, receive, send)
        try:
            await self.app(scope, receive, answer.send)
        finally:
            answer.end()


class _Answer:
    """One answer on its way."""

    def __init__(self, budget: Budget, scope: Scope, receive: Receive, send: Send) -> None:
        self._budget = budget
        self._scope = scope
        self._receive = receive
        self._send = send
        self._held: Held | None = None
        self._is_refused = False

    async def send(self, message: Message) -> None:
        if self._is_refused:
            return
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body":
            await self._send_body(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        declared = dict(message["headers"]).get(b"content-length", b"")
        size_bytes = int(declared) if declared.isdigit() else 0
        if size_bytes > _PIECE_BYTES and message["status"] < 400:
            try:
                self._held = Held(self._budget, size_bytes)
            except Overloaded as error:
                self._is_refused = True
                await problem(error)(self._scope, self._receive, self._send)
                return
            self._held.on_cut = partial(end_connection, self._scope)
        await self._send(message)

    async def _send_body(self, message: Message) -> None:
        body = memoryview(message.get("body", b""))
        if len(body) <= _PIECE_BYTES:
            await self._send(message)
            return
        more = message.get("more_body", False)
        for start in range(0, len(body), _PIECE_BYTES):
            piece = bytes(body[start : start + _PIECE_BYTES])
            is_last = start + _PIECE_BYTES >= len(body) and not more
            await self._send({**message, "body": piece, "more_body": not is_last})
            if self._held is not None:
                self._held.taken()

    def end(self) -> None:
        if self._held is not None:
            self._held.let_go()


def end_connection(scope: Scope, reason: str) -> None:
    """Drop a caller's connection: an answer that has begun can say nothing any more."""
    connection = scope.get("state", {}).get(CONNECTION)
    if connection is not None:
        connection.transport.abort()
