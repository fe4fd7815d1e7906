"""Jobs on the wire: putting one into RQ's queue, and its result in Arrow and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import redis

from qmt_protocol.errors import CodecError, InvalidRequest
from qmt_protocol.jobs import MAX_JOB_DATA_BYTES, RESULT_TTL_S, JobParams, JobSpec, Manifest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MANIFEST_KEY",
    "enqueue",
    "from_stream",
    "read_chunks",
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

    document = params.model_dump(mode="json")
    size = len(json.dumps((spec.function, None, (), {"params": document})))
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
        kwargs={"params": document},
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


def read_chunks(chunks: Iterable[bytes]) -> pa.Table:
    """Put a result's chunks, each a complete Arrow IPC stream, together in one table.

    Raises
    ------
    CodecError
        When a chunk is no Arrow stream, or they do not fit together.
    """
    import pyarrow as pa

    try:
        return pa.concat_tables([pa.ipc.open_stream(chunk).read_all() for chunk in chunks])
    except (pa.ArrowException, OSError) as error:
        raise CodecError(f"A result chunk is not an Arrow stream: {error}.") from error


def from_stream(data: bytes) -> tuple[Manifest, pa.Table]:
    """Read a result as a gateway sends it: one Arrow IPC stream that carries its manifest.

    Raises
    ------
    CodecError
        When it is no such stream.
    """
    table = read_chunks([data])
    told = (table.schema.metadata or {}).get(MANIFEST_KEY)
    if told is None:
        raise CodecError("The result carries no manifest.")
    try:
        return Manifest.model_validate_json(told), table
    except ValueError as error:
        raise CodecError(f"The result's manifest cannot be read: {error}.") from error
