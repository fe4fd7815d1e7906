"""What the doctor asks the terminal: a few questions of the probe, in its child process."""

from __future__ import annotations

from typing import Any, Final

from qmt_protocol.settings import TerminalSettings
from qmt_terminal.probe import Choice, Prober, Report

from .doctor_calendar import trading_day_line
from .doctor_lines import Line
from .words import TODO, terminal_words

__all__ = ["look_at_terminal"]

_MINUTES: Final = 2.0
_QUESTIONS: Final = frozenset({"identity", "trading_day"})
_BSON: Final = {
    "True": ("C 版 BSON", "it loads, and its BSON is C"),
    "False": ("纯 Python BSON", "it loads; its BSON is pure Python, as its C part does not load"),
    "None": ("", "it loads"),
}


def look_at_terminal(settings: TerminalSettings, *, programs_run: bool) -> list[Line]:
    """Load xtquant, connect and ask what the terminal is.

    Parameters
    ----------
    programs_run
        Whether a terminal program runs: it tells 'not logged in' from 'not started'.
    """
    report = Prober(Choice(names=_QUESTIONS, minutes=_MINUTES)).run(Report())
    lines = [_xtquant(report)]
    if lines[0].level == "fail":
        return lines
    if report.refusal:
        return [*lines, _refused(report, programs_run=programs_run)]
    answer = report.answers.get("trading_day", {})
    day = trading_day_line(answer.get("evidence") or {}, str(answer.get("reason", "")))
    return [*lines, _answers(report, settings), day]


def _xtquant(report: Report) -> Line:
    found = report.terminal
    if "xtquant" not in found:
        why = report.refusal
        return Line(
            "xtquant",
            "fail",
            f"xtquant 无法加载：{why.get('message', '')}",
            f"xtquant does not load: {why.get('error', '')}",
            (
                "请重新安装，或用 QMT_XTQUANT_PATH 指定终端自带的 xtquant",
                str(why.get("hint") or "Install again, or set QMT_XTQUANT_PATH"),
            ),
            {"error": why.get("error", "")},
        )
    facts = {
        "version": found["xtquant"],
        "path": report.xtquant_path,
        "c_bson": found.get("c_bson"),
    }
    version = found["xtquant"] or "?"
    # Told, not warned of: the producer has a decoder of its own.
    chinese, english = _BSON[str(found.get("c_bson"))]
    about = "，".join(one for one in (report.xtquant_path, chinese) if one)
    return Line("xtquant", "ok", f"xtquant {version}（{about}）", english, facts=facts)


def _refused(report: Report, *, programs_run: bool) -> Line:
    why: dict[str, Any] = report.refusal
    if why.get("error") != "TerminalNotConnected":
        return Line(
            "terminal",
            "fail",
            f"终端：{why.get('message', '')}",
            str(why.get("error", "")),
            (str(why.get("hint", "")), ""),
            {"error": why.get("error", "")},
        )
    state = "waiting_for_login" if programs_run else "not_running"
    return Line(
        "terminal",
        "fail",
        f"终端不应答：{terminal_words(state)}",
        str(why.get("message", "")),
        TODO[state],
        {"state": state},
    )


def _answers(report: Report, settings: TerminalSettings) -> Line:
    found = report.terminal
    names = [found.get("broker", ""), found.get("edition", ""), found.get("version", "")]
    name = " ".join(one for one in names if one)
    simulated = found.get("simulated") or bool(settings.native_module)
    return Line(
        "terminal",
        "ok",
        f"终端应答：{name}（{report.address}）" + ("，模拟行情" if simulated else ""),
        "the terminal answers" + ("; it is SIMULATED" if simulated else ""),
        facts={**found, "address": report.address},
    )
