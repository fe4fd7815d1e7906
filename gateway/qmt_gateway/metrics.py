"""Figures of this process for Prometheus: who is connected, what waits, what was refused."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from . import models
from .budget import Budget
from .counts import CLOSED, PROBLEMS
from .hub import Hub
from .parameters import refuse_unknown

__all__ = ["router"]

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_STATM: Final = Path("/proc/self/statm")
router = APIRouter(dependencies=[Depends(refuse_unknown)])


@router.get(
    "/metrics",
    tags=["operation"],
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "Counters begin with the process.",
            "content": {_TEXT: {"schema": {"type": "string"}}},
        },
        **models.problems(),
    },
)
async def metrics(request: Request) -> Response:
    """Of this process alone: behind a load balancer each gateway has its own."""
    hub: Hub = request.app.state.hub
    budget: Budget = request.app.state.budget
    return Response("".join(_lines(hub, budget)), media_type=_TEXT)


def _lines(hub: Hub, budget: Budget) -> Iterator[str]:
    subscribed = sum(one.subscription.count for one in hub.subscribers)
    behind = sum(one.is_behind for one in hub.subscribers)
    yield from _gauge("websockets", "WebSocket clients.", hub.clients)
    yield from _gauge("websockets_behind", "Those that are conflated.", behind)
    yield from _gauge("subscriptions", "Codes, bars and whole markets, of all.", subscribed)
    yield from _gauge("markets", "Market feeds that are read.", hub.markets)
    yield from _gauge("unread_bytes", "What is held for all callers.", budget.held_bytes)
    yield from _gauge("unread_limit_bytes", "Most that may be held.", budget.limit_bytes)
    yield from _counter("cut_off", "Callers cut off beyond that.", [("", budget.cut_off)])
    problems = [(f'{{kind="{kind}"}}', count) for kind, count in sorted(PROBLEMS.items())]
    yield from _counter("problems", "Error answers, by kind.", problems)
    closed = [(f'{{code="{code}"}}', count) for code, count in sorted(CLOSED.items())]
    yield from _counter("websockets_closed", "WebSockets that were ended, by code.", closed)
    if _STATM.exists():
        pages = int(_STATM.read_text("ascii").split()[1])
        yield "# TYPE process_resident_memory_bytes gauge\n"
        yield f"process_resident_memory_bytes {pages * os.sysconf('SC_PAGE_SIZE')}\n"


def _gauge(name: str, about: str, figure: int) -> Iterator[str]:
    yield f"# HELP qmt_gateway_{name} {about}\n# TYPE qmt_gateway_{name} gauge\n"
    yield f"qmt_gateway_{name} {figure}\n"


def _counter(name: str, about: str, figures: Iterable[tuple[str, int]]) -> Iterator[str]:
    name = f"qmt_gateway_{name}_total"
    yield f"# HELP {name} {about}\n# TYPE {name} counter\n"
    for labels, figure in figures:
        yield f"{name}{labels} {figure}\n"
