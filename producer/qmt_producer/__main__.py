"""``qmt-producer``: push the terminal's ticks and bars into Redis Streams."""

from __future__ import annotations

import signal
import sys

from qmt_protocol.errors import QMTError
from qmt_protocol.process import start_logging, when_stdin_ends
from qmt_protocol.settings import load_settings

from .producer import Producer
from .settings import ProducerSettings

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the producer until Ctrl-C; return the exit code, 3 where it should be started again."""
    try:
        settings = load_settings(ProducerSettings, arguments)
        start_logging(settings.log_level)
        producer = Producer(settings)
    except QMTError as error:
        print(f"qmt-producer: {error}", file=sys.stderr)
        return 2
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: producer.stop())
    if settings.exit_with_stdin:
        when_stdin_ends(producer.stop)
    return producer.run()


if __name__ == "__main__":
    sys.exit(main())
