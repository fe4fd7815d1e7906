"""What a job leaves on the jobs server: its claim, progress, chunks, the manifest."""

from __future__ import annotations

import time
from typing import Any, Final

import redis

from qmt_protocol.errors import QMTError
from qmt_protocol.jobs import RESULT_TTL_S, JobSpec, Manifest, Progress
from qmt_protocol.keys import JobKeys

from .claims import ENDED, claim_of_this_process

__all__ = ["JobRecord"]

_PROGRESS_EVERY_S: Final = 0.1
_MAX_PROGRESS: Final = 1000
_MARGIN_S: Final = 120


class JobRecord:
    """Writes one job's progress and result.

    Parameters
    ----------
    connection
        The jobs server.
    keys, job_id
        Whose result it is.
    timeout_s
        For how long the job may run.
    """

    def __init__(
        self, connection: redis.Redis, keys: JobKeys, job_id: str, timeout_s: float = 0.0
    ) -> None:
        self._redis = connection
        self._keys = keys
        self._id = job_id
        self._progress = keys.progress(job_id)
        self._running_ttl_s = int(timeout_s) + _MARGIN_S + RESULT_TTL_S
        self._reported_s = 0.0
        self._chunks = 0

    @property
    def cancelled(self) -> bool:
        """Whether the waiter has given the job up."""
        return bool(self._redis.exists(self._keys.cancel(self._id)))

    @property
    def claimed(self) -> bytes:
        """What the job's claim says; empty where there is none."""
        try:
            is_used: Any = self._redis.get(self._keys.claim(self._id))
        except redis.ResponseError:  # a key of another type
            return b""
        return is_used or b""

    def claim(self) -> bool:
        """Take the job's id; False when it was taken before and anything of it can be read still.

        Only who has it may write progress and result: they are the first caller's.
        """
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(
                self._keys.claim(self._id),
                claim_of_this_process(),
                nx=True,
                ex=self._running_ttl_s,
            )
            pipe.exists(self._progress)
            taken, is_used = pipe.execute()
        return bool(taken) and not is_used

    def begin(self) -> None:
        """Tell that a worker has taken the job."""
        self._add(Progress(state="running"))

    def progress(self, finished: int, total: int, message: str) -> None:
        """Tell how far it is; entries closer than 0.1 s to the last are left out."""
        now_s = time.monotonic()
        if finished < total and now_s - self._reported_s < _PROGRESS_EVERY_S:
            return
        self._reported_s = now_s
        self._add(Progress(state="running", finished=finished, total=total, message=message))

    def chunk(self, data: bytes) -> None:
        """Store the next part of a table."""
        self._redis.set(self._keys.chunk(self._id, self._chunks), data, ex=self._running_ttl_s)
        self._chunks += 1

    def done(self, spec: JobSpec, rows: int, document: Any, meta: dict[str, Any]) -> None:
        """Store the manifest and tell that the result lies ready."""
        manifest = Manifest(
            job=spec.name,
            kind=spec.result,
            chunks=self._chunks,
            rows=rows,
            document=document,
            meta=meta,
        )
        with self._redis.pipeline(transaction=True) as pipe:
            for number in range(self._chunks):
                pipe.expire(self._keys.chunk(self._id, number), RESULT_TTL_S)
            pipe.set(self._keys.manifest(self._id), manifest.model_dump_json(), ex=RESULT_TTL_S)
            pipe.execute()
        self._end(Progress(state="done"))

    def failed(self, error: QMTError) -> None:
        """Drop what was stored and tell why there is no result."""
        chunks = [self._keys.chunk(self._id, number) for number in range(self._chunks)]
        if chunks:
            self._redis.delete(*chunks)
        self._end(Progress(state="failed", message=error.message, error=error.to_dict()))

    def _add(self, entry: Progress) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            self._report(pipe, entry, self._running_ttl_s)
            pipe.execute()

    def _end(self, entry: Progress) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            self._report(pipe, entry, RESULT_TTL_S)
            pipe.set(self._keys.claim(self._id), ENDED, ex=RESULT_TTL_S)
            pipe.execute()

    def _report(self, pipe: Any, entry: Progress, ttl_s: int) -> None:
        pipe.xadd(self._progress, {"p": entry.model_dump_json()}, maxlen=_MAX_PROGRESS)
        pipe.expire(self._progress, ttl_s)
