"""``python -m benchmarks``: run the benchmarks named, or all, and write result and report."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec

from . import machine, report
from .measure import SIZES, Context, Section
from .processes import ROOT

NAMES: Final = (
    "publish",
    "codec",
    "latency",
    "throughput",
    "deliveries",
    "rest",
    "memory",
    "growth",
    "stored",
    "hostile",
    "unread",
)
HERE: Final = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """Run; 1 when a benchmark failed, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument(
        "--quick", action="store_const", const="quick", dest="size", help="under four minutes"
    )
    parser.add_argument(
        "--no-incumbent", action="store_true", help="leave out the side that pip must install"
    )
    parser.add_argument(
        "--with", type=Path, dest="earlier", help="result of a full run, whose other parts stay"
    )
    parser.add_argument("--output", type=Path, help="folder for result and report")
    parser.add_argument("--scratch", type=Path, help="folder on a disk for servers and rings")
    options = parser.parse_args(arguments)
    wrong = [name for name in options.names if name not in NAMES]
    if wrong:
        parser.error(f"no benchmark {', '.join(wrong)}; there are {', '.join(NAMES)}")
    names = [name for name in NAMES if name in (options.names or NAMES)]
    return _run(names, options, list(sys.argv[1:] if arguments is None else arguments))


def _run(names: list[str], options: argparse.Namespace, words: list[str]) -> int:
    began = dt.datetime.now(dt.timezone.utc)
    run: dict[str, Any] = {
        "command": " ".join(["./scripts/bench", *words]),
        "date": began.strftime("%Y-%m-%d %H:%M UTC"),
        "size": options.size,
        "machine": machine.describe(),
        "load": [machine.load_now()],
    }
    sections = [] if options.earlier is None else _kept(options.earlier, names, run)
    for name in names:
        _say(f"{name} ...")
        started = time.monotonic()
        sections.append(_one(name, options))
        run["load"].append(machine.load_now())
        _say(f"{name}: {time.monotonic() - started:.0f} s")
    sections.sort(key=lambda section: NAMES.index(section.name))
    page = report.as_markdown(run, sections, _machine())
    whole = [section.name for section in sections] == list(NAMES)
    _write(options, began, report.as_json(run, sections), page, whole=whole)
    print(page)
    return int(any(section.failed for section in sections))


def _kept(path: Path, names: list[str], run: dict[str, Any]) -> list[Section]:
    """Return the parts of an earlier result that are not measured now, each with its date."""
    earlier = json.loads(path.read_text("utf-8"))
    if earlier["size"] != run["size"]:
        raise SystemExit(f"{path.name} is a {earlier['size']} run, this one is {run['size']}")
    sections = msgspec.convert(earlier["sections"], list[Section])
    kept = [section for section in sections if section.name not in names]
    for section in kept:
        section.facts.setdefault("measured", earlier["date"])
    run["load"] = [*earlier["load"], *run["load"]]
    return kept


def _machine() -> str:
    """Return what is written by hand about the figures; it stays over runs."""
    path = HERE / "REMARKS.md"
    return path.read_text("utf-8") if path.is_file() else ""


def _one(name: str, options: argparse.Namespace) -> Section:
    scratch = Path(tempfile.mkdtemp(prefix=f"qmt-bench-{name}-", dir=options.scratch))
    ctx = Context(options.size, scratch, _say, incumbent=not options.no_incumbent)
    run: Callable[[Context], Section] = import_module(f"{__package__}.{name}").run
    try:
        return run(ctx)
    except Exception as error:  # noqa: BLE001 - told in the report; the others still run
        traceback.print_exc()
        return Section(name, "", failed=f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(
    options: argparse.Namespace, began: dt.datetime, raw: str, page: str, *, whole: bool
) -> None:
    folder = options.output or HERE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    stem = began.strftime("%Y%m%d-%H%M%S")
    (folder / f"{stem}.json").write_text(raw, encoding="utf-8")
    (folder / f"{stem}.md").write_text(page, encoding="utf-8")
    _say(f"written: {folder / stem}.json and .md")
    if options.output is None and whole and options.size == "full":
        (HERE / "REPORT.md").write_text(page, encoding="utf-8")
        _say(f"written: {(HERE / 'REPORT.md').relative_to(ROOT)}")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
