"""Reading straight from Redis: jobs, latest ticks, feeds and heartbeats."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import redis

from qmt_protocol.codes import market_of
from qmt_protocol.cursor.batch import Batch
from qmt_protocol.cursor.scope import Scope
from qmt_protocol.decoding import printable
from qmt_protocol.errors import (
    CodecError,
    ConfigurationError,
    JobFailed,
    JobNotFound,
    QMTError,
)
from qmt_protocol.feed import decode_latest, is_code_of
from qmt_protocol.ids import parse_entry_id
from qmt_protocol.jobs import (
    RESULT_TTL_S,
    JobParams,
    Manifest,
    Progress,
    decode_manifest,
    decode_progress,
    job_spec,
)
from qmt_protocol.keys import JobKeys, Keys, series_of
from qmt_protocol.limits import (
    MAX_ARROW_BODY_BYTES,
    MAX_ARROW_HEADER_BYTES,
    MAX_DOCUMENT_BYTES,
    MAX_RESULT_BYTES,
)
from qmt_protocol.ticks import Tick
from qmt_protocol.urls import address_of
from qmt_reading.jobs.end import submit_and_wait
from qmt_reading.jobs.queue import enqueue, read_chunk, rq_key, withdraw
from qmt_reading.latest import LatestValues
from qmt_reading.live.demand import Demand
from qmt_reading.live.follower import Follower
from qmt_runtime.connections import (
    BLOCK_S,
    connect,
    connect_async,
    redis_call,
    redis_errors,
    to_its_end,
)

from .callbacks import OnGap, OnProgress
from .processes import Status, read_status
from .requests import LiveRequest

if TYPE_CHECKING:
    import pyarrow as pa

    from qmt_reading.stored.source import RedisStored

__all__ = ["RedisTransport"]

_MOST_CHUNK_BYTES: Final = MAX_ARROW_HEADER_BYTES + MAX_ARROW_BODY_BYTES


class RedisTransport:
    """Carries a client's requests over the two Redis servers.

    Parameters
    ----------
    streams_url
        Redis that holds the streams.
    jobs_url
        Redis that holds the jobs; ``None``: ticks and status only.
    prefix
        Prefix of all keys.
    give_up_after_s
        How long a live iteration tries to reconnect; ``None``: without limit.
    archive_url
        Folder or bucket of the archive; empty: none.
    """

    def __init__(
        self,
        streams_url: str,
        jobs_url: str | None = None,
        *,
        prefix: str = "qmt",
        give_up_after_s: float | None = None,
        archive_url: str = "",
    ) -> None:
        self.keys = Keys(prefix)
        self.job_keys = JobKeys(prefix)
        self.streams = connect_async(streams_url)
        self._address = address_of(streams_url)
        self._jobs = connect_async(jobs_url) if jobs_url else None
        self._jobs_blocking = connect(jobs_url) if jobs_url else None
        self._jobs_address = address_of(jobs_url) if jobs_url else ""
        self._give_up_after_s = give_up_after_s
        self._archive_url = archive_url
        self._stored: RedisStored | None = None

    @property
    def address(self) -> str:
        """``host:port`` of the streams server."""
        return self._address

    async def close(self) -> None:
        """Close all connections."""
        await to_its_end(self._close())

    async def _close(self) -> None:
        await self.streams.aclose()
        if self._jobs is not None and self._jobs_blocking is not None:
            await self._jobs.aclose()
            self._jobs_blocking.close()

    # Jobs

    async def submit(self, name: str, params: JobParams, *, timeout_s: float = 60.0) -> str:
        """Put a job into its queue and return its id.

        Parameters
        ----------
        timeout_s
            How long it may wait in the queue; at least a minute.

        Raises
        ------
        NoWorker, TerminalNotConnected
            At once, when nobody could answer it.
        RedisUnavailable
        """
        spec = job_spec(name)
        self._need_jobs()
        (await self.status()).require_worker(spec.queue)
        job_id = uuid.uuid4().hex
        async with redis_call(self._jobs_address):
            await asyncio.to_thread(enqueue, self._need_blocking(), spec, params, job_id, timeout_s)
        return job_id

    async def progress(
        self, job_id: str, after: str = "0-0", wait_s: float = 0.0
    ) -> tuple[str, Progress] | None:
        """Return the newest progress entry behind ``after`` with its id, waiting for one.

        Parameters
        ----------
        after
            Entry id that the caller has seen; ``"0-0"``: none.
        wait_s
            How long to wait; ``None`` is returned when nothing new came.

        Raises
        ------
        JobNotFound
            When there is no such job, or its result has expired.
        NoWorker, TerminalNotConnected
            When the job still waits and nobody is left to take it.
        InvalidRequest
            When ``after`` is no entry id.
        """
        parse_entry_id(after, "after")
        until = time.monotonic() + wait_s
        while True:
            left_s = until - time.monotonic()
            entry = await self._newest_progress(job_id, after, min(left_s, BLOCK_S))
            if entry is None and await self._has_failed(job_id):
                # A worker tells the reason before RQ learns of the failure.
                entry = await self._newest_progress(job_id, after, 0.0)
                if entry is None:
                    raise JobFailed(
                        f"Job {job_id} failed without a reason.",
                        hint="See the worker's log.",
                        job=job_id,
                    )
            if entry is not None:
                return entry
            if left_s <= BLOCK_S:
                return None

    async def _newest_progress(
        self, job_id: str, after: str, wait_s: float
    ) -> tuple[str, Progress] | None:
        jobs, stream = self._need_jobs(), self.job_keys.progress(job_id)
        block_ms = int(wait_s * 1000)
        async with redis_call(self._jobs_address):
            if block_ms > 0:
                await jobs.xread({stream: after}, count=1, block=block_ms)
            # The newest alone: how many there are, and how long, is their writer's choice.
            entries = await jobs.xrevrange(stream, min=f"({after}", count=1)
        if not entries:
            return None
        entry_id, fields = entries[0]
        what = f"The progress of job {job_id}"
        return entry_id.decode(), decode_progress(fields.get(b"p", b""), what)

    async def _has_failed(self, job_id: str) -> bool:
        """Whether RQ gave up a job; raises when it is gone, or has nobody to run it."""
        jobs = self._need_jobs()
        async with redis_call(self._jobs_address):
            queue, state = await jobs.hmget(rq_key(job_id), "origin", "status")
            known = queue or await jobs.exists(self.job_keys.progress(job_id))
        if not known:
            raise JobNotFound(
                f"There is no job {job_id}.",
                hint=f"Results are kept for {RESULT_TTL_S} s.",
                job=job_id,
            )
        if state in (b"failed", b"stopped", b"canceled"):
            return True
        if queue and state != b"finished":
            (await self.status()).require_worker(printable(queue))
        return False

    async def manifest(self, job_id: str, name: str | None = None) -> Manifest:
        """Return what a finished job left behind.

        Parameters
        ----------
        name
            Which job it was, where that is known.

        Raises
        ------
        JobNotFound
            When there is no such result (yet, or any more).
        CodecError
            When it is no result, or none of that job, or too large.
        """
        what = f"The manifest of job {job_id}"
        packed = await self._part(self.job_keys.manifest(job_id), MAX_DOCUMENT_BYTES, job_id)
        return decode_manifest(packed, what, name)

    async def tables(
        self, job_id: str, manifest: Manifest, params: JobParams | None = None
    ) -> AsyncGenerator[pa.Table, None]:
        """Yield a table's parts in order, each read when asked for, and checked.

        Parameters
        ----------
        params
            What was asked for; ``None``: not known, then any table of the catalogue will do.

        Raises
        ------
        JobNotFound
            When they have expired.
        CodecError
            When they are not what was asked for, or too large.
        """
        left_bytes, rows = MAX_RESULT_BYTES, 0
        for number in range(manifest.chunks):
            key = self.job_keys.chunk(job_id, number)
            chunk = await self._part(key, min(left_bytes, _MOST_CHUNK_BYTES), job_id)
            left_bytes -= len(chunk)
            table = await asyncio.to_thread(read_chunk, chunk, params, job_id)
            del chunk
            rows += len(table)
            yield table
            del table  # a reader that waits holds nothing twice
        if rows != manifest.rows:
            raise CodecError(
                f"The result of job {job_id} has {rows} rows, and its manifest says "
                f"{manifest.rows}.",
                hint="The worker may be of another version.",
            )

    async def _part(self, key: str, most_bytes: int, job_id: str) -> bytes:
        """Return a part of a result, which is asked for its length first."""
        jobs = self._need_jobs()
        async with redis_call(self._jobs_address):
            size_bytes = await jobs.strlen(key)
            if size_bytes > most_bytes:
                raise CodecError(
                    f"The result of job {job_id} is too large: {key} has {size_bytes} bytes, and "
                    f"may have {most_bytes}.",
                    hint="Ask for fewer codes, or a shorter range.",
                    job=job_id,
                )
            part: bytes | None = await jobs.get(key) if size_bytes else None
        if part is None:
            raise _no_result(job_id)
        return part

    async def cancel(self, job_id: str) -> None:
        """Give a job up: out of the queue when it still waits there, else told to the worker."""
        jobs = self._need_jobs()
        progress = self.job_keys.progress(job_id)
        async with redis_call(self._jobs_address):
            await jobs.set(self.job_keys.cancel(job_id), b"1", ex=RESULT_TTL_S)
            queue = await jobs.hget(rq_key(job_id), "origin")
            if not queue or not await asyncio.to_thread(
                withdraw, self._need_blocking(), queue.decode(errors="replace"), job_id
            ):
                return
            # No worker will ever write this job's end.
            ended = Progress(
                state="failed", error=JobFailed("The job was cancelled.", job=job_id).to_dict()
            )
            await jobs.xadd(progress, {"p": ended.model_dump_json()})
            await jobs.expire(progress, RESULT_TTL_S)

    async def run_job(
        self,
        name: str,
        params: JobParams,
        *,
        timeout_s: float,
        on_progress: OnProgress | None = None,
    ) -> tuple[Manifest, pa.Table | None]:
        """Have a catalogue job done; see `Transport.run_job`.

        Raises
        ------
        TimedOut
            When it did not end within ``timeout_s``; it is cancelled.
        QMTError
            Whatever made the job fail.
        """
        import pyarrow as pa

        job_id, manifest = await self.finish_job(
            name, params, timeout_s=timeout_s, on_progress=on_progress
        )
        if manifest.kind == "document":
            return manifest, None
        tables = [table async for table in self.tables(job_id, manifest, params)]
        if not tables:
            raise CodecError(f"The result of job {job_id} has no part.")
        return manifest, pa.concat_tables(tables)

    async def finish_job(
        self,
        name: str,
        params: JobParams,
        *,
        timeout_s: float,
        on_progress: OnProgress | None = None,
    ) -> tuple[str, Manifest]:
        """Have a catalogue job done as `run_job` does; return its id and what it left behind."""
        job_id = await submit_and_wait(
            self,
            self.submit(name, params, timeout_s=timeout_s),
            name,
            deadline=time.monotonic() + timeout_s,
            timeout_s=timeout_s,
            on_progress=on_progress,
        )
        return job_id, await self.manifest(job_id, name)

    def _need_jobs(self) -> Any:
        if self._jobs is None:
            raise ConfigurationError(
                "The address of the jobs server is not known.",
                hint="Give jobs_url='redis://...', or set QMT_JOBS_URL.",
            )
        return self._jobs

    def _need_blocking(self) -> redis.Redis:
        assert self._jobs_blocking is not None  # goes with _jobs
        return self._jobs_blocking

    # Ticks

    async def latest(
        self, codes: Sequence[str] | None, markets: Sequence[str] = ()
    ) -> LatestValues[Tick]:
        """Return the last stored tick of the codes, or of whole markets.

        Codes without a tick are left out; the order is the codes'. What cannot be read is named
        by ``unreadable``.
        """
        values = await self.latest_values(codes, markets)
        found: LatestValues[Tick] = LatestValues(unreadable=values.unreadable)
        for code, data in values.items():
            try:
                found[code] = decode_latest(data, code)
            except CodecError as error:
                found.leave_out(code, error.message)
        return found

    async def latest_values(
        self, codes: Sequence[str] | None, markets: Sequence[str] = ()
    ) -> LatestValues[bytes]:
        """Do as `latest`, and leave the ticks encoded; see `decode_latest`."""
        by_market: dict[str, list[str]] = {market: [] for market in markets}
        for code in codes or ():
            by_market.setdefault(market_of(code), []).append(code)
        found: LatestValues[bytes] = LatestValues()
        async with (
            redis_call(self._address),
            self.streams.pipeline(transaction=False) as pipe,
        ):
            for market, requested in by_market.items():
                key = self.keys.latest(market)
                if requested:
                    pipe.hmget(key, requested)
                else:
                    pipe.hgetall(key)
            replies = await pipe.execute(raise_on_error=False)
        for (market, requested), reply in zip(by_market.items(), replies, strict=True):
            if isinstance(reply, Exception):
                try:
                    with redis_errors(self._address, self.keys.latest(market)):
                        raise reply
                except CodecError as error:
                    found.leave_out(market, error.message)
                    continue
            pairs = zip(requested, reply, strict=True) if requested else reply.items()
            for name, data in pairs:
                if data is None:
                    continue
                code = name if isinstance(name, str) else printable(name)
                if is_code_of(code, market):
                    found[code] = data
                else:
                    found.leave_out(code, f"{code!r} is no code of {market}.")
        return found if codes is None else found.of(codes)

    def follower(self, scope: Scope, **options: Any) -> Follower:
        """Return a reader over the feeds of a scope; see `Follower` for the options."""
        return Follower(self.streams, self.keys, scope, address=self._address, **options)

    def demand(self, on_refused: Callable[[str, QMTError], None]) -> Demand:
        """Return a keeper of leases; see `Wants`."""
        return Demand(self.streams, self.keys, on_refused=on_refused, address=self._address)

    async def live(self, request: LiveRequest, on_gap: OnGap) -> AsyncGenerator[Batch, None]:
        """Yield live data as they are published, each once; see `Transport.live`.

        Raises
        ------
        RedisUnavailable
            At the start at once, later after ``give_up_after_s``.
        Unavailable
            When bars are wanted that no producer can serve.
        """
        refused: list[QMTError] = []

        def check() -> None:
            if refused:
                raise refused[0]

        periods = () if request.period == "tick" else (request.period,)
        follower = self.follower(
            Scope.of(request.codes, request.markets, periods),
            position=request.position,
            start_ms=request.start_ms,
            snapshot=request.snapshot,
            conflate=request.conflate,
            on_gap=on_gap,
            give_up_after_s=self._give_up_after_s,
            check=check,
        )
        demand = self.demand(lambda _, error: refused.append(error))
        try:
            async with aclosing(follower.batches()) as batches:
                if periods:
                    await follower.begin()
                    demand.add(series_of(request.period, code) for code in request.codes or ())
                async for batch in batches:
                    yield batch
        finally:
            await demand.close()

    def stored(self) -> RedisStored:
        """Return where stored rows are read from: archive and streams.

        Raises
        ------
        ConfigurationError
            When the archive's address cannot be used.
        """
        if self._stored is None:
            from qmt_reading.stored.source import RedisStored

            self._stored = RedisStored(
                self.streams, self.keys, archive_url=self._archive_url, address=self._address
            )
        return self._stored

    async def check_streams(self, within_s: float) -> None:
        """Read from the streams server, within a time.

        Raises
        ------
        AccessDenied, RedisUnavailable
        """
        # Not PING: a server with a full disk refuses that and is read from all the same.
        async with redis_call(self._address, within_s):
            await self.streams.zrange(self.keys.seen, 0, 0)

    async def check_jobs(self, within_s: float) -> None:
        """Ask the jobs server whether it takes jobs, within a time.

        Raises
        ------
        AccessDenied, RedisUnavailable
        """
        async with redis_call(self._jobs_address, within_s):
            await self._need_jobs().ping()

    async def status(self) -> Status:
        """Return who is alive, by the heartbeats on the streams server."""
        return await read_status(self.streams, self.keys, self._address)


def _no_result(job_id: str) -> JobNotFound:
    return JobNotFound(
        f"Job {job_id} has no result.",
        hint=f"Results are kept for {RESULT_TTL_S} s.",
        job=job_id,
    )
