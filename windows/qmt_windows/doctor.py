"""``qmt-windows doctor``: what keeps the bridge from working here, and what to do about it.

With ``--probe`` it asks a live terminal a read-only questionnaire and writes one report. It runs
where no bridge is configured, and in China time whatever this machine's own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from qmt_protocol.errors import QMTError
from qmt_terminal.probe import Choice

from .console import say
from .doctor_bridge import look_at_bridge
from .doctor_calendar import look_at_calendar_file
from .doctor_lines import Line, shown, worst
from .doctor_machine import load_terminal_settings, look_at_machine, look_for_terminals
from .doctor_probe import probe, summary
from .doctor_terminal import look_at_terminal
from .home import Home, find_home

__all__ = ["examine", "main"]


def examine(home: Home, on_line: Callable[[Line], None] = lambda line: None) -> list[Line]:
    """Look at everything, telling each line as it is known."""
    lines: list[Line] = []

    def keep(new: list[Line]) -> None:
        for line in new:
            lines.append(line)
            on_line(line)

    keep(look_at_machine(home))
    settings, wrong = load_terminal_settings()
    keep(wrong)
    if settings is not None:
        found = look_for_terminals(settings)
        keep(found)
        calendar = home.calendar_of(settings.calendar_file)
        os.environ["QMT_CALENDAR_FILE"] = str(calendar)  # for the questions' process
        keep([look_at_calendar_file(calendar, named=settings.calendar_file is not None)])
        keep(look_at_terminal(settings, programs_run=bool(found[0].facts.get("programs"))))
    keep(look_at_bridge(home))
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qmt-windows doctor",
        description="检查本机 · Looks for what keeps the bridge from working here.",
    )
    parser.add_argument("--json", action="store_true", help="write JSON to standard output")
    parser.add_argument(
        "--probe",
        action="store_true",
        help="只读问卷 · ask the live terminal a read-only questionnaire and write a report",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the report goes")
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="questions not begun by then are left out"
    )
    parser.add_argument(
        "--no-download", action="store_true", help="leave out what makes the terminal download"
    )
    parser.add_argument(
        "--disturb",
        action="store_true",
        help="ask also what others on this terminal notice: the limit of subscriptions, and its "
        "restart, to which you are asked",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Examine this machine, or probe the terminal; returns 0 when nothing is wrong, else 1."""
    options = _parser().parse_args(arguments)
    home = find_home()
    os.environ.setdefault("QMT_CONFIG", str(home.config))
    try:
        return _probe(home, options) if options.probe else _examine(home, options)
    except QMTError as error:
        sys.stderr.write(f"qmt-windows doctor: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _examine(home: Home, options: argparse.Namespace) -> int:
    lines = examine(home, (lambda line: None) if options.json else lambda line: say(shown(line)))
    level = worst(lines)
    if options.json:
        say(
            json.dumps(
                {"level": level, "lines": [line.document() for line in lines]},
                ensure_ascii=False,
                indent=1,
            )
        )
    else:
        count = sum(line.level == "fail" for line in lines)
        warned = sum(line.level == "warn" for line in lines)
        say(f"{count} 项失败，{warned} 项警告 · {count} failed, {warned} warned")
    return int(level == "fail")


def _probe(home: Home, options: argparse.Namespace) -> int:
    def send(text: str) -> None:
        if options.json:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        else:
            say(text)

    choice = Choice(
        minutes=options.minutes, downloads=not options.no_download, disturbs=options.disturb
    )
    send(
        "只读，不交易，不含账号密码；Ctrl-C 可提前结束并保留已有结果\n"
        "Read-only, no trading, no accounts; Ctrl-C ends it early and keeps what is known"
    )
    path, document = probe(home, choice, options.output, send)
    if document["refusal"]:
        send(f"{document['refusal'].get('message', '')} {document['refusal'].get('hint', '')}")
    else:
        for line in summary(document):
            send(line)
    send(f"报告 · report: {path}")
    if options.json:
        say(json.dumps(document, ensure_ascii=False, indent=1))
    return 0 if document["complete"] else 1
