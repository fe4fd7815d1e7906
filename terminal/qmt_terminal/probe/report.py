"""The one file that a probe leaves: what was asked, what came, of which terminal and when."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import platform
import re
import struct
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from qmt_protocol.errors import ConfigurationError

from .questions import QUESTIONS
from .redaction import Redactor

__all__ = ["SCHEMA", "Report", "read_report"]

SCHEMA: Final = 1
KIND: Final = "qmt-probe"
_VERSION: Final = re.compile(r"\d{1,6}(\.\d{1,6}){0,5}")


@dataclasses.dataclass
class Report:
    """A questionnaire's outcome, whole or as far as it came.

    Attributes
    ----------
    terminal
        Edition, version, broker, xtquant's version, whether its BSON is C, whether it is simulated.
    address, xtquant_path
        Where they were; not written.
    refusal
        Why no terminal was met: ``error``, ``message``, ``hint``.
    answers
        Per question ``status`` (answered, failed, hung, aborted, not asked), ``facts``,
        ``evidence``, ``printed``, ``reason``, ``duration_s``, ``phase``.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    terminal: dict[str, Any] = dataclasses.field(default_factory=dict)
    refusal: dict[str, Any] = dataclasses.field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    complete: bool = False
    address: str = ""
    xtquant_path: str = ""
    began: dt.datetime = dataclasses.field(default_factory=lambda: dt.datetime.now(dt.timezone.utc))

    def load(self, reply: Mapping[str, Any]) -> None:
        """Keep which copy of xtquant asks."""
        self.terminal |= {"xtquant": str(reply.get("xtquant", "")), "c_bson": reply.get("c_bson")}
        self.xtquant_path = str(reply.get("xtquant_path", ""))

    def meet(self, reply: Mapping[str, Any]) -> None:
        """Keep what the terminal says of itself."""
        self.address = str(reply.get("address", ""))
        self.terminal |= {
            "edition": str(reply.get("edition", "")),
            "version": str(reply.get("version", "")),
            "simulated": bool(reply.get("simulated")),
            "broker": str(reply.get("broker", "")),
        }

    def add(self, name: str, answer: dict[str, Any]) -> None:
        """Keep the answer to a question."""
        self.answers[name] = answer

    def document(self, redactor: Redactor | None = None) -> dict[str, Any]:
        """Return the report as it is written, redacted."""
        inner = {
            "options": self.options,
            "tools": tools(),
            "terminal": self.terminal,
            "market": self._market(),
            "complete": self.complete,
            "refusal": self.refusal,
            "answers": self.answers,
        }
        cleaned: dict[str, Any] = (redactor or Redactor()).document(inner)
        cleaned["terminal"] |= {
            name: self.terminal[name]
            for name in ("version", "xtquant")
            if _VERSION.fullmatch(self.terminal.get(name, ""))  # it is no address, no account
        }
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "made_at": self.began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            **cleaned,
        }

    def _market(self) -> dict[str, Any]:
        answer = next((one for one in self.answers.values() if one.get("phase")), {})
        identity = self.answers.get("identity", {}).get("evidence", {})
        return {
            "phase": answer.get("phase", ""),
            "day": identity.get("market_day", 0),
            "time_ms": answer.get("market_ms", 0),
        }

    def reference(self, profile: str) -> dict[str, Any]:
        """Return the compared facts alone, as they are committed for a simulator's profile."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "profile": profile,
            "terminal": {
                key: self.terminal[key] for key in ("edition", "version", "xtquant", "simulated")
            },
            "answers": {
                name: {
                    key: answer[key] for key in ("status", "facts", "reason_kind") if key in answer
                }
                for name, answer in self.answers.items()
                if QUESTIONS[name].facts
            },
        }

    def write(self, path: Path) -> None:
        """Write the redacted report, whole or not at all."""
        partial = path.with_name(path.name + ".part")
        text = json.dumps(self.document(), ensure_ascii=False, indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)


def tools() -> dict[str, Any]:
    """Return the versions of what asked."""
    versions = {}
    for name in ("qmt-redis-bridge", "numpy", "pandas"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return {
        **versions,
        "python": platform.python_version(),
        "bits": struct.calcsize("P") * 8,
        "system": f"{platform.system()} {platform.release()} {platform.version()}"
        if platform.system() == "Windows"
        else platform.system(),
    }


def read_report(path: Path) -> dict[str, Any]:
    """Read a report or reference from a file.

    Raises
    ------
    ConfigurationError
        When it is none, or of a later schema.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path.name} is no report: {error}.") from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise ConfigurationError(f"{path.name} is no report of a probe.")
    if document.get("schema") != SCHEMA:
        raise ConfigurationError(
            f"{path.name} has schema {document.get('schema')}, not {SCHEMA}.",
            hint="Use the bridge's version that made it, or a later one.",
        )
    return document
