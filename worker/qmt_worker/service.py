"""The process of one queue: takes its jobs from RQ and has the child do them."""

from __future__ import annotations

import _thread
import logging
import threading
from importlib.metadata import version
from typing import Any, Final

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue, SimpleWorker, worker_registration
from rq.exceptions import StopRequested
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker import WorkerStatus

from qmt_protocol.errors import CodecError, InvalidRequest, QMTError, RedisUnavailable
from qmt_protocol.jobs import parse_params
from qmt_runtime.process import on_stop_signal, when_stdin_ends

from .dead import DeadList
from .guard import CatalogueJob
from .heartbeat import Beat
from .intake import JobQueue
from .keeper import ChildKeeper
from .orphans import Orphans
from .results import JobRecord
from .settings import WorkerSettings

__all__ = ["serve_queue"]

_WORKER_TTL_S: Final = 16  # RQ waits for a job in slices of this less 15 s
_TEND_EVERY_S: Final = 60
_LONGEST_BACKOFF_S: Final = 2.0
_AGAIN_S: Final = 1.0
_LAST_CALL_S: Final = 1.0

_log: Final = structlog.get_logger(__name__)


class _WithoutTraceback(logging.Filter):
    """A Redis that is away is no fault of the program: RQ's log names it in a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, redis.RedisError):
            record.exc_info = None
            record.msg = f"{record.getMessage()} {error}"
            record.args = ()
        return True


class _QueueWorker(SimpleWorker):
    """RQ's worker without its remote commands, which leaves signals to the service.

    What lies on the jobs server is read by `JobQueue`, `Books` and `Orphans`, never by RQ.
    """

    queue_class: type[Queue] = JobQueue
    max_connection_wait_time = _LONGEST_BACKOFF_S

    def __init__(self, queue: JobQueue, url: str) -> None:
        super().__init__(
            [queue],
            connection=queue.connection,
            job_class=CatalogueJob,
            serializer=JSONSerializer,
            worker_ttl=_WORKER_TTL_S,
            maintenance_interval=_TEND_EVERY_S,
            log_job_description=False,
        )
        self._url = url
        self._queue = queue
        self._orphans = Orphans(queue)

    def clean_registries(self) -> None:
        """Put the books right, and find what other processes left behind."""
        self._queue.books.put_aside()
        worker_registration.register(self)  # the server may have come back without it
        self._queue.books.trim()
        self._orphans.fail_begun()
        self._orphans.put_back_taken()
        self.last_cleaned_at = now()  # type: ignore[assignment]

    def clean_group_registries(self) -> None:
        """Look for none: nothing is enqueued in groups."""

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Do a job whose id has not been used; RQ's books have it first, for `Orphans`."""
        assert isinstance(job, CatalogueJob)
        try:
            execution = self.prepare_execution(job)
            if self._queue.record(job.id, job.spec.timeout_s).claim():
                self.perform_job(job, queue, execution)
            else:
                with self.connection.pipeline(transaction=True) as pipe:
                    self.cleanup_execution(job, pipeline=pipe, execution=execution)
                    pipe.execute()
                self._queue.bury(job.id.encode(), _used(job.id))
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._queue.bury(job.id.encode(), CodecError(f"A key of the job is wrong: {error}."))
        self.set_state(WorkerStatus.IDLE)

    def subscribe(self) -> None:
        """Take no commands over Redis: on Windows 'shutdown' kills, and anyone could send it."""

    def unsubscribe(self) -> None:
        """Nothing was subscribed to."""

    def check_for_suspension(self, burst: bool) -> None:
        """Do not look: `rq suspend` is a remote command too."""

    def request_end(self) -> None:
        """End behind the present job, or at once where there is none."""
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested
        self._stop_requested = True

    def teardown(self) -> None:
        """Tell that it ends, to a server that hears it; RQ forgets it soon anyhow."""
        with redis.Redis.from_url(
            self._url,
            socket_timeout=_LAST_CALL_S,
            socket_connect_timeout=_LAST_CALL_S,
            retry=Retry(NoBackoff(), 0),
        ) as self.connection:
            try:
                super().teardown()  # type: ignore[no-untyped-call]
            except redis.RedisError as error:
                _log.info("the jobs server was not told of the end", error=str(error))

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        error = exc_info[1]
        if isinstance(error, QMTError):
            # Told to the caller, with what to do: a traceback adds nothing.
            _log.warning("job failed", job=job.id, error=error.slug, message=error.message)
        else:
            super().handle_exception(job, *exc_info)

    def _install_signal_handlers(self) -> None:
        """Leave them as the service has them."""


def _used(job_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"A job of the id {job_id} was run already, or has progress: this one was not run.",
        hint="Give each job an id of its own.",
    )


class _Service:
    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        # RQ sets the timeouts that its blocking reads need.
        self._jobs = redis.Redis.from_url(settings.jobs_url)
        self._dead = DeadList(self._jobs, settings.job_keys, settings.queue)
        self._beat = Beat(settings.streams_url, settings.keys, self._facts)
        self._busy = ""
        self._finished = 0
        self._keeper = ChildKeeper(settings, self._state_changed)
        self._stopping = threading.Event()
        self._worker: _QueueWorker | None = None

    def run(self) -> None:
        """Serve until told to stop; the jobs server may come and go.

        Raises
        ------
        ConfigurationError
            When the child cannot work here at all.
        """
        logging.getLogger("rq.worker").addFilter(_WithoutTraceback())
        self._keeper.start()
        self._beat.start()
        try:
            on_stop_signal(self._stop)
            if self._settings.exit_with_stdin:
                when_stdin_ends(_thread.interrupt_main)
            self._serve()
        except StopRequested:
            pass  # told while no worker was there to take it
        finally:
            self._stopping.set()
            self._keeper.stop()
            self._beat.stop()
            self._jobs.close()
        if self._keeper.failure is not None:
            raise self._keeper.failure

    def _stop(self) -> None:
        """Stop in the main thread, wherever it is."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._keeper.abandon()
        if self._worker is None:
            raise StopRequested
        self._worker.request_end()

    def _serve(self) -> None:
        failure = ""
        while not self._stopping.is_set():
            try:
                self._worker = self._new_worker()
                _log.info("worker serves", queue=self._settings.queue)
                failure = ""
                self._worker.work(logging_level="WARNING")
            except redis.RedisError as error:
                if str(error) != failure:
                    _log.warning("the jobs Redis does not serve", error=str(error))
                failure = str(error)
            self._worker = None
            self._stopping.wait(_AGAIN_S)

    def _new_worker(self) -> _QueueWorker:
        settings = self._settings
        queue = JobQueue(
            settings.queue, self._jobs, settings.job_keys, self._handle, dead=self._dead
        )
        queue.books.put_aside()  # RQ registers its worker before all else
        return _QueueWorker(queue, settings.jobs_url)

    def _facts(self) -> dict[str, Any]:
        terminal = dict(self._keeper.terminal)
        return {
            "queues": [self._settings.queue],
            "simulated": bool(terminal.pop("simulated", False)),
            "terminal": terminal,
            "figures": {
                "busy": self._busy,
                "finished": self._finished,
                "dead": self._dead.count,
                "last_dead": self._dead.last,
            },
            "version": version("qmt-redis-bridge"),
        }

    def _state_changed(self) -> None:
        self._beat.soon()
        if self._keeper.failure is not None:
            _thread.interrupt_main()

    def _handle(self, job: CatalogueJob) -> None:
        spec = job.spec
        record = JobRecord(self._jobs, self._settings.job_keys, job.id, spec.timeout_s)
        self._busy = spec.name
        try:
            record.begin()
            parse_params(spec.name, job.params)
            result = self._keeper.run(
                spec.name,
                job.params,
                spec.timeout_s,
                cancelled=lambda: record.cancelled,
                on_progress=record.progress,
                on_chunk=record.chunk,
            )
            record.done(spec, result.rows, result.document, result.meta)
        except QMTError as error:
            record.failed(error)
            raise
        except redis.ResponseError as error:
            # Most likely the jobs server is full: small things still fit when chunks are gone.
            refused = RedisUnavailable(
                f"The jobs Redis refused the result of {spec.name}: {error}.",
                hint="Ask for less at once, or give the jobs server more memory.",
            )
            try:
                record.failed(refused)
            except redis.ResponseError as unreported:
                self._dead.add_job(f"The job's end cannot be told: {unreported}.", job.id)
            raise refused from error
        finally:
            self._busy = ""
            self._finished += 1


def serve_queue(settings: WorkerSettings) -> None:
    """Serve the queue that the settings name, until told to stop."""
    _Service(settings).run()
