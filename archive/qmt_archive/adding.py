"""Rows from elsewhere (a file, a terminal's history) beside what was recorded, without a repeat.

What was recorded counts: a tick that is there already, by the content that any terminal reports
alike, is left out, and so is a bar of a label that is there. Ticks added have an entry id of their
own exchange time, numbered from `FIRST_NUMBER` on, which Redis does not reach within one ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from qmt_protocol.archive import ArchivedFile, Source, bar_folder, bar_span, tick_folder
from qmt_protocol.bars import BAR_FIELDS
from qmt_protocol.errors import Gap, InvalidRequest
from qmt_protocol.ids import id_key
from qmt_protocol.keys import Keys
from qmt_protocol.numbers import PRICE_SCALE, PRICE_TOLERANCE
from qmt_protocol.ticks import TICK_FIELDS
from qmt_protocol.times import DAY_MS, day_of, day_start_ms, trading_day
from qmt_reading.requests import StoredRequest
from qmt_reading.stored.archive import ArchiveReader
from qmt_reading.stored.ordering import in_order
from qmt_reading.stored.source import RedisStored
from qmt_runtime.connections import redis_call

from .buffers import sort_bars
from .parquet import write_rows
from .store import ArchiveStore

if TYPE_CHECKING:
    import redis.asyncio

__all__ = [
    "CONTENT",
    "FIRST_NUMBER",
    "PRICES",
    "Existing",
    "Ints",
    "Known",
    "as_published",
    "columns_in",
    "constant",
    "discard",
    "write_parts",
]

FIRST_NUMBER: Final = 32_768
"""``id_seq`` of the first tick of an ms that did not come through Redis."""

CONTENT: Final = (
    *("time", "lastPrice", "volume"),
    *("askPrice1", "bidPrice1", "askVol1", "bidVol1"),
)
"""Columns that tell whether two ticks of a code are the same, as the producer does."""

PRICES: Final = frozenset(
    level
    for fields, levels in ((TICK_FIELDS, 5), (BAR_FIELDS, 0))
    for name, kind, _ in fields
    if kind in ("price", "prices")
    for level in ([name] if kind == "price" else [f"{name}{at + 1}" for at in range(levels)])
)
"""Columns of ticks and bars that hold prices."""

_HOUR_MS: Final = 3_600_000
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)

Ints = npt.NDArray[np.int64]
_Hashes = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


class Known:
    """The rows that are there already, as 8 bytes each.

    Parameters
    ----------
    kind
        ``tick``: known by code and `CONTENT`; ``bar``: by code and label.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._codes: dict[str, int] = {}
        self._parts: list[_Hashes] = []
        self._all: _Hashes = np.empty(0, np.uint64)
        self._places: list[tuple[_Hashes, Ints]] = []
        self._taken: tuple[_Hashes, Ints] = np.empty(0, np.uint64), np.empty(0, np.int64)

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Take note of rows that have their ids."""
        if not len(rows):
            return
        self._parts.append(self._hashes(rows))
        numbers = _numbers(rows.column("id_seq"))
        own = numbers >= FIRST_NUMBER
        if self._kind == "tick" and own.any():
            self._places.append((self._place_hashes(rows)[own], numbers[own]))

    def repeats(self, rows: pa.Table) -> tuple[Bools, Bools]:
        """Return which rows are known, and which are like an earlier one of the same table."""
        hashes = self._hashes(rows)
        _, first = np.unique(hashes, return_index=True)
        again = np.ones(len(hashes), dtype=bool)
        again[first] = False
        return self._is_known(hashes), again

    def numbered(self, rows: pa.Table) -> pa.Table:
        """Return ticks with an ``id_seq`` that no other tick of their code and ms has."""
        places = self._place_hashes(rows)
        begin = self._next_numbers(places)
        order = np.argsort(places, kind="stable")
        run = places[order]
        starts = np.flatnonzero(np.concatenate(([True], run[1:] != run[:-1])))
        lengths = np.diff(np.append(starts, len(run)))
        nth = np.empty(len(run), np.int64)
        nth[order] = np.arange(len(run)) - np.repeat(starts, lengths)
        at = rows.schema.get_field_index("id_seq")
        return rows.set_column(at, rows.schema.field(at), pa.array((begin + nth).astype(np.int32)))

    def _is_known(self, hashes: _Hashes) -> Bools:
        if self._parts:
            self._all = np.unique(np.concatenate([self._all, *self._parts]))
            self._parts = []
        at = np.searchsorted(self._all, hashes)
        if not len(self._all):
            return np.zeros(len(hashes), dtype=bool)
        return np.asarray(self._all[np.minimum(at, len(self._all) - 1)] == hashes)

    def _next_numbers(self, places: _Hashes) -> Ints:
        if self._places:
            found = [self._taken, *self._places]
            keys = np.concatenate([one for one, _ in found])
            numbers = np.concatenate([one for _, one in found])
            order = np.lexsort((numbers, keys))
            keys, numbers = keys[order], numbers[order]
            last = np.concatenate((keys[1:] != keys[:-1], [True]))
            self._taken, self._places = (keys[last], numbers[last]), []
        keys, numbers = self._taken
        begin = np.full(len(places), FIRST_NUMBER, np.int64)
        if len(keys):
            at = np.minimum(np.searchsorted(keys, places), len(keys) - 1)
            begin = np.where(keys[at] == places, numbers[at] + 1, begin)
        return begin

    def _hashes(self, rows: pa.Table | pa.RecordBatch) -> _Hashes:
        if self._kind == "bar":
            return self._place_hashes(rows)
        mixed = self._code_numbers(rows).astype(np.uint64)
        for name in CONTENT:
            if name in PRICES:
                values = _as_on_the_wire(_plain(rows.column(name), np.nan)).view(np.uint64)
            else:
                column = rows.column(name)
                if name == "time":
                    column = pc.coalesce(column.cast(pa.int64()), rows.column("id_ms"))
                values = _numbers(column).view(np.uint64)
            mixed = _mix(mixed ^ values)
        return mixed

    def _place_hashes(self, rows: pa.Table | pa.RecordBatch) -> _Hashes:
        codes = _mix(self._code_numbers(rows).astype(np.uint64))
        return _mix(codes ^ _numbers(rows.column("id_ms")).view(np.uint64))

    def _code_numbers(self, rows: pa.Table | pa.RecordBatch) -> Ints:
        column = rows.column("code")
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        known = self._codes
        found = []
        for chunk in chunks:
            names = chunk.dictionary.to_pylist()
            numbers = np.array([known.setdefault(one, len(known)) for one in names], np.int64)
            found.append(numbers[chunk.indices.to_numpy()])
        return np.concatenate(found) if found else np.empty(0, np.int64)


def _mix(values: _Hashes) -> _Hashes:
    """Return numbers whose bits all depend on all bits of what was given."""
    mixed = values + _MIX
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _as_on_the_wire(prices: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return prices without what scaling takes from them, each value in one spelling."""
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.rint(prices * PRICE_SCALE) / PRICE_SCALE
        prices = np.where(np.abs(near - prices) <= PRICE_TOLERANCE, near, prices) + 0.0
    return np.where(np.isnan(prices), np.nan, prices)


def as_published(prices: Any) -> pa.Array:
    """Return prices as publishing would have left them: without a terminal's binary noise."""
    null = np.asarray(prices.is_null()) if prices.null_count else None
    values = _as_on_the_wire(_plain(prices, 0.0))
    return pa.array(values, mask=null)


def _plain(column: pa.Array, null: float) -> npt.NDArray[np.float64]:
    filled = column.fill_null(null) if column.null_count else column
    return np.ascontiguousarray(filled.to_numpy(zero_copy_only=False), dtype=np.float64)  # type: ignore[call-arg, unused-ignore]


def _numbers(column: pa.Array) -> Ints:
    filled = column.fill_null(0) if column.null_count else column
    if isinstance(filled, pa.ChunkedArray):
        return np.ascontiguousarray(filled.to_numpy(), dtype=np.int64)
    return np.ascontiguousarray(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


def write_parts(
    store: ArchiveStore, kind: str, table: pa.Table, source: Source, *, simulated: bool
) -> list[ArchivedFile]:
    """Write rows as files of their markets and days; nothing names them before they are committed.

    Parameters
    ----------
    table
        In `TICK_COLUMNS` or `BAR_COLUMNS`, in any order.

    Raises
    ------
    ArchiveUnavailable
        When they cannot be written; then none is there.
    """
    files: list[ArchivedFile] = []
    try:
        for market, day, part in _parts(kind, table):
            files.append(_write(store, kind, market, day, part, source, simulated=simulated))
    except BaseException:
        discard(store, files)
        raise
    return files


def discard(store: ArchiveStore, files: Iterable[ArchivedFile]) -> None:
    """Delete files that were written and not committed."""
    store.delete([one.path for one in files])


def _parts(kind: str, table: pa.Table) -> Iterable[tuple[str, int, pa.Table]]:
    table = table.unify_dictionaries().combine_chunks()
    if not len(table):
        return
    code = table.column("code")
    code = code.chunk(0) if isinstance(code, pa.ChunkedArray) else code
    names = [name.rpartition(".")[2] for name in code.dictionary.to_pylist()]
    markets = np.array(names, dtype=object)[code.indices.to_numpy()]
    hours = np.asarray(table.column("id_ms").to_numpy()) // _HOUR_MS
    period = "" if kind == "tick" else table.column("period")[0].as_py()
    day_of: Callable[[int], int] = (
        trading_day if kind == "tick" else lambda at_ms: bar_span(period, trading_day(at_ms))
    )
    unique, inverse = np.unique(hours, return_inverse=True)
    days = np.array([day_of(int(hour) * _HOUR_MS) for hour in unique], np.int64)[inverse]
    for market in sorted(set(names)):
        for day in np.unique(days[markets == market]).tolist():
            yield market, day, table.filter(pa.array((markets == market) & (days == day)))


def _write(
    store: ArchiveStore,
    kind: str,
    market: str,
    day: int,
    table: pa.Table,
    source: Source,
    *,
    simulated: bool,
) -> ArchivedFile:
    ticks = kind == "tick"
    table = in_order([table]) if ticks else sort_bars(table)
    period = "tick" if ticks else table.column("period")[0].as_py()
    folder = tick_folder(market, day) if ticks else bar_folder(period, market, day)
    ids = table.column("id_ms").to_numpy()
    path = store.new_path(folder, f"{source}-{int(ids.min())}")
    size_bytes = store.write(
        path, lambda file: write_rows(file, kind, [table], [], dense=False, simulated=simulated)
    )
    return ArchivedFile(
        path=path,
        kind="tick" if ticks else "bar",
        market=market,
        day=day,
        period=period,
        rows=len(table),
        size_bytes=size_bytes,
        first_ms=int(ids.min()),
        last_ms=int(ids.max()),
        sources=[source],
        simulated=simulated,
    )


def constant(value: str, rows: int) -> pa.DictionaryArray:
    """Return a dictionary column with one value."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [value])


def columns_in(schema: pa.Schema, columns: dict[str, pa.Array], rows: int) -> pa.Table:
    """Return a table in a schema; columns that are not given are null."""
    arrays = [
        columns[field.name] if field.name in columns else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


class Existing:
    """What archive and streams hold already, as one.

    Parameters
    ----------
    store
        The archive, loaded.
    connection
        The streams; ``None``: the archive alone is asked.
    """

    def __init__(
        self, store: ArchiveStore, keys: Keys, connection: redis.asyncio.Redis | None, address: str
    ) -> None:
        self._store = store
        self._keys = keys
        self._redis = connection
        self._address = address

    async def note(
        self, known: Known, codes: Sequence[str], period: str, start_ms: int, end_ms: int
    ) -> None:
        """Tell what is there of codes and a span of exchange time (of labels).

        Raises
        ------
        ArchiveUnavailable, ArchiveDamaged, RedisUnavailable
        """
        span = start_ms, end_ms
        # A late tick lies behind its own time.
        end_ms = day_start_ms(day_of(end_ms)) + DAY_MS - 1 if period == "tick" else end_ms
        has_archive = self._store.manifest.generation > 0
        request = StoredRequest(
            codes=tuple(codes),
            period=period,
            start_ms=start_ms if has_archive else None,
            end_ms=end_ms,
            columns=CONTENT if period == "tick" else (),
        )
        if self._redis is not None:
            source = RedisStored(
                self._redis,
                self._keys,
                archive_url=self._store.url if has_archive else "",
                address=self._address,
            )
            async with aclosing(source.batches(request, _no_gap)) as batches:
                async for batch in batches:
                    known.add(_of_span(batch, span))
        elif has_archive:
            reader = ArchiveReader(self._store.url)
            rows = (
                reader.ticks(codes, start_ms, end_ms, columns=CONTENT)
                if period == "tick"
                else reader.bars(period, codes, start_ms, end_ms, columns=())
            )
            for batch in rows:
                known.add(_of_span(batch, span))

    async def refuse_ahead(self, last_ms: Mapping[str, int]) -> None:
        """Refuse rows newer than what was recorded while the streams have more to record.

        Recording goes on from the last ids that the archive has of each code, whatever their
        source: rows ahead of it would hide what lies between.

        Parameters
        ----------
        last_ms
            Market to the newest row that is to be added.

        Raises
        ------
        InvalidRequest
            When there are such rows.
        """
        for market, newest_ms in last_ms.items():
            at = self._store.manifest.markets.get(market)
            if at is not None and newest_ms <= id_key(at.position)[0]:
                continue
            if self._redis is None:
                ahead = at is not None
            else:
                async with redis_call(self._address):
                    tail: Any = await self._redis.xrevrange(self._keys.feed(market), count=1)
                last = tail[0][0].decode() if tail else ""
                ahead = bool(tail) and (at is None or id_key(last) > id_key(at.position))
            if ahead:
                raise InvalidRequest(
                    f"Of {market} there may be more in the streams than in the archive, and these "
                    "rows are newer.",
                    hint="Run qmt-archive run until it has caught up, stop it, and do this again.",
                    market=market,
                )


def _of_span(batch: pa.RecordBatch, span: tuple[int, int]) -> pa.RecordBatch:
    if "time" not in batch.schema.names:
        return batch
    at_ms = pc.coalesce(batch.column("time").cast(pa.int64()), batch.column("id_ms"))
    return batch.filter(pc.and_(pc.greater_equal(at_ms, span[0]), pc.less_equal(at_ms, span[1])))


def _no_gap(gap: Gap) -> None:
    """What cannot be read is not known; recording has told it."""
