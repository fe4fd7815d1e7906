"""The application: routes, errors, keys and pages put together."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.responses import RedirectResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from qmt_reading.stored.archive import open_archive

from . import job_routes, live_socket, market_routes, metrics, realtime, stored_routes
from .accepting import most_connections, raise_descriptor_limit
from .access import Access, Gate
from .answers import SOURCE_HEADER
from .body_limit import BodyLimit
from .bridge import Bridge
from .budget import Budget
from .connections import CONNECTIONS, Connections, Tracked
from .heartbeat import beat
from .hub import Hub
from .live_state import LiveState
from .models import Problem
from .problems import UnexpectedErrors, handle_errors
from .scopes import ROUTES, WEBSOCKET, unlisted
from .settings import GatewaySettings
from .streaming import Backpressure
from .usage import Usages

__all__ = ["create_app"]

_ABOUT: Final = """
Market data of QMT/miniQMT: history and reference data answered by a worker beside the terminal,
ticks from Redis Streams. No trading.

**Live:** WebSocket `/ws/v1`, described by docs/live.md and docs/asyncapi.yaml. For callers of
qmt-bridge-pro also `/ws/realtime` and `/ws/whole_quote`, see docs/gateway.md.

**Keys:** `X-API-Key: <key>` or `Authorization: Bearer <key>`; a browser's WebSocket: `?api_key=`.
The scope that a route needs is its `x-scope`; docs/security.md has the limits of a key.

**Errors** are problem documents (RFC 9457): what happened, what to do, and the facts.

**Source:** `meta.source` and the header `X-QMT-Source` say SIMULATED while the simulator is the
source.
"""
_TAGS: Final = [
    {"name": "history", "description": "Bars and ticks of the past."},
    {"name": "ticks", "description": "Last stored ticks, from Redis alone."},
    {"name": "reference", "description": "Sectors and instruments."},
    {"name": "jobs", "description": "Any catalogue job, with progress; tables as Arrow."},
    {"name": "operation", "description": "Whether the bridge is well."},
]


_ROUTERS: Final[tuple[APIRouter, ...]] = (
    market_routes.router,
    job_routes.router,
    stored_routes.router,
    job_routes.health_router,
    metrics.router,
    live_socket.router,
    realtime.router,
)
_EXPOSED: Final = [SOURCE_HEADER, "Location", "RateLimit", "RateLimit-Policy", "Retry-After"]
_SCHEMES: Final = {
    "APIKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "HTTPBearer": {"type": "http", "scheme": "bearer"},
}


def create_app(settings: GatewaySettings) -> FastAPI:
    """Return the gateway's application.

    Raises
    ------
    ConfigurationError
        When it would listen for other machines without a key, or a key is malformed.
    """
    settings.check_exposure()
    if settings.archive_url:
        open_archive(settings.archive_url)  # told at the start, not at the first question

    gate = _gate(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        bridge = Bridge(settings)
        hub = Hub(
            bridge.transport,
            flush_s=settings.bridge_ws_flush_ms / 1000,
            max_bytes=settings.bridge_ws_queue_bytes,
            budget=app.state.budget,
        )
        live = LiveState(hub, bridge, stall_s=settings.bridge_ws_stall_s)
        app.state.bridge, app.state.hub, app.state.live = bridge, hub, live
        tasks = [
            asyncio.create_task(gate.watch(), name="gate"),
            asyncio.create_task(beat(bridge.transport, hub, app.state.budget), name="heartbeat"),
        ]
        try:
            yield {CONNECTIONS: gate.connections}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await live.close()
            await hub.close()
            await bridge.close()

    app = _application()(
        title="QMT Bridge gateway",
        version=version("qmt-redis-bridge"),
        description=_ABOUT,
        openapi_tags=_TAGS,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.budget = Budget(settings.bridge_memory_bytes)
    app.add_api_route("/", _to_docs, include_in_schema=False)
    served = [*_served(app.routes)]
    for router in _ROUTERS:
        app.include_router(router)
        served += _served(router.routes)
    if missing := unlisted(served):
        raise RuntimeError(f"qmt_gateway.scopes.ROUTES lacks {missing}")
    # From the inside out: what is added last is asked first.
    app.add_middleware(BodyLimit, within_s=settings.bridge_body_timeout_s)
    app.add_middleware(Backpressure, budget=app.state.budget)
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(Access, gate=gate)
    if settings.bridge_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.browsers.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["X-API-Key", "Authorization"],
            expose_headers=_EXPOSED,
        )
    app.add_middleware(Tracked)
    handle_errors(app)
    _describe(app)
    return app


def _gate(settings: GatewaySettings) -> Gate:
    descriptors = raise_descriptor_limit()
    most_unadmitted = settings.bridge_unauthenticated_connections
    connections = Connections(
        head_s=settings.bridge_head_timeout_s,
        most=most_connections(descriptors),
        most_unadmitted=min(most_unadmitted, descriptors // 4 or most_unadmitted),
    )
    return Gate(settings.keyring(), settings.browsers, Usages(settings.limits), connections)


def _served(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Yield method, or `WEBSOCKET`, and path of what some routes serve."""
    for route in routes:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in route.methods or () if method != "HEAD")
        elif isinstance(route, WebSocketRoute):
            yield WEBSOCKET, route.path
        elif isinstance(route, Mount):
            yield "GET", f"{route.path}/{{path:path}}"
        else:
            raise RuntimeError(f"{route!r} is no kind of route that qmt_gateway.scopes knows")


def _application() -> Callable[..., FastAPI]:
    # With fastapi-offline the pages carry their scripts; without, they come from a public CDN.
    try:
        offline: Callable[..., FastAPI] = importlib.import_module("fastapi_offline").FastAPIOffline
    except ModuleNotFoundError:
        return FastAPI
    return offline


def _describe(app: FastAPI) -> None:
    """Have the description tell keys, scopes, and the schema of a problem document."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            schemas["Problem"] = Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        document["components"]["securitySchemes"] = _SCHEMES
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                scope = ROUTES[method.upper(), path].scope
                if scope is not None:
                    operation["security"] = [{name: []} for name in _SCHEMES]
                    operation["x-scope"] = scope
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")
