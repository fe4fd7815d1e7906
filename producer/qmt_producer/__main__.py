"""``qmt-producer``: push the terminal's ticks and bars into Redis Streams."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import structlog

from qmt_protocol.errors import QMTError
from qmt_protocol.settings import load_settings

from .producer import Producer
from .settings import ProducerSettings

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the producer until Ctrl-C; return the exit code, 3 where it should be started again."""
    try:
        settings = load_settings(ProducerSettings, arguments)
        level = logging.getLevelName(settings.log_level.upper())
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        )
        producer = Producer(settings)
    except QMTError as error:
        print(f"qmt-producer: {error}", file=sys.stderr)
        return 2
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: producer.stop())
    if settings.exit_with_stdin:
        threading.Thread(target=_stop_with_stdin, args=(producer,), daemon=True).start()
    return producer.run()


def _stop_with_stdin(producer: Producer) -> None:
    # Not by sys.stdin: its lock, held by a thread, breaks the interpreter's end.
    while os.read(0, 4096):
        pass
    producer.stop()


if __name__ == "__main__":
    sys.exit(main())
