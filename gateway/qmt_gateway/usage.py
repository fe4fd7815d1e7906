"""What each caller has of its limits: one `Usage` for each key, and each address without one."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from qmt_protocol.errors import LimitExceeded
from qmt_protocol.live import CloseCode

from .auth import Key, Keyring
from .connections import Connection
from .limits import BURST_S, Bucket, Limits, limits_with
from .rare_log import Rarely

__all__ = ["Usage", "Usages"]

_log: Final = structlog.get_logger(__name__)
_REFUSALS_PER_S: Final = 20.0
"""A refusal costs as much as a small answer: who asks on and on is told so, but not as fast."""
_ADDRESSES: Final = 1_000
_OTHERS: Final = "others"


class Usage:
    """What one caller has, and takes.

    Parameters
    ----------
    name
        For messages: the key's name, or the address.
    """

    def __init__(self, name: str, limits: Limits, key: Key | None = None) -> None:
        now = time.monotonic()
        self.name = name
        self.key = key
        self.limits = limits
        self.requests = Bucket(limits.requests_per_s, now)
        self.jobs = Bucket(limits.jobs_per_s, now)
        self._refusals = Bucket(_REFUSALS_PER_S, now)
        self.waiting_for_jobs = 0
        self.connections: set[Connection] = set()

    def change(self, key: Key, limits: Limits) -> None:
        """Go on with other figures."""
        self.key, self.limits = key, limits
        self.requests.per_s = limits.requests_per_s
        self.jobs.per_s = limits.jobs_per_s

    def end_all(self, why: str) -> None:
        """End all connections of a key."""
        for connection in list(self.connections):
            connection.end(CloseCode.ACCESS_DENIED, f"{self.name} {why}.")

    @property
    def is_idle(self) -> bool:
        """Whether forgetting it would let nobody have more."""
        now = time.monotonic()
        full = not self.requests.full_in_s(now) and not self.jobs.full_in_s(now)
        return full and not self.connections

    def take_request(self, *, is_job: bool) -> None:
        """Count a request.

        Raises
        ------
        LimitExceeded
            When it comes too soon after others.
        """
        now = time.monotonic()
        wait_s = self.requests.take(now)
        if wait_s:
            raise self._too_fast("requests_per_s", wait_s)
        if is_job and (wait_s := self.jobs.take(now)):
            raise self._too_fast("jobs_per_s", wait_s)

    async def take_refusal(self) -> None:
        """Count a refusal, and wait where it comes too soon after others."""
        wait_s = self._refusals.owe(time.monotonic())
        if wait_s:
            await asyncio.sleep(wait_s)

    async def take_message(self) -> None:
        """Count a message of a WebSocket, and wait where it comes too soon after others."""
        wait_s = self.requests.owe(time.monotonic())
        if wait_s:
            await asyncio.sleep(wait_s)

    @contextmanager
    def waiting_for_job(self) -> Iterator[None]:
        """Count a request as long as it waits for a job: each takes a connection to Redis.

        Raises
        ------
        LimitExceeded
        """
        most = self.limits.jobs_at_once
        if most and self.waiting_for_jobs >= most:
            raise LimitExceeded(
                f"{self.name} waits for {self.waiting_for_jobs} jobs, as many as it may.",
                hint="Ask again when one of them has ended.",
                limit="jobs_at_once",
                allowed=most,
                retry_after_s=1.0,
            )
        self.waiting_for_jobs += 1
        try:
            yield
        finally:
            self.waiting_for_jobs -= 1

    def take_in(self, connection: Connection) -> None:
        """Count a connection.

        Raises
        ------
        LimitExceeded
        """
        most = self.limits.connections
        if most and len(self.connections) >= most:
            raise LimitExceeded(
                f"{self.name} has {len(self.connections)} connections, as many as it may.",
                hint="Close one; who needs more asks the operator for --limit connections=.",
                limit="connections",
                allowed=most,
                retry_after_s=1.0,
            )
        self.connections.add(connection)

    def check_codes(self, connection: Connection | None, more: int) -> None:
        """Check that a connection may be subscribed to so much more.

        Raises
        ------
        LimitExceeded
        """
        if connection is None or more <= 0:
            return
        of_all = sum(one.codes() for one in self.connections)
        for name, has, most in (
            ("codes_per_connection", connection.codes(), self.limits.codes_per_connection),
            ("codes", of_all, self.limits.codes),
        ):
            if most and has + more > most:
                raise LimitExceeded(
                    f"{has} codes, bars and markets are subscribed to, and {more} more would be "
                    f"above {most}, the limit {name} of {self.name}.",
                    hint="Subscribe to whole markets: each counts as one.",
                    limit=name,
                    allowed=most,
                )

    def check_rows(self, rows: int) -> None:
        """Check that an answer may have so many rows.

        Raises
        ------
        LimitExceeded
        """
        most = self.limits.rows
        if most and rows > most:
            raise LimitExceeded(
                f"The answer has {rows} rows or more; {self.name} may have {most} at a time.",
                hint="Ask for fewer codes, or in several ranges.",
                limit="rows",
                allowed=most,
            )

    def end_unread(self) -> int:
        """End the WebSockets with most that is unread until all of them together are in bounds.

        Returns how many.
        """
        ended = 0
        most = self.limits.unread_bytes
        unread = {one: one.unread_bytes for one in self.connections} if most else {}
        total = sum(unread.values())
        for connection in sorted(unread, key=unread.__getitem__, reverse=True):
            if total <= most:
                break
            ended += 1
            total -= unread[connection]
            connection.end(
                CloseCode.STALLED,
                f"{self.name} left {total + unread[connection]} bytes unread; {most} may wait.",
            )
        return ended

    def _too_fast(self, limit: str, wait_s: float) -> LimitExceeded:
        per_s = getattr(self.limits, limit)
        return LimitExceeded(
            f"{self.name} asks faster than {per_s:g} times a second.",
            hint=f"Go on in {math.ceil(wait_s)} s; the limit is {limit}.",
            limit=limit,
            allowed=per_s,
            retry_after_s=round(wait_s, 3),
        )

    def headers(self, *, is_job: bool) -> list[tuple[bytes, bytes]]:
        """Return what remains, as the fields RateLimit-Policy and RateLimit of the IETF's draft."""
        now = time.monotonic()
        buckets = [("requests", self.requests)]
        if is_job:
            buckets.append(("jobs", self.jobs))
        buckets = [one for one in buckets if one[1].per_s]
        policy = ", ".join(f'"{name}";q={of.size:.0f};w={BURST_S:.0f}' for name, of in buckets)
        left = ", ".join(
            f'"{name}";r={of.left(now)};t={math.ceil(of.full_in_s(now))}' for name, of in buckets
        )
        if not buckets:
            return []
        return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", left.encode())]


class Usages:
    """All of them; those of addresses that came long ago are forgotten."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rarely = Rarely()
        self._of_keys: dict[bytes, Usage] = {}
        self._of_addresses: dict[str, Usage] = {}

    def of_key(self, key: Key) -> Usage:
        """Return a key's."""
        found = self._of_keys.get(key.digest)
        if found is None:
            limits = limits_with(key.limits, self._limits)
            found = self._of_keys[key.digest] = Usage(f"The key {key.name}", limits, key)
        return found

    def of_address(self, address: str) -> Usage:
        """Return that of an address without a key; beyond a number of them one for all others."""
        found = self._of_addresses.get(address)
        if found is None:
            if len(self._of_addresses) >= _ADDRESSES:
                address = _OTHERS
            found = self._of_addresses.setdefault(address, Usage(address, self._limits))
        return found

    def sweep(self, keyring: Keyring) -> None:
        """End what no longer may be: connections of keys that are gone, and too much unread."""
        for digest, usage in list(self._of_keys.items()):
            assert usage.key is not None
            now = keyring.present(usage.key)
            if now is None:
                usage.end_all("was revoked or has expired")
                if not usage.connections:
                    del self._of_keys[digest]
            elif now is not usage.key:
                usage.change(now, limits_with(now.limits, self._limits))
        for usage in [*self._of_keys.values(), *self._of_addresses.values()]:
            if usage.end_unread():
                self._rarely.log(_log.warning, "clients ended: too much unread", of=usage.name)
        for address, usage in list(self._of_addresses.items()):
            if usage.is_idle:
                del self._of_addresses[address]
