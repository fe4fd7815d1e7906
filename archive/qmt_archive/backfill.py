"""Fetching from a terminal what was not recorded: gap windows, and days without a file.

What is missing stands in the manifest. Each portion of codes that was looked for is committed with
its ticks, so a backfill that was interrupted goes on behind it, and one that is repeated adds
nothing twice. What the terminal no longer has is named as ``not to be had``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from qmt_protocol.archive import ArchivedFile, Manifest, Missing, kept_missing
from qmt_protocol.columns import TICK_COLUMNS
from qmt_protocol.errors import (
    CodecError,
    DownloadIncomplete,
    InstrumentNotFound,
    InvalidRequest,
)
from qmt_protocol.jobs import Progress, job_spec, parse_params
from qmt_protocol.tables import TICK_TABLE
from qmt_protocol.times import DAY_MS, day_of, day_start_ms, trading_day
from qmt_reading.transport import Transport

from .adding import (
    FIRST_NUMBER,
    PRICES,
    Existing,
    Known,
    as_published,
    columns_in,
    constant,
    discard,
    write_parts,
)
from .store import ArchiveStore

__all__ = ["NOTHING_OF_THE_DAY", "Backfill", "Filled"]

log: Final = structlog.get_logger(__name__)

NOTHING_OF_THE_DAY: Final = "nothing was recorded on this day"
_CODE_DAYS: Final = 40
"""Codes times days in one portion: some 200,000 ticks."""
_PROBED: Final = 10
"""So many codes of a whole market that traded and have no tick: the terminal reaches less far."""
_CALENDAR_CODES: Final = ("000001.SH", "399001.SZ")
_OF_MARKET: Final = 5
_DAY_MARKETS: Final = frozenset({"SH", "SZ", "BJ", "SHO", "SZO"})
"""Markets without a night session."""
_NIGHT_MS: Final = 18 * 3_600_000
_NEAR_DAYS: Final = 2

Tell = Callable[..., Awaitable[None]]
OnProgress = Callable[[int, int, str], object]


@dataclass
class Filled:
    """What a backfill did with one thing that was missing."""

    market: str
    from_ms: int
    to_ms: int
    state: str
    codes: int
    found: int
    """Ticks that are new in the archive."""
    absent: list[str] = field(default_factory=list)
    """Codes that traded then and of which the terminal has no ticks any more."""


@dataclass
class Backfill:
    """Looks for what is missing, in one archive.

    Parameters
    ----------
    store
        The archive, loaded and locked.
    check
        Called before each commit; what it raises ends the backfill.
    transport
        What carries jobs to the worker.
    existing
        What archive and streams hold.
    tell
        Given events: a kind and its facts.
    on_progress
        Given how many portions are done, of how many, and what is done now.
    """

    store: ArchiveStore
    check: Callable[[], None]
    transport: Transport
    existing: Existing
    report: Tell
    on_progress: OnProgress = lambda *_: None
    simulated: bool = field(default=False, init=False)
    """Whether the terminal that was asked is the simulator."""

    async def run(self, day: int | None = None) -> list[Filled]:
        """Look for all that is open, or for all that touches one day, however it ended before.

        Raises
        ------
        NoWorker, TerminalNotConnected, RedisUnavailable, TimedOut
            When the terminal cannot be asked; what was found until then is in the archive.
        ArchiveUnavailable, ArchiveDamaged
            When the archive cannot be read or written.
        InvalidRequest
            When the day is none, or is not over.
        """
        days = await self._trading_days(day)
        if day is not None and day not in days:
            raise InvalidRequest(
                f"{day} is no trading day that is over.",
                hint="Give a day as 20261120; today's ticks come once the day is over.",
                day=day,
            )
        await asyncio.to_thread(self._note_empty_days, days, day)
        due = [one for one in self.store.manifest.missing if self._is_due(one, days, day)]
        newest: dict[str, int] = {}
        for one in due:
            for market in [one.market] if one.market else self._markets():
                newest[market] = max(one.to_ms, newest.get(market, 0))
        await self.existing.refuse_ahead(newest)
        portions = {id(one): await asyncio.to_thread(self._portions, one, days) for one in due}
        total = sum(map(len, portions.values()))
        done, reported = 0, []
        for one in due:
            work = _Entry(self, one, portions[id(one)])
            reported.append(await work.run(done, total))
            done += len(portions[id(one)])
        return reported

    # What is missing

    async def _trading_days(self, day: int | None) -> list[int]:
        """Return the trading days that are over, from the first that matters."""
        manifest = self.store.manifest
        if not manifest.days and day is None:
            return []
        begins = [*manifest.days[:1], *([day] if day is not None else [])]
        begins += [day_of(one.to_ms) for one in manifest.missing if one.to_ms]
        codes = [*_CALENDAR_CODES]
        for market in self._markets():
            codes += (await asyncio.to_thread(self._universe, market, begins[0]))[:_OF_MARKET]
        start_ms = day_start_ms(min(begins))
        days: set[int] = set()
        for group in _grouped(list(dict.fromkeys(codes)), _CODE_DAYS):
            table = await self.bars(group, start_ms, None)
            labels = table.filter(table.column("closed")).column("time").cast(pa.int64())
            days.update(map(day_of, pc.unique(labels).to_pylist()))
        return sorted(days)

    def _markets(self) -> list[str]:
        manifest = self.store.manifest
        return sorted({*manifest.markets, *(one.market for one in manifest.files)})

    def _note_empty_days(self, days: Sequence[int], only: int | None) -> None:
        """Enter trading days of which a market has no file."""
        manifest = self.store.manifest
        new = []
        for market in self._markets():
            held = {one.day for one in manifest.ticks(market)}
            requested = [day for day in days if held and day > min(held)]
            for day in [one for one in days if one == only] if only is not None else requested:
                from_ms, to_ms = _span(market, day, days)
                noted = any(
                    one.market in (market, "")
                    and not one.codes
                    and one.from_ms <= from_ms
                    and one.to_ms >= to_ms
                    for one in manifest.missing
                )
                if day not in held and not noted:
                    new.append(
                        Missing(
                            market=market, from_ms=from_ms, to_ms=to_ms, reason=NOTHING_OF_THE_DAY
                        )
                    )
        if new:
            self.check()
            self.store.commit(
                lambda manifest: msgspec.structs.replace(
                    manifest, missing=kept_missing([*manifest.missing, *new])
                )
            )

    def _is_due(self, one: Missing, days: Sequence[int], only: int | None) -> bool:
        if one.from_ms <= 0 or one.state == "filled" or not days:
            return False
        if only is not None:
            return trading_day(one.from_ms) <= only <= trading_day(one.to_ms)
        return one.state == "open" and trading_day(one.to_ms) <= days[-1]

    def _portions(self, one: Missing, days: Sequence[int]) -> list[Portion]:
        """Return what is to be asked for, bit by bit: codes, and the spans of their days."""
        portions = []
        done = _named(self.store.manifest.missing, one, "filled")
        for market in [one.market] if one.market else self._markets():
            spans = [
                (max(begin, one.from_ms), min(end, one.to_ms))
                for day in days
                for begin, end in [_span(market, day, days)]
                if begin <= one.to_ms and end >= one.from_ms
            ]
            named = [code for code in one.codes if code.rpartition(".")[2] == market]
            codes = named if one.codes else self._universe(market, trading_day(one.from_ms))
            codes = [code for code in codes if code not in done]
            size = max(1, _CODE_DAYS // max(1, len(spans)))
            portions += [Portion(tuple(group), tuple(spans)) for group in _grouped(codes, size)]
        return portions

    def _universe(self, market: str, day: int) -> list[str]:
        """Return the codes that the archive has of a market around a day."""
        files = self.store.manifest.ticks(market)
        held = sorted({one.day for one in files}, key=lambda one: (abs(one - day), one))
        near = set(held[:_NEAR_DAYS])
        codes: set[str] = set()
        for file in files:
            if file.day in near:
                for batch in self.store.read(file, ["code"]):
                    codes.update(pc.unique(batch.column("code").cast(pa.string())).to_pylist())
        return sorted(codes)

    # The terminal

    async def bars(self, codes: Sequence[str], start_ms: int, end_ms: int | None) -> pa.Table:
        """Return daily bars of codes: whether they are closed, and their volume."""
        of = {"codes": list(codes), "start_ms": start_ms, "end_ms": end_ms}
        try:
            return await self._table("1d", {**of, "fields": ["volume", "closed"]})
        except InstrumentNotFound:
            return _BARS.empty_table()

    async def ticks(
        self, codes: Sequence[str], start_ms: int, end_ms: int
    ) -> tuple[pa.Table, set[str]]:
        """Have ticks downloaded; return those of a span, and the codes that it is covered of.

        A code may have had no tick in the span, though the terminal has its day.
        """
        of = {"codes": list(codes), "start_ms": start_ms, "end_ms": end_ms}
        spec = job_spec("download")
        try:
            manifest, _ = await self.transport.run_job(
                "download",
                parse_params("download", {**of, "period": "tick"}),
                timeout_s=spec.timeout_s,
                on_progress=self._report_download,
            )
        except (DownloadIncomplete, InstrumentNotFound) as error:
            log.info("the terminal has no ticks", codes=len(codes), error=error.message)
            return TICK_COLUMNS.empty_table(), set()
        read_back = {code: manifest.document.get(code) or {} for code in codes}
        covered = {
            code
            for code, reported in read_back.items()
            if reported.get("rows") and _overlaps(reported, start_ms, end_ms)
        }
        if not covered:
            return TICK_COLUMNS.empty_table(), covered
        table = await self._table("tick", {**of, "codes": sorted(covered)})
        _check_span(table, start_ms, end_ms)
        return _as_ticks(table), covered

    async def _table(self, period: str, of: dict[str, Any]) -> pa.Table:
        spec = job_spec("history")
        manifest, table = await self.transport.run_job(
            "history",
            parse_params("history", {**of, "period": period}),
            timeout_s=2 * spec.timeout_s,
        )
        assert table is not None  # the catalogue says so
        self.simulated |= bool(manifest.meta.get("simulated"))
        return table

    def _report_download(self, progress: Progress) -> None:
        log.debug("download", finished=progress.finished, total=progress.total)


@dataclass(frozen=True)
class Portion:
    """Codes that are asked for at once, and the spans of time of their days."""

    codes: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


class _Entry:
    """The work on one thing that is missing."""

    def __init__(self, of: Backfill, missing: Missing, portions: Sequence[Portion]) -> None:
        self._of = of
        self._now = missing
        self._portions = portions
        self._known: Known | None = None
        self._had = 0
        """Codes that have been through."""
        self._found = 0

    async def run(self, done: int, total: int) -> Filled:
        await self._reopen()
        one, of = self._now, self._of
        out_of_reach = False
        for number, portion in enumerate(self._portions):
            name = f"{one.market or 'all'} {day_of(one.from_ms)}"
            of.on_progress(done + number, total, name)
            if out_of_reach:
                await self._commit(portion, [], list(portion.codes))
                continue
            parts: list[pa.Table] = []
            there: set[str] = set()
            for begin_ms, end_ms in portion.spans:
                table, covered = await of.ticks(portion.codes, begin_ms, end_ms)
                there |= covered
                if len(table):
                    parts.append(table)
            lacking = [code for code in portion.codes if code not in there]
            absent = await self._traded(lacking, portion.spans)
            await self._commit(portion, parts, absent)
            probe = not one.codes and number == 0 and not there and len(absent) >= _PROBED
            out_of_reach = probe and len(absent) == len(portion.codes)
        of.on_progress(done + len(self._portions), total, "")
        return await self._end()

    async def _reopen(self) -> None:
        """Look anew for what ended before."""
        before = self._now
        if before.state == "open":
            return
        self._now = opened = msgspec.structs.replace(before, state="open")
        self._of.check()
        await asyncio.to_thread(
            self._of.store.commit,
            lambda manifest: msgspec.structs.replace(
                manifest, missing=[opened if one == before else one for one in manifest.missing]
            ),
        )

    async def _noted(self) -> Known:
        """Return what is there of all codes in the time that is missing, read once."""
        if self._known is None:
            self._known = Known("tick")
            codes: dict[tuple[int, int], list[str]] = {}
            for portion in self._portions:
                for span in portion.spans:
                    codes.setdefault(span, []).extend(portion.codes)
            for (begin_ms, end_ms), some in codes.items():
                await self._of.existing.note(self._known, some, "tick", begin_ms, end_ms)
        return self._known

    async def _traded(self, codes: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[str]:
        """Return the codes that have volume on one of the days: there must have been ticks."""
        if not codes or not spans:
            return []
        days = {trading_day(end_ms) for _, end_ms in spans}
        start_ms, end_ms = day_start_ms(min(days)), day_start_ms(max(days)) + DAY_MS - 1
        table = await self._of.bars(codes, start_ms, end_ms)
        traded = table.filter(pc.greater(table.column("volume"), 0))
        of_days = np.isin(
            [day_of(ms) for ms in traded.column("time").cast(pa.int64()).to_pylist()], list(days)
        )
        found = set(traded.filter(pa.array(of_days, pa.bool_())).column("code").to_pylist())
        return [code for code in codes if code in found]

    async def _commit(
        self, portion: Portion, parts: Sequence[pa.Table], absent: Sequence[str]
    ) -> None:
        """Store a portion's new ticks, and that its codes have been through."""
        store, files, found = self._of.store, list[ArchivedFile](), 0
        try:
            if parts:
                table = pa.concat_tables(parts)
                known = await self._noted()
                there, again = known.repeats(table)
                new = table.filter(pa.array(~(there | again)))
                if len(new):
                    new = known.numbered(new)
                    known.add(new)
                    files = await asyncio.to_thread(
                        write_parts,
                        store,
                        "tick",
                        new,
                        "backfill",
                        simulated=self._of.simulated,
                    )
                    found = len(new)
            self._of.check()
        except BaseException:
            discard(store, files)
            raise
        before = self._now
        after = msgspec.structs.replace(before, found=before.found + found)

        def change(manifest: Manifest) -> Manifest:
            missing = [after if one == before else one for one in manifest.missing]
            missing = _naming(missing, after, "filled", portion.codes)
            missing = _naming(missing, after, "not to be had", absent)
            return msgspec.structs.replace(
                manifest, files=[*manifest.files, *files], missing=kept_missing(missing)
            )

        await asyncio.to_thread(store.commit, change)
        self._now = after
        self._found += found
        self._had += len(portion.codes)

    async def _end(self) -> Filled:
        """Close what was gone through."""
        before = self._now
        held = self._of.store.manifest.missing
        absent = sorted(_named(held, before, "not to be had"))
        nothing = bool(absent) and len(absent) >= len(_named(held, before, "filled"))
        ended = msgspec.structs.replace(before, state="not to be had" if nothing else "filled")

        def change(manifest: Manifest) -> Manifest:
            missing = [ended if one == before else one for one in manifest.missing]
            missing = [one for one in missing if one is ended or not _names(one, ended, "filled")]
            if nothing:  # the entry says it of all its codes
                missing = _naming(missing, ended, "not to be had", None)
            return msgspec.structs.replace(manifest, missing=missing)

        self._of.check()
        await asyncio.to_thread(self._of.store.commit, change)
        facts: dict[str, Any] = {
            "market": before.market,
            "from_ms": before.from_ms,
            "to_ms": before.to_ms,
        }
        await self._of.report("archive backfilled", **facts, ticks=self._found, codes=self._had)
        if absent:
            await self._of.report("archive not to be had", **facts, codes=len(absent))
        return Filled(**facts, state=ended.state, codes=self._had, found=self._found, absent=absent)


# While an entry is worked on, two others beside it name codes of it: those that have been looked
# for (``filled``; it goes at the end), and those that are not to be had (it stays).


def _names(one: Missing, entry: Missing, state: str) -> bool:
    """Whether an entry names codes of another."""
    return (
        one.state == state
        and one is not entry
        and bool(one.codes)
        and (one.market, one.from_ms, one.to_ms, one.reason)
        == (entry.market, entry.from_ms, entry.to_ms, entry.reason)
    )


def _named(missing: Sequence[Missing], entry: Missing, state: str) -> set[str]:
    return {code for one in missing if _names(one, entry, state) for code in one.codes}


def _naming(
    missing: list[Missing], entry: Missing, state: Any, codes: Iterable[str] | None
) -> list[Missing]:
    """Return what is missing with some more codes of an entry named; ``None``: with none."""
    rest = [one for one in missing if not _names(one, entry, state)]
    if codes is None:
        return rest
    named = _named(missing, entry, state).union(codes)
    if not named:
        return missing
    one = Missing(
        market=entry.market,
        from_ms=entry.from_ms,
        to_ms=entry.to_ms,
        codes=sorted(named),
        reason=entry.reason,
        state=state,
    )
    return [*rest, one]


def _span(market: str, day: int, days: Sequence[int]) -> tuple[int, int]:
    """Return the first and last ms of a trading day, with its night session where there is one."""
    begin_ms = day_start_ms(day)
    if market in _DAY_MARKETS:
        return begin_ms, begin_ms + DAY_MS - 1
    before = [one for one in days if one < day]
    night = day_start_ms(before[-1]) if before else begin_ms - DAY_MS
    return night + _NIGHT_MS, begin_ms + _NIGHT_MS - 1


def _grouped(codes: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (codes[at : at + size] for at in range(0, len(codes), size))


_BARS: Final = pa.schema(
    [
        ("code", pa.string()),
        ("time", pa.timestamp("ms", "Asia/Shanghai")),
        ("volume", pa.int64()),
        ("closed", pa.bool_()),
    ]
)


def _overlaps(reported: Mapping[str, Any], start_ms: int, end_ms: int) -> bool:
    """Whether what can be read back of a code reaches into a span."""
    first_ms, last_ms = reported.get("first_ms"), reported.get("last_ms")
    if first_ms is None or last_ms is None:
        return False
    return bool(first_ms <= end_ms and last_ms >= start_ms)


def _check_span(table: pa.Table, start_ms: int, end_ms: int) -> None:
    """Make sure that a worker gave ticks of the span it was asked for, and no others."""
    if not len(table):
        return
    reported = pc.min_max(table.column("time").cast(pa.int64())).as_py()
    if reported["min"] < start_ms or reported["max"] > end_ms:
        raise CodecError(
            f"A worker gave ticks from {reported['min']} to {reported['max']} ms, and was asked "
            f"for those from {start_ms} to {end_ms}.",
            hint="It may be of another version; nothing of them was stored.",
        )


def _as_ticks(table: pa.Table) -> pa.Table:
    """Return ticks of history as archived ones; NaN is what the terminal did not send."""
    rows = len(table)
    ids = table.column("time").cast(pa.int64())
    columns: dict[str, Any] = {
        "code": table.column("code").combine_chunks().dictionary_encode(),
        "id_ms": ids,
        "id_seq": pa.array(np.full(rows, FIRST_NUMBER, np.int32)),
        "time": ids.cast(TICK_COLUMNS.field("time").type),
        "flags": pa.array(np.zeros(rows, np.uint8)),
        "source": constant("backfill", rows),
    }
    for column in TICK_TABLE:
        values = table.column(column.name)
        if column.dtype == "float64":
            values = pc.if_else(pc.is_nan(values), None, values)
        columns[column.name] = as_published(values) if column.name in PRICES else values
    return columns_in(TICK_COLUMNS, columns, rows)
