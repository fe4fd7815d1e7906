"""The commands that bring rows in from elsewhere, and take them out."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TextIO

import msgspec
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from qmt_protocol.codes import parse_codes
from qmt_protocol.errors import ArchiveDamaged, InvalidRequest
from qmt_protocol.periods import parse_period
from qmt_protocol.settings import load_settings
from qmt_protocol.times import parse_end, parse_start, to_datetime
from qmt_runtime.process import start_logging

from .backfill import Filled
from .exporting import export_rows
from .importing import import_files
from .listing import show
from .locks import WriterLock, lock_for
from .maintenance import compact, groups
from .nightly import backfilling
from .settings import ArchiveSettings
from .store import ArchiveStore

__all__ = ["backfill_command", "export_command", "import_command"]

_MARKET: Final = re.compile(r"[A-Z][A-Z0-9]{0,7}", re.ASCII)


class BackfillSettings(ArchiveSettings):
    """Fetch from the terminal what is missing: gap windows, and days without a file."""

    model_config = SettingsConfigDict(cli_prog_name="qmt-archive backfill")

    day: str = Field("", description="all of one trading day, as 20261120; empty: what is open")
    json_: bool = Field(False, alias="json", description="as JSON")


class ImportSettings(ArchiveSettings):
    """Take CSV or Parquet files in xtquant's columns into the archive: all of them, or nothing."""

    model_config = SettingsConfigDict(cli_prog_name="qmt-archive import")

    files: CliPositionalArg[list[Path]] = Field(description=".csv or .parquet")
    period: str = Field("tick", description="tick, or the bars' period: 1m, 5m, ... 1d")
    market: str = Field("", description="market of codes that are written without one, as SH")
    json_: bool = Field(False, alias="json", description="as JSON")


class ExportSettings(ArchiveSettings):
    """Write archived ticks or bars as CSV or Parquet in xtquant's columns."""

    model_config = SettingsConfigDict(
        cli_prog_name="qmt-archive export", cli_shortcuts={"output": "o", "format": "f"}
    )

    codes: str = Field(min_length=1, description="600519.SH,000001.SZ; * is all")
    start: str = Field("", description="first exchange time (label), such as 20260105")
    end: str = Field("", description="last one, included")
    period: str = Field("tick", description="tick, or the bars' period")
    format: Literal["csv", "parquet"] = Field("csv", description="csv or parquet")
    output: str = Field("-", min_length=1, description="file; - is standard output")


def import_command(arguments: list[str]) -> int:
    """Run ``qmt-archive import``."""
    settings = load_settings(ImportSettings, arguments)
    start_logging(settings.log_level)
    period = parse_period(settings.period)
    if settings.market and not _MARKET.fullmatch(settings.market):
        raise InvalidRequest(
            f"{settings.market!r} is no market.", hint="For example SH.", field="market"
        )
    store = ArchiveStore(settings.archive_url)
    with (
        lock_for(store, settings.keys, settings.streams_url) as lock,
        _bar("import", len(settings.files)) as on_progress,
    ):
        store.load(settings.prefix)
        store.delete(store.orphans())
        done = asyncio.run(
            import_files(
                store,
                lock.check,
                settings.files,
                period=period,
                market=settings.market,
                keys=settings.keys,
                streams_url=settings.streams_url,
                on_file=lambda number: on_progress(number, len(settings.files), ""),
            )
        )
    reported = {
        "files": len(settings.files),
        "rows": done.rows,
        "repeats": done.repeats,
        "forming": done.forming,
        "days": sorted({one.day for one in done.files}),
        "bytes": sum(one.size_bytes for one in done.files),
    }
    if done.streams:
        _say(f"qmt-archive: the streams were not compared: {done.streams}", sys.stderr)
    if settings.json_:
        _say(json.dumps(reported))
    else:
        _say(
            f"{done.rows:,} rows imported, {done.repeats:,} were there already, "
            f"{done.forming:,} forming bars left out"
        )
    return 0


def export_command(arguments: list[str]) -> int:
    """Run ``qmt-archive export``."""
    settings = load_settings(ExportSettings, arguments)
    start_logging(settings.log_level)
    start_ms, end_ms = parse_start(settings.start), parse_end(settings.end)
    if start_ms is not None and end_ms is not None and end_ms < start_ms:
        raise InvalidRequest("The range ends before it starts.", hint="Swap start and end.")
    to_stdout = settings.output == "-"
    if to_stdout and settings.format == "parquet" and sys.stdout.isatty():
        raise InvalidRequest("Parquet is not for a terminal.", hint="Give --output FILE.")
    try:
        count = export_rows(
            settings.archive_url,
            None if settings.codes == "*" else parse_codes(settings.codes),
            parse_period(settings.period),
            start_ms,
            end_ms,
            settings.format,
            None if to_stdout else Path(settings.output),
        )
        sys.stdout.flush()
    except BrokenPipeError:  # who read it has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    _say(f"{count:,} rows", sys.stderr)
    return 0


def backfill_command(arguments: list[str]) -> int:
    """Run ``qmt-archive backfill``."""
    settings = load_settings(BackfillSettings, arguments)
    start_logging(settings.log_level)
    if settings.day and not re.fullmatch(r"\d{8}", settings.day, re.ASCII):
        raise InvalidRequest(f"{settings.day!r} is not a day.", hint="For example 20261120.")
    store = ArchiveStore(settings.archive_url)
    with lock_for(store, settings.keys, settings.streams_url) as lock:
        store.load()
        store.delete(store.orphans())
        before = set(store.manifest.paths)
        try:
            reported = asyncio.run(
                _backfill(settings, store, lock, int(settings.day) if settings.day else None)
            )
        finally:
            failed = _compact_added(store, before, lock.check)
    rows = [
        {
            "market": one.market or "all",
            "from": f"{to_datetime(one.from_ms):%Y-%m-%d %H:%M:%S}",
            "to": f"{to_datetime(one.to_ms):%Y-%m-%d %H:%M:%S}",
            "codes": one.codes,
            "found": one.found,
            "not to be had": len(one.absent),
            "state": one.state,
        }
        for one in reported
    ]
    if settings.json_:
        _say(json.dumps(msgspec.to_builtins(reported)))
    else:
        _say(show(rows) if rows else "nothing is missing")
    return 1 if failed else 0


async def _backfill(
    settings: BackfillSettings, store: ArchiveStore, lock: WriterLock, day: int | None
) -> list[Filled]:
    with _bar("backfill") as on_progress:
        async with backfilling(settings, store, lock, on_progress) as work:
            return await work.run(day)


def _compact_added(store: ArchiveStore, before: set[str], check: Callable[[], None]) -> int:
    """Make one file again of the days that ticks were added to; return how many could not be."""
    failed = 0
    for group in groups(store.manifest):
        if group.kind != "tick" or before.issuperset(one.path for one in group.files):
            continue
        if not group.is_one:
            try:
                store.delete(compact(store, group, check).replaced)
            except ArchiveDamaged as error:
                _say(f"qmt-archive: {error}", sys.stderr)
                failed += 1
    return failed


def _say(text: str, to: TextIO | None = None) -> None:
    (to or sys.stdout).write(f"{text}\n")


@contextmanager
def _bar(label: str, total: int = 0) -> Iterator[Callable[[int, int, str], object]]:
    """Give what shows progress: a bar where a person looks."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, file=sys.stderr, leave=False) as bar:

        def report(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(what, refresh=False)
            bar.refresh()

        yield report
