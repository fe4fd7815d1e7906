"""Checking archived files against the manifest, and against what every reader relies on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from qmt_protocol.archive import ArchivedFile, bar_span
from qmt_protocol.errors import ArchiveDamaged
from qmt_protocol.times import trading_day

from .maintenance import Group, groups, sorted_ticks
from .store import ArchiveStore

__all__ = ["Checked", "verify"]

_HOUR_MS: Final = 3_600_000


class Checked(msgspec.Struct, kw_only=True):
    """What was found in the files of one market's day (of bars: month or year)."""

    kind: str
    market: str
    period: str
    day: int
    files: int
    rows: int
    codes: int
    size_bytes: int
    problems: list[str] = msgspec.field(default_factory=list)


def verify(store: ArchiveStore, day: int | None = None) -> list[Checked]:
    """Read every file of a trading day (``None``: of the archive), and bars that may be of it.

    Looked at are: the rows and ids that the manifest says, the order within each file, codes of
    the right market, ids of the right day, and that no row is stored twice.

    Raises
    ------
    ArchiveUnavailable
        When the folder or bucket cannot be reached.
    """
    return [
        _check(store, group)
        for group in groups(store.manifest)
        if day is None
        or group.day == (day if group.kind == "tick" else bar_span(group.period, day))
    ]


def _check(store: ArchiveStore, group: Group) -> Checked:
    found = Checked(
        kind=group.kind,
        market=group.market,
        period=group.period,
        day=group.day,
        files=len(group.files),
        rows=sum(one.rows for one in group.files),
        size_bytes=sum(one.size_bytes for one in group.files),
        codes=0,
    )
    codes: set[str] = set()
    for file in group.files:
        try:
            found.problems += [f"{file.path}: {what}" for what in _wrong(store, file, codes)]
        except ArchiveDamaged as error:
            found.problems.append(error.message)
    found.codes = len(codes)
    if group.kind == "tick" and not found.problems:
        once = sum(len(table) for table in sorted_ticks(store, group))
        if once != found.rows:
            found.problems.append(f"{found.rows - once} ticks are stored more than once")
    return found


def _wrong(store: ArchiveStore, file: ArchivedFile, codes: set[str]) -> Iterator[str]:
    statistics = store.check_rows(file)
    rows, last = 0, None
    first_ms, last_ms = 2**62, 0
    days: set[int] = set()
    sorted_so_far = True
    for batch in store.read(file, ["code", "id_ms", "id_seq"]):
        if not len(batch):
            continue
        ids = batch.column("id_ms").to_numpy()
        first_ms, last_ms = min(first_ms, int(ids.min())), max(last_ms, int(ids.max()))
        rows += len(batch)
        hours = np.unique(ids // _HOUR_MS).tolist()
        days.update(trading_day(hour * _HOUR_MS) for hour in hours)
        codes.update(_used(batch.column("code")))
        increasing, last = _increases(batch, file.kind, last)
        sorted_so_far = sorted_so_far and increasing
    if not sorted_so_far:
        yield "its rows are not sorted, or one is there twice"
    if (first_ms, last_ms) != (file.first_ms, file.last_ms):
        yield f"its ids reach from {first_ms} to {last_ms}, the manifest says otherwise"
    if statistics is not None and statistics != (first_ms, last_ms):
        yield f"its statistics say {statistics[0]} to {statistics[1]}"
    if foreign := sorted(code for code in codes if code.rpartition(".")[2] != file.market):
        yield f"it has codes of another market: {', '.join(foreign[:3])}"
    if file.kind == "tick":
        wrong = days - {file.day}
    else:
        wrong = {day for day in days if bar_span(file.period, day) != file.day}
    if wrong:
        yield f"it has rows of {', '.join(map(str, sorted(wrong)))}"


def _used(column: pa.DictionaryArray) -> Iterator[str]:
    names = column.dictionary.to_pylist()
    return (names[at] for at in np.unique(column.indices.to_numpy()).tolist())


def _increases(
    batch: pa.RecordBatch, kind: str, last: tuple[Any, ...] | None
) -> tuple[bool, tuple[Any, ...]]:
    """Whether a batch's rows, behind the last of the one before, are strictly in order."""
    column = batch.column("code")
    names = column.dictionary.to_pylist()
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(np.array(names, dtype=object), kind="stable")] = np.arange(len(names))
    code = rank[column.indices.to_numpy()]
    ms, number = batch.column("id_ms").to_numpy(), batch.column("id_seq").to_numpy()
    keys = (ms, code, number) if kind == "tick" else (code, ms)
    good = np.zeros(len(batch) - 1, dtype=bool)
    for key in reversed(keys):
        good = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & good)

    def row(at: int) -> tuple[Any, ...]:
        name = names[int(column.indices[at].as_py())]
        entry_key = (int(ms[at]), name, int(number[at]))
        return entry_key if kind == "tick" else (name, int(ms[at]))

    begins = last is None or row(0) > last
    return bool(good.all()) and begins, row(len(batch) - 1)
