"""RQ jobs as a worker accepts them: catalogue functions with JSON parameters, nothing else.

Whoever can write to the jobs Redis could otherwise make RQ import and run any function: as the
job itself, as a callback of it, or by a pickle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from rq.job import Job

from qmt_protocol.errors import InvalidRequest
from qmt_protocol.jobs import CATALOGUE, RESULT_TTL_S

__all__ = ["Handler", "guarded_job_class"]

Handler = Callable[[Job, str, dict[str, Any]], None]
"""Does one job: the RQ job, its name in the catalogue, its parameters as they came."""

_BY_FUNCTION = {spec.function: spec for spec in CATALOGUE.values()}


def guarded_job_class(handler: Handler, queue: str) -> type[Job]:
    """Return the Job class for a queue's worker and its Queue.

    Give it to both, together with the JSON serializer.
    """

    class GuardedJob(Job):
        """A job whose function is looked up in the catalogue, never imported."""

        def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
            super().restore(raw_data)
            # Each of these names code to import, a peer to call, or work to do again.
            self._success_callback_name = None
            self._failure_callback_name = None
            self._stopped_callback_name = None
            self.webhooks = []
            self._dependency_ids = []
            self.retries_left = self.number_of_retries = self.repeats_left = None
            self.retry_intervals = self.repeat_intervals = None
            self.rate_limit_key = None
            self.result_ttl = self.failure_ttl = RESULT_TTL_S

        @property
        def func(self) -> Callable[..., None]:
            spec = _BY_FUNCTION.get(self.func_name) if isinstance(self.func_name, str) else None
            if spec is None or spec.queue != queue or self.instance is not None:
                raise InvalidRequest(
                    f"{self.func_name!r} is no job of queue {queue}; it was not run.",
                    hint=f"Jobs are {', '.join(_BY_FUNCTION)}.",
                )
            return functools.partial(_run, handler, self, spec.name)

    return GuardedJob


def _run(handler: Handler, job: Job, name: str, *args: Any, **kwargs: Any) -> None:
    if args or set(kwargs) != {"params"} or not isinstance(kwargs["params"], dict):
        raise InvalidRequest(
            f"{name}: a job has the one argument params, an object.", field="params"
        )
    handler(job, name, kwargs["params"])
