"""Jobs that a killed worker process of this machine left behind."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import psutil
import redis
import structlog
from rq import Queue, SimpleWorker
from rq.job import Job, JobStatus
from rq.utils import as_text

__all__ = ["adopt_orphans"]

_log: Final = structlog.get_logger(__name__)


def adopt_orphans(queue: Queue, fail: Callable[[Job], None]) -> None:
    """Put back jobs that were taken but not begun, and fail those that were begun.

    RQ itself notices them only after minutes.

    Parameters
    ----------
    fail
        Tells the waiter of a job that it will not be done.
    """
    connection = queue.connection
    for job_id in queue.intermediate_queue.get_job_ids():
        job = queue.fetch_job(job_id)
        if job is None or job.get_status() != JobStatus.QUEUED:
            continue
        with connection.pipeline(transaction=True) as pipe:
            pipe.lrem(queue.intermediate_queue_key, 1, job_id)
            pipe.rpush(queue.key, job_id)
            pipe.execute()
        _log.warning("job put back", job=job_id)
    registry = queue.started_job_registry
    for job_id in registry.get_job_ids(cleanup=False):
        job = queue.fetch_job(job_id)
        if job is None or not _died_here(connection, job.worker_name):
            continue
        fail(job)
        with connection.pipeline(transaction=True) as pipe:
            registry.remove_executions(job, pipeline=pipe)
            job.set_status(JobStatus.FAILED, pipeline=pipe)
            pipe.execute()
        _log.warning("job of a dead process failed", job=job_id)


def _died_here(connection: redis.Redis, worker_name: str | None) -> bool:
    """Return whether the worker was a process of this machine that is gone."""
    key = f"{SimpleWorker.redis_worker_namespace_prefix}{worker_name}"
    host, pid = connection.hmget(key, "hostname", "pid")
    if host is None or pid is None or as_text(host) != socket.gethostname():
        return False
    return not psutil.pid_exists(int(pid))
