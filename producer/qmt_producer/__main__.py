"""``qmt-producer``: push the terminal's ticks and bars into Redis Streams.

``qmt-producer replay`` publishes a stored day again, see `qmt_producer.replay`.
"""

from __future__ import annotations

import sys

from qmt_protocol.errors import QMTError
from qmt_protocol.settings import load_settings
from qmt_runtime.process import (
    on_stop_signal,
    rest_the_collector,
    start_logging,
    when_stdin_ends,
)

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the producer until Ctrl-C; return the exit code, 3 where it should be started again."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["replay"]:
        # Imported here: the one needs the client's packages, the other xtquant's.
        try:
            from .replay.__main__ import main as replay
        except ModuleNotFoundError as error:
            print(
                f"qmt-producer replay: {error.name} is not installed. It comes with "
                "qmt-redis-bridge[client].",
                file=sys.stderr,
            )
            return 2
        return replay(given[1:])
    from .producer import Producer
    from .settings import ProducerSettings

    try:
        settings = load_settings(ProducerSettings, arguments)
        start_logging(settings.log_level)
        producer = Producer(settings)
        rest_the_collector()
    except QMTError as error:
        print(f"qmt-producer: {error}", file=sys.stderr)
        return 2
    on_stop_signal(producer.stop)
    if settings.exit_with_stdin:
        when_stdin_ends(producer.stop)
    return producer.run()


if __name__ == "__main__":
    sys.exit(main())
