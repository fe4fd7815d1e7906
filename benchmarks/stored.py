"""The archive: what recording costs, what a tick takes, how quickly it is read and replayed."""

from __future__ import annotations

import datetime as dt
import gzip
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from qmt_archive.tending import compact, groups

from qmt_archive.store import Position
from qmt_protocol.archive import MANIFEST, decode_manifest
from qmt_protocol.ticks import TICK_FIELDS
from qmt_standalone.redis_server import RedisServer

from .measure import Aim, Context, Row, Section
from .processes import Meter, child, wait_until
from .publish import Line
from .sample import INTERVAL_MS, Pushes
from .stored_days import Day, read_base, write_day, write_days
from .stored_reader import Task, ask

__all__ = ["run"]

_DAY: Final = dt.date(2025, 11, 20)
_DAY_STEPS: Final = 4200
"""Of the whole market: 26 million ticks."""
_WITHIN_S: Final = 120.0
_KEEP_MS: Final = 10**12
_CSV: Final = "CSV.gz"
_GZIP_LEVEL: Final = 6
_CSV_ROWS: Final = 300_000


def run(ctx: Context) -> Section:
    """Record a part of a day, make whole days of it, read and replay them."""
    codes = ctx.pick(full=0, quick=0, smoke=60)
    steps = ctx.pick(full=100, quick=8, smoke=5)
    section = Section(
        "stored",
        "What do archive, stored ticks and replay cost?",
        references=(_CSV,),
        facts={"pyarrow": pa.__version__},
    )
    store = _recorded(ctx, section, Pushes(codes), steps)
    base = read_base(store)
    _sizes(section, store, base)
    with _server(ctx, "redis-empty") as server:
        _one_day(ctx, section, server.url, base, steps)
        _many_days(ctx, section, server.url, base["SH"], steps)
    section.notes = [
        "Archive rate: ticks that lie in the feeds are taken by `qmt-archive run` (decoding, "
        "columns, sort, zstd, files with fsync), then the small files are compacted; ticks by the "
        "processor time of both, all threads added up, as if on one core. Starting the process is "
        f"not counted. CSV.gz: the same columns of at most {_CSV_ROWS:,} of the same rows, gzip "
        f"level {_GZIP_LEVEL}.",
        f"The day read and replayed is {_share(section)}: the recorded "
        f"{steps * INTERVAL_MS // 1000} s again and again with later times, written by the "
        "archive's own writer as compacted files, through the noon pause. A replay holds slices "
        "of time, not the day; its memory is measured over all of that as batches and over a part "
        "as records. The files were just written: they lie in the system's cache.",
        "stored_ticks gives a DataFrame of all columns and reads every row of the market's day to "
        "find a code: the time of 250 days grows with the codes of the archive, which has few "
        "here, and the few packed well, since each day repeats the same minutes.",
        "Every reader is a process of its own over the client (`QMTClient`), Redis beside it is "
        "empty; rows are counted. Rates of a replay are those of its stretches, one after the "
        "other, the first from the call on. Timing error: how much later than the one given "
        "earliest for its time a tick of the whole market came into the loop; each sample is a "
        "replay's own quantile.",
    ]
    return section


def _share(section: Section) -> str:
    return f"{section.facts['ticks of the day']:,} ticks of {section.facts['codes']:,} codes"


@contextmanager
def _server(ctx: Context, name: str) -> Iterator[RedisServer]:
    server = RedisServer(ctx.directory / name, password="")
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.directory)


# Recording


def _recorded(ctx: Context, section: Section, source: Pushes, steps: int) -> Position:
    """Record the same feeds several times; return the last archive, compacted."""
    turns = ctx.pick(full=3, quick=1, smoke=1)
    seed = ctx.directory / "archive-seed"
    with _server(ctx, "redis-recorded") as server:
        line = Line(ctx.directory, server.url, feed_keep_ms=_KEEP_MS)
        line.start()
        try:
            # With a position to go on from, what follows is read from the feeds.
            begun = _publish(line, source, range(1), 0)
            _record(ctx, server.url, seed, begun)
            published = _publish(line, source, range(1, steps), begun)
            ctx.say(f"stored: {published:,} ticks published")
            costs = []
            for turn in range(turns):
                folder = ctx.directory / f"archive-{turn}"
                shutil.copytree(seed, folder)
                recording_s = _record(ctx, server.url, folder, published)
                store = Position(str(folder))
                store.load()
                files = len(store.manifest.files)
                began = time.process_time()
                for group in groups(store.manifest):
                    if group.kind == "tick":
                        compact(store, group, lambda: None)
                costs.append((recording_s, time.process_time() - began))
        finally:
            line.close()
    ticks = published - begun
    section.facts |= {"ticks recorded": ticks, "small files": files}
    section.rows += [
        Row(
            "archive rate, one core",
            "recorded and compacted",
            "ticks/s",
            [1 / (a / ticks + b / published) for a, b in costs],
            aims=(Aim(50_000),),
        ),
        Row("processor time", "recording", "us/tick", [a * 1e6 / ticks for a, _ in costs], False),
        Row(
            "processor time",
            "compaction",
            "us/tick",
            [b * 1e6 / published for _, b in costs],
            False,
        ),
    ]
    return store


def _publish(line: Line, source: Pushes, steps: range, done: int) -> int:
    for step in steps:
        entries = source.entries(step)
        line.publish(entries)
        done += len(entries)
    line.wait(done)
    return done


def _record(ctx: Context, url: str, folder: Path, ticks: int) -> float:
    """Run the archive until it holds so many ticks; return the processor time that took."""
    with child(
        ["qmt_archive", "run", "--exit-with-stdin"],
        env={
            "QMT_ARCHIVE_URL": str(folder),
            "QMT_STREAMS_URL": url,
            "QMT_LOG_LEVEL": "warning",
            "QMT_ARCHIVE_FLUSH_S": "2",
        },
        log=ctx.directory / "archive.log",
    ) as archive:
        meter = Meter(archive=archive.pid)
        wait_until(lambda: _held(folder) >= ticks, f"{ticks} ticks archived", _WITHIN_S)
        used_s = meter.cpu_s("archive")
    if (held := _held(folder)) != ticks:
        raise RuntimeError(f"{ticks} ticks were published, the archive holds {held}")
    return used_s


def _held(folder: Path) -> int:
    try:
        manifest = decode_manifest((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return 0
    return sum(one.rows for one in manifest.files if one.kind == "tick")


def _sizes(section: Section, store: Position, base: dict[str, pa.Table]) -> None:
    rows = sum(map(len, base.values()))
    parquet = sum(one.size_bytes for one in store.manifest.files if one.kind == "tick") / rows
    table = pa.concat_tables(base.values()).unify_dictionaries().slice(0, _CSV_ROWS)
    plain, packed = _csv_bytes(table)
    section.facts["CSV bytes of a tick"] = plain / len(table)
    section.rows += [
        Row("bytes of a tick", "Parquet, compacted", "bytes", [parquet], False, (Aim(40),)),
        Row("bytes of a tick", _CSV, "bytes", [packed / len(table)], False),
    ]


def _csv_bytes(table: pa.Table) -> tuple[int, int]:
    """Return the bytes of ticks as CSV, and packed by gzip."""
    names = {name for name, _, _ in TICK_FIELDS}
    columns: dict[str, Any] = {"code": table.column("code").cast(pa.string())}
    for name in table.column_names:
        if name.rstrip("12345") in names or name in names:
            column = table.column(name)
            columns[name] = column.cast(pa.int64()) if name == "time" else column
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(pa.table(columns), sink)
    whole = sink.getvalue()
    return whole.size, len(gzip.compress(whole, _GZIP_LEVEL))


# Reading


def _one_day(
    ctx: Context, section: Section, url: str, base: dict[str, pa.Table], steps: int
) -> None:
    store = _new_place(ctx, "archive-day")
    repeats = ctx.pick(full=_DAY_STEPS // steps, quick=4, smoke=2)
    began = time.monotonic()
    day = write_day(store, base, steps, repeats, _DAY)
    section.facts |= {
        "codes": len(day.per_code),
        "ticks of the day": day.rows,
        "bytes of a tick of the day": day.size_bytes / day.rows,
    }
    ctx.say(f"stored: a day of {day.rows:,} ticks written in {time.monotonic() - began:.0f} s")
    log = ctx.directory / "reader.log"
    stored = _stored_task(url, store, _DAY, _DAY)
    names = sorted(code for code in day.per_code if code.endswith((".SH", ".SZ")))
    often = ctx.pick(full=3, quick=1, smoke=1)
    for count in (1, 300):
        some = _spread(names, count)
        rows = sum(day.per_code[code] for code in some)
        task = Task(**{**stored, "codes": some, "rows": rows, "parts": often})
        what = "stored_ticks, one code's day" if count == 1 else "stored_ticks, 300 codes' day"
        section.rows.append(Row(what, "frame", "s", ask(task, log)["seconds"], False))
        section.rows[-1].note = f"{rows:,} of {day.rows:,} ticks"
        ctx.say(f"stored: {what}")
    _replays(ctx, section, stored, day)


def _replays(ctx: Context, section: Section, stored: dict[str, Any], day: Day) -> None:
    log = ctx.directory / "reader.log"
    parts = ctx.pick(full=10, quick=2, smoke=1)
    done = ask(Task(**{**stored, "kind": "batches", "rows": day.rows, "parts": parts}), log)
    what = "replay at max"
    section.rows.append(Row(what, "batches", "ticks/s", done["rates"], aims=(Aim(500_000),)))
    costs = [("batches", done["us"])]
    peaks = [("batches", done["peak_bytes"], day.rows)]
    ctx.say("stored: replay at max as batches")
    rows = min(day.rows, ctx.pick(full=2_000_000, quick=100_000, smoke=300))
    done = ask(Task(**{**stored, "kind": "records", "rows": rows, "parts": parts}), log)
    section.rows.append(Row(what, "records", "ticks/s", done["rates"], aims=(Aim(100_000),)))
    costs.append(("records", done["us"]))
    peaks.append(("records", done["peak_bytes"], rows))
    section.rows += [
        Row("replay at max, processor time", side, "us/tick", [us], False) for side, us in costs
    ]
    section.rows += [
        Row("peak memory of a day's replay", side, "MiB", [peak / 2**20], False, (Aim(1024),))
        for side, peak, _ in peaks
    ]
    for row, (_, _, of) in zip(section.rows[-2:], peaks, strict=True):
        row.note = f"over {of:,} ticks"
    ctx.say("stored: replay at max as records")
    often = ctx.pick(full=3, quick=1, smoke=1)
    seconds = ctx.pick(full=8.0, quick=2.0, smoke=0.4)
    for speed in (1, 10):
        task = {**stored, "kind": "paced", "speed": speed, "seconds": seconds, "parts": often}
        done = ask(Task(**task), log)
        side, note = f"speed {speed}", f"{done['ticks']:,} ticks in {often * seconds:g} s"
        section.rows += [
            Row("timing error, p50", side, "ms", done["p50"], False, note=note),
            Row("timing error, p99", side, "ms", done["p99"], False, (Aim(5),), note),
        ]
    ctx.say("stored: replay at speed 1 and 10")


def _many_days(ctx: Context, section: Section, url: str, base: pa.Table, steps: int) -> None:
    count = ctx.pick(full=250, quick=25, smoke=3)
    names = _spread(sorted(pc.unique(base.column("code").cast(pa.string())).to_pylist()), 10)
    few = base.filter(pc.is_in(base.column("code").cast(pa.string()), pa.array(names)))
    repeats = ctx.pick(full=4800 // steps, quick=4, smoke=2)
    days = [day for n in range(2 * count) if (day := _DAY - dt.timedelta(n)).weekday() < 5]
    days = days[:count][::-1]
    store = _new_place(ctx, "archive-days")
    made = write_days(store, few.unify_dictionaries(), steps, repeats, days)
    ctx.say(f"stored: {count} days of {made.rows:,} ticks written")
    of_code = pc.sum(pc.equal(few.column("code").cast(pa.string()), names[0])).as_py()
    rows = int(of_code) * repeats * count
    stored = _stored_task(url, store, days[0], days[-1])
    often = ctx.pick(full=3, quick=1, smoke=1)
    task = Task(**{**stored, "codes": names[:1], "rows": rows, "parts": often})
    seconds = ask(task, ctx.directory / "reader.log")["seconds"]
    what = "stored_ticks, one code's days"
    note = f"{count} days: {rows:,} of {made.rows:,} ticks of {len(names)} codes"
    section.rows.append(Row(what, "frame", "s", seconds, False, note=note))


def _new_place(ctx: Context, name: str) -> Position:
    store = Position(str(ctx.directory / name))
    store.prepare()
    store.load("qmt")
    return store


def _stored_task(url: str, store: Position, first: dt.date, last: dt.date) -> dict[str, Any]:
    return {
        "kind": "stored",
        "streams_url": url,
        "archive_url": store.url,
        "codes": [],
        "start": first.isoformat(),
        "end": last.isoformat(),
    }


def _spread(names: list[str], count: int) -> list[str]:
    return names[:: max(1, len(names) // count)][:count]
