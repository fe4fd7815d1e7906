"""The backfill of every night, beside the recording."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import redis.asyncio
import structlog
from pydantic import Field

from qmt_protocol.errors import ConfigurationError, QMTError, RedisUnavailable
from qmt_protocol.events import archive_stream
from qmt_protocol.keys import Keys
from qmt_protocol.times import CHINA, redis_ms
from qmt_protocol.urls import address_of
from qmt_reading.redis_transport import RedisTransport
from qmt_runtime.connections import connect_async, redis_call, to_its_end

from .adding import Existing
from .backfill import Backfill, OnProgress
from .locks import WriterLock
from .settings import ArchiveSettings, RunSettings
from .store import ArchiveStore

__all__ = ["NightlySettings", "backfilling", "is_due", "nightly"]

log: Final = structlog.get_logger(__name__)

_LOOK_EVERY_S: Final = 30.0
_RETRY_S: Final = 600.0
_FIRST_AFTER_S: Final = 60.0
"""What the streams have is recorded before a terminal is asked."""
_TRADING: Final = dt.time(8, 30), dt.time(16, 0)


class NightlySettings(RunSettings):
    __doc__ = RunSettings.__doc__

    archive_backfill_at: str = Field(
        "20:00", description="China time at which missing ticks are fetched; empty: never"
    )

    @property
    def backfill_time(self) -> dt.time | None:
        """When to backfill.

        Raises
        ------
        ConfigurationError
            When it is no time of day.
        """
        if not self.archive_backfill_at:
            return None
        match = re.fullmatch(r"(\d{1,2}):(\d{2})", self.archive_backfill_at, re.ASCII)
        try:
            if match is not None:
                return dt.time(int(match[1]), int(match[2]))
        except ValueError:
            pass
        raise ConfigurationError(
            f"--archive-backfill-at {self.archive_backfill_at!r} is no time of day.",
            hint="For example 20:00.",
        )


def is_due(now: dt.datetime, at: dt.time, done: dt.datetime | None) -> bool:
    """Whether it is time: it became so since the last time, and the market does not trade now."""
    last = now.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
    if last > now:
        last -= dt.timedelta(days=1)
    if _TRADING[0] <= now.time() < _TRADING[1]:
        return False
    return done is None or done < last


async def nightly(
    settings: NightlySettings,
    store: ArchiveStore,
    lock: WriterLock,
    *,
    clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(CHINA),
    first_after_s: float = _FIRST_AFTER_S,
) -> None:
    """Backfill once a night, until cancelled; what fails is tried again every ten minutes."""
    at = settings.backfill_time
    if at is None:
        return
    done: dt.datetime | None = None
    await asyncio.sleep(first_after_s)
    while True:
        now = clock()
        if is_due(now, at, done):
            try:
                async with backfilling(settings, store, lock) as work:
                    filled = await work.run()
                log.info("backfilled", entries=len(filled), ticks=sum(one.found for one in filled))
                done = now
            except QMTError as error:
                log.warning("backfilling is tried again later", error=str(error))
                await asyncio.sleep(_RETRY_S)
        await asyncio.sleep(_LOOK_EVERY_S)


@asynccontextmanager
async def backfilling(
    settings: ArchiveSettings,
    store: ArchiveStore,
    lock: WriterLock,
    on_progress: OnProgress = lambda *_: None,
) -> AsyncIterator[Backfill]:
    """Give a backfill with its connections."""
    connection = connect_async(settings.streams_url)
    address = address_of(settings.streams_url)

    async def report(kind: str, **facts: Any) -> None:
        await _report(connection, settings.keys, address, kind, facts)

    transport = RedisTransport(settings.streams_url, settings.jobs_url, prefix=settings.prefix)
    existing = Existing(store, settings.keys, connection, address)
    try:
        yield Backfill(store, lock.check, transport, existing, report, on_progress)
    finally:
        await transport.close()
        await to_its_end(connection.aclose())


async def _report(
    connection: redis.asyncio.Redis, keys: Keys, address: str, kind: str, facts: dict[str, Any]
) -> None:
    try:
        async with redis_call(address):
            at_ms = redis_ms(await connection.time())
            body = msgspec.json.encode({"kind": kind, "at_ms": at_ms, **facts})
            stream = archive_stream(keys)
            await connection.xadd(stream.key, {"e": body}, maxlen=stream.kept, approximate=False)
    except RedisUnavailable as error:
        log.warning("an event could not be told", kind=kind, error=error.message)
