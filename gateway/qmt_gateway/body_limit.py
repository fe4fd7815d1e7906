"""Bounds on what a caller may send: how much, and how slowly."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmt_protocol.errors import QMTError

from .problems import problem

if sys.version_info >= (3, 11):
    from asyncio import timeout_at
else:
    from async_timeout import timeout_at

__all__ = ["BodyLimit"]

MAX_BODY_BYTES: Final = 1_048_576
"""Ten thousand codes take a seventh of it."""


class _TooLarge(QMTError):
    """The request's body is too large."""

    slug = "too-large"
    http_status = 413

    def __init__(self) -> None:
        super().__init__(
            f"A request's body may have {MAX_BODY_BYTES} bytes.", hint="Ask in several requests."
        )


class _TooSlow(QMTError):
    """The request's body did not come in time."""

    slug = "too-slow"
    http_status = 408

    def __init__(self, within_s: float) -> None:
        super().__init__(
            f"The request's body was not there within {within_s:g} s.",
            hint="Send all that Content-Length announces.",
        )


class BodyLimit:
    """Refuse a body above `MAX_BODY_BYTES`, told beforehand or found out, and one that trickles in.

    Parameters
    ----------
    within_s
        Time that a body may take, once it is waited for.
    """

    def __init__(self, app: ASGIApp, within_s: float) -> None:
        self.app = app
        self._within_s = within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            await problem(_TooLarge())(scope, receive, send)
            return
        body = _Body(receive, self._within_s)
        started = False

        async def unless_refused(message: Message) -> None:
            nonlocal started
            if started or body.refused is None:  # else it is what became of our own exception
                started = True
                await send(message)

        await self.app(scope, body.receive, unless_refused)
        if body.refused is not None and not started:
            await problem(body.refused, {"Connection": "close"})(scope, receive, send)


class _Body:
    def __init__(self, receive: Receive, within_s: float) -> None:
        self._receive = receive
        self._within_s = within_s
        self._until: float | None = None
        self._bytes = 0
        self._whole = False
        self.refused: QMTError | None = None

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + self._within_s
        try:
            # Not by wait_for: what is there already must come without another task's turn.
            async with timeout_at(self._until):
                message = await self._receive()
        except asyncio.TimeoutError:
            self.refused = _TooSlow(self._within_s)
            raise self.refused from None
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._bytes > MAX_BODY_BYTES:
            self.refused = _TooLarge()
            raise self.refused
        return message
