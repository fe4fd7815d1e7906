"""The gateway's own sign of life on the streams server, as any process of the bridge has one."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import Any, Final

import structlog

from qmt_protocol.errors import QMTError
from qmt_protocol.status import HEARTBEAT_EVERY_S, Heartbeat, new_heartbeat
from qmt_reading.redis_transport import RedisTransport
from qmt_runtime.connections import redis_call
from qmt_runtime.heartbeats import write_heartbeat_async

from .budget import Budget
from .hub import Hub

__all__ = ["beat"]

_log: Final = structlog.get_logger(__name__)


async def beat(transport: RedisTransport, hub: Hub, budget: Budget) -> None:
    """Write a heartbeat each second, until cancelled; what Redis refuses is logged once."""
    started_ms = time.time_ns() // 1_000_000
    failure = ""
    while True:
        try:
            async with redis_call(transport.address):
                await write_heartbeat_async(
                    transport.streams, transport.keys, _heartbeat(started_ms, hub, budget)
                )
            failure = ""
        except QMTError as error:
            if failure != error.message:
                _log.warning("heartbeat not written", error=error.message)
            failure = error.message
        await asyncio.sleep(HEARTBEAT_EVERY_S)


def _heartbeat(started_ms: int, hub: Hub, budget: Budget) -> Heartbeat:
    figures: dict[str, Any] = {
        "websockets": hub.clients,
        "subscriptions": sum(one.subscription.count for one in hub.subscribers),
        "behind": sum(one.is_behind for one in hub.subscribers),
        "unread_bytes": budget.held_bytes,
    }
    return new_heartbeat(
        "gateway", started_ms, version=version("qmt-redis-bridge"), figures=figures
    )
