"""What happens to live clients by the clock: heartbeats, stalls, lost feeds, new markets."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from qmt_protocol.errors import QMTError
from qmt_protocol.live import CloseCode, HeartbeatNotice, Shutdown
from qmt_reading.processes import Status

from .bridge import Bridge
from .hub import Hub
from .subscriber import Subscriber
from .trim import Trimmer

__all__ = ["HEARTBEAT_S", "LiveState"]

HEARTBEAT_S: Final = 5.0
_EVERY_S: Final = 0.5
_LOOK_S: Final = 5.0
_AWAY_S: Final = 30.0
"""How long Redis may be away before clients are sent away too."""
_log: Final = structlog.get_logger(__name__)


class LiveState:
    """A task that looks after all live clients.

    Parameters
    ----------
    stall_s
        A client that takes nothing of what waits for it for so long is closed.
    """

    def __init__(self, hub: Hub, bridge: Bridge, *, stall_s: float) -> None:
        self._hub = hub
        self._bridge = bridge
        self._stall_s = stall_s
        self._status = Status(0, ())
        self._status_at = 0.0
        self._looked_at = float("-inf")
        self._trimmer = Trimmer(hub.budget)
        self._task = asyncio.create_task(self._run(), name="live state")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            now = time.monotonic()
            if self._hub.subscribers and now - self._looked_at >= _LOOK_S:
                self._looked_at = now
                await self._look()
            for subscriber in list(self._hub.subscribers):
                if subscriber.closed:
                    continue  # it may take a while until it has gone
                if subscriber.stalled_s(now) >= self._stall_s:
                    _log.warning("client stalled", waiting=subscriber.held_bytes)
                    subscriber.close(
                        CloseCode.STALLED, f"Nothing was read for {self._stall_s:g} s."
                    )
                elif now - subscriber.sent_at >= HEARTBEAT_S and not subscriber.is_behind:
                    subscriber.send(self._heartbeat(subscriber, now))
                    subscriber.sent_at = now
            self._hub.budget.relieve()
            await self._trimmer.look()
            for name, away_s in self._hub.away_s(now).items():
                if away_s >= _AWAY_S:
                    for subscriber in self._hub.readers_of(name):
                        subscriber.close(
                            CloseCode.UNAVAILABLE, f"Redis has been away for {away_s:.0f} s."
                        )

    async def _look(self) -> None:
        try:
            self._status = await self._bridge.status()
            self._status_at = time.monotonic()
            published = await self._bridge.published_markets()
            for subscriber in list(self._hub.subscribers):
                new = set(published) - subscriber.subscription.markets
                if subscriber.subscription.everything and new:
                    await self._add(subscriber, new)
        except QMTError as error:
            _log.debug("status is not known", error=error.message)

    async def _add(self, subscriber: Subscriber, markets: set[str]) -> None:
        """Give a subscriber to everything what is published now and was not before."""
        held = await self._hub.hold(markets)
        try:
            self._hub.join(subscriber, markets=markets)
            rows = self._hub.snapshot((), markets)
            subscriber.send_rows("snapshot", self._hub.offsets(markets), rows)
        finally:
            self._hub.release(held)

    def _heartbeat(self, subscriber: Subscriber, now: float) -> HeartbeatNotice:
        since_ms = int((now - self._status_at) * 1000)
        ages = [one.age_ms for one in self._status.processes if one.beat.role == "producer"]
        return HeartbeatNotice(
            position=self._hub.offsets_of(subscriber),
            now_ms=self._status.now_ms + since_ms if self._status.now_ms else 0,
            producer_age_ms=min(ages) + since_ms if ages else None,
        )

    async def say_goodbye(self) -> None:
        """Tell every client that the gateway stops, and close."""
        self._task.cancel()
        for subscriber in list(self._hub.subscribers):
            position = self._hub.offsets_of(subscriber)
            if not subscriber.is_behind:
                subscriber.send(Shutdown(reason="the gateway is stopping", position=position))
            subscriber.close(CloseCode.GOING_AWAY, "the gateway is stopping")

    async def close(self) -> None:
        """End the task."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
