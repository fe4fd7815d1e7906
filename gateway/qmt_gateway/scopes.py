"""Which scope each route and WebSocket needs: the one table of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from starlette.routing import compile_path

from qmt_protocol.jobs import CATALOGUE, DOWNLOAD_QUEUE

__all__ = ["ROUTES", "SCOPES", "WEBSOCKET", "Rule", "Scope", "rule_of", "unlisted"]

Scope = Literal["read", "download", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("read", "download", "admin")
"""From the least to the most; ``keys add --scope`` gives each together with those before it."""
WEBSOCKET: Final = "WS"
"""Stands in the table where a REST route has its method."""


@dataclass(frozen=True)
class Rule:
    """What a route asks of a caller.

    Attributes
    ----------
    scope
        The scope that a key must have; ``None``: none, and no key either.
    is_job
        Whether it puts a job into a queue or takes one out.
    is_counted
        Whether it takes of a caller's requests; what watches the gateway must not be kept out by
        others of the same address.
    """

    scope: Scope | None
    is_job: bool = False
    is_counted: bool = True


_PUBLIC: Final = Rule(None)
_HEALTH: Final = Rule(None, is_counted=False)
_READ: Final = Rule("read")
_READ_BY_JOB: Final = Rule("read", is_job=True)
_DOWNLOAD: Final = Rule("download", is_job=True)
_ADMIN: Final = Rule("admin", is_counted=False)

ROUTES: Final[dict[tuple[str, str], Rule]] = {
    ("GET", "/"): _PUBLIC,
    ("GET", "/docs"): _PUBLIC,
    ("GET", "/docs/oauth2-redirect"): _PUBLIC,
    ("GET", "/redoc"): _PUBLIC,
    ("GET", "/openapi.json"): _PUBLIC,
    ("GET", "/static-offline-docs/{path:path}"): _PUBLIC,
    ("GET", "/healthz"): _HEALTH,
    ("GET", "/readyz"): _HEALTH,
    ("GET", "/api/history"): _READ_BY_JOB,
    ("GET", "/api/batch_history"): _READ_BY_JOB,
    ("GET", "/api/full_tick"): _READ,
    ("GET", "/api/sector_stocks"): _READ_BY_JOB,
    ("GET", "/api/instrument_detail"): _READ_BY_JOB,
    ("POST", "/api/download"): _DOWNLOAD,
    ("POST", "/api/v1/jobs/{name}"): _READ_BY_JOB,
    **{
        ("POST", f"/api/v1/jobs/{spec.name}"): _DOWNLOAD
        for spec in CATALOGUE.values()
        if spec.queue == DOWNLOAD_QUEUE
    },
    # A job's id is told to who submitted it alone and cannot be guessed: who knows it may use it.
    ("GET", "/api/v1/jobs/{id}"): _READ,
    ("GET", "/api/v1/jobs/{id}/result"): _READ,
    ("DELETE", "/api/v1/jobs/{id}"): _READ_BY_JOB,
    ("GET", "/api/v1/latest"): _READ,
    ("GET", "/api/v1/stored/ticks"): _READ,
    ("GET", "/api/v1/stored/bars"): _READ,
    ("GET", "/api/v1/archive"): _READ,
    ("GET", "/api/v1/status"): _READ,
    ("GET", "/metrics"): _ADMIN,
    (WEBSOCKET, "/ws/v1"): _READ,
    (WEBSOCKET, "/ws/realtime"): _READ,
    (WEBSOCKET, "/ws/whole_quote"): _READ,
}
"""Method, or `WEBSOCKET`, and path of everything that is served; an exact path goes first.

What tells of all callers together needs ``admin``.
"""

_EXACT: Final = {name: rule for name, rule in ROUTES.items() if "{" not in name[1]}
_SHAPES: Final[list[tuple[str, re.Pattern[str], Rule]]] = [
    (kind, compile_path(path)[0], rule) for (kind, path), rule in ROUTES.items() if "{" in path
]


def rule_of(kind: str, path: str) -> Rule:
    """Return what a method, or `WEBSOCKET`, of a path asks for; what is not served asks for a key.

    Parameters
    ----------
    path
        As the router matches it: unquoted.
    """
    kind = "GET" if kind == "HEAD" else kind
    exact = _EXACT.get((kind, path))
    if exact is not None:
        return exact
    for of_kind, shape, rule in _SHAPES:
        if of_kind == kind and shape.match(path):
            return rule
    return _READ


def unlisted(served: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of some methods and paths that the table lacks."""
    return sorted(set(served) - set(ROUTES))
