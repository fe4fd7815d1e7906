"""Runs the incumbent's own server over the simulated terminal, in the incumbent's environment.

Arguments: the project's folder, the terminal's port, the port to listen on. The only changes are
those that this machine needs: the native module is the simulator's, and BSON is decoded by another
C decoder, because xtquant's own loads on Windows only.
"""

from __future__ import annotations

import os
import sys
import threading
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def main(root: str, terminal_port: str, port: str) -> None:
    """Serve until standard input closes."""
    sys.path[:0] = [root, os.path.join(root, "simulator")]
    spec = find_spec("xtquant")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package: Any = ModuleType("xtquant")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["xtquant"] = package

    from benchmarks import stamped_native

    sys.modules["xtquant.datacenter"] = stamped_native
    package.datacenter = stamped_native

    import bson  # type: ignore[import-not-found, unused-ignore]
    from xtquant import xtbson, xtdata

    xtbson.BSON.decode = staticmethod(bson.decode)
    subscribe = xtdata.subscribe_whole_quote

    def subscribe_whole_quote(code_list: list[str], callback: Any = None) -> Any:
        def called(ticks: dict[str, Any]) -> None:
            stamped_native.note(stamped_native.DECODED, len(ticks))
            callback(ticks)

        return subscribe(code_list, callback=callback and called)

    xtdata.subscribe_whole_quote = subscribe_whole_quote
    xtdata.enable_hello = False
    xtdata.connect("127.0.0.1", int(terminal_port))
    threading.Thread(target=_end_with_stdin, daemon=True).start()

    from qmt_bridge.server.cli import (  # type: ignore[import-not-found, unused-ignore]
        main as serve,
    )

    sys.argv = ["qmt-server", "--host", "127.0.0.1", "--port", port, "--log-level", "warning"]
    serve()


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
