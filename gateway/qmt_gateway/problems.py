"""Errors as RFC 9457 problem documents: the project's own, the framework's and unforeseen ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmt_protocol.errors import (
    InvalidRequest,
    LimitExceeded,
    NotFound,
    QMTError,
    ScopeMissing,
    Unavailable,
)
from qmt_protocol.texts import shown

from .counts import PROBLEMS

__all__ = ["PROBLEM_TYPE", "UnexpectedErrors", "handle_errors", "problem"]

PROBLEM_TYPE: Final = "application/problem+json"
_RETRY_AFTER_S: Final = "5"
_BEARER: Final = 'Bearer realm="qmt-gateway"'
_log = structlog.get_logger(__name__)


def problem(error: QMTError, more_headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as a problem document: what happened, what to do, and its facts."""
    title = (type(error).__doc__ or "").partition("\n")[0].rstrip(".").replace("``", "")
    headers = dict(more_headers or {})
    if isinstance(error, ScopeMissing):
        headers["WWW-Authenticate"] = (
            f'{_BEARER}, error="insufficient_scope", scope="{error.scope}"'
        )
    elif error.http_status == 401:
        headers["WWW-Authenticate"] = _BEARER
    if isinstance(error, Unavailable):
        headers["Retry-After"] = _RETRY_AFTER_S
    if isinstance(error, LimitExceeded) and error.data.get("retry_after_s"):
        headers["Retry-After"] = str(math.ceil(error.data["retry_after_s"]))
    return _response(error.slug, title, error.http_status, error.to_dict(), headers)


def _response(
    slug: str, title: str, status: int, facts: dict[str, Any], headers: dict[str, str]
) -> Response:
    PROBLEMS[slug] += 1
    document = {
        "type": f"urn:qmt:{slug}",
        "title": title,
        "status": status,
        "detail": facts["message"],
        **facts,
    }
    return Response(msgspec.json.encode(document), status, headers=headers, media_type=PROBLEM_TYPE)


def handle_errors(app: FastAPI) -> None:
    """Make every error answer of an application a problem document."""

    @app.exception_handler(QMTError)
    async def _ours(request: Request, error: QMTError) -> Response:
        if error.http_status >= 500 and not isinstance(error, Unavailable):
            _log.warning("request failed", path=request.url.path, error=error.slug)
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return problem(
            InvalidRequest(
                f"{field}: {first['msg']}.", hint="See /docs for this path.", field=field
            )
        )

    @app.exception_handler(HTTPException)
    async def _framework(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            path = shown(request.url.path)
            return problem(NotFound(f"There is no path {path}.", hint="See /docs."))
        facts = {"error": "http", "message": error.detail, "hint": "See /docs.", "data": {}}
        return _response("http", error.detail, error.status_code, facts, dict(error.headers or {}))


class UnexpectedErrors:
    """Turn what no handler knows into a 500 that tells nothing of the inside, and log it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if started and isinstance(error.__cause__, QMTError):
                # Without its end the answer is not taken for whole, and the connection is closed.
                _log.warning("answer broken off", path=scope["path"], error=str(error.__cause__))
                return
            _log.exception("unexpected error", method=scope["method"], path=scope["path"])
            if started:
                raise
            await problem(_Unexpected())(scope, receive, send)


class _Unexpected(QMTError):
    """The gateway failed."""

    slug = "unexpected"

    def __init__(self) -> None:
        super().__init__(
            "The gateway met an error it does not know.", hint="Its log has the details."
        )
