"""A TCP relay that cuts its connections at a chosen byte or at once, with a reset."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from types import TracebackType
from typing import Final

__all__ = ["CuttingProxy"]

_CHUNK: Final = 16_384
_RESET: Final = struct.pack("ii", 1, 0)


class CuttingProxy:
    """Relays loopback connections to a port; a context manager."""

    def __init__(self, target_port: int, seed: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._budget: int | None = None
        self.cuts = 0
        """Connections cut so far."""
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut every connection now."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._drop(pair)

    def cut_within(self, most_bytes: int) -> None:
        """Cut everything after a random number of bytes more from the server."""
        with self._lock:
            self._budget = self._random.randint(1, most_bytes)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            for source, sink, counted in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._pump, args=(pair, source, sink, counted), daemon=True
                ).start()

    def _pump(
        self,
        pair: tuple[socket.socket, socket.socket],
        source: socket.socket,
        sink: socket.socket,
        counted: bool,
    ) -> None:
        try:
            while data := source.recv(_CHUNK):
                cut = False
                if counted:
                    with self._lock:
                        if self._budget is not None:
                            cut = len(data) >= self._budget
                            data = data[: self._budget]
                            self._budget = None if cut else self._budget - len(data)
                sink.sendall(data)
                if cut:
                    self.cut()
                    return
        except OSError:
            pass
        self._drop(pair, reset=False)

    def _drop(self, pair: tuple[socket.socket, socket.socket], *, reset: bool = True) -> None:
        with self._lock:
            if pair not in self._pairs:
                return
            self._pairs.discard(pair)
            self.cuts += reset
        for end in pair:
            with contextlib.suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)
            end.close()
