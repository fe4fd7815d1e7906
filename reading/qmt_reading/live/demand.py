"""Says what is published only where somebody wants it: bars, and single codes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

import redis.asyncio

from qmt_protocol.codes import market_of
from qmt_protocol.demand import SAY_EVERY_S, decode_refusal, encode_demand, others_of
from qmt_protocol.errors import AccessDenied, CodecError, QMTError, RedisUnavailable, Unavailable
from qmt_protocol.keys import Keys, parse_series
from qmt_runtime.connections import redis_call

__all__ = ["Demand"]

_LOOK_S: Final = 1.0
_SETTLE_S: Final = 2.5
"""A refusal that is older than our demand may be gone when the producer has heard it."""
_HEARD_S: Final = 10.0
"""By then a producer has heard a series: what it says of all others concerns it."""


class Demand:
    """Says wants again and again, and learns which of them are refused.

    Nothing of it is stored in Redis, so where no producer listens it is said again until one does.

    Parameters
    ----------
    on_refused
        Called with want and error, once per want and refusal.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        keys: Keys,
        *,
        on_refused: Callable[[str, QMTError], None],
        address: str = "Redis",
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._on_refused = on_refused
        self._address = address
        self._since: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._refused: dict[str, str] = {}
        self._new: list[str] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> list[str]:
        """What is wanted."""
        return sorted(self._count)

    def add(self, demanded: Iterable[str]) -> None:
        """Say wants from now on; each may be added several times."""
        now = asyncio.get_running_loop().time()
        for series in demanded:
            self._count[series] = self._count.get(series, 0) + 1
            if series not in self._since:
                self._since[series] = now
                self._new.append(series)
        self._changed.set()
        if self._count and self._task is None:
            self._task = asyncio.create_task(self._keep(), name="demand")

    def remove(self, demanded: Iterable[str]) -> None:
        """Let wants go that were added; producers forget them by themselves."""
        for series in demanded:
            left = self._count.get(series, 0) - 1
            if left > 0:
                self._count[series] = left
            else:
                for of in (self._count, self._since, self._refused):
                    of.pop(series, None)

    async def close(self) -> None:
        """Say nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        said = float("-inf")
        while True:
            try:
                new, self._new = self._new, []
                self._changed.clear()
                if loop.time() - said >= SAY_EVERY_S:
                    await self._say(list(self._count))
                    said = loop.time()
                else:
                    await self._say(new)
                await self._look(loop.time())
            except (CodecError, RedisUnavailable):
                said = float("-inf")
            except AccessDenied as error:
                for series in self.held:
                    self._refuse(series, error.message, error)
            try:
                await asyncio.wait_for(self._changed.wait(), _LOOK_S)
            except asyncio.TimeoutError:
                pass

    async def _say(self, demanded: list[str]) -> None:
        for message in encode_demand(demanded):
            async with redis_call(self._address):
                await self._connection.publish(self._keys.demand_channel, message)

    async def _look(self, now: float) -> None:
        settled = {one: since for one, since in self._since.items() if now - since >= _SETTLE_S}
        if not settled:
            return
        markets = dict.fromkeys(map(_market, settled))
        fields = [*settled, *map(others_of, markets)]
        async with redis_call(self._address):
            documents: Any = await self._connection.hmget(self._keys.refused, fields)
        replies = dict(zip(fields, documents, strict=True))
        known = self._known(replies)
        for series, since in settled.items():
            document = replies[series]
            others = replies[others_of(_market(series))]
            if document is not None:
                self._refuse(series, decode_refusal(document).reason)
            elif others is None or series in known or now - since < _HEARD_S:
                self._refused.pop(series, None)
            else:
                self._refuse(series, decode_refusal(others).reason)

    @staticmethod
    def _known(replies: dict[str, Any]) -> set[str]:
        others = [
            one for field, one in replies.items() if field.startswith("*") and one is not None
        ]
        return {series for one in others for series in decode_refusal(one).known}

    def _refuse(self, series: str, reason: str, error: QMTError | None = None) -> None:
        if series not in self._count or self._refused.get(series) == reason:
            return
        self._refused[series] = reason
        period, code = parse_series(series)
        what = "Ticks" if period == "tick" else f"{period} bars"
        self._on_refused(
            series,
            error
            or Unavailable(
                f"{what} of {code} are refused: {reason}",
                hint="Ask for less, or read them with history().",
                code=code,
                period=period,
                reason=reason,
            ),
        )


def _market(series: str) -> str:
    return market_of(parse_series(series)[1])
