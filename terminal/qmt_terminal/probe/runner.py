"""Asks the questions through a child, and goes on with a fresh one when a call hangs or aborts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from .question import Question
from .questions import QUESTIONS
from .report import Report

__all__ = ["Choice", "Prober"]

_CONNECT_S: Final = 60.0
_LEAVE_S: Final = 3.0
_INTERRUPTIBLE_S: Final = 0.25
_STACK_OVERRUN: Final = 0xC0000409
_TEXT_TAIL: Final = 2_000

OnProgress = Callable[[int, int, Question, dict[str, Any] | None], None]
"""Called with the number of the question, how many there are, the question and its answer."""
OnPerson = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is asked, and how long it may take.

    Parameters
    ----------
    names
        Questions by name; empty: all that the other switches allow.
    minutes
        Questions not begun by then are left out.
    listen_s
        How long pushes are listened to at most.
    settle_s
        How long pushes are waited for after a restart of the terminal.
    lag_s
        How long downloaded data may stay unreadable before they count as absent.
    """

    names: frozenset[str] = frozenset()
    minutes: float = 20.0
    downloads: bool = True
    disturbs: bool = False
    listen_s: float = 120.0
    settle_s: float = 90.0
    lag_s: float = 5.0

    def questions(self) -> list[Question]:
        """Return the questions to ask, in order."""
        return [
            question
            for question in QUESTIONS.values()
            if (not self.names or question.name in self.names)
            and (self.downloads or not question.downloads)
            and (self.disturbs or not question.disturbs)
        ]


class _Child:
    """A running ``python -m qmt_terminal.probe``."""

    def __init__(self, environment: Mapping[str, str], options: dict[str, Any]) -> None:
        # A Ctrl-C at the console is for the parent, which ends the child itself.
        apart: dict[str, Any] = (
            {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
            if os.name == "nt"
            else {"start_new_session": True}
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qmt_terminal.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            text=True,
            encoding="utf-8",
            errors="replace",
            **apart,
        )
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._errors = ""
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.say(json.dumps(options))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                document = json.loads(line)
            except ValueError:
                continue  # half a line of a child that died
            if isinstance(document, dict):
                self._messages.put(document)
        self._messages.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors = (self._errors + line)[-_TEXT_TAIL:]

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it died; what it tells then says so
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def hear(self, timeout_s: float) -> dict[str, Any] | None:
        """Return what it tells next, None at its end.

        Raises
        ------
        queue.Empty
            When it tells nothing in time.
        """
        end = time.monotonic() + timeout_s
        while True:
            left_s = end - time.monotonic()
            try:
                # In short waits: on Windows Ctrl-C does not interrupt a long one.
                return self._messages.get(timeout=max(0.0, min(left_s, _INTERRUPTIBLE_S)))
            except queue.Empty:
                if left_s <= _INTERRUPTIBLE_S:
                    raise

    def end(self) -> str:
        """End it; returns in words how it ended by itself."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            code = self.process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(_LEAVE_S)
        for thread in self._threads:
            thread.join(_LEAVE_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return _ending(code, self._errors)


def _ending(code: int, errors: str) -> str:
    tail = errors.strip().splitlines()[-1:] or [""]
    if code == -6 or code & 0xFFFFFFFF == _STACK_OVERRUN:
        return f"native abort (exit code {code & 0xFFFFFFFF:#x}) {tail[0]}".strip()
    return f"ended with exit code {code & 0xFFFFFFFF:#x} {tail[0]}".strip()


class Prober:
    """Runs a questionnaire.

    Parameters
    ----------
    choice
        What is asked.
    environment
        Variables for the child instead of this process's; the ``QMT_*`` ones say which terminal.
    on_progress
        Called before each question (answer ``None``) and after it.
    on_person
        Called when somebody must do something: ``restart`` the terminal.
    """

    def __init__(
        self,
        choice: Choice,
        *,
        environment: Mapping[str, str] | None = None,
        on_progress: OnProgress = lambda number, total, question, answer: None,
        on_person: OnPerson = lambda what: None,
    ) -> None:
        self._choice = choice
        self._environment = {
            **(os.environ if environment is None else environment),
            "PYTHONUTF8": "1",
            "TZ": "CST-8",
        }
        self._on_progress = on_progress
        self._on_person = on_person
        self._child: _Child | None = None

    def run(self, report: Report, *, after_each: Callable[[Report], None] | None = None) -> Report:
        """Ask every question and fill the report; Ctrl-C ends it early, and the report says so."""
        questions = self._choice.questions()
        deadline = time.monotonic() + self._choice.minutes * 60
        try:
            for number, question in enumerate(questions, 1):
                if report.refusal or time.monotonic() > deadline:
                    reason = report.refusal.get("error") or "time is over"
                    report.add(question.name, {"status": "not asked", "reason": reason})
                    continue
                self._on_progress(number, len(questions), question, None)
                answer = self._ask(question, report)
                report.add(question.name, answer)
                self._on_progress(number, len(questions), question, answer)
                if after_each is not None:
                    after_each(report)
            report.complete = not report.refusal
        except KeyboardInterrupt:
            for question in questions:
                if question.name not in report.answers:
                    report.add(question.name, {"status": "not asked", "reason": "stopped"})
        finally:
            self._end_child()
        if after_each is not None:
            after_each(report)
        return report

    def _ask(self, question: Question, report: Report) -> dict[str, Any]:
        began = time.monotonic()
        child = self._connected(report)
        if child is None:
            return {"status": "not asked", "reason": report.refusal.get("error", "")}
        child.say(question.name)
        end = time.monotonic() + question.limit_s
        try:
            while True:
                message = child.hear(end - time.monotonic())
                if message is None:
                    reason = self._end_child()
                    status = "aborted"
                    break
                if message["kind"] == "person":
                    self._on_person(str(message["what"]))
                elif message["kind"] == "answer" and message["name"] == question.name:
                    if question.disturbs:
                        self._end_child()
                    return {
                        key: value for key, value in message.items() if key not in ("kind", "name")
                    }
        except queue.Empty:
            child.process.kill()
            self._end_child()
            status, reason = "hung", f"no answer within {question.limit_s:.0f} s"
        took_s = round(time.monotonic() - began, 3)
        return {"status": status, "reason": reason, "duration_s": took_s}

    def _connected(self, report: Report) -> _Child | None:
        """Return a child that is connected; after a failure the report's refusal says why not."""
        if self._child is not None:
            return self._child
        options = {
            "listen_s": self._choice.listen_s,
            "settle_s": self._choice.settle_s,
            "lag_s": self._choice.lag_s,
        }
        self._child = child = _Child(self._environment, options)
        try:
            message = child.hear(_CONNECT_S)
            if message is not None and message["kind"] == "loaded":
                report.load(message)
                message = child.hear(_CONNECT_S)
        except queue.Empty:
            message = {
                "kind": "refused",
                "error": "TimedOut",
                "message": "connecting takes too long",
            }
            child.process.kill()
        if message is not None and message["kind"] == "connected":
            report.meet(message)
            return child
        ended = self._end_child()
        report.refusal = message or {"error": "ended", "message": ended}
        return None

    def _end_child(self) -> str:
        child, self._child = self._child, None
        return "" if child is None else child.end()
