"""The routes of QMT Bridge itself: any catalogue job, stored ticks with their ids, who is alive."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from qmt_protocol.codes import parse_codes, parse_markets
from qmt_protocol.errors import CodecError
from qmt_protocol.feed import decode_latest
from qmt_protocol.ids import ENTRY_ID, JOB_ID
from qmt_protocol.jobs import CATALOGUE, parse_params
from qmt_reading.jobs.end import failure_of
from qmt_reading.latest import LatestValues

from . import models
from .access import AdmissionOf
from .answers import SOURCE_HEADER, answer
from .bridge import Bridge, source_name, while_connected
from .job_rules import allowed, explained
from .market_routes import BridgeOf, BudgetOf, SettingsOf
from .parameters import Document, described_body, refuse_unknown
from .results import held_bytes, one_stream
from .streaming import Held, streamed_or_whole

__all__ = ["health_router", "router"]

ARROW_STREAM = "application/vnd.apache.arrow.stream"
_NO_ENTRY = "0-0"

router = APIRouter(prefix="/api/v1", dependencies=[Depends(refuse_unknown)])
health_router = APIRouter(dependencies=[Depends(refuse_unknown)])

JobId = Annotated[str, Path(alias="id", pattern=JOB_ID)]
_JOBS_HELP = "\n".join(f"- `{spec.name}`: {spec.summary}" for spec in CATALOGUE.values())


@router.post(
    "/jobs/{name}",
    tags=["jobs"],
    status_code=202,
    summary="Submit a job",
    description=f"Jobs and their work:\n\n{_JOBS_HELP}",
    response_model=models.JobAccepted,
    responses=models.problems(415, 503),
    openapi_extra=described_body(
        {
            "type": "object",
            "description": "its parameters",
            "examples": [{"codes": ["000001.SZ"], "count": 60}],
        }
    ),
)
async def submit(
    name: Annotated[str, Path(description="a job of the catalogue", examples=["history"])],
    params: Document,
    bridge: BridgeOf,
    settings: SettingsOf,
    admission: AdmissionOf,
) -> Response:
    checked = allowed(parse_params(name, params), admission, settings.bridge_auto_download_rows)
    job_id = await bridge.transport.submit(name, checked, timeout_s=settings.bridge_query_timeout_s)
    accepted = answer({"id": job_id}, simulated=await bridge.simulated(), status=202)
    accepted.headers["Location"] = f"{router.prefix}/jobs/{job_id}"
    return accepted


@router.get(
    "/jobs/{id}",
    tags=["jobs"],
    summary="How far a job is",
    response_model=models.JobState,
    responses=models.problems(404, 503),
)
async def state(
    request: Request,
    job_id: JobId,
    bridge: BridgeOf,
    admission: AdmissionOf,
    wait_s: Annotated[
        float, Query(ge=0, le=30, description="how long to wait for news behind `after`")
    ] = 0.0,
    after: Annotated[
        str, Query(description="`entry` of the last answer", pattern=ENTRY_ID)
    ] = _NO_ENTRY,
) -> Response:
    """Long poll: answers when there is news, or with the present state when the wait is over."""
    transport = bridge.transport
    with admission.usage.waiting_for_job() if wait_s else nullcontext():
        entry = await while_connected(request, transport.progress(job_id, after, wait_s))
    if entry is None and after != _NO_ENTRY:
        entry = await transport.progress(job_id)
    body: dict[str, Any] = {"id": job_id, "entry": after, "state": "queued"}
    if entry is None:
        body |= {"finished": 0, "total": 0, "message": "", "error": None}
    else:
        body |= {"entry": entry[0], **entry[1].model_dump(mode="json")}
        if entry[1].state == "failed":
            body["error"] = explained(failure_of(entry[1]), admission).to_dict()
    return answer(body, simulated=await bridge.simulated())


@router.get(
    "/jobs/{id}/result",
    tags=["jobs"],
    summary="What a finished job left",
    response_model=models.JobDocument,
    responses={
        200: {
            "description": "A document as JSON; a table as one Arrow IPC stream, its manifest "
            "under the schema metadata key `qmt.manifest`.",
            "content": {ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}}},
        },
        **models.problems(404, 502, 503, 504),
    },
)
async def result(
    job_id: JobId, bridge: BridgeOf, budget: BudgetOf, admission: AdmissionOf
) -> Response:
    """Kept for ten minutes. A failed job answers with its error; an unfinished one with 404."""
    entry = await bridge.transport.progress(job_id)
    if entry is not None and entry[1].state == "failed":
        raise explained(failure_of(entry[1]), admission)
    manifest = await bridge.transport.manifest(job_id)
    admission.check_rows(manifest.rows)
    simulated = bool(manifest.meta.get("simulated"))
    if manifest.kind == "document":
        return answer(manifest.model_dump(mode="python"), simulated=simulated)
    return await streamed_or_whole(
        one_stream(manifest, bridge.transport.tables(job_id, manifest)),
        Held(budget, held_bytes(manifest)),
        headers={SOURCE_HEADER: source_name(simulated)},
        media_type=ARROW_STREAM,
    )


@router.delete(
    "/jobs/{id}",
    tags=["jobs"],
    status_code=204,
    summary="Give a job up",
    responses=models.problems(404, 503),
)
async def cancel(job_id: JobId, bridge: BridgeOf) -> Response:
    """A job that waits is taken out of its queue; one that runs is stopped by its worker."""
    await bridge.transport.cancel(job_id)
    return Response(status_code=204)


@router.get(
    "/latest",
    tags=["ticks"],
    summary="Last ticks with their ids",
    response_model=models.Latest,
    responses=models.problems(503),
)
async def latest(
    bridge: BridgeOf,
    codes: Annotated[str, Query(description="codes, comma-separated")] = "",
    markets: Annotated[str, Query(description="whole markets, comma-separated")] = "",
) -> Response:
    """Read from Redis alone; codes without a tick are left out.

    `id` is the tick's entry id in the stream of its code. A tick that cannot be read is left out
    too, and `unreadable` says of which code, and why.
    """
    whole = parse_markets(markets)
    some = parse_codes(codes) if codes or not whole else []
    found = await bridge.transport.latest_values(some or None, whole)
    if some and whole:
        more = await bridge.transport.latest_values(some)
        found.update(more)
        found.unreadable.update(more.unreadable)
    body = {code: one for code, data in found.items() if (one := _encoded(found, code, data))}
    simulated = await bridge.simulated()
    document = {"ticks": body, "unreadable": found.unreadable, "simulated": simulated}
    return answer(document, simulated=simulated)


def _encoded(found: LatestValues[bytes], code: str, data: bytes) -> msgspec.Raw | None:
    """Return a tick as JSON, a fifth of what it takes decoded; note one that cannot be read."""
    try:
        tick = decode_latest(data, code)
    except CodecError as error:
        found.leave_out(code, error.message)
        return None
    return msgspec.Raw(msgspec.json.encode({"id": tick.id, "flags": int(tick.flags), "tick": tick}))


@router.get(
    "/status",
    tags=["operation"],
    summary="Who is alive",
    response_model=models.Status,
    responses=models.problems(503),
)
async def status(bridge: BridgeOf) -> Response:
    """Last heartbeats of producers, workers and gateways, with their ages by Redis time.

    One that cannot be read is left out, and named in `unreadable`.
    """
    body = await bridge.transport.status()
    return answer(body.to_dict(), simulated=body.simulated)


@health_router.get(
    "/healthz",
    tags=["operation"],
    summary="Whether this process serves",
    response_model=models.Health,
)
async def health(request: Request) -> Response:
    """Needs no key. Always 200 while the process serves; `streams` tells whether Redis does."""
    bridge: Bridge = request.app.state.bridge
    streams = not (await bridge.readiness())["streams"]
    body = {
        "status": "ok" if streams else "degraded",
        "streams": streams,
        "version": version("qmt-redis-bridge"),
    }
    return answer(body, simulated=None)


@health_router.get(
    "/readyz",
    tags=["operation"],
    summary="Whether both Redis servers serve",
    response_model=models.Ready,
    responses={503: {"model": models.Ready, "description": "One of them does not."}},
)
async def readiness(request: Request) -> Response:
    """Needs no key; answers within three seconds. 503 names the server and why it does not serve.

    Producer, worker and archive are not looked at: without them a gateway answers all the same,
    and `/api/v1/status` tells of them.
    """
    bridge: Bridge = request.app.state.bridge
    reasons = await bridge.readiness()
    body = {
        "ready": not any(reasons.values()),
        **{name: {"ready": not why, "reason": why} for name, why in reasons.items()},
        "version": version("qmt-redis-bridge"),
    }
    return answer(body, simulated=None, status=200 if body["ready"] else 503)
