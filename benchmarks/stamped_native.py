"""The simulator's native stub, which also notes when each push enters its callback.

It stands at the native module's place under our producer and under the incumbent alike. The file
named by ``QMT_BENCH_STAMPS`` gets one `STAMP` per push, before anything else is done with it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from qmt_simulator import native
from qmt_simulator.native import get_local_server_port, register_create_nparray, rpc_init

__all__ = [
    "ENTERED",
    "STAMP",
    "IPythonApiClient",
    "get_local_server_port",
    "note",
    "register_create_nparray",
    "rpc_init",
]

STAMP: Final = struct.Struct("<qqq")
"""What was noted, wall clock in ns, bytes of the push."""
ENTERED: Final = 0
"""A push came to its native callback."""
DECODED: Final = 1
"""xtdata had decoded it and called the user's callback."""
_file: Final = os.open(
    os.environ["QMT_BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
)


def note(what: int, size: int) -> None:
    """Append one stamp."""
    os.write(_file, STAMP.pack(what, time.time_ns(), size))


class IPythonApiClient(native.IPythonApiClient):
    """The stub's client, its whole-quote callbacks stamped."""

    def subscribe_whole_quote(
        self, codes: list[str], param: bytes, callback: Callable[[bytes], Any] | None
    ) -> int:
        """Subscribe as the stub does."""
        if callback is None:
            return super().subscribe_whole_quote(codes, param, callback)

        def stamped(push: bytes) -> Any:
            note(ENTERED, len(push))
            return callback(push)

        return super().subscribe_whole_quote(codes, param, stamped)
