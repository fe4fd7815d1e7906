"""A queue of RQ as a worker takes jobs from it, whatever lies in it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import redis
import structlog
from rq import Queue
from rq.exceptions import DequeueTimeout, StopRequested
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from qmt_protocol.errors import CodecError, InvalidRequest, JobFailed, QMTError
from qmt_protocol.ids import JOB_ID
from qmt_protocol.jobs import MAX_JOB_DATA_BYTES, RESULT_TTL_S
from qmt_protocol.keys import JobKeys
from qmt_protocol.texts import shown

from .books import Books
from .dead import DeadList
from .guard import CatalogueJob, Handler, read_call, too_large
from .results import JobRecord

__all__ = ["JobQueue"]

_JOB_ID: Final = re.compile(JOB_ID.encode())
_TAKING_S: Final = 1.0
"""So long bad jobs are taken one after another before RQ's own loop has its turn."""
_SKIP: Final = 1000
_NAMED: Final = 9
_SKIP_BELOW_BYTES: Final = 64 << 20
"""A queue that takes more memory is skipped through one by one: ids in it may be of any length."""

_log: Final = structlog.get_logger(__name__)


class JobQueue(Queue):
    """A queue that gives its worker jobs that can be run, and tells of the others.

    Parameters
    ----------
    name, connection
        The queue.
    keys
        Names of the keys beside RQ's.
    handler
        Does the jobs.
    """

    def __init__(
        self, name: str, connection: redis.Redis, keys: JobKeys, handler: Handler, dead: DeadList
    ) -> None:
        super().__init__(
            name, connection=connection, job_class=CatalogueJob, serializer=JSONSerializer
        )
        self._keys = keys
        self._handler = handler
        self.dead = dead
        self.books = Books(connection, name, (self.key, self.intermediate_queue_key), dead)

    # -- what RQ calls --------------------------------------------------------------------------

    @classmethod
    def dequeue_any(
        cls, queues: Iterable[Queue], timeout: int | None, *_: Any, **__: Any
    ) -> tuple[Job, Queue]:
        """Return the next job that can be run.

        Raises
        ------
        DequeueTimeout
            When there is none within `timeout` seconds, or bad ones took some time.
        """
        (queue,) = queues
        assert isinstance(queue, JobQueue)
        return queue.take(timeout or 1), queue

    def move_dependents_to_ready(self, *_: Any, **__: Any) -> dict[str, list[str]]:
        """Look for none: no job of the catalogue depends on another."""
        return {}

    def enqueue_dependents(self, *_: Any, **__: Any) -> dict[str, list[str]]:
        """Look for none."""
        return {}

    # -- what the worker calls ------------------------------------------------------------------

    def record(self, job_id: str, timeout_s: float = 0.0) -> JobRecord:
        """Return what writes a job's progress and result."""
        return JobRecord(self.connection, self._keys, job_id, timeout_s)

    def take(self, timeout_s: int) -> CatalogueJob:
        """Wait for a job; see `dequeue_any`."""
        began_s = time.monotonic()
        self.books.put_aside()
        while time.monotonic() - began_s < _TAKING_S:
            raw: Any = self.connection.blmove(self.key, self.intermediate_queue_key, timeout_s)
            if raw is None:
                break
            job = self._usable(raw)
            if job is not None:
                return job
        raise DequeueTimeout(timeout_s, self.key)

    def bury(self, raw: bytes, error: QMTError) -> None:
        """Tell why a job was taken and not run, and forget it.

        Its waiter is told too, unless the id is another job's, of which nothing may be touched.

        Parameters
        ----------
        raw
            Its id as it lay in the queue.
        """
        self.dead.add_job(error.message, _named(raw))
        if _JOB_ID.fullmatch(raw):
            job_id = raw.decode()
            record = self.record(job_id)
            if record.claim():
                record.failed(error)
                self.mark_failed(job_id)
        with self.connection.pipeline(transaction=True) as pipe:
            pipe.lrem(self.key, 0, raw)  # type: ignore[arg-type]
            pipe.lrem(self.intermediate_queue_key, 0, raw)  # type: ignore[arg-type]
            pipe.execute()

    def mark_failed(self, job_id: str) -> None:
        """Say so in RQ's hash too, for RQ's own tools; it goes when the progress does."""
        key = Job.key_for(job_id)
        with self.connection.pipeline(transaction=False) as pipe:
            pipe.hset(key, "status", JobStatus.FAILED.value)
            pipe.expire(key, RESULT_TTL_S)
            pipe.execute(raise_on_error=False)  # it may be no hash

    # -- reading --------------------------------------------------------------------------------

    def _usable(self, raw: bytes) -> CatalogueJob | None:
        """Return the job of an id that was taken; None when it has been told why there is none."""
        if not _JOB_ID.fullmatch(raw):
            self._skip(raw, "This is no job id: letters, digits, - and _, at most 64.", _no_ids)
            return None
        try:
            job = self._read(raw.decode())
        except QMTError as error:
            self.bury(raw, error)
            return None
        except (redis.RedisError, OSError, StopRequested):
            raise
        except Exception as error:  # noqa: BLE001 - put back it would only come again
            _log.exception("a job cannot be read", job=shown(raw))
            self.bury(raw, _broke(error))
            return None
        if job is None:
            why = "There is no such job: it has expired, or never was."
            self._skip(raw, why, self._without_jobs)
        return job

    def _read(self, job_id: str) -> CatalogueJob | None:
        """Return a job, or None when there is none of that id."""
        key = Job.key_for(job_id)
        with self.connection.pipeline(transaction=False) as pipe:
            pipe.type(key)
            pipe.hstrlen(key, "data")
            kind, size = pipe.execute(raise_on_error=False)
        if kind == b"none":
            return None
        if kind != b"hash":
            raise CodecError(f"The job's key holds a {kind.decode()}, not a hash.")
        if size > MAX_JOB_DATA_BYTES:
            raise too_large()
        with self.connection.pipeline(transaction=False) as pipe:
            pipe.hget(key, "data")
            pipe.lpos(self.key, job_id)
            data, again = pipe.execute()
        if again is not None:
            raise InvalidRequest(
                "The id is in the queue more than once: whose parameters it has is not known.",
                hint="Give each job an id of its own.",
            )
        if not data:
            raise CodecError("The job's hash has no data.")
        spec, params = read_call(data, self.name)
        return CatalogueJob(job_id, spec, params, self._handler, self.connection)

    # -- what comes in masses -------------------------------------------------------------------

    def _skip(self, raw: bytes, why: str, alike: Callable[[list[bytes]], int]) -> None:
        """Forget an id, and with it those alike that follow in the queue.

        Parameters
        ----------
        alike
            Returns how many ids at the begin of a list are to be forgotten for the same reason.
        """
        self.connection.lrem(self.intermediate_queue_key, 0, raw)  # type: ignore[arg-type]
        more: list[bytes] = []
        if (self.connection.memory_usage(self.key, samples=0) or 0) < _SKIP_BELOW_BYTES:
            with self.connection.pipeline(transaction=True) as pipe:
                pipe.watch(self.key)  # type: ignore[no-untyped-call]
                following: Any = pipe.lrange(self.key, 0, _SKIP - 1)
                more = following[: alike(following)]
                pipe.multi()
                pipe.ltrim(self.key, len(more), -1)
                try:
                    pipe.execute()
                except redis.WatchError:  # somebody enqueues meanwhile: one by one then
                    more = []
        self.dead.add_job(why, *map(_named, (raw, *more[:_NAMED])), count=1 + len(more))

    def _without_jobs(self, ids: list[bytes]) -> int:
        keys = [Job.redis_job_namespace_prefix.encode() + one for one in ids]
        if not keys or not self.connection.exists(*keys):
            return len(keys)
        with self.connection.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.exists(key)
            there = pipe.execute()
        return next((at for at, is_there in enumerate(there) if is_there), len(there))


def _no_ids(raws: list[bytes]) -> int:
    return next((at for at, raw in enumerate(raws) if _JOB_ID.fullmatch(raw)), len(raws))


def _named(raw: bytes) -> str:
    return raw.decode() if _JOB_ID.fullmatch(raw) else shown(raw)


def _broke(error: Exception) -> JobFailed:
    return JobFailed(
        f"The job could not be read: {type(error).__name__}: {shown(str(error))}.",
        hint="This is a fault of the bridge; the worker's log has the traceback.",
    )
