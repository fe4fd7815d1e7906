"""A bound on what a caller may send."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmt_protocol.errors import QMTError

from .problems import problem

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


class BodyLimit:
    """Refuse bodies above `MAX_BODY_BYTES`, told beforehand or found out while reading."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > MAX_BODY_BYTES:
            await problem(_TooLarge())(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise _TooLarge
            return message

        await self.app(scope, limited, send)
