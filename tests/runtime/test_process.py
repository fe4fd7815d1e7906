"""What a person sees in a terminal of an error that nobody expected."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")

_LOCAL = textwrap.dedent(
    """
    from qmt_runtime.process import start_logging
    import logging, structlog
    start_logging("info")

    def serve(api_key):
        url = f"redis://gateway:{api_key}@streams/0"
        raise ValueError("nobody expected it")

    try:
        serve("-".join(["the", "caller's", "key"]))
    except ValueError:
        LOG("an unexpected error")
    """
)


@pytest.mark.parametrize(
    "log",
    [
        "structlog.get_logger('x').exception",
        "logging.getLogger('uvicorn.error').exception",
        "logging.getLogger('rq.worker').exception",
    ],
)
def test_no_value_of_a_variable_is_shown(log: str) -> None:
    ours, theirs = os.openpty()
    try:
        with subprocess.Popen([sys.executable, "-c", _LOCAL.replace("LOG", log)], stderr=theirs):
            pass
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # Linux tells so that the other end is closed
    finally:
        os.close(ours)
    assert b"ValueError: nobody expected it" in shown
    assert b"in serve" in shown
    assert b"the-caller's-key" not in shown
