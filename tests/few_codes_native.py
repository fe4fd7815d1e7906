"""The simulator's native stub, which subscribes to the codes of `QMT_TEST_CODES` alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from qmt_simulator import native
from qmt_simulator.native import get_local_server_port, register_create_nparray, rpc_init

__all__ = ["IPythonApiClient", "get_local_server_port", "register_create_nparray", "rpc_init"]


class IPythonApiClient(native.IPythonApiClient):
    """The stub's client, its whole-quote subscriptions narrowed."""

    def subscribe_whole_quote(
        self, codes: list[str], param: bytes, callback: Callable[[bytes], Any] | None
    ) -> int:
        """Subscribe to some codes of the markets asked for."""
        few = os.environ["QMT_TEST_CODES"].split(",")
        wanted = [code for code in few if code in codes or code.rpartition(".")[2] in codes]
        return super().subscribe_whole_quote(wanted, param, callback)
