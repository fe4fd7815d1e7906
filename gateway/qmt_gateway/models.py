"""Shapes of the answers, for the OpenAPI page: answers themselves are encoded straight to bytes."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Archive",
    "BatchHistory",
    "Download",
    "DownloadBody",
    "FullTick",
    "Health",
    "History",
    "InstrumentDetail",
    "JobAccepted",
    "JobDocument",
    "JobState",
    "Latest",
    "Meta",
    "Problem",
    "SectorStocks",
    "Status",
    "Stored",
    "problems",
]

_RECORD: Final = {
    "date": "20260105",
    "open": 10.52,
    "high": 10.61,
    "low": 10.48,
    "close": 10.57,
    "volume": 758613,
}
_TICK: Final = {
    "time": 1767576600000,
    "lastPrice": 1412.5,
    "volume": 30012,
    "askPrice": [1412.6, 1412.8, 1413.0, 1413.1, 1413.2],
    "timetag": "20260105 09:30:00",
}


class Meta(BaseModel):
    """Where an answer comes from; the only key that qmt-bridge-pro's answers do not have."""

    model_config = ConfigDict(extra="allow")

    source: Literal["QMT", "SIMULATED"] = Field(description="also in the header X-QMT-Source")
    simulated: bool = Field(description="true: invented by the simulator, not market data")


class History(BaseModel):
    """Rows of one code, oldest first."""

    stock: str = Field(examples=["000001.SZ"])
    period: str = Field(examples=["1d"])
    count: int = Field(description="as asked; -1: all rows of the range", examples=[60])
    data: list[dict[str, Any]] = Field(
        description="`date` is YYYYMMDD for 1d and longer, else YYYYMMDDHHMMSS (China time); "
        "a value that the terminal does not have is null",
        examples=[[_RECORD]],
    )
    meta: Meta


class BatchHistory(BaseModel):
    """Rows of many codes."""

    stocks: list[str] = Field(examples=[["000001.SZ", "600519.SH"]])
    period: str = Field(examples=["1d"])
    count: int = Field(examples=[60])
    data: dict[str, list[dict[str, Any]]] = Field(
        description="every code asked for; an absent one is empty and `meta.absent` says why",
        examples=[{"000001.SZ": [_RECORD], "600519.SH": []}],
    )
    meta: Meta


class FullTick(BaseModel):
    """The last stored tick of each code."""

    data: dict[str, dict[str, Any]] = Field(examples=[{"600519.SH": _TICK}])
    meta: Meta = Field(
        description="with `absent` (codes without a tick), `unreadable` (code to why its tick "
        "cannot be read), `age_ms` (code to the age of its tick) and `producer` (`alive`, "
        "`last_seen_ms`)"
    )


class SectorStocks(BaseModel):
    """Codes of a sector."""

    sector: str = Field(examples=["沪深A股"])
    stocks: list[str] = Field(examples=[["000001.SZ", "600519.SH"]])
    meta: Meta


class InstrumentDetail(BaseModel):
    """What the terminal knows about an instrument; its no-value numbers are null."""

    stock: str = Field(examples=["600519.SH"])
    detail: dict[str, Any] = Field(
        examples=[{"InstrumentID": "600519", "InstrumentName": "贵州茅台", "PriceTick": 0.01}]
    )
    meta: Meta


class DownloadBody(BaseModel):
    """History to be fetched into the terminal's cache."""

    model_config = ConfigDict(extra="forbid")

    stock: str = Field(examples=["000001.SZ"])
    period: str = Field("1d", examples=["1d"])
    start: str = Field("", description="first day or moment; empty: as far back as there is")
    end: str = Field("", description="last day (included) or moment; empty: now")


class Download(BaseModel):
    """A download that ended and whose range was read back."""

    status: Literal["ok"]
    stock: str
    period: str
    meta: Meta


class JobAccepted(BaseModel):
    """A job lies in its queue."""

    id: str = Field(examples=["5f0c7e1f3c0b4a3f8f6f0a2d5b9c1e77"])


class JobState(BaseModel):
    """How far a job is."""

    id: str
    entry: str = Field(description="position in the job's progress, to be sent as `after`")
    state: Literal["queued", "running", "done", "failed"]
    finished: int
    total: int
    message: str
    error: dict[str, Any] | None = Field(description="error document of a failed job")


class JobDocument(BaseModel):
    """The manifest of a job whose result is a document."""

    model_config = ConfigDict(extra="allow")

    job: str
    kind: Literal["document"]
    document: Any
    meta: dict[str, Any]


class Latest(BaseModel):
    """Last stored ticks with their place in the code's stream."""

    ticks: dict[str, dict[str, Any]] = Field(
        examples=[{"600519.SH": {"id": "1767576600000-0", "flags": 0, "tick": _TICK}}]
    )
    unreadable: dict[str, str] = Field(
        description="codes (or markets) whose last tick cannot be read, and why; at most 50"
    )
    simulated: bool


class Stored(BaseModel):
    """Rows that were collected, by exchange time, then code."""

    meta: Meta
    data: list[dict[str, Any]] = Field(
        description="of a tick `code`, entry `id`, `flags` and xtquant's keys; of a bar `code`, "
        "`id`, xtquant's keys and `closed`",
        examples=[[{"code": "600519.SH", "id": "1767576600000-0", "flags": 0, **_TICK}]],
    )
    absent: list[str] = Field(description="codes asked for that no row is of")
    missing: list[dict[str, Any]] = Field(
        description="what of the range is known to be absent, and that the rows begin later or end "
        "earlier than asked: market, codes (none: any), from_ms, to_ms, reason"
    )


class Archive(BaseModel):
    """What the archive holds."""

    archived: bool = Field(description="whether this gateway has an archive")
    days: list[dict[str, Any]] = Field(
        description="trading days with ticks, oldest first; per market their number and bytes",
        examples=[[{"day": 20261120, "markets": {"SH": {"ticks": 11200000, "bytes": 448000000}}}]],
    )
    markets: list[str] = Field(examples=[["BJ", "SH", "SZ"]])
    bars: list[dict[str, str]] = Field(examples=[[{"period": "1m", "market": "SH"}]])
    simulated_markets: list[str] = Field(
        description="markets of which rows, archived or in the streams, were invented by the "
        "simulator"
    )
    missing: list[dict[str, Any]] = Field(
        description="what is known to be absent: market, codes (none: any), from_ms, to_ms, "
        "reason, and state: open, filled, or not to be had"
    )


class Status(BaseModel):
    """Last heartbeats of all processes; what ended longer than a day ago has its last ones."""

    processes: list[dict[str, Any]] = Field(
        description="heartbeats with `age_ms` (by Redis time) and `alive`"
    )
    unreadable: list[dict[str, str]] = Field(
        description="heartbeats that cannot be read: `member` and `reason`",
        examples=[[{"member": "worker:WIN-QMT:4711", "reason": "It is longer than 65536 bytes."}]],
    )
    simulated: bool
    now_ms: int = Field(description="Redis time")


class Health(BaseModel):
    """This process serves; whether Redis answers it."""

    status: Literal["ok", "degraded"]
    streams: bool
    version: str


class ServerReady(BaseModel):
    """Whether a Redis server serves, and why it does not."""

    ready: bool
    reason: str = Field(examples=["it loads its data"])


class Ready(BaseModel):
    """Whether the gateway can answer: both Redis servers serve it."""

    ready: bool
    streams: ServerReady
    jobs: ServerReady
    version: str


class Problem(BaseModel):
    """An error, as RFC 9457 shapes it."""

    type: str = Field(examples=["urn:qmt:no-worker"])
    title: str = Field(examples=["No worker serves the job queue"])
    status: int = Field(examples=[503])
    detail: str
    error: str = Field(description="the kind, last part of `type`")
    message: str = Field(description="what happened")
    hint: str = Field(description="what to do")
    data: dict[str, Any] = Field(description="facts of the case, such as last_seen_ms")


_MEANINGS: Final[dict[int, str]] = {
    401: "The API key is missing, wrong, expired or revoked.",
    403: "The key lacks the scope, or a page of another site asked without one.",
    404: "No such code, sector or job.",
    409: "The history is not in the terminal's cache and was not downloaded.",
    410: "The streams no longer reach back so far, and there is no archive.",
    415: "The body is not JSON in UTF-8.",
    422: "A parameter is wrong; nothing was done.",
    429: "More than the caller may have, or faster; `Retry-After` where waiting helps.",
    500: "The gateway failed; its log says why.",
    501: "The terminal lacks this function.",
    502: "The terminal or the job failed.",
    503: "A part of the bridge is away; `data.last_seen_ms` tells since when.",
    504: "The job did not end in time.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route for OpenAPI; all have 401, 403, 422, 429 and 500."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            },
        }
        for status in sorted({401, 403, 422, 429, 500, *statuses})
    }
