"""The application: routes, errors, keys and pages put together."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from qmt_client.archive import open_archive

from . import job_routes, live_socket, market_routes, metrics, realtime, stored_routes
from .bridge import Bridge
from .budget import Budget
from .hub import Hub
from .limits import BodyLimit
from .live_state import LiveState
from .models import Problem
from .problems import UnexpectedErrors, handle_errors
from .settings import GatewaySettings
from .streaming import Backpressure

__all__ = ["create_app"]

_ABOUT: Final = """
Market data of QMT/miniQMT: history and reference data answered by a worker beside the terminal,
ticks from Redis Streams. No trading.

**Live:** WebSocket `/ws/v1`, described by docs/live.md and docs/asyncapi.yaml. For callers of
qmt-bridge-pro also `/ws/realtime` and `/ws/whole_quote`, see docs/gateway.md.

**Keys:** `X-API-Key: <key>` or `Authorization: Bearer <key>`; a browser's WebSocket: `?api_key=`.

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

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        bridge = Bridge(settings)
        hub = Hub(
            bridge.transport,
            flush_s=settings.bridge_ws_flush_ms / 1000,
            max_bytes=settings.bridge_ws_queue_bytes,
            budget=app.state.budget,
        )
        live = LiveState(hub, bridge, stall_s=settings.bridge_ws_stall_s)
        app.state.bridge, app.state.hub, app.state.live = bridge, hub, live
        try:
            yield
        finally:
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
    app.state.keys = settings.api_keys
    app.include_router(market_routes.router)
    app.include_router(job_routes.router)
    app.include_router(stored_routes.router)
    app.include_router(job_routes.health_router)
    app.include_router(metrics.router)
    app.include_router(live_socket.router)
    app.include_router(realtime.router)
    app.add_api_route("/", _to_docs, include_in_schema=False)
    app.add_middleware(BodyLimit)
    app.add_middleware(Backpressure, budget=app.state.budget)
    app.add_middleware(UnexpectedErrors)
    handle_errors(app)
    _describe_problems(app)
    return app


def _application() -> Callable[..., FastAPI]:
    # With fastapi-offline the pages carry their scripts; without, they come from a public CDN.
    try:
        offline: Callable[..., FastAPI] = importlib.import_module("fastapi_offline").FastAPIOffline
    except ModuleNotFoundError:
        return FastAPI
    return offline


def _describe_problems(app: FastAPI) -> None:
    """Put the problem document's schema where the routes' error answers point to."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            schemas["Problem"] = Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")
