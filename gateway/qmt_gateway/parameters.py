"""What a request says, read strictly: its query and its body."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Request, WebSocket
from pydantic import BaseModel, BeforeValidator, ValidationError, WithJsonSchema
from starlette.requests import HTTPConnection

from qmt_protocol.amounts import MAX_ROWS, whole_number
from qmt_protocol.documents import parse_json
from qmt_protocol.errors import InvalidRequest
from qmt_protocol.texts import shown

from .budget import Budget
from .streaming import Held, end_connection

__all__ = [
    "Count",
    "Document",
    "described_body",
    "parse_document",
    "refuse_unknown",
    "refuse_unknown_of_socket",
]

_JSON: Final = "application/json"


async def refuse_unknown(request: Request) -> None:
    """Check the names of a request's query parameters; a dependency of every REST route.

    Raises
    ------
    InvalidRequest
        See `_check_query`.
    """
    if request.scope["query_string"]:
        described = request.app.openapi()["paths"][request.scope["route"].path]
        parameters = described[request.method.lower()].get("parameters", ())
        _check_query(request, [one["name"] for one in parameters if one["in"] == "query"])


def refuse_unknown_of_socket(ws: WebSocket) -> None:
    """Check the names of a WebSocket's query parameters: there is the key alone.

    Raises
    ------
    InvalidRequest
        See `_check_query`.
    """
    _check_query(ws, ["api_key"])


def _check_query(connection: HTTPConnection, allowed: list[str]) -> None:
    """Check a query: ignoring a misspelt name would mislead, as choosing of two values would.

    Raises
    ------
    InvalidRequest
        For the first name that is not allowed (``allowed`` has those that are) or stands twice,
        and for a query that is not UTF-8.
    """
    try:
        unquote_to_bytes(connection.scope["query_string"]).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The query is not UTF-8: {error.reason}.",
            hint="Percent-encode its characters as UTF-8.",
            field="query",
        ) from None
    for name, count in Counter(name for name, _ in connection.query_params.multi_items()).items():
        if name not in allowed:
            raise InvalidRequest(
                f"{connection.url.path} has no parameter {shown(name)}.",
                hint=f"It has {', '.join(allowed) or 'none'}.",
                field=shown(name).strip("'"),
                allowed=allowed,
            )
        if count > 1:
            raise InvalidRequest(
                f"{name} stands {count} times in the query.",
                hint="Give it once; lists are comma-separated.",
                field=name,
            )


def _rows(value: Any) -> Any:
    """Return a count of rows; -1 is all."""
    if value is None:
        return None
    number = whole_number(value)
    if number == -1 or (number is not None and 1 <= number <= MAX_ROWS):
        return number
    raise InvalidRequest(
        f"count={shown(value)} is not a number of rows.",
        hint=f"Give 1 to {MAX_ROWS}, or -1 for all rows of the range.",
        field="count",
    )


Count = Annotated[
    int | None,
    BeforeValidator(_rows),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": -1, "maximum": MAX_ROWS}]}),
]


async def read_document(request: Request) -> dict[str, Any]:
    """Return a request's body; a dependency of routes that have one.

    It is read by `parse_json` and not by the framework, which takes what is no JSON.

    Raises
    ------
    InvalidRequest
        For another media type, or what is not one JSON object.
    Overloaded
        When there is no memory for it.
    """
    _check_type(request)
    document = parse_json(await _body(request, request.app.state.budget))
    if not isinstance(document, dict):
        raise InvalidRequest("The body is no JSON object.", hint="See /docs.", field="body")
    return document


Document = Annotated[dict[str, Any], Depends(read_document)]


def described_body(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what OpenAPI is told of a route with a `Document`."""
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


_Model = TypeVar("_Model", bound=BaseModel)


def parse_document(kind: type[_Model], document: dict[str, Any]) -> _Model:
    """Return a document as a model.

    Raises
    ------
    InvalidRequest
        When it is none; the field is named.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise InvalidRequest(
                f"There is no {shown(field)}.", hint=f"There are {known}.", field=field
            ) from None
        raise InvalidRequest(
            f"{field}: {first['msg']}.", hint="See /docs for this path.", field=field
        ) from None


async def _body(request: Request, budget: Budget) -> bytes:
    held = Held(budget, 0)
    held.on_cut = partial(end_connection, request.scope)
    parts = []
    try:
        async for part in request.stream():
            held.grow(len(part))
            parts.append(part)
    finally:
        held.let_go()
    return b"".join(parts)


def _check_type(request: Request) -> None:
    header = request.headers.get("content-type", "")
    kind, _, parameters = header.partition(";")
    name, _, charset = parameters.strip().partition("=")
    right = kind.strip().lower() == _JSON and (
        not name or (name.lower() == "charset" and charset.strip('"').lower() == "utf-8")
    )
    if not right:
        raise _WrongType(
            f"The body's media type is {shown(header)}.",
            hint=f"Send {_JSON}, in UTF-8.",
            field="Content-Type",
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise _WrongType("The body is encoded.", hint="Send it as it is.", field="Content-Encoding")


class _WrongType(InvalidRequest):
    """A body of a media type that is not served."""

    http_status = 415
