"""RQ jobs as a worker accepts them: catalogue functions with JSON parameters, nothing else.

Of a job's hash only ``data`` is read. Whoever can write to the jobs Redis could otherwise make RQ
import and run any function, as the job itself or as a callback of it, load a pickle, call a peer,
or inflate kilobytes to gigabytes; and every field that RQ parses can end it.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, Final

import msgspec
import redis
from rq.job import Job
from rq.serializers import JSONSerializer

from qmt_protocol.errors import CodecError, InvalidRequest
from qmt_protocol.jobs import CATALOGUE, MAX_JOB_DATA_BYTES, RESULT_TTL_S, JobSpec
from qmt_protocol.schema import WIRE_VERSION, check_job_version
from qmt_protocol.texts import shown

__all__ = ["CatalogueJob", "Handler", "read_call"]

_BY_FUNCTION: Final = {spec.function: spec for spec in CATALOGUE.values()}
_SHAPE: Final = (
    f'It must be ["qmt.<job>", null, [], {{"params": {{...}}, "version": {WIRE_VERSION}}}] '
    "as JSON, inflated or not."
)
_ARGUMENTS: Final = {"params", "version"}
_GRACE_S: Final = 60  # RQ's own limit lies behind the worker's, which ends the job properly
_CALLERS_FIELDS: Final = ("data", "created_at")


def read_call(data: bytes, queue: str) -> tuple[JobSpec, dict[str, Any]]:
    """Read what a job of a queue is to do: the job of the catalogue, its parameters as they came.

    Parameters
    ----------
    data
        Field ``data`` of the job's hash, zlib-compressed or plain.

    Raises
    ------
    CodecError
        When it is no call: too large, no JSON, of another shape.
    InvalidRequest
        When the queue has no such job.
    WrongVersion
        When it is of another version of the wire.
    """
    text = _inflated(data)
    try:
        call = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CodecError(
            f"The job's data are not JSON: {shown(str(error))}.", hint=_SHAPE
        ) from None
    if not isinstance(call, list) or len(call) != 4:
        raise CodecError("The job's data are not a call.", hint=_SHAPE)
    function, instance, args, kwargs = call
    spec = _BY_FUNCTION.get(function) if isinstance(function, str) else None
    if spec is None or spec.queue != queue or instance is not None:
        raise InvalidRequest(
            f"{shown(function)} is no job of queue {queue}; it was not run.",
            hint=f"Jobs are {', '.join(_BY_FUNCTION)}.",
        )
    if args or not isinstance(kwargs, dict) or kwargs.keys() != _ARGUMENTS:
        raise InvalidRequest(
            f"{spec.name}: a job has the arguments params and version.", hint=_SHAPE
        )
    check_job_version(kwargs["version"], "The job")
    if not isinstance(params := kwargs["params"], dict):
        raise InvalidRequest(f"{spec.name}: params is no object.", hint=_SHAPE, field="params")
    return spec, params


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_JOB_DATA_BYTES + 1)
        whole = inflater.eof
    except zlib.error:  # RQ takes what is not compressed as it is
        text, whole = data, True
    if len(text) > MAX_JOB_DATA_BYTES:
        raise too_large()
    if not whole:
        raise CodecError("The job's data are cut off.", hint=_SHAPE)
    return text


def too_large() -> CodecError:
    """Return the error of data beyond the limit."""
    return CodecError(
        f"The job's data are larger than {MAX_JOB_DATA_BYTES:,} bytes.",
        hint="Ask for less in one job.",
        limit_bytes=MAX_JOB_DATA_BYTES,
    )


class CatalogueJob(Job):
    """A job of RQ that was read by `read_call`: nothing else of its hash is known to RQ.

    Parameters
    ----------
    handler
        Does it.
    """

    def __init__(
        self,
        job_id: str,
        spec: JobSpec,
        params: dict[str, Any],
        handler: Handler,
        connection: redis.Redis,
    ) -> None:
        super().__init__(job_id, connection=connection, serializer=JSONSerializer)
        self.spec = spec
        self.params = params
        self._handler = handler
        self.func_name = spec.function
        self.origin = spec.queue
        self.timeout = math.ceil(spec.timeout_s) + _GRACE_S
        self.result_ttl = self.failure_ttl = RESULT_TTL_S

    @property
    def func(self) -> Callable[..., None]:
        return functools.partial(self._handler, self)

    def to_dict(self, include_meta: bool = True, include_result: bool = True) -> dict[str, Any]:
        """Leave what the caller wrote as it is."""
        document: dict[str, Any] = super().to_dict(include_meta, include_result)
        return {name: value for name, value in document.items() if name not in _CALLERS_FIELDS}


Handler = Callable[[CatalogueJob], None]
"""Does one job."""
