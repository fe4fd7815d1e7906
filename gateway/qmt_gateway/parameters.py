"""Query parameters that a route does not have: refused, as ignoring a misspelt one misleads."""

from __future__ import annotations

from fastapi import Request

from qmt_protocol.errors import InvalidRequest

__all__ = ["refuse_unknown"]

_SHOWN = 50


async def refuse_unknown(request: Request) -> None:
    """Check the names of a request's query parameters; a dependency of every REST route.

    Raises
    ------
    InvalidRequest
        For the first that the route's description does not name; ``allowed`` has those it does.
    """
    if not request.query_params:
        return
    operation = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    allowed = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
    for name in request.query_params:
        if name not in allowed:
            raise InvalidRequest(
                f"{request.url.path} has no parameter {name[:_SHOWN]!r}.",
                hint=f"It has {', '.join(allowed) or 'none'}.",
                field=name[:_SHOWN],
                allowed=allowed,
            )
