"""What is stored, from archive and streams as one: streamed, so that no range is too large."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Final

import msgspec
import pyarrow as pa
import structlog
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from qmt_protocol.archive import Missing
from qmt_protocol.codes import parse_codes, parse_markets
from qmt_protocol.errors import Gap, InvalidRequest
from qmt_protocol.periods import parse_period
from qmt_protocol.times import parse_end, parse_start
from qmt_reading.arguments import parse_names
from qmt_reading.requests import StoredRequest
from qmt_reading.stored.edges import Edges
from qmt_reading.stored.gaps import gap_of
from qmt_reading.stored.source import finished

from . import models
from .access import Admission, AdmissionOf
from .answers import SOURCE_HEADER, answer, meta_of
from .bridge import Bridge, source_name, while_connected
from .budget import Budget
from .market_routes import BridgeOf, BudgetOf
from .parameters import refuse_unknown
from .reading import READING_BYTES
from .stored_formats import MEDIA, Format, Maker, maker_of
from .streaming import Held, Streamed

__all__ = ["router"]

_EVERYTHING: Final = "*"
_ROWS_AT_ONCE: Final[dict[Format, int]] = {"json": 1_024, "arrow": 8_192, "parquet": 8_192}
_log = structlog.get_logger(__name__)

router = APIRouter(prefix="/api/v1", dependencies=[Depends(refuse_unknown)])


class StoredQuery:
    """The parameters that both stored routes share."""

    def __init__(
        self,
        codes: Annotated[
            str,
            Query(description="codes, comma-separated; `*`: all that is stored"),
        ] = "",
        markets: Annotated[str, Query(description="whole markets, comma-separated")] = "",
        start: Annotated[
            str, Query(description="first exchange time", examples=["2026-11-20 09:30"])
        ] = "",
        end: Annotated[str, Query(description="last exchange time; a day: all of it")] = "",
        fields: Annotated[
            str, Query(description="columns, comma-separated; default all. Not with json")
        ] = "",
        format: Annotated[  # noqa: A002
            Format, Query(description="json, arrow (IPC stream) or parquet")
        ] = "json",
    ) -> None:
        self.format = format
        self._markets = parse_markets(markets)
        self._everything = codes.strip() == _EVERYTHING
        self._codes = parse_codes(codes) if codes and not self._everything else None
        if bool(codes) == bool(self._markets):
            raise InvalidRequest(
                "Name codes or markets.", hint="codes=* is everything.", field="codes"
            )
        self._start_ms, self._end_ms = parse_start(start), parse_end(end)
        if None not in (self._start_ms, self._end_ms) and self._start_ms > self._end_ms:  # type: ignore[operator]
            raise InvalidRequest(
                f"The end, {end}, lies before the start, {start}.",
                hint="Exchange them.",
                field="end",
            )
        self._fields = parse_names(fields)
        if self._fields is not None and format == "json":
            raise InvalidRequest(
                "JSON always has all fields.",
                hint="Leave fields out, or ask for format=arrow.",
                field="fields",
            )

    async def stored_request(self, bridge: Bridge, period: str) -> StoredRequest:
        """Return what is asked for.

        Raises
        ------
        InvalidRequest
            For a column that there is not.
        """
        markets = self._markets
        if self._everything:
            markets = await bridge.stored_markets()
        stored_request = StoredRequest(
            None if self._codes is None else tuple(self._codes),
            tuple(markets),
            period,
            self._start_ms,
            self._end_ms,
        )
        names = stored_request.schema.names
        unknown = [name for name in self._fields or () if name not in names]
        if unknown:
            raise InvalidRequest(
                f"There is no column {unknown[0]}.",
                hint=f"Choose of {', '.join(names)}.",
                field="fields",
            )
        if self._fields is None:
            return stored_request
        return replace(stored_request, columns=tuple(self._fields))


QueryOf = Annotated[StoredQuery, Depends()]
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "By exchange time, then code, then number, each once. An answer that breaks "
        "off is not whole: its end is missing.",
        "content": {
            MEDIA[form]: {"schema": {"type": "string", "format": "binary"}}
            for form in ("arrow", "parquet")
        },
    },
    **models.problems(410, 503),
}


@router.get(
    "/stored/ticks",
    tags=["ticks"],
    summary="Ticks that were collected",
    response_model=models.Stored,
    responses=_ANSWERS,
)
async def stored_ticks(
    request: Request, query: QueryOf, bridge: BridgeOf, budget: BudgetOf, admission: AdmissionOf
) -> Response:
    """From archive and streams as one; no terminal is asked."""
    stored_request = await query.stored_request(bridge, "tick")
    return await _streamed(request, bridge, budget, stored_request, query.format, admission)


@router.get(
    "/stored/bars",
    tags=["history"],
    summary="Closed bars that were collected",
    response_model=models.Stored,
    responses=_ANSWERS,
)
async def stored_bars(
    request: Request,
    query: QueryOf,
    bridge: BridgeOf,
    budget: BudgetOf,
    admission: AdmissionOf,
    period: Annotated[str, Query(description="1m, 5m, 15m, 30m, 1h, 1d ...")] = "1m",
) -> Response:
    """A bar is collected while somebody wants it live; others come by `/api/history`."""
    stored_request = await query.stored_request(bridge, parse_period(period, bars_only=True))
    return await _streamed(request, bridge, budget, stored_request, query.format, admission)


async def _streamed(
    request: Request,
    bridge: Bridge,
    budget: Budget,
    stored_request: StoredRequest,
    form: Format,
    admission: Admission,
) -> Response:
    simulated = await bridge.readings.simulated(stored_request)
    held = Held(budget, READING_BYTES)
    batches = admission.counted(bridge.readings.batches(stored_request, _unreadable))
    try:
        missing = await bridge.readings.missing(stored_request)
        # What cannot be read from the start is an error answer, and not one that breaks off.
        first = await while_connected(request, anext(batches, None))
    except BaseException:
        held.let_go()
        await batches.aclose()
        raise
    maker = maker_of(form, stored_request.schema, meta_of(simulated))
    return Streamed(
        _body(first, batches, maker, _ROWS_AT_ONCE[form], stored_request, missing),
        held,
        media_type=MEDIA[form],
        headers={SOURCE_HEADER: source_name(simulated)},
    )


async def _body(
    first: pa.RecordBatch | None,
    batches: AsyncGenerator[pa.RecordBatch, None],
    maker: Maker,
    rows: int,
    stored_request: StoredRequest,
    missing: list[Missing],
) -> AsyncGenerator[bytes, None]:
    edges = Edges(stored_request)
    gaps = [gap_of(one) for one in missing]
    async with aclosing(batches):
        yield maker.begin()
        batch, first = first, None
        while batch is not None:
            gaps += edges.see(batch)
            for at in range(0, len(batch), rows):
                yield await finished(maker.add, batch.slice(at, rows))
            batch = None  # not held while the next one is read
            batch = await anext(batches, None)
        gaps += edges.end()
        yield maker.end({"absent": edges.absent, "missing": [gap.data for gap in gaps]})


def _unreadable(gap: Gap) -> None:
    _log.warning("a stored row was left out", error=gap.message)


@router.get(
    "/archive",
    tags=["operation"],
    summary="What the archive holds",
    response_model=models.Archive,
    responses=models.problems(503),
)
async def archive(bridge: BridgeOf) -> Response:
    """Days and markets, and what is known to be missing; all empty where there is no archive."""
    manifest = await bridge.manifest()
    days: dict[int, dict[str, dict[str, int]]] = {}
    for one in manifest.files:
        if one.kind == "tick":
            of_market = days.setdefault(one.day, {}).setdefault(
                one.market, {"ticks": 0, "bytes": 0}
            )
            of_market["ticks"] += one.rows
            of_market["bytes"] += one.size_bytes
    bars = sorted({(one.period, one.market) for one in manifest.files if one.kind == "bar"})
    document = {
        "archived": bridge.archive is not None,
        "days": [{"day": day, "markets": days[day]} for day in sorted(days)],
        "markets": sorted({one.market for one in manifest.files}),
        "bars": [{"period": period, "market": market} for period, market in bars],
        "simulated_markets": sorted(await bridge.readings.simulated_markets()),
        "missing": msgspec.to_builtins(manifest.missing),
    }
    return answer(document, simulated=await bridge.simulated())
