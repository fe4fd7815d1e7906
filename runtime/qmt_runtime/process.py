"""What all processes of the bridge share: log, garbage collection, when to end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Final

import structlog

__all__ = ["on_stop_signal", "rest_the_collector", "start_logging", "when_stdin_ends"]

_COLLECT_AFTER: Final = 50_000
"""Objects made and not released between two collections."""


def rest_the_collector() -> None:
    """Keep the cycle collector from walking through everything imported while ticks wait.

    Ticks and frames hold no cycles, yet thousands of them a second would start it again and again:
    of a burst of the whole market it took a third of the producer's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def start_logging(level: str) -> None:
    """Send structlog's and the libraries' logs to standard error, JSON unless a person reads."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    renderer: structlog.typing.Processor
    if sys.stderr.isatty():
        # With rich installed the default shows local variables, keys and passwords among them.
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    else:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def on_stop_signal(act: Callable[[], object]) -> None:
    """Call back on Ctrl-C, Ctrl-Break and SIGTERM, each time, in the main thread."""
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: act())


def when_stdin_ends(act: Callable[[], object]) -> None:
    """Call back once, in a thread of its own, when standard input is closed."""
    threading.Thread(target=_watch_stdin, args=(act,), name="stdin", daemon=True).start()


def _watch_stdin(act: Callable[[], object]) -> None:
    # Not through sys.stdin's buffer: a thread that holds its lock at exit aborts the process.
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # it was closed from the start
    act()
