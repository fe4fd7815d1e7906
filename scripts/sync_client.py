"""Writes `QMTClient` from `AsyncQMTClient`: the same methods without ``await``.

`scripts/sync-client` runs it; with ``--check`` it only tells whether the file is current.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "client" / "qmt_client"
TARGET = CLIENT / "sync_client.py"
SOURCES = {
    "async_client.py": "AsyncQMTClient",
    "async_ticks.py": "AsyncTicks",
    "async_stored.py": "AsyncStored",
}
"""Modules and their classes, in the order of the methods."""
DESCRIPTION = (
    "Every method has the same name and arguments on `QMTClient`. Use it as ``async with``, or "
    "call\n`close`.",
    "Every method has the same name and arguments on `AsyncQMTClient`. It may be used from scripts,"
    "\nnotebooks and several threads. Use it as ``with``, or call `close`; at the end of the "
    "program\nit closes by itself.",
)
"""What the class's description says otherwise."""
ON_THE_CALLERS_LOOP = "subscribe_realtime"
WRAPPED = {"AsyncLive": "Live", "AsyncReplay": "Replay"}
WORDS = {
    "AsyncGenerator[pa.RecordBatch, None]": "Iterator[pa.RecordBatch]",
    "AsyncLive": "Live",
    "AsyncReplay": "Replay",
}

HEAD = '''"""`QMTClient`: the same names without ``await``. Written by scripts/sync-client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from qmt_protocol.bars import Bar
from qmt_protocol.ticks import Tick
from qmt_reading.processes import Status
from qmt_reading.replay.engine import Replay

from .answers import Latest, Ticks
from .history_frames import HistoryFrames
from .async_client import GET_HISTORY_COUNT
from .async_stored import SKIP_IDLE_S
from .live import Live
from .sync_base import SyncBase
from .types import (
    Codes,
    Downloaded,
    InstrumentDetail,
    OnBars,
    OnGap,
    OnTicks,
    SavedPosition,
    ShowProgress,
    StoredForm,
    TimeLike,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["QMTClient"]


class QMTClient(SyncBase):
'''

Method = ast.FunctionDef | ast.AsyncFunctionDef


def class_of(module: str, name: str) -> ast.ClassDef:
    tree = ast.parse((CLIENT / module).read_text("utf-8"))
    return next(one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name)


def methods() -> Iterator[tuple[Method, str, bool]]:
    """Yield each public method, its source, and whether it has overloads."""
    for module, name in SOURCES.items():
        text = (CLIENT / module).read_text("utf-8")
        found = [one for one in class_of(module, name).body if isinstance(one, Method)]
        overloaded = {one.name for one in found if is_overload(one)}
        for one in found:
            if not one.name.startswith("_"):
                lines = text.splitlines()[one.lineno - 1 : one.end_lineno]
                yield one, "\n".join(lines), one.name in overloaded


def is_overload(method: Method) -> bool:
    return any(ast.unparse(one) == "overload" for one in method.decorator_list)


def without_await(text: str) -> str:
    for word, plain in WORDS.items():
        text = text.replace(word, plain)
    return text


def passed(method: Method) -> str:
    plain = [one.arg for one in method.args.args if one.arg != "self"]
    return ", ".join([*plain, *(f"{one.arg}={one.arg}" for one in method.args.kwonlyargs)])


def body(method: Method, *, overloaded: bool) -> str:
    returned = ast.unparse(method.returns) if method.returns else ""
    given = passed(method)
    if method.name == ON_THE_CALLERS_LOOP:
        return (
            "# On the caller's own loop, where the callback belongs.\n"
            "async with self._make() as client:\n"
            f"    subscribe: Any = client.{method.name}\n"
            f"    await subscribe({given})"
        )
    call, before = f"self._client.{method.name}({given})", ""
    if overloaded:  # which of them it is, is not known in here
        call, before = f"call({given})", f"call: Any = self._client.{method.name}\n"
    work = returned_from(call, returned)
    if overloaded:
        return f"{before}answer: {without_await(returned)} = {work}\nreturn answer"
    return f"return {work}"


def returned_from(call: str, returned: str) -> str:
    for kind, plain in WRAPPED.items():
        if returned.startswith(kind):
            return f"{plain}({call}, self._run, self._end)"
    if "AsyncGenerator" in returned:
        return f"self._stepped(self._run({call}))"
    return f"self._run({call})"


def written(method: Method, source: str, overloaded: bool) -> str:
    on_callers = method.name == ON_THE_CALLERS_LOOP
    arguments, returns = ast.unparse(method.args), ast.unparse(method.returns or ast.Constant(None))
    start = "async def" if on_callers else "def"
    head = f"{start} {method.name}({arguments}) -> {returns}:"
    if is_overload(method):
        if overlap := re.search(r"#.*overload-overlap.*", source):
            head = head.replace("(", f"(  {overlap[0]}\n", 1)
        return f"@overload\n{without_await(head)} ..."
    lines = [without_await(head)]
    doc = ast.get_docstring(method)
    if doc:
        lines.append(textwrap.indent(f'"""{without_await(doc)}' + ending(doc), "    "))
    lines.append(textwrap.indent(body(method, overloaded=overloaded), "    "))
    return "\n".join(lines)


def ending(doc: str) -> str:
    return '\n"""' if "\n" in doc else '"""'


def described() -> str:
    doc = ast.get_docstring(class_of("async_client.py", "AsyncQMTClient")) or ""
    before, after = DESCRIPTION
    assert before in doc, "the class is described in other words"
    return textwrap.indent(f'"""{doc.replace(before, after)}\n"""\n\n', "    ")


def made() -> str:
    text = (
        HEAD
        + described()
        + textwrap.indent("\n\n".join(written(*one) for one in methods()), "    ")
        + "\n"
    )
    ruff = (sys.executable, "-m", "ruff")
    for command in (("check", "--fix", "--exit-zero", "-q"), ("format", "-q")):
        text = subprocess.run(
            [*ruff, *command, "--stdin-filename", str(TARGET), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
    return text


def main() -> int:
    text = made()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, "utf-8")
    elif TARGET.read_text("utf-8") != text:
        sys.stderr.write("sync_client.py is not current: run scripts/sync-client.\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
