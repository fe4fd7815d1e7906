"""Jobs on the wire: putting one into RQ's queue, and its result in Arrow and back."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import redis

from qmt_protocol.errors import CodecError, InvalidRequest
from qmt_protocol.jobs import (
    MAX_JOB_DATA_BYTES,
    RESULT_TTL_S,
    HistoryParams,
    JobParams,
    JobSpec,
    Manifest,
    decode_manifest,
)
from qmt_protocol.schema import WIRE_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MANIFEST_KEY",
    "ResultStream",
    "enqueue",
    "read_chunk",
    "rq_key",
    "withdraw",
]

MANIFEST_KEY: Final = b"qmt.manifest"
"""Schema metadata key under which a result's Arrow stream carries its manifest."""
_MIN_QUEUE_TTL_S: Final = 60
_GRACE_S: Final = 60  # RQ's own limit lies behind the worker's, which ends the job properly


def enqueue(
    connection: redis.Redis, spec: JobSpec, params: JobParams, job_id: str, timeout_s: float
) -> None:
    """Put one job into its queue (blocking).

    Raises
    ------
    InvalidRequest
        When its parameters are too large for a job, or a job of the id is there already.
    """
    from rq import Queue
    from rq.serializers import JSONSerializer

    arguments = {"params": params.model_dump(mode="json"), "version": WIRE_VERSION}
    size = len(json.dumps((spec.function, None, (), arguments)))
    if size > MAX_JOB_DATA_BYTES:
        raise InvalidRequest(
            f"{spec.name}: {size:,} bytes of parameters; a job has {MAX_JOB_DATA_BYTES:,} at most.",
            hint="Ask for fewer codes at once.",
            limit_bytes=MAX_JOB_DATA_BYTES,
        )
    if connection.exists(rq_key(job_id)):  # its parameters, and then its result, would be replaced
        raise InvalidRequest(
            f"There is a job {job_id} already.", hint="Give each job an id of its own.", job=job_id
        )
    Queue(spec.queue, connection=connection, serializer=JSONSerializer).enqueue_call(
        spec.function,
        kwargs=arguments,
        job_id=job_id,
        timeout=math.ceil(spec.timeout_s) + _GRACE_S,
        ttl=max(_MIN_QUEUE_TTL_S, math.ceil(timeout_s)),
        result_ttl=RESULT_TTL_S,
        failure_ttl=RESULT_TTL_S,
        description=spec.function,
    )


def rq_key(job_id: str) -> str:
    """Return the key of RQ's hash of a job; ``origin`` is its queue, ``status`` its state."""
    return f"rq:job:{job_id}"


def withdraw(connection: redis.Redis, queue: str, job_id: str) -> bool:
    """Take a job that no worker has taken yet out of its queue (blocking)."""
    from rq import Queue
    from rq.serializers import JSONSerializer

    line = Queue(queue, connection=connection, serializer=JSONSerializer)
    return bool(line.remove(job_id))


def read_chunk(chunk: bytes, params: JobParams | None, job_id: str) -> pa.Table:
    """Read a part of a result: a complete Arrow IPC stream.

    Parameters
    ----------
    params
        What was asked for; ``None``: not known, then any table of the catalogue will do.

    Raises
    ------
    CodecError
        When it is not exactly that; it names the job.
    """
    from qmt_protocol.arrow import read_history

    return read_history([chunk], _of_job(job_id), **_promised(params))


def _of_job(job_id: str) -> str:
    return f"The result of job {job_id}"


def _promised(params: JobParams | None) -> dict[str, Any]:
    if not isinstance(params, HistoryParams):
        return {}
    return {"period": params.period, "fields": params.fields, "codes": set(params.codes)}


class ResultStream:
    """Reads a result as a gateway sends it: one Arrow IPC stream that carries its manifest.

    Parameters
    ----------
    params
        What was asked for.
    job_id, address
        Whose result it is and who sends it, for the error.
    """

    def __init__(self, name: str, params: JobParams, job_id: str, address: str) -> None:

        from qmt_protocol.arrow import history_schema
        from qmt_protocol.arrow_stream import ArrowStream

        promised = _promised(params)
        schema = history_schema(promised["period"], promised["fields"])
        self._name = name
        self._codes = promised["codes"]
        self._what = f"{_of_job(job_id)} from {address}"
        self._stream = ArrowStream(schema.equals, self._what)
        self._batches: list[pa.RecordBatch] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises
        ------
        CodecError
            When they are not what was asked for.
        """
        self._batches += self._stream.feed(data)

    def end(self) -> tuple[Manifest, pa.Table]:
        """Return what was read.

        Raises
        ------
        CodecError
            When it breaks off, or carries no manifest of that job.
        """
        import pyarrow as pa

        from qmt_protocol.arrow import check_history

        schema = self._stream.end()
        packed = (schema.metadata or {}).get(MANIFEST_KEY)
        if packed is None:
            raise CodecError(f"{self._what} carries no manifest.")
        manifest = decode_manifest(packed, self._what, self._name)
        table = pa.Table.from_batches(self._batches, schema=schema)
        check_history(table, self._what, self._codes)
        if len(table) != manifest.rows:
            raise CodecError(
                f"{self._what} has {len(table)} rows, and its manifest says {manifest.rows}."
            )
        return manifest, table
