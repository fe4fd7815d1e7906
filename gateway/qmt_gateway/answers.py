"""Answers encoded straight to bytes: NaN becomes null, and each says where its data come from."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from .bridge import source_name

__all__ = ["SOURCE_HEADER", "answer", "meta_of"]

SOURCE_HEADER = "X-QMT-Source"


def meta_of(simulated: bool, **facts: Any) -> dict[str, Any]:
    """Return the ``meta`` of an answer."""
    return {"source": source_name(simulated), "simulated": simulated, **facts}


def answer(document: Any, *, simulated: bool | None, status: int = 200) -> Response:
    """Return a JSON answer; infinities and NaN are null.

    Parameters
    ----------
    simulated
        Whether the simulator invented what it tells; ``None``: it tells nothing of a market.
    """
    return Response(
        msgspec.json.encode(document),
        status,
        headers=None if simulated is None else {SOURCE_HEADER: source_name(simulated)},
        media_type="application/json",
    )
