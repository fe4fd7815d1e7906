"""Log files that one process writes for all: they rotate, and no password gets into them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import structlog

__all__ = ["LineLog", "Masker", "log_to_file"]

_IN_URL: Final = re.compile(r"(\b[a-z][a-z0-9+]{1,20}://[^\s:@/'\"]*):[^\s@/'\"]+@")
_SHORTEST_SECRET: Final = 4
_TRY_AGAIN_S: Final = 60.0


class Masker:
    """Takes passwords out of text: in URLs by their place, elsewhere by their letters.

    Parameters
    ----------
    secrets
        Passwords, tokens, and URLs whose passwords are meant.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        found: set[str] = set()
        for secret in secrets:
            password = urlsplit(secret).password if "://" in secret else secret
            if password and len(password) >= _SHORTEST_SECRET:
                found |= {password, unquote(password)}
        self._secrets = sorted(found, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without what must stay secret."""
        text = _IN_URL.sub(r"\1:***@", text)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class _Rotating(RotatingFileHandler):
    """Goes on in the same file while another program holds it, as an editor on Windows does."""

    _not_before_s = 0.0

    def shouldRollover(self, record: logging.LogRecord) -> int:  # noqa: N802
        if time.monotonic() < self._not_before_s:
            return 0
        return int(super().shouldRollover(record))

    def doRollover(self) -> None:  # noqa: N802
        try:
            super().doRollover()
        except OSError:
            self._not_before_s = time.monotonic() + _TRY_AGAIN_S
        if self.stream is None:
            self.stream = self._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Let the line go: a full disk must not stop what is logged."""


def _rotating(path: Path, max_mb: float, files: int) -> _Rotating:
    path.parent.mkdir(parents=True, exist_ok=True)
    return _Rotating(
        path,
        maxBytes=int(max_mb * 1_000_000),
        backupCount=files,
        encoding="utf-8",
        errors="replace",
    )


class LineLog:
    """One rotating file of lines.

    Parameters
    ----------
    path
        The file; older parts are ``<path>.1`` and so on.
    max_mb
        Size at which it is changed.
    files
        Older parts kept.
    masker
        What every line goes through.
    """

    def __init__(self, path: Path, *, max_mb: float, files: int, masker: Masker) -> None:
        self.path = path
        self._handler = _rotating(path, max_mb, files)
        self._masker = masker

    def write(self, line: str) -> str:
        """Append a line; returns it as it was written."""
        line = self._masker(line)
        self._handler.handle(logging.LogRecord("", logging.INFO, "", 0, line, None, None))
        return line

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class _MaskedFormatter(structlog.stdlib.ProcessorFormatter):
    masker = Masker()

    def format(self, record: logging.LogRecord) -> str:
        return self.masker(super().format(record))


def log_to_file(path: Path, *, level: str, max_mb: float, files: int, masker: Masker) -> None:
    """Send this process's own log, JSON lines, to a rotating file and nowhere else."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = _rotating(path, max_mb, files)
    formatter = _MaskedFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )
    formatter.masker = masker
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in root.handlers:
        old.close()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # It writes each URL it asks, and a webhook's URL is its key.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
