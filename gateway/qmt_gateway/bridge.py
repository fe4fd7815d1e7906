"""What the routes ask of the rest of the bridge, all through ``qmt_reading``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar

import redis
from starlette.requests import Request

from qmt_protocol.archive import Manifest as ArchiveManifest
from qmt_protocol.codes import market_of
from qmt_protocol.errors import AccessDenied, CodecError, InstrumentNotFound, QMTError
from qmt_protocol.jobs import Manifest, parse_params
from qmt_protocol.ticks import Tick
from qmt_reading.latest import LatestValues
from qmt_reading.processes import Status
from qmt_reading.redis_transport import RedisTransport
from qmt_reading.stored.archive import ArchiveReader
from qmt_reading.stored.source import finished
from qmt_runtime.connections import redis_call

from .reading import Readings
from .settings import GatewaySettings

__all__ = [
    "SIMULATED",
    "Bridge",
    "ClientGone",
    "absent_reasons",
    "source_name",
    "while_connected",
]

SIMULATED: Final = "SIMULATED"
_LOOK_EVERY_S: Final = 1.0
_READY_WITHIN_S: Final = 2.0
_GONE_EVERY_S: Final = 0.5
_SECTOR_FRESH_S: Final = 600.0
_SECTOR_WITHIN_S: Final = 20.0
_SECTOR_CODES_KEPT: Final = 200_000
_T = TypeVar("_T")


def source_name(simulated: bool) -> str:
    """Return the word that every answer carries about its source."""
    return SIMULATED if simulated else "QMT"


class Bridge:
    """Jobs, ticks, the archive and heartbeats for the routes.

    Raises
    ------
    ConfigurationError
        When the archive's address cannot be used.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.archive = ArchiveReader(settings.archive_url) if settings.archive_url else None
        self.transport = RedisTransport(
            settings.streams_url,
            settings.jobs_url,
            prefix=settings.prefix,
            archive_url=settings.archive_url,
        )
        self.readings = Readings(self.transport.stored())
        self._status = Status(0, ())
        self._sectors: dict[str, tuple[float, list[str]]] = {}
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._readiness: dict[str, str] = {}
        self._checked_at = float("-inf")
        self._checking = asyncio.Lock()

    async def close(self) -> None:
        """Close all connections."""
        await self.transport.close()

    async def status(self) -> Status:
        """Return who is alive, at most a second old."""
        async with self._looking:  # a thousand callers at once ask Redis once
            if time.monotonic() - self._looked_at > _LOOK_EVERY_S:
                self._status = await self.transport.status()
                self._looked_at = time.monotonic()
            return self._status

    async def simulated(self) -> bool:
        """Return whether stored ticks come from the simulator, by who publishes or last did."""
        status = await self.status()
        producers = [one for one in status.processes if one.beat.role == "producer"]
        living = [one for one in producers if one.alive] or producers
        return any(one.beat.simulated for one in living) if producers else status.simulated

    async def finish(
        self, name: str, document: dict[str, Any], timeout_s: float
    ) -> tuple[str, Manifest]:
        """Validate a job's parameters, have it done and return its id and what it left."""
        params = parse_params(name, document)
        return await self.transport.finish_job(name, params, timeout_s=timeout_s)

    async def latest(self, codes: Sequence[str]) -> LatestValues[Tick]:
        """Return the last stored tick of each code that has one.

        Raises
        ------
        CodecError
            When there is none that can be read, and one that cannot.
        NoProducer
            When there is none at all, for want of a producer.
        InstrumentNotFound
            When there is none at all, though their markets have ticks.
        """
        ticks = await self.transport.latest(codes)
        if not ticks:
            for reason in ticks.unreadable.values():
                raise CodecError(reason, codes=list(ticks.unreadable))
            await self._explain_absence(codes)
        return ticks

    async def _explain_absence(self, codes: Sequence[str]) -> None:
        markets = sorted({market_of(code) for code in codes})
        async with redis_call(self.transport.address):
            stored = [
                await self.transport.streams.exists(self.transport.keys.latest(market))
                for market in markets
            ]
        if not any(stored):
            (await self.transport.status()).require_producer(markets)
        raise InstrumentNotFound(
            f"No tick of {_some(codes)} is stored.",
            hint="Check the code; a code appears with its first tick.",
            codes=list(codes),
        )

    async def sector(self, name: str) -> list[str]:
        """Return the codes of a sector, as a worker told them at most ten minutes ago.

        Raises
        ------
        SectorNotFound, NoWorker
            And whatever else the job fails with.
        """
        known = self._sectors.get(name)
        now = time.monotonic()
        if known is None or now - known[0] > _SECTOR_FRESH_S:
            _, manifest = await self.finish("sector_stocks", {"sector": name}, _SECTOR_WITHIN_S)
            self._sectors.pop(name, None)
            known = self._sectors[name] = (now, list(manifest.document))
            while sum(len(codes) for _, codes in self._sectors.values()) > _SECTOR_CODES_KEPT:
                self._sectors.pop(next(iter(self._sectors)))
        return known[1]

    async def published_markets(self) -> list[str]:
        """Return the markets that producers publish, or last did."""
        status = await self.status()
        producers = [one for one in status.processes if one.beat.role == "producer"]
        return sorted({market for one in producers for market in one.beat.markets})

    async def stored_markets(self) -> list[str]:
        """Return the markets that are archived or published."""
        archived = await self.readings.markets()
        return sorted({*archived, *await self.published_markets()})

    async def manifest(self) -> ArchiveManifest:
        """Return what the archive holds; nothing where there is none.

        Raises
        ------
        ArchiveUnavailable, ArchiveDamaged
        """
        if self.archive is None:
            return ArchiveManifest()
        return await finished(self.archive.manifest)

    async def readiness(self) -> dict[str, str]:
        """Return why each Redis server does not serve, at most a second old; ``""``: it does."""
        async with self._checking:
            if time.monotonic() - self._checked_at > _LOOK_EVERY_S:
                streams, jobs = await asyncio.gather(
                    _why_not(self.transport.check_streams(_READY_WITHIN_S)),
                    _why_not(self.transport.check_jobs(_READY_WITHIN_S)),
                )
                self._readiness = {"streams": streams, "jobs": jobs}
                self._checked_at = time.monotonic()
            return self._readiness


async def _why_not(check: Awaitable[None]) -> str:
    """Return why a server does not serve, in words that tell no address, user or password."""
    try:
        await check
    except QMTError as error:
        return _reason(error)
    return ""


def _reason(error: QMTError) -> str:
    cause = error.__cause__
    if isinstance(error, AccessDenied):
        return "it refuses the user, the password or a command"
    if isinstance(cause, (asyncio.TimeoutError, redis.TimeoutError)):
        return f"no answer within {_READY_WITHIN_S:g} s"
    if isinstance(cause, redis.exceptions.BusyLoadingError):
        return "it loads its data"
    if isinstance(cause, (redis.ConnectionError, OSError)):
        return "it cannot be reached"
    code = str(cause).partition(" ")[0]  # such as MISCONF
    return f"it refuses: {code}" if code.isalpha() and code.isupper() else "it refuses"


def _some(codes: Sequence[str]) -> str:
    return ", ".join(codes[:5]) + (f" and {len(codes) - 5} more" if len(codes) > 5 else "")


class ClientGone(QMTError):
    """The caller hung up before the answer was there."""

    slug = "client-gone"
    http_status = 499


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Wait for work, and cancel it (and so its job) when the caller hangs up.

    Raises
    ------
    ClientGone
        When the caller did.
    """
    task = asyncio.ensure_future(work)
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=_GONE_EVERY_S)
            if done:
                return task.result()
            if await request.is_disconnected():
                raise ClientGone("The caller hung up.")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


def absent_reasons(manifest: Manifest) -> dict[str, str]:
    """Return code to the reason why a result has nothing of it."""
    absent: dict[str, str] = manifest.meta.get("absent") or {}
    return absent
