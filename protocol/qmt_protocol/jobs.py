"""The job catalogue: every request that a worker answers, with its parameters and its result.

Client methods, REST routes and worker tasks follow from it. Parameters are validated on both
sides by the same models; a worker runs nothing that is not named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from .amounts import MAX_ROWS, parse_count
from .codes import parse_codes
from .decoding import DECODE_ERRORS, check_plain, reason_of
from .errors import CodecError, InvalidRequest
from .limits import MAX_CONTAINERS, MAX_DOCUMENT_BYTES, MAX_PROGRESS_BYTES
from .periods import parse_adjust, parse_period
from .schema import WIRE_VERSION, check_job_version
from .tables import table_of
from .texts import parse_text, shown
from .times import parse_ms

__all__ = [
    "CATALOGUE",
    "DOWNLOAD_QUEUE",
    "MAX_JOB_DATA_BYTES",
    "QUERY_QUEUE",
    "RESULT_TTL_S",
    "DownloadParams",
    "FullTickParams",
    "HistoryParams",
    "InstrumentDetailParams",
    "JobParams",
    "JobSpec",
    "Manifest",
    "Progress",
    "SectorStocksParams",
    "check_manifest",
    "decode_manifest",
    "decode_progress",
    "job_spec",
    "parse_params",
]

RESULT_TTL_S: Final = 600
"""How long a finished job's progress and result can be read."""
QUERY_QUEUE: Final = "qmt-query"
DOWNLOAD_QUEUE: Final = "qmt-download"
MAX_JOB_DATA_BYTES: Final = 1 << 20
"""Most bytes of a job's function and parameters, as JSON and as they are stored: the longest codes,
as many as are served at once, take less than half of it."""
_MAX_PARAMS: Final = 32
MAX_FETCHED_ROWS: Final = 10**9
_MAX_FIELDS: Final = 100


def _ms(value: Any, info: ValidationInfo) -> int | None:
    return None if value is None else parse_ms(value, str(info.field_name))


def _rows(most: int, least: int = 1) -> BeforeValidator:
    def check(value: Any, info: ValidationInfo) -> int | None:
        name = str(info.field_name)
        return None if value is None else parse_count(value, name, least=least, most=most)

    return BeforeValidator(check)


def _sector(value: Any) -> str:
    return parse_text(value, "sector", most=64)


# A list is given up at its first wrong element: of a million each would get an error of its own.
Codes = Annotated[list[str], FailFast(), AfterValidator(parse_codes)]
Moment = Annotated[int | None, BeforeValidator(_ms)]


class JobParams(BaseModel):
    """Base of all job parameters: frozen, nothing unknown, JSON in and out."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Range(JobParams):
    codes: Codes
    period: Annotated[str, AfterValidator(parse_period)] = "1d"
    start_ms: Moment = None
    """First label wanted, ms since the epoch; ``None``: as far back as the terminal has."""
    end_ms: Moment = None
    """Last label wanted, included; ``None``: up to now."""

    @model_validator(mode="after")
    def _ordered(self) -> _Range:
        if self.start_ms is not None and self.end_ms is not None and self.end_ms < self.start_ms:
            raise InvalidRequest(
                "The range ends before it starts.", hint="Swap start and end.", field="end"
            )
        return self


class HistoryParams(_Range):
    """Bars or ticks of history, one table for all codes."""

    count: Annotated[int | None, _rows(MAX_ROWS)] = None
    """The last so many rows of each code, up to the end."""
    fields: Annotated[list[str] | None, Field(max_length=_MAX_FIELDS, fail_fast=True)] = None
    """Columns wanted; ``None``: all of the period's table."""
    adjust: Annotated[str, AfterValidator(parse_adjust)] = "none"
    download: Literal["auto", "never"] = "auto"
    """Whether to fetch what the terminal's cache lacks, below `auto_download_rows`."""
    auto_download_rows: Annotated[int, _rows(MAX_FETCHED_ROWS, 0)] = 1_000_000
    """Most rows, counted by the trading calendar, that ``auto`` fetches."""
    fill: bool = False
    """Whether rows that the terminal invents for missing bars are kept."""

    @model_validator(mode="after")
    def _known_fields(self) -> HistoryParams:
        known = [column.name for column in table_of(self.period)]
        for name in self.fields or ():
            if name not in known:
                raise InvalidRequest(
                    f"{shown(name)} is not a column of period {self.period}.",
                    hint=f"Choose from {', '.join(known)}.",
                    field="fields",
                )
        return self


class DownloadParams(_Range):
    """History to be fetched into the terminal's cache."""


class FullTickParams(JobParams):
    """Current ticks straight from the terminal."""

    codes: Codes


class SectorStocksParams(JobParams):
    """Constituents of a sector."""

    sector: Annotated[str, BeforeValidator(_sector)]


class InstrumentDetailParams(JobParams):
    """What the terminal knows about instruments."""

    codes: Codes


class _ReadBack(msgspec.Struct):
    """What can be read back of a code after a download."""

    rows: int
    first_ms: int | None = None
    last_ms: int | None = None


@dataclass(frozen=True)
class JobSpec:
    """One entry of the catalogue."""

    name: str
    queue: str
    params: type[JobParams]
    result: Literal["table", "document"]
    timeout_s: float
    """Deadline of the work itself; waiting in the queue does not count."""
    xtdata: str
    """The xtdata call it stands for."""
    summary: str
    document: Any = None
    """What a result that is a document must be: a type that msgspec can check."""

    @property
    def function(self) -> str:
        """Name under which the job lies in RQ's queue."""
        return f"qmt.{self.name}"


CATALOGUE: Final[dict[str, JobSpec]] = {
    spec.name: spec
    for spec in (
        JobSpec(
            "history",
            QUERY_QUEUE,
            HistoryParams,
            "table",
            120.0,
            "get_market_data_ex",
            "Bars or ticks of history as one table, fetched into the terminal's cache if needed.",
        ),
        JobSpec(
            "full_tick",
            QUERY_QUEUE,
            FullTickParams,
            "document",
            30.0,
            "get_full_tick",
            "Current ticks straight from the terminal: {code: tick}.",
            dict[str, dict[str, Any]],
        ),
        JobSpec(
            "sector_stocks",
            QUERY_QUEUE,
            SectorStocksParams,
            "document",
            30.0,
            "get_stock_list_in_sector",
            "Codes of a sector: [code, ...].",
            list[str],
        ),
        JobSpec(
            "instrument_detail",
            QUERY_QUEUE,
            InstrumentDetailParams,
            "document",
            60.0,
            "get_instrument_detail",
            "Instrument documents: {code: document or null}.",
            dict[str, dict[str, Any] | None],
        ),
        JobSpec(
            "download",
            DOWNLOAD_QUEUE,
            DownloadParams,
            "document",
            3600.0,
            "download_history_data2",
            "Fetch history into the terminal's cache and read it back: {code: {rows, ...}}.",
            dict[str, _ReadBack],
        ),
    )
}


def job_spec(name: str) -> JobSpec:
    """Return a job's catalogue entry.

    Raises
    ------
    InvalidRequest
        When the catalogue has no such job.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise InvalidRequest(
            f"There is no job {shown(name)}.",
            hint=f"Choose one of {', '.join(CATALOGUE)}.",
            field="name",
        ) from None


def _parameters_of(name: str) -> str:
    return f"The job {name} takes {', '.join(job_spec(name).params.model_fields)}."


def parse_params(name: str, document: dict[str, Any]) -> JobParams:
    """Validate a job's parameters.

    Raises
    ------
    InvalidRequest
        When one is missing, unknown or wrong; the message names it.
    """
    spec = job_spec(name)
    if len(document) > _MAX_PARAMS:
        raise InvalidRequest(
            f"{name}: {len(document)} parameters; there are {len(spec.params.model_fields)}.",
            hint=_parameters_of(name),
        )
    try:
        return spec.params.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = shown(".".join(str(part) for part in first["loc"]) or "body").strip("'")
        raise InvalidRequest(
            f"{name}: {field}: {first['msg']}.", hint=_parameters_of(name), field=field
        ) from None


_MOST: Final = 2**53
_MOST_CHUNKS: Final = 100_000


class Progress(BaseModel):
    """One entry of a job's progress stream: JSON in its only field, ``p``.

    The stream begins with ``running`` when a worker takes the job and ends with ``done`` (the
    manifest lies ready) or ``failed`` (``error`` is an error document).
    """

    state: Literal["running", "done", "failed"]
    finished: int = Field(0, ge=0, le=_MOST)
    total: int = Field(0, ge=0, le=_MOST)
    message: str = ""
    error: dict[str, Any] | None = None


class Manifest(BaseModel):
    """What a finished job left behind; written after all chunks.

    A table's chunks are complete Arrow IPC streams, to be read in order and put together.
    """

    version: int = WIRE_VERSION
    """Of the wire, as the worker speaks it."""
    job: str
    kind: Literal["table", "document"]
    chunks: int = Field(0, ge=0, le=_MOST_CHUNKS)
    rows: int = Field(0, ge=0, le=_MOST)
    document: Any = None
    meta: dict[str, Any] = Field(default_factory=dict)
    """``simulated``, ``source``, ``absent`` ({code: reason}), ``market_ms`` (the market's now)."""


class _Meta(msgspec.Struct):
    """What of a manifest's ``meta`` is read."""

    simulated: bool = False
    absent: dict[str, str] | None = None


def decode_progress(data: bytes, what: str) -> Progress:
    """Read one entry of a job's progress.

    Parameters
    ----------
    what
        Whose it is, for the error.

    Raises
    ------
    CodecError
        When it is none, or longer than `MAX_PROGRESS_BYTES`.
    """
    return _decoded(Progress, data, what, MAX_PROGRESS_BYTES)


def decode_manifest(data: bytes, what: str, name: str | None = None) -> Manifest:
    """Read a job's manifest; see `check_manifest`.

    Raises
    ------
    CodecError
        When it is none, is longer than `MAX_DOCUMENT_BYTES`, or not what its job promises.
    WrongVersion
        When its worker speaks another version of the wire.
    """
    manifest = _decoded(Manifest, data, what, MAX_DOCUMENT_BYTES)
    check_manifest(manifest, what, name)
    return manifest


def check_manifest(manifest: Manifest, what: str, name: str | None = None) -> None:
    """Make sure that a manifest tells what the catalogue promises of its job.

    Parameters
    ----------
    name
        The job that was asked for; ``None``: not known, any of the catalogue will do.

    Raises
    ------
    CodecError
    WrongVersion
        When its worker speaks another version of the wire.
    """
    check_job_version(manifest.version, what)
    spec = CATALOGUE.get(manifest.job)
    if spec is None or name not in (None, spec.name) or spec.result != manifest.kind:
        requested = "a job of the catalogue" if name is None else f"{name}"
        raise _wrong(what, f"it is a {manifest.kind} of {manifest.job[:50]!r}, not of {requested}")
    try:
        msgspec.convert(manifest.meta, _Meta)
        if manifest.kind == "document":
            msgspec.convert(manifest.document, spec.document)
    except DECODE_ERRORS as error:
        raise _wrong(what, reason_of(error)) from error


_M = TypeVar("_M", Progress, Manifest)


def _decoded(kind: type[_M], data: bytes, what: str, most_bytes: int) -> _M:
    if len(data) > most_bytes:
        raise _wrong(what, f"it has {len(data)} bytes, and may have {most_bytes}")
    if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise _wrong(what, f"it has more than {MAX_CONTAINERS} arrays and objects")
    try:
        decoded = kind.model_validate_json(data, strict=True)
        check_plain(decoded.__dict__)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _wrong(what, reason_of(ValueError(f"{place} {first['msg']}"))) from error
    except DECODE_ERRORS as error:
        raise _wrong(what, reason_of(error)) from error
    return decoded


def _wrong(what: str, why: str) -> CodecError:
    return CodecError(
        f"{what} cannot be read: {why}.", hint="The worker may be of another version."
    )
