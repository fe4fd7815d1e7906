"""The child that asks: takes questions on standard input, tells answers on standard output.

What the native library prints itself goes to file descriptor 1 too, so the answers get a
duplicate of it and descriptor 1 becomes a pipe into this process, whose lines go with the
question then asked.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import IO, Any, Final

from qmt_protocol.errors import QMTError
from qmt_protocol.settings import TerminalSettings, load_settings

from .questions import QUESTIONS
from .session import Session

__all__ = ["main"]

_LINES: Final = 10
_LINE_CHARACTERS: Final = 300
_MARK_S: Final = 1.0


class _Printed:
    """Takes over file descriptor 1 and keeps the lines that come there."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(writer)
        self._buffer = b""
        self._news = threading.Condition()
        threading.Thread(target=self._read, name="printed", daemon=True).start()

    def _read(self) -> None:
        while data := os.read(self._reader, 65_536):
            with self._news:
                self._buffer = (self._buffer + data)[-65_536:]
                self._news.notify_all()

    def take(self) -> list[str]:
        """Return the lines printed since the last time."""
        sys.stdout.flush()
        mark = f"--- {time.monotonic_ns()} ---\n".encode()
        os.write(1, mark)  # so that everything before it has been read
        with self._news:
            self._news.wait_for(lambda: mark in self._buffer, _MARK_S)
            data, self._buffer = self._buffer.replace(mark, b""), b""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("gb18030", "replace")
        lines = [line.strip()[:_LINE_CHARACTERS] for line in text.splitlines() if line.strip()]
        return lines[:_LINES]


class _Voice:
    """Writes one JSON document per line to the parent."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, kind: str, **facts: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps({"kind": kind, **facts}, default=_plain) + "\n")
            self._stream.flush()


def _plain(value: Any) -> Any:
    """Return a number of numpy's or BSON's as Python's own; anything else by its type's name."""
    item = getattr(value, "item", None)
    return item() if callable(item) else f"<{type(value).__name__}>"


def _answer(session: Session, name: str) -> dict[str, Any]:
    question = QUESTIONS[name]
    try:
        answer = question.ask(session)
    except Exception as error:  # noqa: BLE001 - a question that fails is told, the next one follows
        kind = f"{type(error).__name__}: {session.failure(error, name)}"
        return {"status": "failed", "reason": str(error), "reason_kind": kind}
    return {"status": "answered", "facts": answer.facts, "evidence": answer.evidence}


def main() -> int:
    """Connect, then answer one question per line until standard input ends."""
    voice = _Voice(os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n"))
    printed = _Printed()
    options = json.loads(sys.stdin.readline() or "{}")
    try:
        session = Session(
            load_settings(TerminalSettings, []),
            options,
            lambda what: voice.send("person", what=what),
        )
        voice.send("loaded", **session.loaded())
        info = session.connect()
    except QMTError as error:
        voice.send("refused", error=type(error).__name__, message=error.message, hint=error.hint)
        return 1
    voice.send(
        "connected",
        address=info.address,
        edition=info.edition,
        broker=info.broker,
        version=info.version,
        simulated=info.simulated,
    )
    for line in sys.stdin:
        name = line.strip()
        printed.take()
        began = time.monotonic()
        reply = _answer(session, name)
        took_s = round(time.monotonic() - began, 3)
        voice.send(
            "answer",
            name=name,
            phase=session.phase,
            market_ms=session.now_ms(),
            duration_s=took_s,
            printed=printed.take(),
            **reply,
        )
    session.close()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Native threads may still run; nothing of them is waited for.
    os._exit(code)
