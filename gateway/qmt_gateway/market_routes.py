"""The routes that qmt-bridge-pro's callers know: history, ticks, sectors, instruments, download."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NamedTuple

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from qmt_protocol.codes import parse_code, parse_codes
from qmt_protocol.errors import HistoryMissing, InstrumentNotFound, InvalidRequest, NotFound
from qmt_protocol.jobs import JobParams, Manifest, parse_params
from qmt_protocol.periods import parse_adjust, parse_period
from qmt_protocol.status import LOST_AFTER_S
from qmt_protocol.tables import table_of
from qmt_protocol.times import parse_end, parse_start, to_datetime
from qmt_reading.arguments import parse_names

from . import models
from .access import admission_of
from .answers import SOURCE_HEADER, answer, meta_of
from .bridge import Bridge, absent_reasons, source_name, while_connected
from .budget import Budget
from .job_rules import allowed, explained
from .parameters import Count, Document, described_body, parse_document, refuse_unknown
from .results import held_bytes, json_rows
from .settings import GatewaySettings
from .streaming import Held, streamed_or_whole

__all__ = ["router"]

_DEFAULT_COUNT: Final = 100
_DEFAULT_FIELDS: Final = "open,high,low,close,volume"

router = APIRouter(prefix="/api", dependencies=[Depends(refuse_unknown)])


def _bridge(request: Request) -> Bridge:
    bridge: Bridge = request.app.state.bridge
    return bridge


def _settings(request: Request) -> GatewaySettings:
    settings: GatewaySettings = request.app.state.settings
    return settings


def _budget(request: Request) -> Budget:
    budget: Budget = request.app.state.budget
    return budget


BridgeOf = Annotated[Bridge, Depends(_bridge)]
BudgetOf = Annotated[Budget, Depends(_budget)]
SettingsOf = Annotated[GatewaySettings, Depends(_settings)]
Stock = Annotated[str, Query(description="code", examples=["000001.SZ"])]
Stocks = Annotated[
    str, Query(description="codes, comma-separated", examples=["000001.SZ,600519.SH"])
]


class Done(NamedTuple):
    """A job that is done: what was asked for and what it left."""

    job_id: str
    params: JobParams
    manifest: Manifest


class Jobs:
    """Has jobs done for one request; a caller who hangs up cancels them."""

    def __init__(
        self, request: Request, bridge: BridgeOf, settings: SettingsOf, budget: BudgetOf
    ) -> None:
        self._request = request
        self._bridge = bridge
        self._settings = settings
        self._budget = budget

    async def query(self, name: str, document: dict[str, Any]) -> Manifest:
        """Run a query job; return what it left."""
        return (await self._run(name, document, self._settings.bridge_query_timeout_s)).manifest

    async def history(self, codes: list[str], query: HistoryQuery) -> Done:
        """Run a history job."""
        document = {"codes": codes, **query.document}
        return await self._run("history", document, self._settings.bridge_query_timeout_s)

    async def download(self, document: dict[str, Any]) -> Manifest:
        """Run a download; return what it left."""
        timeout_s = self._settings.bridge_download_timeout_s
        return (await self._run("download", document, timeout_s)).manifest

    async def _run(self, name: str, document: dict[str, Any], timeout_s: float) -> Done:
        admission = admission_of(self._request)
        most_rows = self._settings.bridge_auto_download_rows
        params = allowed(parse_params(name, document), admission, most_rows)
        with admission.usage.waiting_for_job():
            work = self._bridge.transport.finish_job(name, params, timeout_s=timeout_s)
            try:
                job_id, manifest = await while_connected(self._request, work)
            except HistoryMissing as error:
                raise explained(error, admission) from None
        admission.check_rows(manifest.rows)
        return Done(job_id, params, manifest)

    async def rows(
        self,
        done: Done,
        head: dict[str, Any],
        query: HistoryQuery,
        codes: list[str] | None,
    ) -> Response:
        """Answer with a history job's rows, read and sent chunk by chunk."""
        manifest = done.manifest
        tables = self._bridge.transport.tables(done.job_id, manifest, done.params)
        head |= {"period": query.period, "count": query.count}
        return await streamed_or_whole(
            json_rows(head, _meta(manifest), tables, query.period, query.columns, codes),
            Held(self._budget, held_bytes(manifest)),
            headers={SOURCE_HEADER: source_name(_simulated(manifest))},
            media_type="application/json",
        )


JobsOf = Annotated[Jobs, Depends()]


class HistoryQuery:
    """The parameters that both history routes share."""

    def __init__(
        self,
        period: Annotated[
            str, Query(description="tick, 1m, 5m, 15m, 30m, 60m, 1h, 1d, 1w, 1mon, 1q, 1hy, 1y")
        ] = "1d",
        count: Annotated[
            Count,
            Query(
                description="last so many rows of each code up to the end; -1: all of the range. "
                f"Default {_DEFAULT_COUNT}, with `start` all",
                examples=[60],
            ),
        ] = None,
        fields: Annotated[
            str | None,
            Query(
                description="columns, comma-separated, or `time` (ms since the epoch). "
                f"Default {_DEFAULT_FIELDS}; of ticks all",
            ),
        ] = None,
        start: Annotated[
            str, Query(description="first day or moment, China time", examples=["20260105"])
        ] = "",
        end: Annotated[str, Query(description="last day (included) or moment")] = "",
        adjust: Annotated[
            str, Query(description="none, front, back, front_ratio, back_ratio, qfq, hfq")
        ] = "",
        dividend_type: Annotated[str, Query(description="xtquant's word for `adjust`")] = "",
        download: Annotated[
            Literal["auto", "never"],
            Query(description="whether the terminal fetches what its cache lacks"),
        ] = "auto",
    ) -> None:
        self.period = parse_period(period)
        if adjust and dividend_type and parse_adjust(adjust) != parse_adjust(dividend_type):
            raise InvalidRequest(
                f"adjust={adjust} and dividend_type={dividend_type} differ.",
                hint="Give one of them.",
                field="adjust",
            )
        if count is None:
            count = -1 if start else _DEFAULT_COUNT
        self.count = count
        self.columns = self._columns(fields)
        self.document: dict[str, Any] = {
            "period": self.period,
            "count": None if count == -1 else count,
            "start_ms": parse_start(start),
            "end_ms": parse_end(end),
            "adjust": adjust or dividend_type,
            "download": download,
        }
        if self.columns is not None:
            # The worker is asked for at least one column, so that there are rows to label.
            named = [name for name in self.columns if name != "time"]
            self.document["fields"] = named or [table_of(self.period)[0].name]

    def _columns(self, fields: str | None) -> list[str] | None:
        if fields is None and self.period == "tick":
            return None
        return parse_names(fields or _DEFAULT_FIELDS)


@router.get(
    "/history",
    tags=["history"],
    summary="History of one code",
    response_model=models.History,
    responses=models.problems(404, 409, 502, 503, 504),
)
async def history(
    stock: Stock, query: Annotated[HistoryQuery, Depends()], jobs: JobsOf
) -> Response:
    """Bars or ticks, oldest first, read by the worker from the terminal."""
    code = parse_code(stock, "stock")
    done = await jobs.history([code], query)
    _raise_absent(done.manifest, code)
    return await jobs.rows(done, {"stock": code}, query, None)


@router.get(
    "/batch_history",
    tags=["history"],
    summary="History of many codes",
    response_model=models.BatchHistory,
    responses=models.problems(404, 409, 502, 503, 504),
)
async def batch_history(
    stocks: Stocks, query: Annotated[HistoryQuery, Depends()], jobs: JobsOf
) -> Response:
    """As `/api/history`; codes without data are empty and named in `meta.absent`."""
    codes = parse_codes(stocks, "stocks")
    done = await jobs.history(codes, query)
    return await jobs.rows(done, {"stocks": codes}, query, codes)


def _raise_absent(manifest: Manifest, code: str) -> None:
    """Raise why a result has nothing of a code, when it names it absent."""
    reason = absent_reasons(manifest).get(code)
    if reason is not None:
        raise NotFound(
            f"{code}: {reason.rstrip('.')}.",
            hint="Check the code, the period and the range.",
            code=code,
        )


def _simulated(manifest: Manifest) -> bool:
    return bool(manifest.meta.get("simulated"))


def _meta(manifest: Manifest) -> dict[str, Any]:
    """What the worker tells of its answer; its description of the terminal is ``terminal``."""
    facts = {name: fact for name, fact in manifest.meta.items() if name != "source"}
    return {**facts, "terminal": manifest.meta.get("source"), **meta_of(_simulated(manifest))}


@router.get(
    "/full_tick",
    tags=["ticks"],
    summary="Last tick of codes",
    response_model=models.FullTick,
    responses=models.problems(404, 503),
)
async def full_tick(stocks: Stocks, bridge: BridgeOf) -> Response:
    """Read from Redis alone: stored ticks stay readable while the producer is away.

    404 when nothing is stored of any of the codes; 503 when, besides, nobody publishes.
    """
    codes = parse_codes(stocks, "stocks")
    ticks = await bridge.latest(codes)
    status = await bridge.status()
    producers = [one for one in status.processes if one.beat.role == "producer"]
    age_ms = min((one.age_ms for one in producers), default=None)
    data = {}
    for code, tick in ticks.items():
        row = dict(tick)
        row.setdefault("timetag", f"{to_datetime(tick.time_ms):%Y%m%d %H:%M:%S}")
        data[code] = row
    simulated = await bridge.simulated()
    meta = meta_of(
        simulated,
        absent=[code for code in codes if code not in ticks],
        unreadable=ticks.unreadable,
        age_ms={code: status.now_ms - tick.time_ms for code, tick in ticks.items()},
        producer={
            "alive": age_ms is not None and age_ms <= LOST_AFTER_S * 1000,
            "last_seen_ms": None if age_ms is None else status.now_ms - age_ms,
        },
    )
    return answer({"data": data, "meta": meta}, simulated=simulated)


@router.get(
    "/sector_stocks",
    tags=["reference"],
    summary="Codes of a sector",
    response_model=models.SectorStocks,
    responses=models.problems(404, 502, 503, 504),
)
async def sector_stocks(
    sector: Annotated[str, Query(description="name", examples=["沪深A股"])], jobs: JobsOf
) -> Response:
    """Constituents of a sector, as the terminal lists them."""
    manifest = await jobs.query("sector_stocks", {"sector": sector})
    return answer(
        {"sector": sector, "stocks": manifest.document, "meta": _meta(manifest)},
        simulated=_simulated(manifest),
    )


@router.get(
    "/instrument_detail",
    tags=["reference"],
    summary="What is known about an instrument",
    response_model=models.InstrumentDetail,
    responses=models.problems(404, 502, 503, 504),
)
async def instrument_detail(stock: Stock, jobs: JobsOf) -> Response:
    """Name, dates, limits, price tick and more, under xtquant's own keys."""
    code = parse_code(stock, "stock")
    manifest = await jobs.query("instrument_detail", {"codes": [code]})
    detail = (manifest.document or {}).get(code)
    if detail is None:
        raise InstrumentNotFound(
            f"The terminal knows no instrument {code}.", hint="Check the code.", codes=[code]
        )
    return answer(
        {"stock": code, "detail": detail, "meta": _meta(manifest)},
        simulated=_simulated(manifest),
    )


@router.post(
    "/download",
    tags=["history"],
    summary="Fetch history into the terminal's cache",
    response_model=models.Download,
    responses=models.problems(404, 415, 502, 503, 504),
    openapi_extra=described_body(models.DownloadBody.model_json_schema()),
)
async def download(fact: Document, jobs: JobsOf) -> Response:
    """Answer when the download has ended and its range was read back.

    A long one is better submitted as `POST /api/v1/jobs/download`, which can be watched.
    """
    body = parse_document(models.DownloadBody, fact)
    code = parse_code(body.stock, "stock")
    document = {
        "codes": [code],
        "period": body.period,
        "start_ms": parse_start(body.start),
        "end_ms": parse_end(body.end),
    }
    manifest = await jobs.download(document)
    _raise_absent(manifest, code)
    return answer(
        {"status": "ok", "stock": code, "period": body.period, "meta": _meta(manifest)},
        simulated=_simulated(manifest),
    )
