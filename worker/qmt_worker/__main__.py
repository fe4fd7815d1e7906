"""`qmt-worker`: answer jobs from the QMT terminal on this machine."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop; returns the exit code, 2 when it cannot run as configured."""
    # Imported here, as the child process imports this module too and needs none of it.
    from qmt_protocol.errors import ConfigurationError, QMTError
    from qmt_protocol.settings import load_settings
    from qmt_runtime.child_process import CONFIGURATION_EXIT
    from qmt_runtime.process import start_logging
    from qmt_terminal.loading import check_timezone

    from .service import serve_queue
    from .settings import WorkerSettings
    from .supervisor import supervise

    given = sys.argv[1:] if arguments is None else arguments
    try:
        settings = load_settings(WorkerSettings, given)
        start_logging(settings.log_level)
        check_timezone()
        if settings.queue:
            serve_queue(settings)
            return 0
        passed = [flag for flag in given if "exit-with-stdin" not in flag]
        return supervise(passed, exit_with_stdin=settings.exit_with_stdin)
    except ConfigurationError as error:
        print(f"qmt-worker cannot start: {error}", file=sys.stderr)
        return CONFIGURATION_EXIT
    except QMTError as error:
        print(f"qmt-worker ends: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
