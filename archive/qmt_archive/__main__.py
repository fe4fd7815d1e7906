"""``qmt-archive``: write ticks and closed bars to Parquet, and tend what was written."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from qmt_protocol.errors import (
    ArchiveDamaged,
    ConfigurationError,
    InvalidRequest,
    QMTError,
    RedisUnavailable,
)
from qmt_protocol.settings import load_settings
from qmt_runtime.process import on_stop_signal, start_logging, when_stdin_ends

from .commands import backfill_command, export_command, import_command
from .listing import day_rows, missing_rows, show
from .locks import WriterLock, lock_for
from .maintenance import compact, groups, prune
from .nightly import NightlySettings, nightly
from .recorder import Recorder
from .settings import ArchiveSettings
from .store import ArchiveStore
from .verify import verify

__all__ = ["main"]

_USAGE: Final = """usage: qmt-archive COMMAND [--help]

Write ticks and closed bars to Parquet, and tend what was written.

commands:
  run             follow the feeds until Ctrl-C
  ls              what the archive holds
  verify [DAY]    read every file of a day, or of all; 1 where something is wrong
  compact [DAY]   make one file of a day's, or of all days'
  prune           delete all but the newest trading days of ticks
  backfill        fetch from the terminal what is missing
  import FILE...  take in CSV or Parquet in xtquant's columns
  export          write CSV or Parquet in xtquant's columns
"""
_KEEP: Final = re.compile(r"(\d{1,5})d?", re.ASCII)
_STOPPED: Final = 130
"""Exit code of who was ended by Ctrl-C, as shells have it."""


class ListSettings(ArchiveSettings):
    """Show what the archive holds."""

    model_config = SettingsConfigDict(cli_prog_name="qmt-archive ls")

    json_: bool = Field(False, alias="json", description="as JSON")
    paths: bool = Field(False, description="only the files' paths")


class DaySettings(ArchiveSettings):
    """Work on one trading day, or on all."""

    model_config = SettingsConfigDict(cli_prog_name="qmt-archive")

    day: CliPositionalArg[str] = Field("", description="trading day, as 20261120; empty: all")
    json_: bool = Field(False, alias="json", description="as JSON")


class PruneSettings(ArchiveSettings):
    """Delete all but the newest trading days of ticks; bars stay."""

    model_config = SettingsConfigDict(cli_prog_name="qmt-archive prune")

    keep: str = Field("250d", description="trading days with ticks that stay")
    json_: bool = Field(False, alias="json", description="as JSON")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code.

    1: something is wrong with the archive. 2: it cannot run as it is configured, or the place
    cannot be used. 3: another process writes it, or the Redis that says so is away; start again
    later. 130: Ctrl-C.
    """
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command not in _COMMANDS:
        requested = command in ("-h", "--help")
        print(_USAGE, end="", file=sys.stdout if requested else sys.stderr)
        return 0 if requested else 2
    try:
        return _COMMANDS[command](rest)
    except ArchiveDamaged as error:
        print(f"qmt-archive: {error}", file=sys.stderr)
        return 1
    except QMTError as error:
        print(f"qmt-archive: {error}", file=sys.stderr)
        later = isinstance(error, RedisUnavailable) or error.data.get("taken")
        return 3 if later and command == "run" else 2
    except KeyboardInterrupt:
        return _STOPPED


def _run(arguments: list[str]) -> int:
    on_stop_signal(sys.exit)  # as a container's first process it would hear nothing else
    settings = load_settings(NightlySettings, arguments)
    start_logging(settings.log_level)
    settings.backfill_time  # noqa: B018  # say at once if it is none
    store = ArchiveStore(settings.archive_url)
    with lock_for(store, settings.keys, settings.streams_url) as lock:
        store.load(settings.prefix)
        store.delete(store.orphans())
        store.commit(lambda manifest: manifest)  # say at once if it cannot be written
        asyncio.run(_record(Recorder(settings, store, lock), settings, store, lock))
    return 0


async def _record(
    recorder: Recorder, settings: NightlySettings, store: ArchiveStore, lock: WriterLock
) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.call_soon_threadsafe(recorder.stop)

    on_stop_signal(stop)
    if settings.exit_with_stdin:
        when_stdin_ends(stop)
    print(json.dumps({"ready": True}), flush=True)
    backfilling = asyncio.create_task(nightly(settings, store, lock))
    try:
        await recorder.run()
    finally:
        backfilling.cancel()
        await asyncio.wait([backfilling])


def _list(arguments: list[str]) -> int:
    settings = load_settings(ListSettings, arguments)
    store = ArchiveStore(settings.archive_url)
    manifest = store.load()
    if settings.paths:
        print(*sorted(manifest.paths), sep="\n")
        return 0
    days, missing = day_rows(manifest), missing_rows(manifest)
    if settings.json_:
        print(json.dumps({"files": days, "missing": missing}, ensure_ascii=False))
        return 0
    print(f"{store.address}  prefix {manifest.prefix}")
    print(show(days) if days else "nothing yet")
    if missing:
        print("\nmissing")
        print(show(missing))
    return 0


def _verify(arguments: list[str]) -> int:
    settings = load_settings(DaySettings, arguments)
    store = ArchiveStore(settings.archive_url)
    store.load()
    checked = verify(store, _day(settings.day))
    if settings.day and not checked:
        raise InvalidRequest(
            f"The archive has nothing of {settings.day}.",
            hint="qmt-archive ls shows its days.",
            day=settings.day,
        )
    problems = [what for one in checked for what in one.problems]
    if settings.json_:
        print(json.dumps(msgspec.to_builtins(checked), ensure_ascii=False))
        return 1 if problems else 0
    rows = [msgspec.to_builtins(one) for one in checked]
    shown = [{**row, "problems": len(row["problems"]) or "none"} for row in rows]
    print(show(shown) if shown else "nothing to verify")
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


def _compact(arguments: list[str]) -> int:
    settings = load_settings(DaySettings, arguments)
    day = _day(settings.day)
    store = ArchiveStore(settings.archive_url)
    done: list[dict[str, Any]] = []
    failed = 0
    with lock_for(store, settings.keys, settings.streams_url) as lock:
        store.load()
        store.delete(store.orphans())
        for group in groups(store.manifest):
            if group.is_one or (day is not None and group.kind == "tick" and group.day != day):
                continue
            try:
                made = compact(store, group, lock.check)
            except ArchiveDamaged as error:
                print(f"qmt-archive: {error}", file=sys.stderr)
                failed += 1
                continue
            store.delete(made.replaced)
            done.append(
                {
                    "kind": group.kind,
                    "market": group.market,
                    "period": group.period,
                    "day": group.day,
                    "files": len(group.files),
                    "rows": made.file.rows,
                    "repeats": made.repeats,
                    "bytes_before": sum(one.size_bytes for one in group.files),
                    "bytes": made.file.size_bytes,
                }
            )
    if settings.json_:
        print(json.dumps(done))
    else:
        print(show(done) if done else "nothing to compact")
    return 1 if failed else 0


def _prune(arguments: list[str]) -> int:
    settings = load_settings(PruneSettings, arguments)
    match = _KEEP.fullmatch(settings.keep)
    if match is None or not int(match[1]):
        raise ConfigurationError(
            f"--keep {settings.keep!r} is no number of trading days.", hint="For example 250d."
        )
    store = ArchiveStore(settings.archive_url)
    with lock_for(store, settings.keys, settings.streams_url) as lock:
        store.load()
        gone, manifest = prune(store, int(match[1]), lock.check)
    days = sorted({one.day for one in gone})
    summary = {
        "days": days,
        "files": len(gone),
        "bytes": sum(one.size_bytes for one in gone),
        "kept": len(manifest.days),
    }
    if settings.json_:
        print(json.dumps(summary))
    else:
        print(f"{len(days)} days deleted, {summary['bytes']:,} bytes; {summary['kept']} kept")
    return 0


def _day(text: str) -> int | None:
    if not text:
        return None
    if re.fullmatch(r"\d{8}", text, re.ASCII):
        return int(text)
    raise InvalidRequest(f"{text!r} is not a day.", hint="For example 20261120.", day=text)


_COMMANDS: Final[dict[str, Callable[[list[str]], int]]] = {
    "run": _run,
    "ls": _list,
    "verify": _verify,
    "compact": _compact,
    "prune": _prune,
    "backfill": backfill_command,
    "import": import_command,
    "export": export_command,
}


if __name__ == "__main__":
    sys.exit(main())
