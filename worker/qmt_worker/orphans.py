"""Jobs that a dead worker process left behind."""

from __future__ import annotations

import re
import time
from typing import Any, Final

import redis
import structlog

from qmt_protocol.errors import JobFailed
from qmt_protocol.ids import JOB_ID
from qmt_protocol.jobs import CATALOGUE
from qmt_protocol.texts import shown

from .claims import ENDED, is_of_nobody
from .intake import JobQueue

__all__ = ["Orphans"]

_MOST: Final = 1000
"""So many are looked at in one go; the rest has its turn in the next."""
_STARTED: Final = re.compile(rf"({JOB_ID[1:-1]}):[^:]+".encode())
_LONGEST_S: Final = 2 * max(spec.timeout_s for spec in CATALOGUE.values())

_log: Final = structlog.get_logger(__name__)


class Orphans:
    """Finds them; to be asked between two jobs.

    Parameters
    ----------
    queue
        Where they came from.
    """

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._redis = queue.connection
        self._taken: set[bytes] | None = None

    def fail_begun(self) -> None:
        """Tell the end of jobs that were begun and that nobody does any more."""
        books = self._queue.books
        now_s = time.time()
        begun: Any = self._redis.zrange(books.started, 0, _MOST - 1, withscores=True)
        for entry, until_s in begun:
            match = _STARTED.fullmatch(entry)
            if match is None:
                self._queue.dead.add_job(f"{books.started} names no job there.", shown(entry))
                self._redis.zrem(books.started, entry)
                continue
            over = not now_s < until_s < now_s + _LONGEST_S
            self._look_at(entry, match[1].decode(), over=over)

    def _look_at(self, entry: bytes, job_id: str, *, over: bool) -> None:
        queue = self._queue
        claim = queue.record(job_id).claimed
        if not over and not is_of_nobody(claim):
            return
        if claim not in (b"", ENDED):
            queue.record(job_id).failed(
                JobFailed(
                    "The worker died while it did this job, or could not tell its end.",
                    hint="Try again.",
                    reason="worker died",
                )
            )
            queue.mark_failed(job_id)
            _log.warning("job of a dead process failed", job=job_id)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.lrem(queue.intermediate_queue_key, 0, job_id)
            pipe.zrem(queue.books.started, entry)
            pipe.execute()

    def put_back_taken(self) -> None:
        """Put back what was taken and not begun; later than at first, what is so for two looks.

        Another worker of the queue may just now have taken one.
        """
        queue = self._queue
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.watch(queue.intermediate_queue_key)  # type: ignore[no-untyped-call]
            taken: Any = pipe.lrange(queue.intermediate_queue_key, 0, _MOST - 1)
            left = [raw for raw in taken if self._taken is None or raw in self._taken]
            pipe.multi()
            for raw in left:
                pipe.lrem(queue.intermediate_queue_key, 1, raw)
                pipe.rpush(queue.key, raw)
            try:
                pipe.execute()
            except (
                redis.WatchError
            ):  # twice in the queue a job would not be run; the next look does
                return
        if left:
            _log.warning("jobs put back", count=len(left), first=shown(left[0]))
        self._taken = set(taken) - set(left)
