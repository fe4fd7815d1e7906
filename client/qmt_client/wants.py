"""Leases on what is published only where somebody wants it: bars, and single codes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import redis.asyncio

from qmt_protocol.decoding import decode_document, printable
from qmt_protocol.errors import AccessDenied, CodecError, QMTError, RedisUnavailable, Unavailable
from qmt_protocol.keys import Keys, parse_want
from qmt_protocol.times import redis_ms

from .connections import redis_call

__all__ = ["Wants"]

LEASE_MS: Final = 30_000
RENEW_S: Final = 10.0
_LOOK_S: Final = 1.0
_SETTLE_S: Final = 2.5
"""A refusal that is older than our lease may be gone when the producer has seen it."""


class Wants:
    """Keeps wants leased and learns which of them are refused.

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
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> list[str]:
        """What is leased."""
        return sorted(self._count)

    def add(self, members: Iterable[str]) -> None:
        """Lease wants; each may be added several times."""
        now = asyncio.get_running_loop().time()
        for member in members:
            self._count[member] = self._count.get(member, 0) + 1
            self._since.setdefault(member, now)
        self._changed.set()
        if self._count and self._task is None:
            self._task = asyncio.create_task(self._keep(), name="wants")

    def remove(self, members: Iterable[str]) -> None:
        """Let wants go that were added; their leases run out by themselves."""
        for member in members:
            left = self._count.get(member, 0) - 1
            if left > 0:
                self._count[member] = left
            else:
                for of in (self._count, self._since, self._refused):
                    of.pop(member, None)

    async def close(self) -> None:
        """Renew nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        renewed = float("-inf")
        while True:
            try:
                if self._changed.is_set() or loop.time() - renewed >= RENEW_S:
                    self._changed.clear()
                    await self._renew()
                    renewed = loop.time()
                await self._look(loop.time())
            except (CodecError, RedisUnavailable):
                renewed = float("-inf")
            except AccessDenied as error:
                for member in self.held:
                    self._refuse(member, error.message, error)
            try:
                await asyncio.wait_for(self._changed.wait(), _LOOK_S)
            except asyncio.TimeoutError:
                pass

    async def _renew(self) -> None:
        if not self._count:
            return
        async with redis_call(self._address):
            until_ms = redis_ms(await self._connection.time()) + LEASE_MS
            await self._connection.zadd(
                self._keys.wanted, dict.fromkeys(self._count, until_ms), gt=True
            )

    async def _look(self, now: float) -> None:
        settled = [one for one, since in self._since.items() if now - since >= _SETTLE_S]
        if not settled:
            return
        async with redis_call(self._address):
            told: list[Any] = await self._connection.hmget(self._keys.refused, settled)
        for member, document in zip(settled, told, strict=True):
            if document is None:
                self._refused.pop(member, None)
            else:
                self._refuse(member, _reason(document))

    def _refuse(self, member: str, reason: str, error: QMTError | None = None) -> None:
        if member not in self._count or self._refused.get(member) == reason:
            return
        self._refused[member] = reason
        period, code = parse_want(member)
        what = "Ticks" if period == "tick" else f"{period} bars"
        self._on_refused(
            member,
            error
            or Unavailable(
                f"{what} of {code} are refused: {reason}",
                hint="Ask for less, or read them with history().",
                code=code,
                period=period,
                reason=reason,
            ),
        )


class _Refusal(msgspec.Struct):
    reason: str


def _reason(document: bytes) -> str:
    try:
        told = decode_document(document, _Refusal, "A refusal")
    except CodecError:
        return printable(document)
    return printable(told.reason)
