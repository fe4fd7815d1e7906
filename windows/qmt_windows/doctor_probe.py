"""``doctor --probe``: asks the questionnaire, shows its progress, writes the report, compares."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from qmt_protocol.errors import QMTError
from qmt_terminal.probe import (
    QUESTIONS,
    Choice,
    Difference,
    Prober,
    Question,
    Report,
    load_references,
    nearest,
)

from .home import Home

__all__ = ["probe", "summary"]

_WIDTH: Final = 150
_LONG: Final = 400


def probe(
    home: Home, choice: Choice, output: Path | None, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]]:
    """Run the questionnaire; returns the report's file and what it holds.

    Ctrl-C ends it early and leaves what is known by then.

    Raises
    ------
    QMTError
        When the file cannot be written.
    """
    path = output or home.reports / f"probe-{time.strftime('%Y%m%d-%H%M%S')}.json"
    report = Report(
        options={
            "minutes": choice.minutes,
            "downloads": choice.downloads,
            "disturbs": choice.disturbs,
        }
    )

    def write(report: Report) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            report.write(path)
        except OSError as error:
            raise QMTError(f"{path} cannot be written: {error.strerror}.") from error

    def progress(
        number: int, total: int, question: Question, answer: dict[str, Any] | None
    ) -> None:
        if answer is None:
            say(f"{number}/{total} {question.chinese} · {question.english} …")
        elif answer["status"] != "answered":
            say(f"      {answer['status']}: {answer.get('reason', '')}"[:_WIDTH])

    write(report)
    prober = Prober(choice, on_progress=progress, on_person=lambda what: say(_WORDS[what]))
    prober.run(report, after_each=write)
    return path, report.document()


_WORDS: Final = {
    "restart": "*** 请现在退出并重新启动终端、手工登录；完成前不要关闭本窗口\n"
    "*** Quit the terminal now, start it again and log in by hand; leave this window open"
}


def summary(document: dict[str, Any]) -> list[str]:
    """Return what a report means, for a person: how it differs from the simulator."""
    lines = []
    statuses = [answer["status"] for answer in document["answers"].values()]
    counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items()))
    found = nearest(document, load_references())
    if found is None:
        return [*lines, "没有可比较的模拟器报告 · no reports of the simulator to compare with"]
    lines.append(
        f"与模拟器（最接近 {found.profile}）相比：{found.compared} 项中有 "
        f"{len(found.differences)} 项不同，{found.unknown} 项现在无法得知"
    )
    lines.append(
        f"differs from the simulator (nearest profile: {found.profile}) in "
        f"{len(found.differences)} of {found.compared} answers; {found.unknown} cannot be told now"
    )
    for difference in found.differences:
        lines += _difference(difference)
    return lines


def _difference(one: Difference) -> list[str]:
    question = QUESTIONS[one.question]
    here, there = _apart(one.terminal, one.reference)
    return [
        f"  {one.name}: {question.chinese} · {question.english}",
        f"      终端 terminal:   {here}",
        f"      模拟 simulator:  {there}",
    ]


def _apart(here: Any, there: Any) -> tuple[str, str]:
    """Return both values; of long lists and mappings only what one has and the other lacks."""
    if isinstance(here, dict) and isinstance(there, dict):
        changed = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        return _short({key: here.get(key) for key in changed}), _short(
            {key: there.get(key) for key in changed}
        )
    if isinstance(here, list) and isinstance(there, list) and max(len(here), len(there)) > 5:
        ours = [one for one in here if one not in there]
        theirs = [one for one in there if one not in here]
        if ours or theirs:
            return f"also {_short(ours)}", f"also {_short(theirs)}"
    return _short(here), _short(there)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"
